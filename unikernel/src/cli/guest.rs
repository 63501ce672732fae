//! `windsor guest`.

use std::io::Write;
use std::path::PathBuf;

use blkback::proto::Abi;
use clap::{Args, ValueEnum};
use frontend::blkfront::Options;
use frontend::netfront::Options as CardOptions;
use grant::embedded::RegisterError;

use super::{BUSY, FAILED, Failure, MISSING, Outcome, USAGE, from_environment};
use crate::guest::{Guest, GuestError};
use crate::nbd::StartError;

/// Arguments of `windsor guest`.
#[derive(Args, Debug)]
pub struct GuestArgs {
    /// Directory of the embedded host (else $WINDSOR_DIR)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Name of the guest
    #[arg(long, value_name = "G")]
    name: String,
    /// Where NBD clients find its disks: one export per disk, named xvda and so on, and the empty name for the first
    #[arg(long, value_name = "unix:PATH", required_unless_present = "tap")]
    nbd: Option<String>,
    /// A TAP for its network card vif0, and again for vif1 and so on: made here unless it is there
    #[arg(long, value_name = "NAME")]
    tap: Vec<String>,
    /// Queues per network card
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    card_queues: u16,
    /// What its network cards do not take: sg, gso4, gso6, csum4, csum6
    #[arg(long, value_name = "FEATURE,...", value_delimiter = ',')]
    without: Vec<CardFeature>,
    /// Pages per ring, as a power of two
    #[arg(long, value_name = "0..4", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=4))]
    ring_order: u8,
    /// Grant anew for every request
    #[arg(long)]
    no_persistent: bool,
    /// Most segments of a request (up to 11: no indirect requests)
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(0..=4096))]
    max_indirect: u16,
    /// Rings per disk, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// Layout of the rings
    #[arg(long, value_enum, default_value_t = GuestAbi::X86_64)]
    abi: GuestAbi,
    /// Memory for rings and data; only what is touched is used
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    memory: u32,
}

/// Something that a network card can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CardFeature {
    Sg,
    Gso4,
    Gso6,
    Csum4,
    Csum6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GuestAbi {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "x86_32")]
    X86_32,
}

/// Runs a guest until SIGTERM or SIGINT; says `ready` on stdout when it can be used.
///
/// # Errors
/// No host, a name or path that somebody else has, a disk that would not flush at the end.
pub fn run(args: &GuestArgs) -> Outcome {
    super::log("info");
    let Some(dir) = args.dir.clone().or_else(from_environment) else {
        return Err(Failure::new(USAGE, "a guest needs an embedded host: --dir DIR (`windsor host --dir DIR`)"));
    };
    let path = |nbd: &String| match nbd.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => Err(Failure::new(USAGE, format!("--nbd {nbd}: give unix:PATH"))),
    };
    let nbd = args.nbd.as_ref().map(path).transpose()?;
    let has = |feature| !args.without.contains(&feature);
    let cards = CardOptions {
        queues: args.card_queues,
        scatter_gather: has(CardFeature::Sg),
        gso_tcpv4: has(CardFeature::Gso4),
        gso_tcpv6: has(CardFeature::Gso6),
        checksum_ipv4: has(CardFeature::Csum4),
        checksum_ipv6: has(CardFeature::Csum6),
        ..CardOptions::default()
    };
    let guest = Guest {
        dir,
        name: args.name.clone(),
        nbd,
        taps: args.tap.clone(),
        cards,
        options: Options {
            ring_order: args.ring_order,
            persistent: !args.no_persistent,
            max_indirect: args.max_indirect,
            queues: args.queues,
            abi: match args.abi {
                GuestAbi::X86_64 => Abi::X86_64,
                GuestAbi::X86_32 => Abi::X86_32,
            },
            ..Options::default()
        },
        memory_mib: args.memory,
    };
    guest.run(say_ready).map_err(failure)
}

fn say_ready() {
    let mut out = std::io::stdout().lock();
    // A reader who has gone does not concern the guest.
    let _ = writeln!(out, "ready").and_then(|()| out.flush());
}

fn failure(error: GuestError) -> Failure {
    let code = match &error {
        GuestError::Register(RegisterError::NameTaken(_)) | GuestError::Nbd(StartError::InUse(_)) => BUSY,
        GuestError::Register(RegisterError::NoHost { .. }) | GuestError::NoStore(_) => MISSING,
        GuestError::Register(RegisterError::BadName(_)) => USAGE,
        _ => FAILED,
    };
    Failure::new(code, error)
}

//! `windsor demo`, and the hidden subcommand `demo-part` under which its processes run.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::host::HostArgs;
use super::serve::ServeArgs;
use super::{FAILED, Failure};
use crate::bench;
use crate::demo::{self, Demo};

/// Arguments of `windsor demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// A raw disk image or block device to serve, never modified [default: a scratch image of 1 GiB in $TMPDIR]
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// How long each load runs
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Spoil a byte whenever it is read, to see that it is noticed: flip=BYTE
    #[arg(long, value_name = "flip=BYTE", value_parser = flip)]
    fault: Option<u64>,
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    json: bool,
    /// Size of the scratch image, for tests
    #[arg(long, value_name = "MIB", hide = true, default_value_t = 1024,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20), conflicts_with = "disk")]
    scratch: u64,
}

fn flip(text: &str) -> Result<u64, String> {
    let byte = text.strip_prefix("flip=").and_then(|byte| byte.parse().ok());
    byte.ok_or_else(|| "the only fault is flip=BYTE, such as flip=4096".to_owned())
}

/// Runs the demo and prints what it found; the exit code is 1 when a byte differs.
///
/// # Errors
/// When it cannot be run to its end.
pub fn run(args: &DemoArgs) -> Result<i32, Failure> {
    let demo = Demo { disk: args.disk.clone(), seconds: args.seconds, flip: args.fault, scratch: args.scratch << 20 };
    let report = demo.run()?;
    let text = match args.json {
        true => serde_json::to_string(&report).map_err(|error| Failure::new(FAILED, error))? + "\n",
        false => report.to_string(),
    };
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::new(FAILED, format!("stdout: {error}")))?;
    Ok(match report.complaint() {
        None => 0,
        Some(complaint) => Failure::new(FAILED, complaint).report(),
    })
}

/// Arguments of `windsor demo-part`.
#[derive(Args, Debug)]
pub struct DemoPartArgs {
    /// The process to end with
    #[arg(long, value_name = "PID")]
    parent: i32,
    #[command(subcommand)]
    part: DemoPart,
}

#[derive(Debug, Subcommand)]
enum DemoPart {
    /// The embedded host
    Host(HostArgs),
    /// The service VM
    Serve(ServeArgs),
    /// The guest with the disk
    Guest {
        /// Directory of the embedded host
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// The guests with cards
    Cards {
        /// Directory of the embedded host
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// The bench's guest
    BenchGuest {
        /// Directory of the embedded host
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Its name
        #[arg(long)]
        name: String,
        /// Requests that each queue has room for
        #[arg(long)]
        depth: usize,
        /// Pages of the largest request
        #[arg(long)]
        pages: usize,
        /// Queues
        #[arg(long)]
        queues: u16,
        /// Without persistent grants
        #[arg(long)]
        no_persistent: bool,
    },
}

/// Runs one process of the demo; it ends when the demo does.
///
/// # Errors
/// As the subcommand of that name.
pub fn run_part(args: &DemoPartArgs) -> Result<i32, Failure> {
    // Guests have nothing to put in order; the others are asked.
    let signal = match &args.part {
        DemoPart::Guest { .. } | DemoPart::Cards { .. } | DemoPart::BenchGuest { .. } => Signal::SIGKILL,
        DemoPart::Host(_) | DemoPart::Serve(_) => Signal::SIGTERM,
    };
    set_pdeathsig(signal).map_err(|error| Failure::new(FAILED, error))?;
    if nix::unistd::getppid().as_raw() != args.parent {
        return Err(Failure::new(FAILED, "the demo has ended"));
    }
    match &args.part {
        DemoPart::Host(args) => super::host::run(args).map(|()| 0),
        DemoPart::Serve(args) => super::serve::run(args),
        DemoPart::Guest { dir } | DemoPart::Cards { dir } => {
            super::log("warn");
            let (orders, answers) = (std::io::stdin().lock(), std::io::stdout().lock());
            let ran = match &args.part {
                DemoPart::Cards { .. } => demo::cards::run(dir, orders, answers),
                _ => demo::guest::run(dir, orders, answers),
            };
            ran.map(|()| 0).map_err(|error| Failure::new(FAILED, error))
        }
        DemoPart::BenchGuest { dir, name, depth, pages, queues, no_persistent } => {
            super::log("warn");
            let guest = bench::guest::Guest {
                dir: dir.clone(),
                name: name.clone(),
                vdev: bench::DISK,
                queues: *queues,
                depth: *depth,
                pages: *pages,
                persistent: !no_persistent,
            };
            let (orders, answers) = (std::io::stdin().lock(), std::io::stdout().lock());
            guest.run(orders, answers).map_err(|error| Failure::new(FAILED, error))?;
            Ok(0)
        }
    }
}

//! `windsor attach`.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use netback::config::Rate;
use netback::packet::Mac;

use super::{BUSY, Failure, Outcome, USAGE, WorldArgs};
use xenstore::Client;

use crate::config::DEFAULT_MTU;
use crate::device::Device;
use crate::publish::Phase;
use crate::store::{self, Nodes};
use crate::toolstack::attach::{self, Wanted};
use crate::toolstack::look::Seen;
use crate::toolstack::{Refusal, card};
use crate::vdev::Vdev;
use crate::vm::xl::Xl;
use crate::world::World;

/// Arguments of `windsor attach`.
#[derive(Args, Debug)]
pub struct AttachArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Service VM and volume, or network
    #[arg(value_name = "VM:VOLUME|VM:NETWORK")]
    source: String,
    /// As which disk [default: the first that is free]
    #[arg(long, value_name = "XVDA")]
    vdev: Option<Vdev>,
    /// The guest may only read
    #[arg(long)]
    ro: bool,
    /// As which network card [default: the first that is free]
    #[arg(long, value_name = "N", help_heading = "Network cards", value_parser = clap::value_parser!(u32).range(..1 << 31))]
    vif: Option<u32>,
    /// Its address [default: one of Xen's, at random]
    #[arg(long, value_name = "MAC", help_heading = "Network cards", value_parser = station)]
    mac: Option<Mac>,
    /// What it may use as source; again for more [default: any]
    #[arg(long, value_name = "ADDRESS", help_heading = "Network cards")]
    ip: Vec<IpAddr>,
    /// How much it may send, and receive, such as 100Mb/s or 10MB/s@20ms [default: the network's]
    #[arg(long, value_name = "RATE", help_heading = "Network cards", value_parser = Rate::from_text)]
    rate: Option<Rate>,
    /// The largest payload of a frame, in bytes [default: the network's]
    #[arg(long, value_name = "BYTES", help_heading = "Network cards", value_parser = clap::value_parser!(u16).range(68..=65521))]
    mtu: Option<u16>,
    /// How long both sides of a disk may take to be Connected, and the service VM to offer a card
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print what would be run in dom0
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Attaches and says on stdout as which disk.
///
/// # Errors
/// With the exit code of `DESIGN`, "The command".
pub fn run(args: &AttachArgs) -> Outcome {
    let Some((service, volume)) =
        args.source.split_once(':').filter(|(vm, volume)| !vm.is_empty() && !volume.is_empty())
    else {
        return Err(Failure::new(
            USAGE,
            format!("\"{}\" names no volume: give VM:VOLUME, such as acme:db, or VM:NETWORK", args.source),
        ));
    };
    let world = args.world.world()?;
    let mut store = store::toolstack(&world)?;
    if args.is_card() || card::is_network(&mut store, service, volume)? {
        return args.card(&world, &mut store, (service, volume));
    }
    let wanted = Wanted {
        guest: &args.guest,
        service,
        volume,
        vdev: args.vdev,
        read_only: args.ro,
        wait: Duration::from_secs(args.wait),
    };
    let vdev = match world {
        World::Embedded(_) if !args.dry_run => Some(attach::run(&mut store, &wanted)?),
        _ => through_xl(&mut store, &wanted, &Xl { dry_run: args.dry_run })?,
    };
    vdev.inspect(|vdev| println!("{vdev}"));
    Ok(())
}

impl AttachArgs {
    /// Something is said that only a card has.
    fn is_card(&self) -> bool {
        self.vif.is_some() || self.mac.is_some() || !self.ip.is_empty() || self.rate.is_some() || self.mtu.is_some()
    }

    fn card(&self, world: &World, store: &mut Client, (service, network): (&str, &str)) -> Outcome {
        if self.vdev.is_some() || self.ro {
            return Err(Failure::new(USAGE, "--vdev and --ro are for disks"));
        }
        let wanted = card::Wanted {
            guest: &self.guest,
            service,
            network,
            devid: self.vif,
            mac: self.mac,
            addresses: &self.ip,
            rate: self.rate,
            mtu: self.mtu,
            wait: Duration::from_secs(self.wait),
        };
        let device = match world {
            World::Embedded(_) if !self.dry_run => Some(card::run(store, &wanted)?),
            _ => card_through_xl(store, &wanted, &Xl { dry_run: self.dry_run })?,
        };
        device.inspect(|device| println!("{device}"));
        Ok(())
    }
}

/// The address of one station.
fn station(text: &str) -> Result<Mac, String> {
    match text.parse::<Mac>() {
        Ok(mac) if mac.is_group() => Err(format!("{mac} is the address of a group")),
        other => other.map_err(|error| error.to_string()),
    }
}

/// A card as `xl` sets it up; none when the line was only printed.
fn card_through_xl(store: &mut Client, wanted: &card::Wanted<'_>, xl: &Xl) -> Result<Option<Device>, Failure> {
    let prepared = card::prepare(store, wanted)?;
    let mut words = vec![
        "network-attach".to_owned(),
        prepared.guest.domid.to_string(),
        format!("devid={}", prepared.device.devid()),
        format!("mac={}", prepared.mac),
        format!("bridge={}", wanted.network),
        format!("backend={}", prepared.service.name),
    ];
    if !wanted.addresses.is_empty() {
        let addresses: Vec<String> = wanted.addresses.iter().map(IpAddr::to_string).collect();
        words.push(format!("ip={}", addresses.join(" ")));
    }
    // Older ones do not know the word.
    words.extend((prepared.mtu != DEFAULT_MTU).then(|| format!("mtu={}", prepared.mtu)));
    // xl knows no rate but its own words: so many bytes in an interval.
    words.extend(wanted.rate.map(|rate| {
        let per_second = u128::from(rate.bytes) * 1_000_000 / u128::from(rate.interval_us.max(1));
        format!("rate={per_second}B/s@{}us", rate.interval_us)
    }));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Err(refusal) = xl.run(&words) {
        let seen = Seen::read(store, &prepared.paths)?;
        return Err(explained(refusal, &seen));
    }
    if xl.dry_run {
        return Ok(None);
    }
    card::wait(store, &prepared, wanted.wait)?;
    Ok(Some(prepared.device))
}

/// On real Xen the nodes are libxl's: `xl` writes them, we wait and explain. A disk that does not come to be Connected is
/// taken away again. None when the line was only printed.
fn through_xl(store: &mut Client, wanted: &Wanted<'_>, xl: &Xl) -> Result<Option<Vdev>, Failure> {
    let prepared = attach::prepare(store, wanted)?;
    let access = if wanted.read_only { "ro" } else { "rw" };
    let disk = format!(
        "format=raw,vdev={},access={access},backend={},target={}",
        prepared.vdev, prepared.service.name, wanted.volume
    );
    let guest = prepared.guest.domid.to_string();
    let refusal = match xl.run(&["block-attach", &guest, &disk]) {
        Ok(()) if xl.dry_run => return Ok(None),
        Ok(()) => match attach::wait(store, &prepared, wanted.wait) {
            Ok(()) => return Ok(Some(prepared.vdev)),
            Err(refusal) => refusal.into(),
        },
        Err(refusal) => {
            let seen = Seen::read(store, &prepared.paths)?;
            explained(refusal, &seen)
        }
    };
    let left = store.text(&format!("{}/backend", prepared.paths.libxl))?.is_some();
    if !left {
        return Err(refusal);
    }
    let taken = xl.run(&["block-detach", &guest, &prepared.vdev.0.to_string(), "force"]);
    let more = match taken {
        Ok(()) => "; it was taken away again".to_owned(),
        Err(why) => format!("; it could not be taken away again: {why}"),
    };
    Err(Failure { text: refusal.text + &more, ..refusal })
}

/// `xl` has failed: what the service VM says of it, and the exit code that goes with that.
fn explained(refusal: Refusal, seen: &Seen) -> Failure {
    let mut failure = Failure::from(refusal);
    let own = Some(&seen.own.reason).filter(|reason| !reason.is_empty());
    if let Some(why) = seen.refused.as_ref().or(own) {
        failure.text = format!("{} ({why})", failure.text);
    }
    if seen.own.phase == Phase::Busy.name() {
        failure.code = BUSY;
    }
    failure
}

//! `windsor detach`.

use std::time::Duration;

use clap::Args;

use super::{Failure, Outcome, WorldArgs};
use crate::device::Device;
use crate::store;
use crate::toolstack::detach;
use crate::vm::xl::Xl;
use crate::world::World;

/// Arguments of `windsor detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// The disk, or network card
    #[arg(value_name = "XVDA|VIF0")]
    device: Device,
    /// Take it away without the guest's consent; what a disk has not flushed is lost
    #[arg(long)]
    force: bool,
    /// How long the guest and the service VM may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print what would be run in dom0
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Detaches; returns once both sides are gone.
///
/// # Errors
/// With the exit code of `DESIGN`, "The command".
pub fn run(args: &DetachArgs) -> Outcome {
    let world = args.world.world()?;
    let mut store = store::toolstack(&world)?;
    let found = detach::find(&mut store, &args.guest, args.device)?;
    let wait = Duration::from_secs(args.wait);
    match world {
        World::Embedded(_) if !args.dry_run => Ok(detach::run(&mut store, &found, args.force, wait)?),
        _ => {
            let xl = Xl { dry_run: args.dry_run };
            let (domid, devid) = (found.guest.domid.to_string(), args.device.devid().to_string());
            let command = match args.device {
                Device::Disk(_) => "block-detach",
                Device::Card(_) => "network-detach",
            };
            let mut words = vec![command, &domid, &devid];
            if args.force && command == "block-detach" {
                words.push("force");
            }
            xl.run(&words)?;
            if args.dry_run {
                return Ok(());
            }
            detach::wait(&mut store, &found, wait).map_err(Failure::from)
        }
    }
}

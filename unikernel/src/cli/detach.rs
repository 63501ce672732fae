//! `windsor detach`.

use std::time::Duration;

use clap::Args;

use super::attach::run_xl;
use super::{Failure, Outcome, WorldArgs};
use crate::store;
use crate::toolstack::detach;
use crate::vdev::Vdev;
use crate::world::World;

/// Arguments of `windsor detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// The disk
    #[arg(value_name = "XVDA")]
    vdev: Vdev,
    /// Take the disk away without the guest's consent; it loses what it has not flushed
    #[arg(long)]
    force: bool,
    /// How long the guest and the service VM may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
}

/// Detaches; returns once both sides are gone.
///
/// # Errors
/// With the exit code of `DESIGN`, "The command".
pub fn run(args: &DetachArgs) -> Outcome {
    let world = args.world.world()?;
    let mut store = store::toolstack(&world)?;
    let found = detach::find(&mut store, &args.guest, args.vdev)?;
    let wait = Duration::from_secs(args.wait);
    match world {
        World::Embedded(_) => Ok(detach::run(&mut store, &found, args.force, wait)?),
        World::Xen => {
            let (domid, devid) = (found.guest.domid.to_string(), args.vdev.0.to_string());
            let mut words = vec!["block-detach", &domid, &devid];
            if args.force {
                words.push("force");
            }
            run_xl(&words)?;
            detach::wait(&mut store, &found, wait).map_err(Failure::from)
        }
    }
}

//! `windsor resume`.

use clap::Args;

use super::{Failure, Outcome, USAGE, WorldArgs};
use crate::store;
use crate::toolstack::resume::{self, Target};
use crate::vdev::Vdev;

/// Arguments of `windsor resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The guest, or service VM and volume for everybody who uses it
    #[arg(value_name = "GUEST|VM:VOLUME")]
    target: String,
    /// The guest's disk
    #[arg(value_name = "XVDA")]
    vdev: Option<Vdev>,
}

/// Has held requests tried again at once and failed flushes forgotten; prints the disks that were told.
///
/// # Errors
/// With the exit code of `DESIGN`, "The command".
pub fn run(args: &ResumeArgs) -> Outcome {
    let target = match (args.target.split_once(':'), args.vdev) {
        (None, Some(vdev)) => Target::Disk(&args.target, vdev),
        (Some((vm, volume)), None) if !vm.is_empty() && !volume.is_empty() => Target::Volume(vm, volume),
        _ => return Err(Failure::new(USAGE, "say which disk: GUEST XVDA, or VM:VOLUME such as acme:db")),
    };
    let world = args.world.world()?;
    let mut store = store::toolstack(&world)?;
    for disk in resume::run(&mut store, &target)? {
        println!("{disk}");
    }
    Ok(())
}

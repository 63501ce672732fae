//! `windsor attach`.

use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::{FAILED, Failure, MISSING, Outcome, USAGE, WorldArgs};
use xenstore::Client;

use crate::store;
use crate::toolstack::attach::{self, Wanted};
use crate::vdev::Vdev;
use crate::world::World;

/// Arguments of `windsor attach`.
#[derive(Args, Debug)]
pub struct AttachArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The guest
    #[arg(value_name = "GUEST")]
    guest: String,
    /// Service VM and volume
    #[arg(value_name = "VM:VOLUME")]
    source: String,
    /// As which disk [default: the first that is free]
    #[arg(long, value_name = "XVDA")]
    vdev: Option<Vdev>,
    /// The guest may only read
    #[arg(long)]
    ro: bool,
    /// How long both sides may take to be Connected
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
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
            format!("\"{}\" names no volume: give VM:VOLUME, such as acme:db", args.source),
        ));
    };
    let world = args.world.world()?;
    let mut store = store::toolstack(&world)?;
    let wanted = Wanted {
        guest: &args.guest,
        service,
        volume,
        vdev: args.vdev,
        read_only: args.ro,
        wait: Duration::from_secs(args.wait),
    };
    let vdev = match world {
        World::Embedded(_) => attach::run(&mut store, &wanted)?,
        World::Xen => through_xl(&mut store, &wanted)?,
    };
    println!("{vdev}");
    Ok(())
}

/// On real Xen the nodes are libxl's: `xl` writes them, we wait and explain.
fn through_xl(store: &mut Client, wanted: &Wanted<'_>) -> Result<Vdev, Failure> {
    let prepared = attach::prepare(store, wanted)?;
    let access = if wanted.read_only { "ro" } else { "rw" };
    let disk = format!(
        "format=raw,vdev={},access={access},backend={},target={}",
        prepared.vdev, prepared.service.name, wanted.volume
    );
    run_xl(&["block-attach", &prepared.guest.domid.to_string(), &disk]).map_err(|mut failure| {
        if let Ok(Some(why)) = attach::explain(store, &prepared) {
            failure.text = format!("{} ({why})", failure.text);
        }
        failure
    })?;
    attach::wait(store, &prepared, wanted.wait)?;
    Ok(prepared.vdev)
}

/// Runs `xl` with its output on our stderr.
pub(super) fn run_xl(args: &[&str]) -> Outcome {
    let mut xl = Command::new("xl");
    xl.args(args).stdout(std::io::stderr());
    match xl.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(FAILED, format!("xl {} failed ({status})", args.join(" ")))),
        Err(error) => Err(Failure::new(MISSING, format!("xl cannot be run ({error}): is this dom0?"))),
    }
}

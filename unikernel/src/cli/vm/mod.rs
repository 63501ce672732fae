//! `windsor vm ...`: service VMs, from dom0.

mod create;
mod show;
mod upgrade;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use xenstore::Client;

use super::{Failure, MISSING, Outcome};
use crate::store;
use crate::vm::places::{CONFIG_DIR, STATE_DIR};
use crate::vm::xl::Xl;
use crate::vm::{Places, Record, rm, start, stop};
use crate::world::{NoWorld, World};

/// Arguments of `windsor vm`.
#[derive(Args, Debug)]
pub struct VmArgs {
    /// Images and records of service VMs
    #[arg(long, value_name = "DIR", global = true, default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Configurations of service VMs
    #[arg(long, value_name = "DIR", global = true, default_value = CONFIG_DIR)]
    config_dir: PathBuf,
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Subcommand, Debug)]
enum VmCommand {
    /// Make a service VM: its image, and a configuration for xl
    Create(create::CreateArgs),
    /// Start a service VM and wait until it is ready
    Start(StartArgs),
    /// Ask a service VM to shut down and wait for its end
    Stop(StopArgs),
    /// Every service VM: its number, state, memory, and how many devices it serves
    List(show::ListArgs),
    /// One service VM: both xenbus states of each device, and why one is not connected
    Status(show::StatusArgs),
    /// Give a service VM another image; its guests are saved, and restored on it
    Upgrade(upgrade::UpgradeArgs),
    /// Go back to the image before an upgrade, or bring back what one that broke off has left
    Rollback(upgrade::RollbackArgs),
    /// Forget a service VM that does not run
    Rm(RmArgs),
}

#[derive(Args, Debug)]
struct StartArgs {
    /// The service VM
    #[arg(value_name = "NAME")]
    name: String,
    /// How long it may take to be ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print what would be run
    #[arg(short = 'n', long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
struct StopArgs {
    /// The service VM
    #[arg(value_name = "NAME", required_unless_present = "all")]
    name: Option<String>,
    /// Stop it although guests use it: it serves until they have let go or the time is over, and is destroyed then
    #[arg(long)]
    force: bool,
    /// Stop every service VM, and their guests before them; each has the time that --wait says, and is destroyed then
    #[arg(long, conflicts_with_all = ["name", "force"])]
    all: bool,
    /// With --all, save guests in files of their names in this directory; without it, or if it is "", shut them down
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    save: Option<String>,
    /// How long it may take to end
    #[arg(long, value_name = "SECONDS", default_value_t = 330, value_parser = clap::value_parser!(u64).range(1..=86400))]
    wait: u64,
    /// Print what would be run
    #[arg(short = 'n', long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
struct RmArgs {
    /// The service VM
    #[arg(value_name = "NAME")]
    name: String,
    /// Its configuration in /etc, too
    #[arg(long)]
    purge: bool,
}

/// Runs `windsor vm ...`.
///
/// # Errors
/// With the exit code of `DESIGN`, "The command".
pub fn run(args: VmArgs) -> Outcome {
    let places = Places { state: absolute(args.state_dir)?, config: absolute(args.config_dir)? };
    match args.command {
        VmCommand::Create(args) => create::run(&places, &args),
        VmCommand::Start(args) => begin(&places, &args.name, Duration::from_secs(args.wait), args.dry_run),
        VmCommand::Stop(args) => {
            let xl = Xl { dry_run: args.dry_run };
            let wait = Duration::from_secs(args.wait);
            let mut say = |text: &str| eprintln!("windsor: {text}");
            let store = &mut dom0()?;
            let save = args.save.filter(|dir| !dir.is_empty()).map(PathBuf::from);
            let stopped = match args.name {
                Some(name) => stop::run(&xl, store, &name, args.force, wait, &mut say),
                None => stop::all(&places, &xl, store, save.as_deref(), wait, &mut say),
            };
            Ok(stopped?)
        }
        VmCommand::List(args) => show::list(&places, &args),
        VmCommand::Status(args) => show::status(&places, &args),
        VmCommand::Upgrade(args) => upgrade::run(&places, &args),
        VmCommand::Rollback(args) => upgrade::back(&places, &args),
        VmCommand::Rm(args) => Ok(rm::run(&places, &Xl::default(), &args.name, args.purge)?),
    }
}

/// Starts a VM and says on stdout which domain it is.
fn begin(places: &Places, name: &str, wait: Duration, dry_run: bool) -> Outcome {
    let record = Record::load(places, name)?;
    let domid = start::run(places, &Xl { dry_run }, &mut dom0()?, &record, wait)?;
    if !dry_run {
        println!("{domid}");
    }
    Ok(())
}

/// The store of real Xen: what `xl` does can be seen nowhere else.
fn dom0() -> Result<Client, Failure> {
    match World::find(None) {
        Ok(_) => Ok(store::toolstack(&World::Xen)?),
        Err(NoWorld) => Err(Failure::new(MISSING, "no Xen on this machine: `windsor vm` is for dom0")),
    }
}

/// `xl` is not told where we are.
fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|error| Failure::new(MISSING, format!("{}: {error}", path.display())))
}

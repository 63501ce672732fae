//! `windsor volume`: what a service VM can give to guests, and making, resizing and removing it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failure, MISSING, Outcome, USAGE, WorldArgs, print, print_json};
use crate::channel::client;
use crate::channel::wire::{Answer, Ask, VolumeLine};
use crate::config::{self, Config};
use crate::source::{self, Refusal};
use crate::store;
use crate::supervisor::volume;
use crate::toolstack::look;

/// How long a medium may take for a change.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `windsor volume`.
#[derive(Args, Debug)]
pub struct VolumeArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand, Debug)]
enum VolumeCommand {
    /// Every volume with size, place and users
    Ls {
        /// The service VM; not needed where there is one
        vm: Option<String>,
        #[command(flatten)]
        offline: Offline,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Make a volume: a partition of a disk, or an image in a directory
    Create {
        /// VM:NAME
        volume: String,
        /// Such as 10GiB; a partition is rounded up to a whole MiB
        #[arg(value_parser = size)]
        size: u64,
        /// The [[volume]] with disk or directory that it is made in; not needed where there is one
        #[arg(long = "in", value_name = "SOURCE")]
        source: Option<String>,
        #[command(flatten)]
        offline: Offline,
    },
    /// Give a volume that nobody uses another size
    Resize {
        /// VM:NAME
        volume: String,
        /// Such as 10GiB
        #[arg(value_parser = size)]
        size: u64,
        /// It may become smaller: its end is lost
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        offline: Offline,
    },
    /// Remove a volume that nobody uses, and all that is on it
    Rm {
        /// VM:NAME
        volume: String,
        #[command(flatten)]
        offline: Offline,
    },
}

/// Without a daemon.
#[derive(Args, Debug)]
struct Offline {
    /// Act on what this configuration names, while no daemon serves it
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
}

fn size(text: &str) -> Result<u64, String> {
    config::parse_size(text).ok_or_else(|| "a size is a number of bytes, or one with KiB, MiB, GiB or TiB".to_owned())
}

#[derive(Serialize)]
struct Listing {
    schema_version: u32,
    vm: String,
    volumes: Vec<VolumeLine>,
}

/// Lists or changes volumes.
///
/// # Errors
/// With the exit code that says what kind: 2 nonsense, 3 not there, 5 in use.
pub fn run(args: &VolumeArgs) -> Outcome {
    match &args.command {
        VolumeCommand::Ls { vm, offline, json } => list(args, vm.as_deref(), offline, *json),
        VolumeCommand::Create { volume, size, source, offline } => {
            let (source, bytes) = (source.clone(), *size);
            change(args, volume, offline, |name| Ask::Create { name, source, bytes })
        }
        VolumeCommand::Resize { volume, size, shrink, offline } => {
            let (bytes, shrink) = (*size, *shrink);
            change(args, volume, offline, |name| Ask::Resize { name, bytes, shrink })
        }
        VolumeCommand::Rm { volume, offline } => change(args, volume, offline, |name| Ask::Remove { name }),
    }
}

fn list(args: &VolumeArgs, vm: Option<&str>, offline: &Offline, json: bool) -> Outcome {
    let (vm, volumes) = match &offline.config {
        Some(path) => {
            let config = read(path, vm)?;
            let volumes = config.volumes.iter().map(|volume| {
                let found = volume::check(volume);
                let error = found.as_ref().err().map(ToString::to_string).unwrap_or_default();
                let mode = if volume.read_only { "ro" } else { "rw" }.to_owned();
                let source = volume.source.clone().unwrap_or_default();
                VolumeLine { name: volume.name.clone(), size: found.unwrap_or(0), mode, source, used_by: vec![], error }
            });
            (config.vm.name.clone(), volumes.collect::<Vec<_>>())
        }
        None => {
            let world = args.world.world()?;
            let vm = look::service(&mut store::toolstack(&world)?, vm)?;
            match client::ask(&world, vm.domid, &Ask::Volumes)? {
                Answer::Volumes { volumes } => (vm.name, volumes),
                other => return Err(super::unexpected(other)),
            }
        }
    };
    if json {
        return print_json(&Listing { schema_version: 1, vm, volumes });
    }
    let width = volumes.iter().map(|volume| volume.name.len()).chain([4]).max().unwrap_or(4);
    let mut text = format!("{:width$}  {:>14}  MODE  {:10}  USED BY\n", "NAME", "BYTES", "SOURCE");
    for volume in &volumes {
        let source = if volume.source.is_empty() { "-" } else { &volume.source };
        let users = if volume.used_by.is_empty() { "-".to_owned() } else { volume.used_by.join(" ") };
        let error = if volume.error.is_empty() { String::new() } else { format!("  {}", volume.error) };
        let (name, size, mode) = (&volume.name, volume.size, &volume.mode);
        text.push_str(&format!("{name:width$}  {size:>14}  {mode:4}  {source:10}  {users}{error}\n"));
    }
    print(&text)
}

/// A configuration that no daemon serves, with what its sources hold.
fn read(path: &std::path::Path, vm: Option<&str>) -> Result<Config, Failure> {
    let mut config = Config::load(path)?;
    if let Some(vm) = vm.filter(|vm| *vm != config.vm.name) {
        let text = format!("{} is the configuration of {}, not of {vm}", path.display(), config.vm.name);
        return Err(Failure::new(MISSING, text));
    }
    for error in source::refresh(&mut config) {
        eprintln!("windsor: {error}");
    }
    Ok(config)
}

fn change(args: &VolumeArgs, volume: &str, offline: &Offline, ask: impl FnOnce(String) -> Ask) -> Outcome {
    let Some((vm, name)) = volume.split_once(':') else {
        return Err(Failure::new(USAGE, format!("{volume:?} is not VM:NAME")));
    };
    // Before anything is asked: a name that is none goes nowhere.
    config::check_volume_name(name).map_err(|why| Failure::new(USAGE, format!("volume name {name:?}: {why}")))?;
    let ask = ask(name.to_owned());
    if let Some(path) = &offline.config {
        let config = read(path, Some(vm))?;
        let Some((name, change)) = ask.change() else { return Ok(()) };
        source::check(&config, &name, change)?.run()?;
        return Ok(());
    }
    let world = args.world.world()?;
    let vm = look::service(&mut store::toolstack(&world)?, Some(vm))?;
    let mut answer = client::ask(&world, vm.domid, &ask)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match answer {
            Answer::Done { .. } => return Ok(()),
            Answer::Working { ticket } if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
                answer = client::ask(&world, vm.domid, &Ask::Outcome { ticket })?;
            }
            Answer::Working { .. } => {
                let text = format!("volume {name}: still under way after {PATIENCE:?}; `windsor logs` tells the end");
                return Err(Refusal::Failed(text).into());
            }
            other => return Err(super::unexpected(other)),
        }
    }
}

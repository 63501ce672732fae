//! `windsor top`: what every disk and card does, over the request channels of the service VMs.

mod cards;
mod disks;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{Failure, Outcome, WorldArgs, print, print_json};
use crate::channel::client;
use crate::channel::wire::{Answer, Ask, TopCard, TopDevice};
use crate::store;
use crate::toolstack::domain::{self, Domain};
use crate::toolstack::look;
use crate::world::World;

/// Arguments of `windsor top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The service VM; all of them if none is named
    vm: Option<String>,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    delay: Duration,
    /// How many tables; without end if nothing is said
    #[arg(short = 'n', long, value_name = "COUNT")]
    iterations: Option<u64>,
    /// One table after the other, for files and pipes
    #[arg(short, long)]
    batch: bool,
    /// For programs: an object for each table
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("0.1 to 86400 seconds".into()),
    }
}

#[derive(Serialize)]
struct Table {
    schema_version: u32,
    seconds: f64,
    devices: Vec<disks::Row>,
    cards: Vec<cards::Row>,
}

/// The VM, the guest's domain and the device's number.
type Key = (String, u16, u32);

/// What is known of all disks and cards at one moment.
struct Look {
    at: Instant,
    devices: HashMap<Key, TopDevice>,
    cards: HashMap<Key, TopCard>,
    domains: Vec<Domain>,
}

impl Look {
    /// The guest's name; its number if it has none.
    fn guest(&self, domid: u16) -> String {
        let name = self.domains.iter().find(|domain| domain.domid == domid).map(|domain| domain.name.clone());
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| domid.to_string())
    }
}

/// How much a counter has grown in each second.
fn rate(now: u64, then: u64, seconds: f64) -> f64 {
    now.saturating_sub(then) as f64 / seconds
}

/// Prints tables until it has printed enough.
///
/// # Errors
/// When there is no such VM, or none answers.
pub fn run(args: &TopArgs) -> Outcome {
    let world = args.world.world()?;
    let clear = !args.batch && !args.json && std::io::stdout().is_terminal();
    let mut before = look(&world, args.vm.as_deref())?;
    let mut printed = 0;
    while args.iterations.is_none_or(|wanted| printed < wanted) {
        std::thread::sleep(args.delay);
        let now = look(&world, args.vm.as_deref())?;
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
        let (devices, cards) = (disks::rows(&before, &now, seconds), cards::rows(&before, &now, seconds));
        if args.json {
            print_json(&Table { schema_version: 1, seconds, devices, cards })?;
        } else {
            let clear = if clear { "\x1b[H\x1b[J" } else { "" };
            print(&format!("{clear}{}{}", disks::table(&devices), cards::table(&cards)))?;
        }
        before = now;
        printed += 1;
    }
    Ok(())
}

fn look(world: &World, vm: Option<&str>) -> Result<Look, Failure> {
    let mut client = store::toolstack(world)?;
    let vms = match vm {
        Some(_) => vec![look::service(&mut client, vm)?],
        None => look::services(&mut client)?,
    };
    let domains = domain::all(&mut client).map_err(crate::toolstack::Refusal::from)?;
    let mut seen = Look { at: Instant::now(), devices: HashMap::new(), cards: HashMap::new(), domains };
    let mut failure = None;
    let mut answers = vms.is_empty();
    for vm in vms {
        match client::ask(world, vm.domid, &Ask::Top) {
            Ok(Answer::Top { devices, cards }) => {
                answers = true;
                let key = |guest, devid| (vm.name.clone(), guest, devid);
                seen.devices.extend(devices.into_iter().map(|device| (key(device.guest, device.devid), device)));
                seen.cards.extend(cards.into_iter().map(|card| (key(card.guest, card.devid), card)));
            }
            Ok(other) => return Err(super::unexpected(other)),
            // One VM that is away does not hide the others.
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if !answers => Err(error.into()),
        Some(error) => {
            eprintln!("windsor: {error}");
            Ok(seen)
        }
        None => Ok(seen),
    }
}

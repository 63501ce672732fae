//! `windsor top`: what every disk does, over the request channels of the service VMs.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use grant::meter::{BUCKETS, percentile};
use serde::Serialize;

use super::{Failure, Outcome, WorldArgs, print, print_json};
use crate::channel::client;
use crate::channel::wire::{Answer, Ask, TopDevice};
use crate::store;
use crate::toolstack::domain::{self, Domain};
use crate::toolstack::look;
use crate::vdev::Vdev;
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

/// A line of the table: what a disk did between two looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    vm: String,
    guest: String,
    guest_domid: u16,
    device: String,
    volume: String,
    phase: String,
    read_iops: f64,
    write_iops: f64,
    read_bytes_per_second: f64,
    write_bytes_per_second: f64,
    latency_p50_seconds: f64,
    latency_p99_seconds: f64,
    in_flight: u64,
    ring_full_per_second: f64,
    grants_mapped: u64,
    errors: u64,
}

#[derive(Serialize)]
struct Table {
    schema_version: u32,
    seconds: f64,
    devices: Vec<Row>,
}

/// What is known of all disks at one moment.
struct Look {
    at: Instant,
    devices: HashMap<(String, u16, u32), TopDevice>,
    domains: Vec<Domain>,
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
        let devices = rows(&before, &now, seconds);
        if args.json {
            print_json(&Table { schema_version: 1, seconds, devices })?;
        } else {
            let clear = if clear { "\x1b[H\x1b[J" } else { "" };
            print(&format!("{clear}{}", table(&devices)))?;
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
    let (at, mut devices) = (Instant::now(), HashMap::new());
    let mut failure = None;
    let mut answers = vms.is_empty();
    for vm in vms {
        match client::ask(world, vm.domid, &Ask::Top) {
            Ok(Answer::Top { devices: found }) => {
                answers = true;
                devices.extend(found.into_iter().map(|device| ((vm.name.clone(), device.guest, device.devid), device)));
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
            Ok(Look { at, devices, domains })
        }
        None => Ok(Look { at, devices, domains }),
    }
}

fn rows(before: &Look, now: &Look, seconds: f64) -> Vec<Row> {
    let mut rows: Vec<Row> = now
        .devices
        .iter()
        .map(|((vm, guest, devid), device)| {
            let then = before.devices.get(&(vm.clone(), *guest, *devid));
            // Counters start again when a disk is connected anew.
            let then =
                then.filter(|then| then.stats.reads <= device.stats.reads && then.stats.writes <= device.stats.writes);
            let none = TopDevice::default();
            let then = then.unwrap_or(&none);
            let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
            let mut latency = [0u64; BUCKETS];
            let mut add = |counts: &[(u16, u64)], sign: fn(u64, u64) -> u64| {
                for (bucket, count) in counts {
                    if let Some(sum) = latency.get_mut(usize::from(*bucket)) {
                        *sum = sign(*sum, *count);
                    }
                }
            };
            add(&device.latency, u64::saturating_add);
            add(&then.latency, u64::saturating_sub);
            let name = now.domains.iter().find(|domain| domain.domid == *guest).map(|domain| domain.name.clone());
            Row {
                vm: vm.clone(),
                guest: name.filter(|name| !name.is_empty()).unwrap_or_else(|| guest.to_string()),
                guest_domid: *guest,
                device: Vdev(*devid).to_string(),
                volume: device.volume.clone(),
                phase: device.phase.clone(),
                read_iops: rate(device.stats.reads, then.stats.reads),
                write_iops: rate(device.stats.writes, then.stats.writes),
                read_bytes_per_second: rate(device.stats.read_bytes, then.stats.read_bytes),
                write_bytes_per_second: rate(device.stats.write_bytes, then.stats.write_bytes),
                latency_p50_seconds: percentile(&latency, 0.5) as f64 / 1e9,
                latency_p99_seconds: percentile(&latency, 0.99) as f64 / 1e9,
                in_flight: device.in_flight,
                ring_full_per_second: rate(device.ring_full, then.ring_full),
                grants_mapped: device.grants_mapped,
                errors: device.stats.errors,
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.vm, &a.guest, &a.device).cmp(&(&b.vm, &b.guest, &b.device)));
    rows
}

fn table(rows: &[Row]) -> String {
    let width = |head: &str, text: fn(&Row) -> &str| {
        rows.iter().map(|row| text(row).chars().count()).chain([head.len()]).max().unwrap_or(0)
    };
    let widths = [
        width("VM", |row| &row.vm),
        width("GUEST", |row| &row.guest),
        width("DISK", |row| &row.device),
        width("VOLUME", |row| &row.volume),
    ];
    let [vm, guest, disk, volume] = widths;
    let mut out = format!(
        "{:vm$}  {:guest$}  {:disk$}  {:volume$}  {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>5} {:>6} {:>6} {:>6}\n",
        "VM",
        "GUEST",
        "DISK",
        "VOLUME",
        "R/S",
        "W/S",
        "RMB/S",
        "WMB/S",
        "P50US",
        "P99US",
        "DEPTH",
        "FULL/S",
        "GRANTS",
        "ERRORS"
    );
    for row in rows {
        let _ = writeln!(
            out,
            "{:vm$}  {:guest$}  {:disk$}  {:volume$}  {:>8.0} {:>8.0} {:>8.1} {:>8.1} {:>8.0} {:>8.0} {:>5} {:>6.0} {:>6} {:>6}",
            row.vm,
            row.guest,
            row.device,
            row.volume,
            row.read_iops,
            row.write_iops,
            row.read_bytes_per_second / 1e6,
            row.write_bytes_per_second / 1e6,
            row.latency_p50_seconds * 1e6,
            row.latency_p99_seconds * 1e6,
            row.in_flight,
            row.ring_full_per_second,
            row.grants_mapped,
            row.errors,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(reads: u64, latency: Vec<(u16, u64)>) -> TopDevice {
        let mut device = TopDevice { guest: 2, devid: 51712, volume: "db".into(), latency, ..TopDevice::default() };
        (device.stats.reads, device.stats.read_bytes, device.ring_full) = (reads, reads * 4096, reads / 10);
        device
    }

    fn at(device: TopDevice) -> Look {
        let domains = vec![Domain { domid: 2, name: "g1".into() }];
        Look { at: Instant::now(), devices: [(("acme".into(), 2, 51712), device)].into(), domains }
    }

    #[test]
    fn only_what_happened_between_two_looks_counts() {
        let before = at(device(100, vec![(40, 100)]));
        let rows1 = rows(&before, &at(device(300, vec![(40, 100), (60, 200)])), 2.0);
        assert_eq!(
            (rows1[0].read_iops, rows1[0].read_bytes_per_second, rows1[0].ring_full_per_second),
            (100.0, 409_600.0, 10.0)
        );
        assert_eq!(rows1[0].latency_p50_seconds, grant::meter::bucket_limit(60) as f64 / 1e9);
        assert_eq!((rows1[0].guest.as_str(), rows1[0].device.as_str()), ("g1", "xvda"));
        // Connected anew, its counters are smaller.
        let rows2 = rows(&before, &at(device(50, vec![(9999, 1)])), 2.0);
        assert_eq!(rows2[0].read_iops, 25.0);
        let text = table(&rows1);
        assert!(text.lines().count() == 2 && text.contains("acme  g1     xvda  db"), "{text}");
    }
}

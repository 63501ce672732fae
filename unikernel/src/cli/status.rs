//! `windsor status`.

use std::fmt::Write;

use clap::Args;
use serde::Serialize;

use super::{FAILED, Failure, Outcome, WorldArgs};
use crate::store;
use crate::toolstack::look::{self, CardStatus, DeviceStatus, Status};
use crate::vm::consumers::{self, Consumer};

/// Arguments of `windsor status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// For programs: what service VMs say, and what is left of those that are dead.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    status: Status,
    /// Devices of guests whose service VM is gone.
    orphans: Vec<Consumer>,
}

/// Prints every service VM with its volumes, networks and devices.
///
/// # Errors
/// When there is no world or the store does not answer.
pub fn run(args: &StatusArgs) -> Outcome {
    let world = args.world.world()?;
    let mut store = store::toolstack(&world)?;
    let failed = |error: xenstore::Error| Failure::new(FAILED, format!("xenstore: {error}"));
    let status = look::status(&mut store).map_err(failed)?;
    let report = Report { status, orphans: consumers::orphans(&mut store).map_err(failed)? };
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| Failure::new(FAILED, error))?;
        println!("{text}");
    } else {
        print!("{}", table(&report.status));
        for orphan in &report.orphans {
            println!("{}\n    {}", orphan.loss(), orphan.cure());
        }
    }
    Ok(())
}

/// For people.
pub(super) fn table(status: &Status) -> String {
    let mut out = String::new();
    if status.vms.is_empty() {
        out.push_str("no service VM\n");
    }
    for vm in &status.vms {
        let ready = if vm.ready { "" } else { ", not ready" };
        let _ = writeln!(out, "{} (domain {}{ready})", vm.name, vm.domid);
        for volume in &vm.volumes {
            let about = &volume.about;
            let error = if about.error.is_empty() { String::new() } else { format!(": {}", about.error) };
            let users = if about.used_by.is_empty() { "free".to_owned() } else { about.used_by.join(" ") };
            let _ = writeln!(out, "  volume {}  {}  {}  {users}{error}", volume.name, size(about.size), about.mode);
        }
        for device in &vm.devices {
            out.push_str(&line(device));
        }
        for network in &vm.networks {
            let about = &network.about;
            let error = if about.error.is_empty() { String::new() } else { format!(": {}", about.error) };
            let vlan = about.vlan.map(|vlan| format!("  vlan {vlan}")).unwrap_or_default();
            let users = if about.used_by.is_empty() { "free".to_owned() } else { about.used_by.join(" ") };
            let (name, uplink, mtu) = (&network.name, &about.uplink, about.mtu);
            let _ = writeln!(out, "  network {name}  {uplink}  mtu {mtu}{vlan}  {users}{error}");
        }
        for card in &vm.cards {
            out.push_str(&card_line(card));
        }
    }
    out
}

fn line(device: &DeviceStatus) -> String {
    let mut line = format!(
        "  {} {}  {}  {}  backend {}, frontend {}",
        device.guest, device.vdev, device.volume, device.phase, device.backend, device.frontend
    );
    if !device.path.is_empty() {
        let _ = write!(line, "  {}", device.path);
    }
    if let Some(stats) = &device.stats {
        let _ = write!(
            line,
            "  reads {} ({}), writes {} ({}), flushes {}, errors {}, p50 {} us, p99 {} us",
            stats.reads,
            size(stats.read_bytes),
            stats.writes,
            size(stats.write_bytes),
            stats.flushes,
            stats.errors,
            stats.p50_ns / 1000,
            stats.p99_ns / 1000,
        );
    }
    if !device.reason.is_empty() {
        let _ = write!(line, "\n    {}", device.reason);
    }
    line.push('\n');
    line
}

fn card_line(card: &CardStatus) -> String {
    let mut line = format!(
        "  {} {}  {}  {}  {}  backend {}, frontend {}",
        card.guest, card.vif, card.network, card.mac, card.phase, card.backend, card.frontend
    );
    if !card.ip.is_empty() {
        let addresses: Vec<String> = card.ip.iter().map(ToString::to_string).collect();
        let _ = write!(line, "  ip {}", addresses.join(" "));
    }
    if card.queues > 0 {
        let _ = write!(line, "  queues {}  {}", card.queues, card.features.join(" "));
    }
    if let Some(stats) = &card.stats {
        let _ = write!(
            line,
            "  sent {} ({}), received {} ({}), dropped {}, errors {}",
            stats.sent_packets,
            size(stats.sent_bytes),
            stats.received_packets,
            size(stats.received_bytes),
            stats.dropped(),
            stats.sent_errors.saturating_add(stats.received_errors),
        );
    }
    if !card.reason.is_empty() {
        let _ = write!(line, "\n    {}", card.reason);
    }
    line.push('\n');
    line
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() < 0.05 { format!("{value:.0} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size((3 << 30) / 2), "1.5 GiB");
    }
}

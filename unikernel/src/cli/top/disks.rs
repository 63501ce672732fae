//! What every disk does.

use std::fmt::Write;

use grant::meter::{BUCKETS, percentile};
use serde::Serialize;

use super::{Look, rate};
use crate::channel::wire::TopDevice;
use crate::vdev::Vdev;

/// A line of the table: what a disk did between two looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
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

/// A line for each disk, by VM and guest.
pub fn rows(before: &Look, now: &Look, seconds: f64) -> Vec<Row> {
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
            let rate = |now, then| rate(now, then, seconds);
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
            Row {
                vm: vm.clone(),
                guest: now.guest(*guest),
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

/// As people read it.
pub fn table(rows: &[Row]) -> String {
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
    use std::time::Instant;

    use super::*;
    use crate::toolstack::domain::Domain;

    fn device(reads: u64, latency: Vec<(u16, u64)>) -> TopDevice {
        let mut device = TopDevice { guest: 2, devid: 51712, volume: "db".into(), latency, ..TopDevice::default() };
        (device.stats.reads, device.stats.read_bytes, device.ring_full) = (reads, reads * 4096, reads / 10);
        device
    }

    fn at(device: TopDevice) -> Look {
        let domains = vec![Domain { domid: 2, name: "g1".into() }];
        Look { at: Instant::now(), devices: [(("acme".into(), 2, 51712), device)].into(), cards: [].into(), domains }
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

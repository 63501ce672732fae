//! What every card does. "Sent" and "received" are the guest's words.

use std::fmt::Write;

use netback::stats::Stats;
use serde::Serialize;

use super::{Look, rate};
use crate::channel::wire::TopCard;
use crate::device::Device;

/// A line of the table: what a card did between two looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    vm: String,
    guest: String,
    guest_domid: u16,
    device: String,
    network: String,
    sent_packets_per_second: f64,
    received_packets_per_second: f64,
    sent_bytes_per_second: f64,
    received_bytes_per_second: f64,
    dropped_per_second: f64,
    limited_per_second: f64,
    errors: u64,
}

/// A line for each card, by VM and guest.
pub fn rows(before: &Look, now: &Look, seconds: f64) -> Vec<Row> {
    let mut rows: Vec<Row> = now
        .cards
        .iter()
        .map(|(key, TopCard { network, stats, .. })| {
            let then = before.cards.get(key).map(|then| then.stats);
            // Counters start again when a card is connected anew.
            let is_older = |then: &Stats| {
                then.sent_packets <= stats.sent_packets && then.received_packets <= stats.received_packets
            };
            let then = then.filter(is_older).unwrap_or_default();
            let rate = |now, then| rate(now, then, seconds);
            let (vm, guest, devid) = key;
            Row {
                vm: vm.clone(),
                guest: now.guest(*guest),
                guest_domid: *guest,
                device: Device::Card(*devid).to_string(),
                network: network.clone(),
                sent_packets_per_second: rate(stats.sent_packets, then.sent_packets),
                received_packets_per_second: rate(stats.received_packets, then.received_packets),
                sent_bytes_per_second: rate(stats.sent_bytes, then.sent_bytes),
                received_bytes_per_second: rate(stats.received_bytes, then.received_bytes),
                dropped_per_second: rate(stats.dropped(), then.dropped()),
                limited_per_second: rate(stats.limited, then.limited),
                errors: stats.sent_errors + stats.received_errors,
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.vm, &a.guest, &a.device).cmp(&(&b.vm, &b.guest, &b.device)));
    rows
}

/// As people read it; nothing where there is no card.
pub fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let width = |head: &str, text: fn(&Row) -> &str| {
        rows.iter().map(|row| text(row).chars().count()).chain([head.len()]).max().unwrap_or(0)
    };
    let (vm, guest) = (width("VM", |row| &row.vm), width("GUEST", |row| &row.guest));
    let (card, network) = (width("CARD", |row| &row.device), width("NETWORK", |row| &row.network));
    let mut out = format!(
        "\n{:vm$}  {:guest$}  {:card$}  {:network$}  {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>6}\n",
        "VM", "GUEST", "CARD", "NETWORK", "SENT/S", "RECV/S", "SMBIT/S", "RMBIT/S", "DROP/S", "LIMITED/S", "ERRORS"
    );
    for row in rows {
        let _ = writeln!(
            out,
            "{:vm$}  {:guest$}  {:card$}  {:network$}  {:>8.0} {:>8.0} {:>8.1} {:>8.1} {:>8.0} {:>9.0} {:>6}",
            row.vm,
            row.guest,
            row.device,
            row.network,
            row.sent_packets_per_second,
            row.received_packets_per_second,
            row.sent_bytes_per_second * 8e-6,
            row.received_bytes_per_second * 8e-6,
            row.dropped_per_second,
            row.limited_per_second,
            row.errors,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn at(sent_packets: u64, dropped_policy: u64) -> Look {
        let stats = Stats { sent_packets, sent_bytes: sent_packets * 1000, dropped_policy, ..Stats::default() };
        let card = TopCard { guest: 2, devid: 0, network: "lan".into(), stats };
        Look { at: Instant::now(), devices: [].into(), cards: [(("acme".into(), 2, 0), card)].into(), domains: vec![] }
    }

    #[test]
    fn only_what_happened_between_two_looks_counts() {
        let row = &rows(&at(100, 1), &at(300, 5), 2.0)[0];
        assert_eq!((row.sent_packets_per_second, row.sent_bytes_per_second), (100.0, 100_000.0));
        assert_eq!((row.dropped_per_second, row.device.as_str(), row.guest.as_str()), (2.0, "vif0", "2"));
        // Connected anew, its counters are smaller.
        assert_eq!(rows(&at(100, 0), &at(50, 0), 2.0)[0].sent_packets_per_second, 25.0);
        let text = table(&rows(&at(0, 0), &at(125_000, 0), 1.0));
        assert!(text.contains("acme  2      vif0  lan        125000        0   1000.0"), "{text}");
        assert_eq!(table(&[]), "");
    }
}

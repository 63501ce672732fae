//! The text: families of samples, each with its help, its type and its lines in one place.

use std::fmt::{Display, Write};

use blkback::stats::Counter;
use grant::meter::{BUCKETS, Meter, bucket_limit};
use netback::stats::Counter as VifCounter;

/// Edges of the histogram of latencies: powers of two of nanoseconds, 8 us to 17 s.
const EDGES: std::ops::RangeInclusive<u32> = 13..=34;

/// A disk's labels and numbers.
pub struct Disk<'a> {
    /// Its guest's domain.
    pub guest: u16,
    /// Such as xvda.
    pub device: String,
    /// Its volume.
    pub volume: &'a str,
    /// Its counters.
    pub meter: &'a Meter,
}

/// A card's labels and numbers.
pub struct Card<'a> {
    /// Its guest's domain.
    pub guest: u16,
    /// Such as vif0.
    pub device: String,
    /// Its network.
    pub network: &'a str,
    /// Its counters.
    pub meter: &'a Meter,
}

/// A text in the making.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Begins a family of samples.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// The text as it is.
    pub fn finish(self) -> String {
        self.0
    }
}

/// All numbers of a service VM.
pub fn all(vm: &str, disks: &[Disk<'_>], cards: &[Card<'_>], volumes: &[(String, u64)]) -> String {
    let mut text = Text::default();
    text.family("windsor_build_info", "gauge", "Version of the service VM.");
    text.sample("windsor_build_info", &[("vm", vm), ("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("windsor_volume_size_bytes", "gauge", "Size of a volume; 0 while it cannot be opened.");
    for (volume, bytes) in volumes {
        text.sample("windsor_volume_size_bytes", &[("vm", vm), ("volume", volume)], bytes);
    }
    blk(&mut text, vm, disks);
    net(&mut text, vm, cards);
    text.finish()
}

fn blk(text: &mut Text, vm: &str, disks: &[Disk<'_>]) {
    let mut family = |name: &str, kind: &str, help: &str, counters: &[(&str, Counter)]| {
        text.family(name, kind, help);
        for disk in disks {
            let guest = disk.guest.to_string();
            for (op, counter) in counters {
                let mut labels =
                    vec![("vm", vm), ("guest_domid", &*guest), ("device", &*disk.device), ("volume", disk.volume)];
                if !op.is_empty() {
                    labels.push(("op", op));
                }
                text.sample(name, &labels, disk.meter.sum(*counter as usize));
            }
        }
    };
    let ops = [
        ("read", Counter::Reads),
        ("write", Counter::Writes),
        ("flush", Counter::Flushes),
        ("barrier", Counter::Barriers),
        ("discard", Counter::Discards),
    ];
    let bytes = [("read", Counter::ReadBytes), ("write", Counter::WriteBytes), ("discard", Counter::DiscardBytes)];
    family("windsor_blk_ops_total", "counter", "Requests answered.", &ops);
    family("windsor_blk_bytes_total", "counter", "Bytes of requests answered.", &bytes);
    let one = |counter| [("", counter)];
    family("windsor_blk_errors_total", "counter", "Requests answered with an error.", &one(Counter::Errors));
    family(
        "windsor_blk_rejected_total",
        "counter",
        "Requests that broke the protocol or asked for what was not offered.",
        &one(Counter::Rejected),
    );
    family("windsor_blk_inflight", "gauge", "Requests taken and not answered.", &one(Counter::InFlight));
    family("windsor_blk_grants_mapped", "gauge", "Pages of the guest that are mapped.", &one(Counter::GrantsMapped));
    family(
        "windsor_blk_ring_full_total",
        "counter",
        "Batches after which the ring had no free slot.",
        &one(Counter::RingFull),
    );
    family(
        "windsor_blk_stalls_total",
        "counter",
        "Times a request waited for memory or for one that runs alone.",
        &one(Counter::Stalls),
    );
    let name = "windsor_blk_latency_seconds";
    text.family(name, "histogram", "Time from ring to response.");
    for disk in disks {
        let guest = disk.guest.to_string();
        let labels = [("vm", vm), ("guest_domid", &*guest), ("device", &*disk.device), ("volume", disk.volume)];
        histogram(text, name, &labels, disk.meter);
    }
}

fn histogram(text: &mut Text, name: &str, labels: &[(&str, &str)], meter: &Meter) {
    // One look: the lines must fit each other while the worker goes on counting.
    let counts = meter.histogram();
    let total: u64 = counts.iter().sum();
    let (mut below, mut at) = (0u64, 0);
    let bucket = format!("{name}_bucket");
    for edge in EDGES {
        while at < BUCKETS && bucket_limit(at) < 1 << edge {
            below += counts[at];
            at += 1;
        }
        let le = ((1u64 << edge) as f64 / 1e9).to_string();
        text.sample(&bucket, &[labels, &[("le", &le)]].concat(), below);
    }
    text.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), total);
    text.sample(&format!("{name}_sum"), labels, meter.sum(Counter::Nanoseconds as usize) as f64 / 1e9);
    text.sample(&format!("{name}_count"), labels, total);
}

fn net(text: &mut Text, vm: &str, cards: &[Card<'_>]) {
    let mut family = |name: &str, help: &str, label: &str, counters: &[(&str, VifCounter)]| {
        text.family(name, "counter", help);
        for card in cards {
            let guest = card.guest.to_string();
            for (value, counter) in counters {
                let labels = [
                    ("vm", vm),
                    ("guest_domid", &*guest),
                    ("device", &*card.device),
                    ("network", card.network),
                    (label, value),
                ];
                text.sample(name, &labels, card.meter.sum(*counter as usize));
            }
        }
    };
    let way = "direction";
    let bytes = [("sent", VifCounter::SentBytes), ("received", VifCounter::ReceivedBytes)];
    family("windsor_net_bytes_total", "Bytes that a guest sent and received.", way, &bytes);
    let packets = [("sent", VifCounter::SentPackets), ("received", VifCounter::ReceivedPackets)];
    family("windsor_net_packets_total", "Packets that a guest sent and received.", way, &packets);
    let errors = [("sent", VifCounter::SentErrors), ("received", VifCounter::ReceivedErrors)];
    family("windsor_net_errors_total", "Packets that could not be copied or were malformed.", way, &errors);
    let dropped = [
        ("policy", VifCounter::DroppedPolicy),
        ("nobody", VifCounter::DroppedNobody),
        ("no-room", VifCounter::DroppedNoRoom),
        ("unfit", VifCounter::DroppedUnfit),
        ("group", VifCounter::DroppedGroup),
        ("memory", VifCounter::DroppedMemory),
    ];
    family("windsor_net_dropped_total", "Packets dropped, by reason.", "reason", &dropped);
    let limited = [("sent", VifCounter::Limited)];
    family("windsor_net_limited_total", "Times a guest had used up its rate.", way, &limited);
}

#[cfg(test)]
mod tests {
    use super::super::check::check;
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_takes() {
        let meter = Meter::open(Meter::create(2).unwrap()).unwrap();
        for (queue, nanoseconds) in [(0, 1000), (0, 9000), (1, 100_000), (1, u64::MAX)] {
            meter.block(queue).unwrap().record(nanoseconds, 1);
        }
        meter.block(0).unwrap().add(Counter::Nanoseconds as usize, 110_000);
        meter.block(1).unwrap().add(Counter::Reads as usize, 3);
        let disk = |guest, device: &str| Disk { guest, device: device.into(), volume: "db", meter: &meter };
        let card = Card { guest: 2, device: "vif0".into(), network: "lan", meter: &meter };
        let volumes = [("db".to_owned(), 1 << 40)];
        let text = all("acme", &[disk(1, "xvda"), disk(2, "xvdb")], &[card], &volumes);
        let samples = check(&text).unwrap();
        let labels = "vm=\"acme\",guest_domid=\"1\",device=\"xvda\",volume=\"db\"";
        let value = |name: &str| samples.iter().find(|(sample, _)| sample == name).map(|(_, value)| *value);
        assert_eq!(value(&format!("windsor_blk_ops_total{{{labels},op=\"read\"}}")), Some(3.0));
        assert_eq!(value(&format!("windsor_blk_latency_seconds_bucket{{{labels},le=\"0.000008192\"}}")), Some(1.0));
        assert_eq!(value(&format!("windsor_blk_latency_seconds_bucket{{{labels},le=\"0.000131072\"}}")), Some(3.0));
        assert_eq!(value(&format!("windsor_blk_latency_seconds_count{{{labels}}}")), Some(4.0));
        assert_eq!(value(&format!("windsor_blk_latency_seconds_sum{{{labels}}}")), Some(0.00011));
        assert_eq!(value("windsor_volume_size_bytes{vm=\"acme\",volume=\"db\"}"), Some((1u64 << 40) as f64));
        check(&all("acme", &[], &[], &[])).unwrap();
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.family("a", "gauge", "Help.");
        text.sample("a", &[("b", "c\"d\\e\nf")], 1);
        let text = text.finish();
        assert!(text.ends_with("a{b=\"c\\\"d\\\\e\\nf\"} 1\n"), "{text}");
        check(&text).unwrap();
    }
}

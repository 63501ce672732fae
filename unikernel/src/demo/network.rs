//! The demo's network: a card for each of two guests, what they exchange, and what that costs the service VM.

use std::fmt;
use std::net::IpAddr;

use indicatif::{ProgressBar, ProgressStyle};
use netback::stats::Stats;
use serde::Serialize;

use super::orders::{Answer, Exchanged, Order};
use super::parts::{Part, Parts};
use super::{ATTACH, CARDS, NETWORK, Running, SERVICE, Talk, failed, host_dir};
use crate::cli::Failure;
use crate::publish::VifNode;
use crate::toolstack::card::{self, Wanted};

/// What two guests did over the network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkReport {
    /// The exchanges, in their order.
    pub exchanges: Vec<Exchange>,
}

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct Exchange {
    /// What it is called.
    pub name: String,
    /// Bytes of a packet.
    pub packet_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Packets there; those that came back are not counted here, but below.
    pub packets: u64,
    /// Packets there in a second.
    pub packets_per_s: f64,
    /// Megabytes (10^6) there in a second.
    pub mb_per_s: f64,
    /// Median time until one was back, in microseconds; none where none comes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    /// 99 of 100 were back after this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    /// Every packet arrived as it was sent.
    pub equal: bool,
    /// The first that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<u64>,
    /// The backend's counters, divided by all packets that it passed on, answers included.
    pub per_packet: PerPacket,
}

/// What one packet costs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PerPacket {
    /// What would be a hypercall on Xen: calls of grant copy, and notifications.
    pub hypercalls: f64,
    /// System calls of the backend's thread.
    pub backend_system_calls: f64,
    /// Events from the guests.
    pub notifications_in: f64,
    /// Events to the guests.
    pub notifications_out: f64,
    /// Copies between pages of the guests.
    pub grant_copies: f64,
}

impl Exchange {
    /// From what the guests measured and the backend's counters of both cards before and after.
    fn new(name: &str, exchanged: &Exchanged, before: &[Stats; 2], after: &[Stats; 2]) -> Exchange {
        let sum = |stats: &[Stats; 2], of: fn(&Stats) -> u64| stats.iter().map(of).sum::<u64>();
        let spent = |of: fn(&Stats) -> u64| sum(after, of).saturating_sub(sum(before, of)) as f64;
        let passed = spent(|stats| stats.sent_packets).max(1.0);
        let seconds = exchanged.seconds.max(1e-9);
        let time = |ns: u64| (ns > 0).then_some(ns as f64 / 1e3);
        Exchange {
            name: name.to_owned(),
            packet_bytes: exchanged.bytes / exchanged.packets.max(1),
            seconds: exchanged.seconds,
            packets: exchanged.packets,
            packets_per_s: exchanged.packets as f64 / seconds,
            mb_per_s: exchanged.bytes as f64 / seconds / 1e6,
            p50_us: time(exchanged.p50_ns),
            p99_us: time(exchanged.p99_ns),
            equal: exchanged.differs.is_none(),
            differs: exchanged.differs,
            per_packet: PerPacket {
                hypercalls: spent(|stats| stats.copy_calls + stats.notified_out) / passed,
                backend_system_calls: spent(|stats| stats.system_calls) / passed,
                notifications_in: spent(|stats| stats.notified_in) / passed,
                notifications_out: spent(|stats| stats.notified_out) / passed,
                grant_copies: spent(|stats| stats.segments_copied) / passed,
            },
        }
    }
}

impl NetworkReport {
    /// The complaint, when a packet did not arrive as it was sent.
    pub fn complaint(&self) -> Option<String> {
        let wrong = self.exchanges.iter().find(|exchange| !exchange.equal)?;
        Some(format!(
            "packet {} of \"{}\" did not arrive as it was sent",
            wrong.differs.unwrap_or_default(),
            wrong.name
        ))
    }
}

impl fmt::Display for NetworkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<32}{:>42}  {:>48}", "", "as two guests see it", "per packet, in the service VM")?;
        writeln!(
            f,
            "{:<32}{:>10}{:>10}{:>11}{:>11}  {:>9}{:>10}{:>11}{:>9}{:>9}",
            "", "packets/s", "MB/s", "p50 us", "p99 us", "hypercall", "notif in", "notif out", "syscalls", "copies"
        )?;
        for exchange in &self.exchanges {
            let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"));
            let PerPacket { hypercalls, backend_system_calls, notifications_in, notifications_out, grant_copies } =
                exchange.per_packet;
            let name = if exchange.equal { exchange.name.clone() } else { format!("{}: DIFFERENT", exchange.name) };
            writeln!(
                f,
                "{name:<32}{:>10.0}{:>10.1}{:>11}{:>11}  {hypercalls:>9.2}{notifications_in:>10.2}\
                 {notifications_out:>11.2}{backend_system_calls:>9.2}{grant_copies:>9.2}",
                exchange.packets_per_s,
                exchange.mb_per_s,
                time(exchange.p50_us),
                time(exchange.p99_us)
            )?;
        }
        Ok(())
    }
}

impl Running<'_> {
    /// Starts two guests, gives each a card, and has them exchange packets: there and back, then one way, for so many
    /// seconds each.
    pub(super) fn network(
        &mut self,
        parts: &Parts,
        [there_and_back, one_way]: [u64; 2],
        bar: &ProgressBar,
    ) -> Result<NetworkReport, Failure> {
        bar.set_message("packets between two guests");
        bar.set_style(ProgressStyle::default_spinner());
        let mut talk = Talk::start(parts, Part::Cards, &host_dir(parts))?;
        let Answer::CardsUp { domids } = talk.hear()? else { return Err(talk.confused()) };
        let addresses: &[IpAddr] = &[];
        for guest in CARDS {
            let (network, devid) = (NETWORK, Some(0));
            let (mac, rate, mtu) = (None, None, None);
            let wanted = Wanted { guest, service: SERVICE, network, devid, mac, addresses, rate, mtu, wait: ATTACH };
            card::run(&mut self.store, &wanted)?;
        }
        let Answer::CardsConnected = talk.hear()? else { return Err(talk.confused()) };
        let mut exchanges = Vec::new();
        for (name, order) in [
            ("60 bytes there and back", Order::RoundTrips { seconds: there_and_back }),
            ("64 KiB of TCP, one way", Order::Stream { seconds: one_way }),
        ] {
            let before = self.counters(domids)?;
            talk.tell(&order)?;
            let Answer::Exchanged(exchanged) = talk.hear()? else { return Err(talk.confused()) };
            exchanges.push(Exchange::new(name, &exchanged, &before, &self.counters(domids)?));
        }
        talk.close()?;
        Ok(NetworkReport { exchanges })
    }

    /// The counters of both cards as of now.
    fn counters(&mut self, domids: [u16; 2]) -> Result<[Stats; 2], Failure> {
        self.refresh()?;
        let mut stats = [Stats::default(); 2];
        for (stats, domid) in stats.iter_mut().zip(domids) {
            let node = VifNode::read(&mut self.store, self.service, domid, 0).map_err(failed)?;
            *stats = node.stats.ok_or_else(|| failed("a card has no counters"))?;
        }
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_of_both_cards_and_a_difference_is_named() {
        let exchanged =
            Exchanged { packets: 10, bytes: 600, seconds: 2.0, p50_ns: 1500, p99_ns: 9000, differs: Some(3) };
        let before = [Stats { sent_packets: 5, copy_calls: 2, ..Stats::default() }, Stats::default()];
        let after = [
            Stats { sent_packets: 15, copy_calls: 12, notified_out: 5, system_calls: 40, ..Stats::default() },
            Stats { sent_packets: 10, copy_calls: 4, segments_copied: 30, ..Stats::default() },
        ];
        let exchange = Exchange::new("there and back", &exchanged, &before, &after);
        assert_eq!((exchange.packet_bytes, exchange.packets_per_s, exchange.p50_us), (60, 5.0, Some(1.5)));
        let cost = exchange.per_packet;
        assert_eq!((cost.hypercalls, cost.backend_system_calls, cost.grant_copies), (0.95, 2.0, 1.5));
        let report = NetworkReport { exchanges: vec![exchange.clone()] };
        assert_eq!(report.complaint().unwrap(), "packet 3 of \"there and back\" did not arrive as it was sent");
        assert!(report.to_string().contains("DIFFERENT"), "{report}");
        let fine = Exchange { equal: true, differs: None, p50_us: None, ..exchange };
        let report = NetworkReport { exchanges: vec![fine] };
        assert!(report.complaint().is_none() && report.to_string().contains("    -"), "{report}");
    }
}

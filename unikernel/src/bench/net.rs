//! `windsor bench net`: packets between two guests of one network, as the demo has them, and what each costs.

use super::figures::{Document, Figure, Group, Meanwhile};
use crate::cli::{FAILED, Failure};
use crate::demo;

/// Small packets there and back, and TCP of 64 KiB one way, for so many seconds each.
///
/// # Errors
/// With the exit code, when it cannot be run to its end or a packet did not arrive as it was sent.
pub fn run(seconds: u64) -> Result<Document, Failure> {
    let meanwhile = Meanwhile::start();
    let report = demo::network_only(seconds)?;
    if let Some(why) = report.complaint() {
        return Err(Failure::new(FAILED, why));
    }
    let mut document = meanwhile.document("Packets between two guests of one network");
    for exchange in &report.exchanges {
        let cost = exchange.per_packet;
        let mut figures = vec![
            ("packets", "1/s", exchange.packets_per_s),
            ("bandwidth", "MB/s", exchange.mb_per_s),
            ("what would be hypercalls", "per packet", cost.hypercalls),
            ("system calls of the service VM", "per packet", cost.backend_system_calls),
            ("events to the service VM", "per packet", cost.notifications_in),
            ("events from it", "per packet", cost.notifications_out),
            ("copies between pages", "per packet", cost.grant_copies),
        ];
        let times = [("50 % were back within", exchange.p50_us), ("99 % were back within", exchange.p99_us)];
        figures.extend(times.into_iter().filter_map(|(name, us)| Some((name, "us", us?))));
        document.groups.push(Group {
            title: format!("{}, {} bytes", exchange.name, exchange.packet_bytes),
            figures: figures.into_iter().map(|(name, unit, value)| Figure::new(name, unit, &[value])).collect(),
        });
    }
    Ok(document)
}

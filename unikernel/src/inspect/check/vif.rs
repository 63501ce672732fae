//! The keys of a network card (`xen/io/netif.h`).

use blkback::keys::Excerpt;
use xenstore::xenbus::XenbusState::{Connected, Initialised};

use super::Finding;
use super::side::Side;

const NETIF: &str = "xen/io/netif.h";
/// More queues than any backend offers.
const QUEUES: u64 = 256;

/// Everything that is wrong with the keys, for the states that the two halves are in.
pub fn check(frontend: &Side, backend: Option<&Side>, findings: &mut Vec<Finding>) {
    if matches!(frontend.state(), Initialised | Connected) {
        rings(frontend, backend, findings);
    }
    let Some(backend) = backend else { return };
    backend.need_number("handle", u64::from(u32::MAX), NETIF, findings);
    match backend.get("mac") {
        Some(mac) if is_mac(mac) => {}
        Some(mac) => findings.push(backend.finding("mac", format!("{} is no MAC address", Excerpt::new(mac)), NETIF)),
        None => findings.push(backend.finding("mac", "is not there", NETIF)),
    }
    if backend.state() == Connected && backend.keys.contains_key("hotplug-status") {
        match backend.get("hotplug-status") {
            Some(b"connected") => {}
            other => {
                let status = Excerpt::new(other.unwrap_or_default());
                findings.push(backend.finding("hotplug-status", format!("{status} though it is Connected"), NETIF));
            }
        }
    }
}

fn rings(frontend: &Side, backend: Option<&Side>, findings: &mut Vec<Finding>) {
    let offered = backend.and_then(|backend| backend.number("multi-queue-max-queues")).unwrap_or(1).clamp(1, QUEUES);
    let mut queues = 1;
    if frontend.get("multi-queue-num-queues").is_some() {
        let asked = frontend.need_number("multi-queue-num-queues", offered, NETIF, findings);
        queues = asked.unwrap_or(1).max(1);
    }
    for queue in 0..queues {
        let prefix = if queues == 1 { String::new() } else { format!("queue-{queue}/") };
        let key = |name: &str| format!("{prefix}{name}");
        for name in ["tx-ring-ref", "rx-ring-ref"] {
            frontend.need_number(&key(name), u64::from(u32::MAX), NETIF, findings);
        }
        let split = frontend.get(&key("event-channel-tx")).is_some();
        let channels: &[&str] = if split { &["event-channel-tx", "event-channel-rx"] } else { &["event-channel"] };
        for name in channels {
            frontend.need_number(&key(name), u64::from(u32::MAX), NETIF, findings);
        }
    }
    if frontend.get("request-rx-copy") != Some(b"1") {
        findings.push(frontend.finding("request-rx-copy", "is not 1: no backend flips pages any more", NETIF));
    }
}

fn is_mac(text: &[u8]) -> bool {
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && part.iter().all(u8::is_ascii_hexdigit))
}

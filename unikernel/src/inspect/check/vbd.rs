//! The keys of a disk (`xen/io/blkif.h`).

use blkback::config::{Negotiated, Offer};
use blkback::keys::{self, KeyError, Left};
use xenstore::xenbus::XenbusState::{Connected, Initialised};

use super::Finding;
use super::side::Side;

const BLKIF: &str = "xen/io/blkif.h";

/// Everything that is wrong with the keys, for the states that the two halves are in.
pub fn check(frontend: &Side, backend: Option<&Side>, findings: &mut Vec<Finding>) {
    if let (Some(number), Some(device)) = (frontend.get("virtual-device"), frontend.path.rsplit('/').next())
        && number != device.as_bytes()
    {
        findings.push(frontend.finding("virtual-device", format!("is not the device's own number, {device}"), BLKIF));
    }
    let Some(backend) = backend else { return };
    if !matches!(backend.get("mode"), Some(b"r" | b"w")) {
        findings.push(backend.finding("mode", "is neither r nor w", BLKIF));
    }
    let rings = matches!(frontend.state(), Initialised | Connected);
    if rings
        && let Err(error) =
            Negotiated::read(&offer(backend), &Left::default(), &mut |key| Ok(frontend.keys.get(key).cloned()))
    {
        let key = match &error {
            KeyError::Missing(key) | KeyError::Bad { key, .. } => key.as_str(),
            _ => "",
        };
        findings.push(frontend.finding(key, error.to_string(), BLKIF));
    }
    if backend.state() == Connected {
        backend.need_number("sectors", u64::MAX, BLKIF, findings);
        backend.need_number("info", 7, BLKIF, findings);
        let size = backend.need_number("sector-size", u64::from(u32::MAX), BLKIF, findings);
        if size.is_some_and(|size| size == 0 || size % 512 != 0) {
            findings.push(backend.finding("sector-size", "is no multiple of 512", BLKIF));
        }
    }
}

/// What the backend has published: a frontend may not go beyond it.
fn offer(backend: &Side) -> Offer {
    let number = |key, or: u64, most: u64| backend.number(key).unwrap_or(or).min(most);
    Offer {
        max_ring_order: number(keys::MAX_RING_PAGE_ORDER, 0, 4) as u8,
        max_indirect: number(keys::MAX_INDIRECT, 0, 256) as u16,
        queues: number(keys::MAX_QUEUES, 1, 16) as u16,
        persistent: number(keys::FEATURE_PERSISTENT, 0, 1) == 1,
    }
}

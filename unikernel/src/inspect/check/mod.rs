//! Which device nodes break the xenbus protocol, and why.
//!
//! ```text
//!   side    one half of a device, as its directory says
//!   pair    what holds for every device: references, domains, permissions, states that go together
//!   vbd     the keys of disks; vif: of network cards
//! ```
//!
//! Everything here was written by guests: what is printed of it is cut short and escaped, and each device says at most
//! [`MOST`] things. A device in motion is no finding: what is found is looked for again a little later.

pub mod pair;
pub mod side;
#[cfg(test)]
mod tests;
pub mod vbd;
pub mod vif;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use xenstore::{Error, Store};

use crate::store::Nodes;
use side::{End, Side};

/// Findings of one device.
pub const MOST: usize = 20;
/// Devices of one domain and kind; more than any toolstack makes.
const DEVICES: usize = 4096;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The node.
    pub node: String,
    /// What is wrong with it, in one line.
    pub why: String,
    /// Where it says how it has to be.
    pub source: &'static str,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Devices.
    pub devices: usize,
    /// In the order of their nodes.
    pub findings: Vec<Finding>,
}

/// One device: at least one of its halves is there.
#[derive(Clone, Debug)]
pub struct Device {
    /// `vbd` or `vif`.
    pub kind: String,
    /// The backend's domain, the guest, and the device's number, as the paths of the two say.
    pub end: End,
    /// The half in the guest.
    pub frontend: Option<Side>,
    /// The half in the backend's domain.
    pub backend: Option<Side>,
}

/// Looks at every device twice, `dwell` apart, and tells what is wrong both times.
///
/// # Errors
/// What the store says; a node that vanishes is none.
pub fn check<S: Store>(store: &mut S, dwell: Duration) -> Result<Report, Error> {
    let first = look(store)?;
    if first.findings.is_empty() {
        return Ok(first);
    }
    std::thread::sleep(dwell);
    let second = look(store)?;
    let before: BTreeSet<&Finding> = first.findings.iter().collect();
    let findings = second.findings.iter().filter(|finding| before.contains(finding)).cloned().collect();
    Ok(Report { devices: second.devices, findings })
}

/// Looks once.
///
/// # Errors
/// As [`check`].
pub fn look<S: Store>(store: &mut S) -> Result<Report, Error> {
    let mut report = Report::default();
    let domains: BTreeSet<u16> = numbers(store.list("/local/domain")?).collect();
    for kind in ["vbd", "vif"] {
        for device in devices(store, &domains, kind)? {
            report.devices += 1;
            let mut findings = pair::check(&device, &domains);
            if let Some(frontend) = &device.frontend {
                match kind {
                    "vbd" => vbd::check(frontend, device.backend.as_ref(), &mut findings),
                    _ => vif::check(frontend, device.backend.as_ref(), &mut findings),
                }
            }
            findings.truncate(MOST);
            report.findings.extend(findings);
        }
    }
    report.findings.sort();
    Ok(report)
}

fn numbers<T: std::str::FromStr>(names: Vec<String>) -> impl Iterator<Item = T> {
    names.into_iter().filter_map(|name| name.parse().ok())
}

/// Every device of a kind: those that have a backend, and the frontends that lead to none of these.
fn devices<S: Store>(store: &mut S, domains: &BTreeSet<u16>, kind: &str) -> Result<Vec<Device>, Error> {
    let mut ends = BTreeSet::new();
    for backend in domains {
        let root = format!("/local/domain/{backend}/backend/{kind}");
        for guest in numbers::<u16>(store.list(&root)?).take(DEVICES) {
            for number in numbers::<u32>(store.list(&format!("{root}/{guest}"))?).take(DEVICES) {
                ends.insert(End { backend: Some(*backend), guest, number });
            }
        }
    }
    let backed: BTreeSet<(u16, u32)> = ends.iter().map(|end| (end.guest, end.number)).collect();
    for guest in domains {
        let root = format!("/local/domain/{guest}/device/{kind}");
        let numbers = numbers::<u32>(store.list(&root)?).take(DEVICES);
        let alone = numbers.filter(|number| !backed.contains(&(*guest, *number)));
        ends.extend(alone.map(|number| End { backend: None, guest: *guest, number }));
    }
    let mut devices = Vec::new();
    for end in ends {
        let backend = match end.backend {
            Some(domid) => {
                Side::read(store, &format!("/local/domain/{domid}/backend/{kind}/{}/{}", end.guest, end.number))?
            }
            None => None,
        };
        let frontend = Side::read(store, &format!("/local/domain/{}/device/{kind}/{}", end.guest, end.number))?;
        if frontend.is_some() || backend.is_some() {
            devices.push(Device { kind: kind.to_owned(), end, frontend, backend });
        }
    }
    Ok(devices)
}

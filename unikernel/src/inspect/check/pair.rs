//! What holds for every device: references, domains, permissions, and states that go together.

use std::collections::BTreeSet;

use blkback::keys::Excerpt;
use xenstore::Permission;
use xenstore::xenbus::XenbusState::{self, *};

use super::side::Side;
use super::{Device, Finding};

const XENBUS: &str = "xen/io/xenbus.h";
const PATHS: &str = "xenstore-paths.pandoc";

/// Everything that is wrong with the two halves as such.
pub fn check(device: &Device, domains: &BTreeSet<u16>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for side in device.frontend.iter().chain(&device.backend) {
        findings.extend(state(side));
    }
    match (&device.frontend, &device.backend) {
        (Some(frontend), Some(backend)) => {
            references(device, frontend, backend, &mut findings);
            findings.extend(states(frontend, backend));
        }
        (Some(frontend), None) => findings.push(without_backend(frontend, domains)),
        (None, Some(backend)) => {
            let gone = if domains.contains(&device.end.guest) { "" } else { ", and neither is its domain" };
            let why = format!("{} is not there{gone}: the toolstack has left half a device", front_path(device));
            findings.push(backend.finding("frontend", why, PATHS));
        }
        (None, None) => {}
    }
    permissions(device, &mut findings);
    findings
}

fn front_path(device: &Device) -> String {
    format!("/local/domain/{}/device/{}/{}", device.end.guest, device.kind, device.end.number)
}

fn state(side: &Side) -> Option<Finding> {
    match side.get("state") {
        None => Some(side.finding("state", "is not there", XENBUS)),
        Some(value) if XenbusState::parse(value) == Unknown => {
            Some(side.finding("state", format!("{} is no xenbus state", Excerpt::new(value)), XENBUS))
        }
        Some(_) => None,
    }
}

fn without_backend(frontend: &Side, domains: &BTreeSet<u16>) -> Finding {
    let Some(path) = frontend.get("backend") else {
        return frontend.finding("backend", "is not there: nothing says who serves this device", PATHS);
    };
    let excerpt = Excerpt::new(path);
    let domain = std::str::from_utf8(path).ok().and_then(|path| path.strip_prefix("/local/domain/"));
    let domain: Option<u16> = domain.and_then(|rest| rest.split('/').next()?.parse().ok());
    let why = match domain {
        Some(domid) if !domains.contains(&domid) => {
            format!("{excerpt} is not there: domain {domid} has ended; detach the device, or serve it again")
        }
        Some(_) => format!("{excerpt} is no backend of this device"),
        None => format!("{excerpt} is no path of a backend"),
    };
    frontend.finding("backend", why, PATHS)
}

/// Each half names the other, by path and by domain.
fn references(device: &Device, frontend: &Side, backend: &Side, findings: &mut Vec<Finding>) {
    let mut same = |side: &Side, key: &str, wanted: &str| {
        let why = match side.get(key) {
            Some(value) if value == wanted.as_bytes() => return,
            Some(value) => format!("{} where {wanted} is meant", Excerpt::new(value)),
            None => format!("is not there ({wanted} is meant)"),
        };
        findings.push(side.finding(key, why, PATHS));
    };
    same(frontend, "backend", &backend.path);
    same(backend, "frontend", &frontend.path);
    if let Some(domid) = device.end.backend {
        same(frontend, "backend-id", &domid.to_string());
    }
    same(backend, "frontend-id", &device.end.guest.to_string());
    if !matches!(backend.get("online"), Some(b"0" | b"1")) {
        findings.push(backend.finding("online", "is neither 0 nor 1", XENBUS));
    }
}

/// States in which the two wait for each other for ever, or one believes what is not so.
fn states(frontend: &Side, backend: &Side) -> Option<Finding> {
    let why = match (backend.state(), frontend.state()) {
        (Unknown, _) | (_, Unknown) => return None,
        (Initialising, _) => {
            let error = backend.get("hotplug-error").map(|text| format!(": {}", Excerpt::new(text)));
            format!("Initialising: nobody serves it{}", error.unwrap_or_default())
        }
        (InitWait, Initialised | Connected) => "InitWait though the frontend has given its rings".to_owned(),
        (Connected, Initialising | InitWait) => {
            "Connected to a frontend that has begun anew: the backend did not close".to_owned()
        }
        (Connected, Closing | Closed) => "Connected though the frontend has closed".to_owned(),
        (Closing | Closed, Connected) => format!("{} under a frontend that is Connected", backend.state()),
        (Closed, Initialising | InitWait | Initialised) if backend.get("online") == Some(b"1") => {
            "Closed though the frontend waits and the device is online".to_owned()
        }
        _ => return None,
    };
    Some(backend.finding("state", why, XENBUS))
}

/// A guest owns its half and the backend's domain reads it, and the other way round; neither writes the other's.
fn permissions(device: &Device, findings: &mut Vec<Finding>) {
    let ends = [
        (&device.frontend, Some(device.end.guest), device.end.backend),
        (&device.backend, device.end.backend, Some(device.end.guest)),
    ];
    for (side, owner, peer) in ends {
        let (Some(side), Some(owner)) = (side, owner) else { continue };
        let Some(first) = side.perms.first() else { continue };
        if first.domid != owner {
            findings.push(side.finding(
                "",
                format!("is domain {}'s and should be domain {owner}'s", first.domid),
                PATHS,
            ));
        }
        let Some(peer) = peer.filter(|peer| *peer != 0 && *peer != owner) else { continue };
        let may = side.perms[1..].iter().find(|entry| entry.domid == peer).unwrap_or(first);
        let Permission { read, write, .. } = *may;
        if !read {
            findings.push(side.finding("", format!("domain {peer}, the other half, may not read it"), PATHS));
        }
        if write {
            findings.push(side.finding("", format!("domain {peer}, the other half, may write it"), PATHS));
        }
    }
}

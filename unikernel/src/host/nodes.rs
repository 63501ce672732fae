//! The nodes that libxl makes with a domain and takes away with it, as far as a backend or a frontend looks at them.

use xenstore::{Client, Error, Permission, Store};

use crate::device::Device;
use crate::store::Nodes;
use crate::toolstack::Paths;
use crate::toolstack::detach;
use crate::toolstack::domain::Domain;

/// Below a domain's directory: what it may write itself (toolstack.md A1).
const ITS_OWN: [&str; 7] = ["data", "attr", "feature", "drivers", "error", "control/shutdown", "libxl"];
/// What it may only read.
const TO_READ: [&str; 2] = ["device", "control"];

/// Makes a new domain's nodes.
///
/// # Errors
/// When the store does not answer.
pub fn create(store: &mut Client, domid: u16, name: &str) -> Result<(), Error> {
    let root = format!("/local/domain/{domid}");
    let nobody = [Permission::none(0)];
    let to_read = [Permission::none(0), Permission::read(domid)];
    let its_own = [Permission::none(domid)];
    store.transaction(|tx| {
        tx.rm(&root)?;
        tx.mkdir(&root)?;
        tx.set_perms(&root, &to_read)?;
        for (key, value) in [("name", name), ("domid", &domid.to_string())] {
            tx.write(&format!("{root}/{key}"), value.as_bytes())?;
        }
        for (keys, permissions) in [(&TO_READ[..], &to_read[..]), (&ITS_OWN[..], &its_own[..])] {
            for key in keys {
                tx.mkdir(&format!("{root}/{key}"))?;
                tx.set_perms(&format!("{root}/{key}"), permissions)?;
            }
        }
        let libxl = format!("/libxl/{domid}");
        tx.mkdir(&format!("{libxl}/device"))?;
        tx.set_perms(&libxl, &nobody)
    })
}

/// The devices of a domain, from the toolstack's own copy.
///
/// # Errors
/// When the store does not answer.
pub fn devices(store: &mut Client, domid: u16) -> Result<Vec<Paths>, Error> {
    let mut devices = Vec::new();
    for class in Device::CLASSES {
        let root = format!("/libxl/{domid}/device/{class}");
        for devid in store.list(&root)? {
            let backend = store.text(&format!("{root}/{devid}/backend"))?.unwrap_or_default();
            let service = backend.strip_prefix("/local/domain/").and_then(|rest| rest.split('/').next()?.parse().ok());
            let device = devid.parse().ok().and_then(|devid| Device::new(class, devid));
            devices.extend(device.zip(service).map(|(device, service)| Paths::new(domid, service, device)));
        }
    }
    Ok(devices)
}

/// A domain has ended: its directory goes, and with it the frontends, in the transaction that asks the backends to
/// close, as `xl destroy` does it. The devices to wait for are returned.
///
/// # Errors
/// When the store does not answer.
pub fn destroy(store: &mut Client, domid: u16) -> Result<Vec<Paths>, Error> {
    let devices = devices(store, domid)?;
    store.transaction(|tx| {
        for paths in &devices {
            detach::ask(tx, paths, true)?;
        }
        tx.rm(&format!("/local/domain/{domid}"))
    })?;
    Ok(devices)
}

/// Waits for the backends of a domain that ended, and takes away what they leave.
///
/// # Errors
/// When the store does not answer.
pub fn bury(store: &mut Client, domid: u16, name: &str, devices: Vec<Paths>) -> Result<(), Error> {
    let guest = Domain { domid, name: name.to_owned() };
    for paths in devices {
        let found = detach::Found { guest: guest.clone(), device: paths.device, paths };
        match detach::wait(store, &found, super::DESTROY_PATIENCE) {
            Ok(()) => {}
            Err(crate::toolstack::Refusal::Store(error)) => return Err(error),
            Err(refusal) => tracing::warn!("{refusal}"),
        }
        detach::remove(store, &found.paths)?;
        store.unwatch(&found.paths.backend, detach::TOKEN)?;
    }
    store.rm(&format!("/libxl/{domid}"))
}

//! The nodes that libxl makes with a domain and takes away with it, as far as a backend or a frontend looks at them.

use xenstore::{Client, Error, Permission, Store};

use crate::store::Nodes;
use crate::toolstack::Paths;
use crate::toolstack::detach;
use crate::toolstack::domain::Domain;
use crate::vdev::Vdev;

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

/// The disks of a domain, from the toolstack's own copy.
///
/// # Errors
/// When the store does not answer.
pub fn disks(store: &mut Client, domid: u16) -> Result<Vec<(Vdev, Paths)>, Error> {
    let mut disks = Vec::new();
    let root = format!("/libxl/{domid}/device/vbd");
    for devid in store.list(&root)? {
        let backend = store.text(&format!("{root}/{devid}/backend"))?.unwrap_or_default();
        let service = backend.strip_prefix("/local/domain/").and_then(|rest| rest.split('/').next()?.parse().ok());
        if let (Ok(devid), Some(service)) = (devid.parse(), service) {
            disks.push((Vdev(devid), Paths::new(domid, service, devid)));
        }
    }
    Ok(disks)
}

/// A domain has ended: its directory goes, and with it the frontends, in the transaction that asks the backends to
/// close, as `xl destroy` does it. The disks to wait for are returned.
///
/// # Errors
/// When the store does not answer.
pub fn destroy(store: &mut Client, domid: u16) -> Result<Vec<(Vdev, Paths)>, Error> {
    let disks = disks(store, domid)?;
    store.transaction(|tx| {
        for (_, paths) in &disks {
            detach::ask(tx, paths, true)?;
        }
        tx.rm(&format!("/local/domain/{domid}"))
    })?;
    Ok(disks)
}

/// Waits for the backends of a domain that ended, and takes away what they leave.
///
/// # Errors
/// When the store does not answer.
pub fn bury(store: &mut Client, domid: u16, name: &str, disks: Vec<(Vdev, Paths)>) -> Result<(), Error> {
    let guest = Domain { domid, name: name.to_owned() };
    for (vdev, paths) in disks {
        let found = detach::Found { guest: guest.clone(), vdev, paths };
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

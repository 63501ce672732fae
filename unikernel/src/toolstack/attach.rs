//! `windsor attach` in the embedded world: gives a guest a volume.

use std::time::{Duration, Instant};

use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error, Permission, Store};

use super::domain::{self, Domain, or_none};
use super::look::{self, Seen};
use super::{Paths, Refusal, detach};
use crate::device::Device;
use crate::publish;
use crate::store::Nodes;
use crate::vdev::Vdev;

/// What to attach.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The guest's name or number.
    pub guest: &'a str,
    /// The service VM's name or number.
    pub service: &'a str,
    /// The volume's name.
    pub volume: &'a str,
    /// As which disk; the first free one otherwise.
    pub vdev: Option<Vdev>,
    /// For reading only.
    pub read_only: bool,
    /// How long both sides may take to be Connected.
    pub wait: Duration,
}

/// Who is given what, once it is known that all of it exists and nothing is in the way.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The guest.
    pub guest: Domain,
    /// The service VM.
    pub service: Domain,
    /// As which disk.
    pub vdev: Vdev,
    /// Its nodes.
    pub paths: Paths,
}

/// Looks everything up.
///
/// # Errors
/// [`Refusal`] with what is missing or taken.
pub fn prepare(store: &mut Client, wanted: &Wanted<'_>) -> Result<Prepared, Refusal> {
    let guest = domain::find(store, wanted.guest, "guest")?;
    let service = service(store, wanted)?;
    if guest.domid == service.domid {
        return Err(Refusal::Failed(format!("{} cannot be its own guest", guest.name)));
    }
    let vdev = choose(store, &guest, wanted.vdev)?;
    let paths = Paths::new(guest.domid, service.domid, Device::Disk(vdev));
    if look::state(store, &paths.backend)? != XenbusState::Unknown {
        return Err(Refusal::Busy(format!(
            "{} is still giving up {vdev} of {}: try again, or see `windsor status`",
            service.name, guest.name
        )));
    }
    Ok(Prepared { guest, service, vdev, paths })
}

/// Writes the nodes and waits until both sides are Connected.
///
/// # Errors
/// [`Refusal`]; a disk that the service VM refused is taken away again, one whose guest does not answer stays.
pub fn run(store: &mut Client, wanted: &Wanted<'_>) -> Result<Vdev, Refusal> {
    let prepared = prepare(store, wanted)?;
    write(store, &prepared, wanted)?;
    match wait(store, &prepared, wanted.wait) {
        Ok(()) => Ok(prepared.vdev),
        Err(refusal) => {
            // As libxl does with a device that was never set up; the guest has not seen it alive.
            let seen = Seen::read(store, &prepared.paths)?;
            if seen.backend == XenbusState::Initialising || seen.frontend == XenbusState::Unknown {
                detach::remove(store, &prepared.paths)?;
                return Err(refusal);
            }
            Err(match refusal {
                Refusal::TimedOut(why) => {
                    let (guest, vdev) = (&prepared.guest.name, prepared.vdev);
                    let hint = format!("the disk stays attached, `windsor detach {guest} {vdev}` takes it away");
                    Refusal::TimedOut(format!("{why}; {hint}"))
                }
                other => other,
            })
        }
    }
}

/// The service VM, once it is known to have the volume.
fn service(store: &mut Client, wanted: &Wanted<'_>) -> Result<Domain, Refusal> {
    let service = domain::find(store, wanted.service, "service VM")?;
    is_ready(store, &service)?;
    let volumes = store.transaction(|tx| publish::read_volumes(tx, service.domid))?;
    if !volumes.contains_key(wanted.volume) {
        let names: Vec<&str> = volumes.keys().map(String::as_str).collect();
        return Err(Refusal::NotFound(format!(
            "{} has no volume named \"{}\" (it has: {})",
            service.name,
            wanted.volume.escape_debug(),
            or_none(&names)
        )));
    }
    Ok(service)
}

/// Whether a domain serves.
pub(super) fn is_ready(store: &mut Client, service: &Domain) -> Result<(), Refusal> {
    if store.text(&format!("/local/domain/{}/{}/ready", service.domid, publish::ROOT))?.as_deref() != Some("1") {
        return Err(Refusal::NotFound(format!(
            "{} is no service VM that is ready (no `windsor serve` runs there)",
            service.name
        )));
    }
    Ok(())
}

/// The wanted disk if it is free, or the first free one.
fn choose(store: &mut Client, guest: &Domain, wanted: Option<Vdev>) -> Result<Vdev, Refusal> {
    let used = store.list(&format!("/local/domain/{}/device/vbd", guest.domid))?;
    let free = |vdev: Vdev| !used.iter().any(|devid| *devid == vdev.0.to_string());
    match wanted {
        Some(vdev) if free(vdev) => Ok(vdev),
        Some(vdev) => Err(Refusal::Busy(format!(
            "{} has a disk {vdev} already: choose another --vdev, or `windsor detach {} {vdev}`",
            guest.name, guest.name
        ))),
        None => {
            Vdev::first_free(&used).ok_or_else(|| Refusal::Busy(format!("{} has no free disk name left", guest.name)))
        }
    }
}

/// One transaction, the nodes in libxl's order.
fn write(store: &mut Client, prepared: &Prepared, wanted: &Wanted<'_>) -> Result<(), Error> {
    let Prepared { guest, service, vdev, paths } = prepared;
    let (guest, service) = (guest.domid, service.domid);
    let number = |n: u32| n.to_string();
    let of_frontend = [
        ("backend-id", number(service.into())),
        ("state", number(1)),
        ("virtual-device", number(vdev.0)),
        ("device-type", "disk".to_owned()),
        ("trusted", number(1)),
    ];
    let of_backend = [
        ("frontend", paths.frontend.clone()),
        ("params", wanted.volume.to_owned()),
        ("script", "/etc/xen/scripts/block".to_owned()),
        ("frontend-id", number(guest.into())),
        ("online", number(1)),
        ("removable", number(0)),
        ("bootable", number(1)),
        ("state", number(1)),
        ("dev", vdev.to_string()),
        ("type", "phy".to_owned()),
        ("mode", if wanted.read_only { "r" } else { "w" }.to_owned()),
        ("device-type", "disk".to_owned()),
        ("discard-enable", number(1)),
        ("specification", "xen".to_owned()),
    ];
    write_device(store, paths, &of_frontend, &of_backend)
}

/// Writes a device's nodes: its frontend's and its backend's, and libxl's own copy.
///
/// # Errors
/// When the store does not answer.
pub(super) fn write_device(
    store: &mut Client,
    paths: &Paths,
    of_frontend: &[(&str, String)],
    of_backend: &[(&str, String)],
) -> Result<(), Error> {
    let Paths { frontend, backend, libxl, guest, service, device } = paths;
    let for_guest = [Permission::none(*guest), Permission::read(*service)];
    let for_service = [Permission::none(*service), Permission::read(*guest)];
    store.transaction(|tx| {
        tx.rm(libxl)?;
        tx.write(&format!("{libxl}/frontend"), frontend.as_bytes())?;
        tx.write(&format!("{libxl}/backend"), backend.as_bytes())?;

        tx.rm(frontend)?;
        tx.mkdir(frontend)?;
        tx.set_perms(frontend, &for_guest)?;
        tx.write(&format!("{frontend}/backend"), backend.as_bytes())?;
        for (key, value) in of_frontend {
            tx.write(&format!("{frontend}/{key}"), value.as_bytes())?;
            tx.set_perms(&format!("{frontend}/{key}"), &for_guest)?;
        }

        // The service VM may read its way down to its devices, and create none.
        let mut parent = format!("/local/domain/{service}");
        for part in ["backend", device.class(), &guest.to_string()] {
            parent = format!("{parent}/{part}");
            if tx.read_optional(&parent)?.is_none() {
                tx.mkdir(&parent)?;
                tx.set_perms(&parent, &[Permission::none(0), Permission::read(*service)])?;
            }
        }
        tx.rm(backend)?;
        tx.mkdir(backend)?;
        tx.set_perms(backend, &for_service)?;
        for (key, value) in of_backend {
            tx.write(&format!("{backend}/{key}"), value.as_bytes())?;
        }

        for (key, value) in of_backend {
            tx.write(&format!("{libxl}/{key}"), value.as_bytes())?;
        }
        Ok(())
    })
}

/// Waits until both sides are Connected, or the service VM says that they will not be.
///
/// # Errors
/// [`Refusal`].
pub fn wait(store: &mut Client, prepared: &Prepared, limit: Duration) -> Result<(), Refusal> {
    let Prepared { guest, service, vdev, paths } = prepared;
    let deadline = Instant::now() + limit;
    store.watch(&paths.backend, "windsor")?;
    store.watch(&paths.frontend, "windsor")?;
    loop {
        let seen = Seen::read(store, paths)?;
        if seen.backend == XenbusState::Connected && seen.frontend == XenbusState::Connected {
            return Ok(());
        }
        if seen.frontend == XenbusState::Unknown {
            let text = format!("{} ended, or somebody else took {vdev} away", guest.name);
            return Err(Refusal::Failed(text));
        }
        if let Some(why) = &seen.refused {
            let text = format!("{} refuses to serve {vdev} of {}: {why}", service.name, guest.name);
            return Err(match seen.own.phase == publish::Phase::Busy.name() {
                true => Refusal::Busy(text),
                false => Refusal::Failed(text),
            });
        }
        if seen.own.phase == publish::Phase::Failed.name() {
            return Err(Refusal::Failed(format!("{vdev} of {} failed: {}", guest.name, seen.describe())));
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Refusal::TimedOut(format!(
                "{vdev} of {} is not Connected after {} s: {}",
                guest.name,
                limit.as_secs(),
                seen.describe()
            )));
        }
        store.next_event(Some(deadline - now))?;
    }
}

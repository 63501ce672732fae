//! Who uses a service VM: seen from the VM's own backends, and from the guests' toolstack when the VM is dead.

use serde::Serialize;
use xenstore::{Client, Error, Store};

use crate::device::Device;
use crate::publish;
use crate::store::Nodes;
use crate::toolstack::Paths;
use crate::toolstack::domain::{self, Domain};
use crate::toolstack::look::Seen;

/// A device of a guest whose backend is, or was, in a service VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Consumer {
    /// The guest's name; its number where it has none.
    pub guest: String,
    /// The guest's number.
    pub guest_domid: u16,
    /// Such as xvda.
    pub device: String,
    /// The number of the service VM.
    pub service_domid: u16,
    /// Both states and the reason.
    pub why: String,
}

impl Consumer {
    /// What has become of a device whose service VM is dead.
    pub fn loss(&self) -> String {
        let Consumer { guest, device, service_domid, .. } = self;
        format!(
            "{device} of {guest} was served by domain {service_domid}, which is gone: what {guest} asked of it waits for ever"
        )
    }

    /// What to do about that.
    pub fn cure(&self) -> String {
        let Consumer { guest, device, .. } = self;
        format!(
            "windsor vm start its service VM; windsor detach {guest} {device} --force and attach it again, \
             or xl destroy {guest} and start it if it hangs (Linux older than 7.0)"
        )
    }
}

/// Every device of every guest, as libxl has set it up, with its service VM's number.
///
/// # Errors
/// When the store does not answer.
fn devices(store: &mut Client) -> Result<Vec<(Domain, Paths)>, Error> {
    let mut found = Vec::new();
    for guest in domain::all(store)? {
        for class in Device::CLASSES {
            let root = format!("/libxl/{}/device/{class}", guest.domid);
            for devid in store.list(&root)? {
                let backend = store.text(&format!("{root}/{devid}/backend"))?.unwrap_or_default();
                let service =
                    backend.strip_prefix("/local/domain/").and_then(|path| path.split('/').next()?.parse().ok());
                let device = devid.parse().ok().and_then(|devid| Device::new(class, devid));
                if let (Some(service), Some(device)) = (service, device) {
                    found.push((guest.clone(), Paths::new(guest.domid, service, device)));
                }
            }
        }
    }
    Ok(found)
}

fn consumer(store: &mut Client, guest: &Domain, paths: &Paths) -> Result<Consumer, Error> {
    let why = Seen::read(store, paths)?.describe();
    let name = if guest.name.is_empty() { guest.domid.to_string() } else { guest.name.clone() };
    Ok(Consumer {
        guest: name,
        guest_domid: guest.domid,
        device: paths.device.to_string(),
        service_domid: paths.service,
        why,
    })
}

/// Devices that are served by this domain, or are being given up by it.
///
/// # Errors
/// When the store does not answer.
pub fn of(store: &mut Client, service: u16) -> Result<Vec<Consumer>, Error> {
    let domains = domain::all(store)?;
    let mut found = Vec::new();
    for class in Device::CLASSES {
        let root = format!("/local/domain/{service}/backend/{class}");
        for guest in store.list(&root)? {
            for devid in store.list(&format!("{root}/{guest}"))? {
                let device = devid.parse().ok().and_then(|devid| Device::new(class, devid));
                let (Ok(number), Some(device)) = (guest.parse::<u16>(), device) else { continue };
                let nameless = Domain { domid: number, name: String::new() };
                let domain = domains.iter().find(|domain| domain.domid == number).unwrap_or(&nameless);
                found.push(consumer(store, domain, &Paths::new(number, service, device))?);
            }
        }
    }
    Ok(found)
}

/// Devices whose service VM is dead: its domain is gone, the guest's requests wait for nobody.
///
/// # Errors
/// When the store does not answer.
pub fn orphans(store: &mut Client) -> Result<Vec<Consumer>, Error> {
    let mut found = Vec::new();
    for (guest, paths) in devices(store)? {
        let dead = paths.service != 0 && store.read_optional(&format!("/local/domain/{}", paths.service))?.is_none();
        if dead {
            found.push(consumer(store, &guest, &paths)?);
        }
    }
    Ok(found)
}

/// Whether a domain calls itself ready to serve.
///
/// # Errors
/// When the store does not answer.
pub fn is_ready(store: &mut Client, service: u16) -> Result<bool, Error> {
    Ok(store.text(&format!("/local/domain/{service}/{}/ready", publish::ROOT))?.as_deref() == Some("1"))
}

/// Names for a message: `g1 (xvda, vif0), g2 (xvda)`.
pub fn names(consumers: &[Consumer]) -> String {
    let mut guests: Vec<(&str, Vec<&str>)> = Vec::new();
    for consumer in consumers {
        match guests.iter_mut().find(|(guest, _)| *guest == consumer.guest) {
            Some((_, devices)) => devices.push(&consumer.device),
            None => guests.push((&consumer.guest, vec![&consumer.device])),
        }
    }
    let guests: Vec<String> =
        guests.iter().map(|(guest, devices)| format!("{guest} ({})", devices.join(", "))).collect();
    guests.join(", ")
}

//! What the store says about a disk, or about all of them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use blkback::stats::Stats;
use serde::Serialize;
use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error};

use super::domain::{self, Domain};
use super::sample::Sample;
use super::{Paths, Refusal};
use crate::device::Device;
use crate::publish::{self, DeviceNode, VifNode};
use crate::store::Nodes;
use crate::vdev::Vdev;

/// How long service VMs may take to refresh their numbers before the old ones are shown.
const SAMPLE_PATIENCE: Duration = Duration::from_millis(500);

/// Both sides of one device at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The backend's state; Unknown when it is not there.
    pub backend: XenbusState,
    /// The frontend's state; Unknown when it is not there.
    pub frontend: XenbusState,
    /// What the service VM says of it.
    pub own: DeviceNode,
    /// The backend gave up on the device (`hotplug-status` is not `connected`).
    pub refused: Option<String>,
}

impl Seen {
    /// Reads them.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn read(store: &mut impl Nodes, paths: &Paths) -> Result<Seen, Error> {
        let Paths { frontend, backend, .. } = paths;
        let status = store.text(&format!("{backend}/hotplug-status"))?;
        let mut error = store.text(&format!("{backend}/hotplug-error"))?;
        if matches!(status.as_deref(), Some("error" | "busy")) {
            error.get_or_insert_with(|| "without saying why".to_owned());
        } else {
            error = None;
        }
        let own = match paths.device {
            Device::Disk(Vdev(devid)) => DeviceNode::read(store, paths.service, paths.guest, devid)?,
            Device::Card(devid) => VifNode::read(store, paths.service, paths.guest, devid)?.device(),
        };
        Ok(Seen { backend: state(store, backend)?, frontend: state(store, frontend)?, own, refused: error })
    }

    /// Both states, and the reason if there is one, for a message.
    pub fn describe(&self) -> String {
        let own = Some(&self.own.reason).filter(|reason| !reason.is_empty());
        let reason = self.refused.as_ref().or(own);
        let reason = match (reason, self.frontend) {
            (Some(reason), _) => format!(" ({reason})"),
            (None, XenbusState::Initialising) if self.backend == XenbusState::InitWait => {
                " (the guest does not answer: has it a xen-blkfront driver, and is it running?)".to_owned()
            }
            (None, XenbusState::Initialising) if self.backend == XenbusState::Initialising => {
                " (the service VM does not answer: is it running?)".to_owned()
            }
            (None, _) => String::new(),
        };
        format!("the backend is {:?}, the frontend {:?}{reason}", self.backend, self.frontend)
    }
}

/// The `state` below a directory.
///
/// # Errors
/// When the store does not answer.
pub fn state(store: &mut impl Nodes, dir: &str) -> Result<XenbusState, Error> {
    let text = store.text(&format!("{dir}/state"))?;
    Ok(text.map_or(XenbusState::Unknown, |text| XenbusState::parse(text.as_bytes())))
}

/// Everything there is to see.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Service VMs.
    pub vms: Vec<Vm>,
}

/// One service VM.
#[derive(Clone, Debug, Serialize)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Its number.
    pub domid: u16,
    /// It serves.
    pub ready: bool,
    /// What it has.
    pub volumes: Vec<VolumeStatus>,
    /// What it serves to whom.
    pub devices: Vec<DeviceStatus>,
    /// Its networks.
    pub networks: Vec<NetworkStatus>,
    /// Which cards it serves to whom.
    pub cards: Vec<CardStatus>,
}

/// A volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Bytes, mode and users, as the service VM publishes them.
    #[serde(flatten)]
    pub about: publish::VolumeNode,
}

/// A network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// Uplink and users, as the service VM publishes them.
    #[serde(flatten)]
    pub about: publish::NetworkNode,
}

/// A network card of a guest.
#[derive(Clone, Debug, Serialize)]
pub struct CardStatus {
    /// The guest's name; its number where it has none.
    pub guest: String,
    /// The guest's number.
    pub guest_domid: u16,
    /// Such as vif0.
    pub vif: String,
    /// The number behind that.
    pub devid: u32,
    /// The network.
    pub network: String,
    /// The guest's address.
    pub mac: String,
    /// What it may use as source; none for any.
    pub ip: Vec<IpAddr>,
    /// The backend's xenbus state.
    pub backend_state: u8,
    /// Its name.
    pub backend: String,
    /// The frontend's xenbus state.
    pub frontend_state: u8,
    /// Its name.
    pub frontend: String,
    /// What the service VM calls it.
    pub phase: String,
    /// Why it is not connected, or what is wrong with it.
    pub reason: String,
    /// Queues that the frontend chose; 0 while there is none.
    pub queues: usize,
    /// What the frontend chose.
    pub features: Vec<String>,
    /// Its counters.
    pub stats: Option<netback::stats::Stats>,
}

/// A disk of a guest.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceStatus {
    /// The guest's name; its number where it has none.
    pub guest: String,
    /// The guest's number.
    pub guest_domid: u16,
    /// Such as xvda.
    pub vdev: String,
    /// The number behind that.
    pub devid: u32,
    /// The volume.
    pub volume: String,
    /// `r` or `w`.
    pub mode: String,
    /// The backend's xenbus state.
    pub backend_state: u8,
    /// Its name.
    pub backend: String,
    /// The frontend's xenbus state.
    pub frontend_state: u8,
    /// Its name.
    pub frontend: String,
    /// What the service VM calls it.
    pub phase: String,
    /// Why it is not connected.
    pub reason: String,
    /// Which data path.
    pub path: String,
    /// Its counters.
    pub stats: Option<Stats>,
}

/// Reads everything, after the service VMs had a moment to refresh their numbers.
///
/// # Errors
/// When the store does not answer.
pub fn status(store: &mut Client) -> Result<Status, Error> {
    let domains = domain::all(store)?;
    let mut vms = Vec::new();
    for domain in &domains {
        if let Some(ready) = store.text(&format!("/local/domain/{}/{}/ready", domain.domid, publish::ROOT))? {
            vms.push((domain, ready == "1"));
        }
    }
    sample(store, &vms)?;
    let vms =
        vms.into_iter().map(|(domain, ready)| vm(store, domain, &domains, ready)).collect::<Result<_, Error>>()?;
    Ok(Status { vms })
}

/// [`status`] without asking anybody to refresh anything.
///
/// # Errors
/// When the store does not answer.
pub fn states(store: &mut Client) -> Result<Status, Error> {
    let domains = domain::all(store)?;
    let mut vms = Vec::new();
    for domain in &domains {
        let ready = store.text(&format!("/local/domain/{}/{}/ready", domain.domid, publish::ROOT))?;
        if let Some(ready) = ready {
            vms.push(vm(store, domain, &domains, ready == "1")?);
        }
    }
    Ok(Status { vms })
}

/// Every service VM.
///
/// # Errors
/// When the store does not answer.
pub fn services(store: &mut Client) -> Result<Vec<Domain>, Refusal> {
    let mut vms = domain::all(store)?;
    let mut error = None;
    vms.retain(|vm| match store.text(&format!("/local/domain/{}/{}/ready", vm.domid, publish::ROOT)) {
        Ok(ready) => ready.is_some(),
        Err(failure) => {
            error = Some(failure);
            false
        }
    });
    error.map_or(Ok(vms), |error| Err(error.into()))
}

/// The service VM of this name or number; without one, the only one there is.
///
/// # Errors
/// When there is none, or several to choose from.
pub fn service(store: &mut Client, name: Option<&str>) -> Result<Domain, Refusal> {
    let vms = services(store)?;
    let names: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    let there = domain::or_none(&names);
    match (name, vms.as_slice()) {
        (Some(name), vms) => {
            let found = vms.iter().find(|vm| vm.name == name);
            let found = found.or_else(|| vms.iter().find(|vm| vm.domid.to_string() == name));
            found.cloned().ok_or_else(|| Refusal::NotFound(format!("no service VM named {name:?} (there is: {there})")))
        }
        (None, [one]) => Ok(one.clone()),
        (None, []) => Err(Refusal::NotFound("there is no service VM".into())),
        (None, _) => Err(Refusal::NotFound(format!("there are several service VMs ({there}): name one"))),
    }
}

fn sample(store: &mut Client, vms: &[(&Domain, bool)]) -> Result<(), Error> {
    let mut waiting = Vec::new();
    for (domain, ready) in vms {
        if *ready {
            waiting.push(Sample::ask(store, domain.domid)?);
        }
    }
    let deadline = Instant::now() + SAMPLE_PATIENCE;
    while !waiting.is_empty() && Instant::now() < deadline {
        let mut left = Vec::new();
        for sample in waiting {
            if !sample.is_answered(store)? {
                left.push(sample);
            }
        }
        waiting = left;
        if !waiting.is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn vm(store: &mut Client, domain: &Domain, domains: &[Domain], ready: bool) -> Result<Vm, Error> {
    let volumes = store.transaction(|tx| publish::read_volumes(tx, domain.domid))?;
    let volumes = volumes.into_iter().map(|(name, about)| VolumeStatus { name, about }).collect();
    let networks = store.transaction(|tx| publish::read_networks(tx, domain.domid))?;
    let networks = networks.into_iter().map(|(name, about)| NetworkStatus { name, about }).collect();
    let (mut devices, mut cards) = (Vec::new(), Vec::new());
    for (guest, devid) in served(store, domain.domid, "vbd")? {
        devices.push(device(store, domain.domid, domains, guest, devid)?);
    }
    for (guest, devid) in served(store, domain.domid, "vif")? {
        cards.push(card(store, domain.domid, domains, guest, devid)?);
    }
    Ok(Vm { name: domain.name.clone(), domid: domain.domid, ready, volumes, devices, networks, cards })
}

/// All devices of a class that a service VM has directories of: guest and number.
fn served(store: &mut Client, service: u16, class: &str) -> Result<Vec<(u16, u32)>, Error> {
    let root = format!("/local/domain/{service}/backend/{class}");
    let mut all = Vec::new();
    for guest in numbers::<u16>(store.list(&root)?) {
        let devids = numbers::<u32>(store.list(&format!("{root}/{guest}"))?);
        all.extend(devids.into_iter().map(|devid| (guest, devid)));
    }
    Ok(all)
}

fn numbers<T: std::str::FromStr + Ord>(entries: Vec<String>) -> Vec<T> {
    let mut numbers: Vec<T> = entries.iter().filter_map(|entry| entry.parse().ok()).collect();
    numbers.sort();
    numbers
}

fn device(store: &mut Client, service: u16, domains: &[Domain], guest: u16, devid: u32) -> Result<DeviceStatus, Error> {
    let paths = Paths::new(guest, service, Device::Disk(Vdev(devid)));
    let seen = Seen::read(store, &paths)?;
    let mut of_backend = |key: &str| -> Result<String, Error> {
        Ok(store.text(&format!("{}/{key}", paths.backend))?.unwrap_or_default())
    };
    let (volume, mode) = (of_backend("params")?, of_backend("mode")?);
    Ok(DeviceStatus {
        guest: guest_name(domains, guest),
        guest_domid: guest,
        vdev: Vdev(devid).to_string(),
        devid,
        volume,
        mode,
        backend_state: seen.backend as u8,
        backend: format!("{:?}", seen.backend),
        frontend_state: seen.frontend as u8,
        frontend: format!("{:?}", seen.frontend),
        phase: seen.own.phase,
        reason: seen.refused.unwrap_or(seen.own.reason),
        path: seen.own.path,
        stats: seen.own.stats,
    })
}

/// A guest's name, or its number where it has none.
fn guest_name(domains: &[Domain], guest: u16) -> String {
    let name = domains.iter().find(|domain| domain.domid == guest).map(|domain| domain.name.clone());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| guest.to_string())
}

fn card(store: &mut Client, service: u16, domains: &[Domain], guest: u16, devid: u32) -> Result<CardStatus, Error> {
    let device = Device::Card(devid);
    let paths = Paths::new(guest, service, device);
    let seen = Seen::read(store, &paths)?;
    let node = VifNode::read(store, service, guest, devid)?;
    let mut of_backend = |key: &str| -> Result<String, Error> {
        Ok(store.text(&format!("{}/{key}", paths.backend))?.unwrap_or_default())
    };
    // One that was refused has no place in a network: what its toolstack asked for.
    let network = if node.network.is_empty() { of_backend("bridge")? } else { node.network };
    let mac = if node.mac.is_empty() { of_backend("mac")? } else { node.mac };
    Ok(CardStatus {
        guest: guest_name(domains, guest),
        guest_domid: guest,
        vif: device.to_string(),
        devid,
        network,
        mac,
        ip: node.ip,
        backend_state: seen.backend as u8,
        backend: format!("{:?}", seen.backend),
        frontend_state: seen.frontend as u8,
        frontend: format!("{:?}", seen.frontend),
        phase: node.phase,
        reason: seen.refused.unwrap_or(node.reason),
        queues: node.queues,
        features: node.features,
        stats: node.stats,
    })
}

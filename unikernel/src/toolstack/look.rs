//! What the store says about a disk, or about all of them.

use std::time::{Duration, Instant};

use blkback::stats::Stats;
use serde::Serialize;
use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error, Store};

use super::Paths;
use super::domain::{self, Domain};
use crate::publish::{self, DeviceNode};
use crate::store::Nodes;
use crate::vdev::Vdev;

/// How long service VMs may take to refresh their numbers before the old ones are shown.
const SAMPLE_PATIENCE: Duration = Duration::from_millis(500);

/// Both sides of one disk at one moment.
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
        let own = DeviceNode::read(store, paths.service, paths.guest, paths.devid)?;
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
        let data = format!("/local/domain/{}/{}", domain.domid, publish::ROOT);
        if let Some(ready) = store.text(&format!("{data}/ready"))? {
            vms.push((domain, data, ready == "1"));
        }
    }
    sample(store, &vms)?;
    let vms =
        vms.into_iter().map(|(domain, _, ready)| vm(store, domain, &domains, ready)).collect::<Result<_, Error>>()?;
    Ok(Status { vms })
}

fn sample(store: &mut Client, vms: &[(&Domain, String, bool)]) -> Result<(), Error> {
    let token = format!("{:016x}", fastrand::u64(..));
    let mut waiting = Vec::new();
    for (_, data, ready) in vms {
        if *ready {
            store.write(&format!("{data}/sample"), token.as_bytes())?;
            waiting.push(format!("{data}/sampled"));
        }
    }
    let deadline = Instant::now() + SAMPLE_PATIENCE;
    while !waiting.is_empty() && Instant::now() < deadline {
        let mut left = Vec::new();
        for node in waiting {
            if store.text(&node)?.as_deref() != Some(&token) {
                left.push(node);
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
    let mut devices = Vec::new();
    let root = format!("/local/domain/{}/backend/vbd", domain.domid);
    for guest in numbers::<u16>(store.list(&root)?) {
        for devid in numbers::<u32>(store.list(&format!("{root}/{guest}"))?) {
            devices.push(device(store, domain.domid, domains, guest, devid)?);
        }
    }
    Ok(Vm { name: domain.name.clone(), domid: domain.domid, ready, volumes, devices })
}

fn numbers<T: std::str::FromStr + Ord>(entries: Vec<String>) -> Vec<T> {
    let mut numbers: Vec<T> = entries.iter().filter_map(|entry| entry.parse().ok()).collect();
    numbers.sort();
    numbers
}

fn device(store: &mut Client, service: u16, domains: &[Domain], guest: u16, devid: u32) -> Result<DeviceStatus, Error> {
    let paths = Paths::new(guest, service, devid);
    let seen = Seen::read(store, &paths)?;
    let mut of_backend = |key: &str| -> Result<String, Error> {
        Ok(store.text(&format!("{}/{key}", paths.backend))?.unwrap_or_default())
    };
    let (volume, mode) = (of_backend("params")?, of_backend("mode")?);
    let name = domains.iter().find(|domain| domain.domid == guest).map(|domain| domain.name.clone());
    Ok(DeviceStatus {
        guest: name.filter(|name| !name.is_empty()).unwrap_or_else(|| guest.to_string()),
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

//! What outlives a supervisor: workers and devices, as descriptors and records at the keeper.
//!
//! | key | descriptors |
//! | --- | --- |
//! | `worker-ID-GUEST-PID` | control socket, process, read ends of the fences |
//! | `ready` | none: a supervisor has served before |
//! | `memory` | in the embedded world: the domain's memory; there from the start |
//! | `log` | the last lines of the log |
//! | `disk-GUEST-DEVID` | the record (JSON in a memfd), then volume and meter where there are some, then journals |
//!
//! A record is renewed whenever it has changed, before anybody else can see a consequence. So whoever takes over knows
//! at least as much as its workers do, and asks them again where it cannot be sure.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use blkback::config::DiskParams;
use blkback::limit::{Need, Width};
use grant::DomId;
use grant::meter::Meter;
use serde::{Deserialize, Serialize};

use super::device::{Device, WorkerId};
use super::guest::Guest;
use super::nodes::{Description, Name};
use super::volume::Opened;
use super::worker::Worker;
use super::{Supervisor, SupervisorError, record};
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::Service;

/// Key that says that a supervisor has served before.
const READY: &str = "ready";

/// Key of the memory that an embedded domain grants pages of.
pub const MEMORY: &str = "memory";
/// Key of the lines of the log.
pub const LOG: &str = "log";

/// What is remembered of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    about: Option<Description>,
    state: u8,
    service: u8,
    worker: Option<WorkerId>,
    offered: bool,
    refused: bool,
    busy: bool,
    holding: Option<String>,
    forgiven: u64,
    width: Option<Width>,
    need: Need,
    reason: String,
    path: String,
    /// The open volume; the first descriptor, if it has one.
    volume: Option<(DiskParams, bool)>,
    meter: bool,
    journals: usize,
}

impl Record {
    fn of(device: &Device) -> Record {
        let volume = device.volume.as_ref();
        Record {
            about: device.about.clone(),
            state: device.state as u8,
            service: device.service as u8,
            worker: device.worker,
            offered: device.offered,
            refused: device.refused,
            busy: device.busy,
            holding: device.holding.clone(),
            forgiven: device.forgiven,
            width: device.width,
            need: device.need,
            reason: device.reason.clone(),
            path: device.path.clone(),
            volume: volume.map(|volume| (volume.disk.clone(), volume.fd.is_some())),
            meter: device.meter.is_some(),
            journals: device.journals.len(),
        }
    }

    /// The device again; `fds` follow the record.
    fn device(self, mut fds: impl Iterator<Item = OwnedFd>) -> io::Result<Device> {
        let mut device = Device::found(XenbusState::Initialising);
        device.state = record::state(self.state);
        if let Some((disk, has_fd)) = self.volume {
            let fd = if has_fd { Some(record::next(&mut fds)?) } else { None };
            device.volume = Some(Opened { fd, disk });
        }
        if self.meter {
            let fd = record::next(&mut fds)?;
            device.meter = Some((fd.try_clone()?, Meter::open(fd)?));
        }
        device.journals = fds.collect();
        device.about = self.about;
        device.service = record::service(self.service);
        device.worker = self.worker;
        device.offered = self.offered;
        device.refused = self.refused;
        device.busy = self.busy;
        device.holding = self.holding;
        device.forgiven = self.forgiven;
        device.width = self.width;
        device.need = self.need;
        device.reason = self.reason;
        device.path = self.path;
        Ok(device)
    }
}

impl Supervisor {
    /// From now on whoever comes takes over, even when there is nothing to take.
    pub(super) fn keep_ready(&self) -> io::Result<()> {
        self.keeper.keep(READY, &[])
    }

    /// Renews a device's record if it has changed.
    pub(super) fn keep(&mut self, name: Name) -> io::Result<()> {
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let record = Record::of(device);
        if device.kept.as_ref() == Some(&record) {
            return Ok(());
        }
        let written = record::write(&record)?;
        let mut fds: Vec<BorrowedFd<'_>> = vec![written.as_fd()];
        fds.extend(device.volume.as_ref().and_then(|volume| volume.fd.as_ref()).map(AsFd::as_fd));
        fds.extend(device.meter.as_ref().map(|(fd, _)| fd.as_fd()));
        fds.extend(device.journals.iter().map(AsFd::as_fd));
        self.keeper.keep(&key(name), &fds)?;
        device.kept = Some(record);
        Ok(())
    }

    /// A device is gone.
    pub(super) fn forget_record(&self, name: Name) -> io::Result<()> {
        self.keeper.forget(&key(name))
    }

    /// A worker has started.
    pub(super) fn keep_worker(&self, id: WorkerId, worker: &Guest) -> io::Result<()> {
        self.keeper.keep(&worker_key(id, worker), &worker.worker.handles())
    }

    /// A worker is gone, or on its way out.
    pub(super) fn forget_worker(&self, id: WorkerId, worker: &Guest) {
        if let Err(error) = self.keeper.forget(&worker_key(id, worker)) {
            tracing::error!(%error, "the keeper does not forget a worker");
        }
    }

    /// Takes over what a supervisor before us had; false when there was none.
    pub(super) fn take_over(&mut self) -> Result<bool, SupervisorError> {
        let mut kept = self.keeper.list()?;
        kept.retain(|(key, _)| key != MEMORY && key != LOG);
        if kept.is_empty() {
            return Ok(false);
        }
        for (key, fds) in kept {
            let result = match key.split_once('-') {
                Some(("worker", rest)) => self.take_over_worker(rest, fds),
                Some(("disk", rest)) => self.take_over_device(rest, fds),
                Some((kind, rest)) => self.take_over_vifs(kind, rest, fds),
                None if key == READY => Some(()),
                _ => None,
            };
            if result.is_none() {
                tracing::error!(key, "what was kept is of no use");
                self.keeper.forget(&key)?;
            }
        }
        // One that was being connected: nobody knows whether its worker has heard of it.
        let uncertain: Vec<Name> =
            self.devices.iter().filter(|(_, it)| it.service == Service::Connecting).map(|(name, _)| *name).collect();
        for name in uncertain {
            let worker = self.devices.get(&name).and_then(|device| device.worker);
            if let Some(worker) = worker.and_then(|id| self.workers.get_mut(&id)) {
                worker.worker.kill("the supervisor died while it was given a disk");
            }
        }
        for device in self.devices.values_mut() {
            let gone = device.worker.is_none_or(|id| !self.workers.contains_key(&id));
            if gone && device.service != Service::None {
                device.service = Service::None;
                device.worker = None;
                device.reason = "its worker was lost together with the supervisor".to_owned();
            }
            // Whether the worker was asked already is not known; it may be asked twice.
            if device.service == Service::Draining {
                device.service = Service::Connected;
            }
        }
        self.settle_vifs()?;
        let (workers, devices, cards) = (self.workers.len(), self.devices.len(), self.vifs.len());
        tracing::warn!(workers, devices, cards, "taken over");
        self.dirty.extend(self.devices.keys().copied());
        Ok(true)
    }

    fn take_over_worker(&mut self, key: &str, fds: Vec<OwnedFd>) -> Option<()> {
        let mut parts = key.split('-');
        let id: WorkerId = parts.next()?.parse().ok()?;
        let guest: u16 = parts.next()?.parse().ok()?;
        let pid: i32 = parts.next()?.parse().ok()?;
        let worker = Worker::from_handles(pid, fds)?;
        self.workers.insert(id, Guest { domid: DomId(guest), worker });
        self.current.insert(guest, id);
        self.next_worker = self.next_worker.max(id + 1);
        Some(())
    }

    fn take_over_device(&mut self, key: &str, fds: Vec<OwnedFd>) -> Option<()> {
        let (guest, devid) = key.split_once('-')?;
        let name = Name::parse(guest, devid)?;
        let mut fds = fds.into_iter();
        let record: Record = record::read(fds.next()?).ok()?;
        let mut device = record.device(fds).ok()?;
        device.timer = Some(Instant::now());
        self.devices.insert(name, device);
        Some(())
    }
}

fn key(name: Name) -> String {
    format!("disk-{}-{}", name.guest, name.devid)
}

fn worker_key(id: WorkerId, worker: &Guest) -> String {
    format!("worker-{id}-{}-{}", worker.domid, worker.worker.pid())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_device_survives_its_record() {
        let mut device = Device::found(XenbusState::Initialising);
        device.state = XenbusState::Connected;
        device.service = Service::Connected;
        device.worker = Some(3);
        device.path = "zero copy".into();
        let disk = DiskParams { direct: true, ..DiskParams::plain(8) };
        let fd = File::open("/dev/null").unwrap().into();
        device.volume = Some(Opened { fd: Some(fd), disk });
        let record = Record::of(&device);
        let written = record::write(&record).unwrap();
        let fds = [File::open("/dev/null").unwrap().into()].into_iter();
        let again = record::read::<Record>(written).unwrap().device(fds).unwrap();
        assert_eq!(Record::of(&again), record);
        assert!(record.device(std::iter::empty()).is_err());
    }
}

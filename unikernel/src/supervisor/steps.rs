//! Carrying out what [`xenstore::xenbus::backend`] decides, one device at a time.

use std::os::fd::AsFd;
use std::time::Instant;

use blkback::config::Connect;
use grant::DomId;
use grant::meter::Meter;
use xenstore::Error;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::{self, Seen, Service, Step};

use super::device::{Device, WorkerId};
use super::grow::Change;
use super::guest::{Guest, Package};

use super::nodes::{self, Name};
use super::worker::Life;
use super::{MAX_DEVICES, Supervisor, SupervisorError};

/// Steps of one look; what is left after that waits for the next round, so that no device keeps the others waiting.
const STEPS: usize = 8;

impl Supervisor {
    /// Brings a device as far as it can be brought now.
    pub(super) fn drive(&mut self, name: Name) -> Result<(), SupervisorError> {
        match self.steps(name) {
            Ok(()) => {}
            Err(error) if error.is_quota() => survivable(self.no_room(name, &error))?,
            Err(error @ (Error::Connection { .. } | Error::Io { .. } | Error::Protocol(_))) => return Err(error.into()),
            // A permission, a conflict without end: this device's trouble alone.
            Err(error) => survivable(self.refuse(name, &error.to_string(), false))?,
        }
        self.keep(name)?;
        survivable(self.publish(name))
    }

    fn steps(&mut self, name: Name) -> Result<(), Error> {
        self.announce_size(name)?;
        for _ in 0..STEPS {
            let seen = nodes::look(&mut self.store, name)?;
            if !self.devices.contains_key(&name) && !self.adopt(name, &seen)? {
                return Ok(());
            }
            let stopping = self.stopping.is_some();
            let rest = self.rest(name.guest);
            let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
            if device.state == XenbusState::Closed && seen.frontend != XenbusState::Initialising {
                // A frontend that comes back gets another chance; the reason stays until it does.
                device.refused = false;
            }
            let now = Instant::now();
            let dwell = self.config.backend.dwell();
            if !seen.online && !device.unwanted {
                // A device that closed long ago is asked for like any other: the toolstack starts to look now.
                device.unwanted = true;
                device.dwell = Some(now + dwell);
            }
            let parts = device.parts(stopping);
            let another = seen.is_another(&parts);
            let seen = if another { seen.gone() } else { seen };
            let step = backend::next(&seen, &parts, now);
            if let (Step::Prepare | Step::Offer, Some(at)) = (step, device.retry)
                && now < at
            {
                device.timer = Some(at);
                return Ok(());
            }
            if let (Step::Prepare, Some(at)) = (step, rest.filter(|at| now < *at)) {
                device.timer = Some(at);
                return Ok(());
            }
            match step {
                Step::Wait => return Ok(()),
                Step::WaitUntil(at) => {
                    device.timer = Some(at);
                    return Ok(());
                }
                Step::Prepare => {
                    if !self.open_volume(name, now)? {
                        return Ok(());
                    }
                }
                Step::Offer => self.offer(name, now)?,
                Step::Connect => self.connect(name)?,
                Step::Announce => self.announce(name)?,
                Step::Disconnect => self.disconnect(name, now),
                Step::Switch(state) => {
                    backend::switch(&mut self.store, &name.backend(), state)?;
                    let before = std::mem::replace(&mut device.state, state);
                    if state == XenbusState::Closed {
                        device.width = None;
                        device.dwell = Some(now + dwell);
                        // Its frontend's Closed may have merged with what it wrote next: a connection that was
                        // refused ends here, and whoever is in Initialising now wants another.
                        let connected = matches!(before, XenbusState::Connected | XenbusState::Closing);
                        device.refused &= !connected && seen.frontend == XenbusState::Initialising;
                    }
                }
                Step::Remove => {
                    // The toolstack takes the end of the directory for the end of our hold on the volume.
                    device.volume = None;
                    if let Err(error) = self.forget_record(name) {
                        tracing::error!(%error, "the keeper does not forget a device");
                    }
                    nodes::remove(&mut self.store, name)?;
                    return self.forget(name);
                }
                Step::Forget => {
                    nodes::clean(&mut self.store, name)?;
                    self.forget(name)?;
                    if !another {
                        return Ok(());
                    }
                }
            }
        }
        self.dirty.insert(name);
        Ok(())
    }

    /// A directory that is new to us. False when there is nothing to look after.
    fn adopt(&mut self, name: Name, seen: &Seen) -> Result<bool, Error> {
        let Some(state) = seen.backend else { return Ok(false) };
        if self.devices.len() >= MAX_DEVICES {
            self.say(name, &format!("not served: there are {MAX_DEVICES} devices already"));
            return Ok(false);
        }
        let mut device = Device::found(state);
        match nodes::describe(&mut self.store, name)? {
            Ok(about) => device.about = Some(about),
            Err(why) => device.refuse(why),
        }
        let refused = device.refused.then(|| device.reason.clone());
        self.devices.insert(name, device);
        if let Some(why) = refused {
            self.refuse(name, &why, false)?;
        }
        Ok(true)
    }

    /// Publishes what the frontend needs, then goes to InitWait, by a write of its own.
    fn offer(&mut self, name: Name, now: Instant) -> Result<(), Error> {
        let width = match self.width(name) {
            Ok(width) => width,
            Err(why) => {
                if let Some(device) = self.devices.get_mut(&name) {
                    device.volume = None;
                }
                self.refuse(name, &why, false)?;
                return self.publish_volumes();
            }
        };
        let dwell = self.config.backend.dwell();
        // Threads and rings are there before anything of the guest's is looked at.
        let worker = self.worker(name.guest);
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let Some(volume) = &device.volume else { return Ok(()) };
        if let Err(error) = worker {
            return self.refuse(name, &format!("no worker can be started: {error}"), false);
        }
        let Some(about) = &device.about else { return Ok(()) };
        nodes::offer(&mut self.store, name, &width.offer, &volume.disk, about, device.offered)?;
        (device.width, device.need) = (Some(width), width.need());
        backend::switch(&mut self.store, &name.backend(), XenbusState::InitWait)?;
        device.state = XenbusState::InitWait;
        device.retry = None;
        device.reason.clear();
        device.path.clear();
        // Only a toolstack that waits for a new device has to see InitWait; a guest that comes back has seen it.
        device.dwell = (!device.offered).then(|| now + dwell);
        device.offered = true;
        Ok(())
    }

    /// Reads what the frontend chose and hands the disk to the guest's worker.
    fn connect(&mut self, name: Name) -> Result<(), Error> {
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let Some(width) = device.width else { return Ok(()) };
        let negotiated = match nodes::negotiated(&mut self.store, name, &width.offer, &mut device.left)? {
            Ok(negotiated) => negotiated,
            Err(error) => return self.refuse(name, &error.to_string(), false),
        };
        let worker = match self.worker(name.guest) {
            Ok(worker) => worker,
            Err(error) => return self.refuse(name, &format!("no worker can be started: {error}"), false),
        };
        let settled = match self.devices.get_mut(&name).and_then(|device| device.volume.as_mut()) {
            Some(volume) => volume.settle(),
            None => return Ok(()),
        };
        if let Err(why) = settled {
            return self.refuse(name, &why, false);
        }
        let package = {
            let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
            let Some(volume) = &device.volume else { return Ok(()) };
            device.size = Change::default();
            device.forgiven = 0;
            let (need, persistent) = width.chosen(&negotiated);
            device.need = need;
            let connect = Connect {
                guest: name.guest,
                devid: name.devid,
                max_persistent: persistent,
                negotiated,
                disk: volume.disk.clone(),
                fixed_buffers: self.config.backend.fixed_buffers,
                transient: self.config.backend.transient,
                zero_copy: self.zero_copy,
            };
            Package::new(&self.world, self.own, connect, volume.fd.as_ref().map(AsFd::as_fd))
        };
        let connected = package.and_then(|package| {
            let meter = Meter::open(package.meter.try_clone()?)?;
            if let Some(device) = self.devices.get_mut(&name) {
                device.meter = Some((package.meter.try_clone()?, meter));
                device.journals = package.journals()?;
                device.worker = Some(worker);
                device.service = Service::Connecting;
            }
            // Kept before it is sent: whoever takes over must know that the worker may have it.
            self.keep(name)?;
            let process = self.workers.get(&worker).ok_or(std::io::ErrorKind::NotFound)?;
            process.connect(&package)
        });
        if let Err(error) = connected {
            if let Some(device) = self.devices.get_mut(&name) {
                device.service = Service::None;
            }
            return self.refuse(name, &format!("its worker cannot be told of it: {error}"), false);
        }
        Ok(())
    }

    fn announce(&mut self, name: Name) -> Result<(), Error> {
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let (Some(volume), Some(about), Some(width)) = (&device.volume, &device.about, device.width) else {
            return Ok(());
        };
        if nodes::announce(&mut self.store, name, &width.offer, &volume.disk, about)? {
            device.state = XenbusState::Connected;
            let text = format!("connected to volume {}: {}", about.volume, device.path);
            self.tell(name, &text);
        }
        Ok(())
    }

    fn disconnect(&mut self, name: Name, now: Instant) {
        let Some(device) = self.devices.get_mut(&name) else { return };
        let guest = device.worker.and_then(|id| self.workers.get_mut(&id));
        match guest {
            Some(guest) if guest.worker.life == Life::Running => {
                if let Err(error) = guest.disconnect(name.devid) {
                    // One that takes no message any more is of no use to its other disks either.
                    guest.worker.kill(&format!("it takes no messages ({error})"));
                }
                device.service = Service::Draining;
                device.draining = Some(now);
                device.timer = Some(now + super::device::DRAIN_PATIENCE);
            }
            // Dead and not fenced: the fence ends it.
            Some(_) => device.service = Service::Draining,
            None => device.service = Service::None,
        }
    }

    /// The guest's running worker, started if there is none.
    fn worker(&mut self, guest: u16) -> std::io::Result<WorkerId> {
        if let Some(id) = self.current.get(&guest)
            && self.workers.get(id).is_some_and(|guest| guest.worker.life == Life::Running)
        {
            return Ok(*id);
        }
        let mut worker = Guest::start(&self.world, self.own, DomId(guest), &self.config.backend)?;
        let id = self.next_worker;
        if let Err(error) = self.keep_worker(id, &worker) {
            worker.worker.kill("it cannot be kept");
            return Err(error);
        }
        self.next_worker += 1;
        self.workers.insert(id, worker);
        self.current.insert(guest, id);
        Ok(id)
    }

    /// Gives up on a device and says so everywhere.
    pub(super) fn refuse(&mut self, name: Name, why: &str, busy: bool) -> Result<(), Error> {
        if self.devices.get(&name).is_none_or(|device| device.reason != why || !device.refused) {
            self.say(name, why);
        }
        if let Some(device) = self.devices.get_mut(&name) {
            device.refuse(why);
            device.busy = busy;
        }
        // Published before the toolstack is woken: it looks here for more than one word.
        self.publish(name)?;
        let marked = nodes::refuse(&mut self.store, name, why, busy)?;
        if let Some(device) = self.devices.get_mut(&name).filter(|device| !marked && !device.is_open()) {
            // Without a mark a directory that is made anew would look the same.
            device.refused = false;
            device.retry_later();
        }
        Ok(())
    }

    /// The device is gone.
    fn forget(&mut self, name: Name) -> Result<(), Error> {
        if self.devices.remove(&name).is_some() {
            if let Err(error) = self.forget_record(name) {
                tracing::error!(%error, "the keeper does not forget a device");
            }
            self.tell(name, "gone");
        }
        self.leave_overflow(name)?;
        self.publish_volumes()?;
        if self.devices.keys().all(|other| other.guest != name.guest) {
            self.forget_voices(name.guest);
            // Nothing left to serve: the worker ends when its socket closes.
            if let Some(id) = self.current.remove(&name.guest)
                && let Some(worker) = self.workers.remove(&id)
            {
                // The keeper's copy of the socket goes too, or the worker would never see it hang up.
                self.forget_worker(id, &worker);
                self.retired.push(worker.worker.retire());
            }
        }
        Ok(())
    }
}

/// What the store refuses is no reason to end, what it does not answer is.
pub(super) fn survivable(result: Result<(), Error>) -> Result<(), SupervisorError> {
    match result {
        Err(error @ (Error::Connection { .. } | Error::Io { .. } | Error::Protocol(_))) => Err(error.into()),
        Err(error) => {
            tracing::debug!("{error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

//! One thread follows the store: disks come, connect, drain and go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use frontend::blkfront::{Blkfront, Event, FollowError, Machine, Options, Properties, Queue, Waker};
use grant::Granted;
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec};
use xenstore::xenbus::XenbusState;
use xenstore::{Client, Store};

use super::GuestError;
use super::disk::Disk;
use super::exports::Attached;
use crate::nbd::{self, Command};
use crate::vdev::Vdev;

/// Where disks appear, relative to the domain; also the token of the watch.
const DISKS: &str = "device/vbd";
/// How long a closing backend may take for what it has.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a backend may take to let go when we end.
const CLOSE: Duration = Duration::from_secs(5);
/// How often things are looked at again that nobody tells us of.
const LOOK: Duration = Duration::from_secs(1);

/// All disks of a guest.
pub struct Following {
    store: Client,
    machine: Arc<dyn Machine>,
    options: Options,
    attached: Arc<Attached>,
    disks: BTreeMap<u32, Followed>,
    /// Tells instances of one disk number apart.
    serial: u64,
    ended: (Sender<Ended>, Receiver<Ended>),
    waker: Waker,
    /// Pages that a backend still had mapped when its disk had gone.
    leftover: Vec<Granted>,
}

/// A queue whose thread is done with it.
struct Ended {
    devid: u32,
    serial: u64,
    queue: Queue,
}

struct Followed {
    front: Blkfront,
    serial: u64,
    /// As the backend described it last.
    properties: Option<Properties>,
    /// Queues that are with their threads.
    lent: usize,
    back: Vec<Queue>,
    /// Set while the queues are awaited: when to lose patience.
    draining: Option<Instant>,
    /// The directory is not ours any more: nothing is to be told to anybody.
    gone: bool,
}

impl Followed {
    /// True when something may have to be done of which no event tells.
    fn is_restless(&self) -> bool {
        !self.front.is_connected() || self.draining.is_some()
    }
}

impl Following {
    /// Watches for disks as the domain of `store`.
    pub fn new(
        mut store: Client,
        machine: Arc<dyn Machine>,
        options: Options,
        attached: Arc<Attached>,
    ) -> Result<Following, GuestError> {
        store.watch(DISKS, DISKS)?;
        Ok(Following {
            store,
            machine,
            options,
            attached,
            disks: BTreeMap::new(),
            serial: 0,
            ended: mpsc::channel(),
            waker: Waker::new()?,
            leftover: Vec::new(),
        })
    }

    /// Follows until a signal arrives.
    pub fn run(&mut self, signals: &SignalFd) -> Result<(), GuestError> {
        loop {
            if signals.read_signal().map_err(io::Error::from)?.is_some() {
                return Ok(());
            }
            self.round(Some(signals), None)?;
        }
    }

    /// Flushes and closes all disks.
    ///
    /// # Errors
    /// [`GuestError::Flush`] when a disk would not flush: everything is closed all the same.
    pub fn close(&mut self) -> Result<(), GuestError> {
        let flushed = self.flush();
        let deadline = Instant::now() + CLOSE;
        for (&devid, disk) in &mut self.disks {
            self.attached.remove(Vdev(devid));
            if disk.draining.is_none() && disk.front.is_connected() {
                disk.draining = Some(Instant::now() + DRAIN);
                disk.front.leave(&mut self.store).or_else(survivable)?;
            }
        }
        loop {
            // A disk that was never connected has nothing to close.
            self.disks.retain(|_, disk| disk.front.states().0 != XenbusState::Initialising);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.disks.is_empty() {
                break;
            }
            if left.is_zero() {
                tracing::warn!(disks = self.disks.len(), "backends that have not let go");
                break;
            }
            self.round(None, Some(left))?;
        }
        match flushed.is_empty() {
            true => Ok(()),
            false => Err(GuestError::Flush(flushed.join(", "))),
        }
    }

    /// Flushes every disk that can be; returns the names of those that would not.
    fn flush(&self) -> Vec<String> {
        let (sender, flushed) = mpsc::channel();
        let mut waiting = BTreeSet::new();
        for (&devid, followed) in &self.disks {
            let (vdev, sender) = (Vdev(devid), sender.clone());
            let flush = followed.properties.is_some_and(|properties| properties.flush);
            let disk = self.attached.get(vdev).filter(|_| flush && followed.draining.is_none());
            if let Some(disk) = disk {
                waiting.insert(vdev);
                // A thread each: one that gets no answer must not keep the others.
                std::thread::spawn(move || {
                    let result = nbd::ask(&*disk, Command::Flush);
                    // Too late is as good as never.
                    let _ = sender.send((vdev, result));
                });
            }
        }
        let deadline = Instant::now() + DRAIN;
        while !waiting.is_empty() {
            match flushed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((vdev, Ok(()))) => drop(waiting.remove(&vdev)),
                Ok((_, Err(_))) => {}
                Err(_) => break,
            }
        }
        waiting.iter().map(Vdev::to_string).collect()
    }

    /// Waits for something to happen and acts on it.
    fn round(&mut self, signals: Option<&SignalFd>, timeout: Option<Duration>) -> Result<(), GuestError> {
        let mut look = BTreeSet::new();
        if !self.events(&mut look)? {
            self.wait(signals, timeout)?;
            self.events(&mut look)?;
        }
        self.waker.clear();
        while let Ok(ended) = self.ended.1.try_recv() {
            self.take_back(ended);
        }
        let now = Instant::now();
        for (&devid, disk) in &self.disks {
            if disk.draining.is_some_and(|deadline| deadline <= now) {
                disk.front.gate().fail("the backend did not answer what it had".to_owned());
            }
            if disk.is_restless() {
                look.insert(devid);
            }
        }
        for devid in look {
            self.look(devid)?;
        }
        self.end_leftovers();
        Ok(())
    }

    /// Takes the events that are there; false when there was none.
    fn events(&mut self, look: &mut BTreeSet<u32>) -> Result<bool, GuestError> {
        let mut any = false;
        while let Some(event) = self.store.next_event(Some(Duration::ZERO))? {
            any = true;
            self.concerns(&event.path, &event.token, look)?;
        }
        Ok(any)
    }

    fn wait(&self, signals: Option<&SignalFd>, timeout: Option<Duration>) -> io::Result<()> {
        let looking = !self.leftover.is_empty() || self.disks.values().any(Followed::is_restless);
        let timeout = match (timeout, looking) {
            (timeout, false) => timeout,
            (timeout, true) => Some(timeout.unwrap_or(LOOK).min(LOOK)),
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![PollFd::new(&self.store, PollFlags::IN), PollFd::new(&self.waker, PollFlags::IN)];
        fds.extend(signals.map(|signals| PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Which disks an event is about.
    fn concerns(&mut self, path: &str, token: &str, look: &mut BTreeSet<u32>) -> Result<(), GuestError> {
        if let Some(devid) = token.strip_prefix("backend/") {
            look.extend(devid.parse::<u32>().ok());
            return Ok(());
        }
        let below = path.strip_prefix(DISKS).and_then(|rest| rest.strip_prefix('/'));
        match below.and_then(|rest| rest.split('/').next()) {
            Some(devid) => look.extend(devid.parse::<u32>().ok()),
            None => {
                let names = match self.store.directory(DISKS) {
                    Err(error) if error.is_not_found() => Vec::new(),
                    other => other?,
                };
                look.extend(names.iter().filter_map(|name| name.parse::<u32>().ok()));
                look.extend(self.disks.keys());
            }
        }
        Ok(())
    }

    /// Takes whatever steps a disk is ready for.
    fn look(&mut self, devid: u32) -> Result<(), GuestError> {
        let vdev = Vdev(devid);
        loop {
            if !self.disks.contains_key(&devid) {
                let options = self.options.clone();
                match Blkfront::open(&mut self.store, Arc::clone(&self.machine), options, devid) {
                    Ok(Some(front)) => self.follow(devid, front),
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        tracing::error!(%error, "{vdev} cannot be used");
                        return survivable(error);
                    }
                }
            }
            let Some(disk) = self.disks.get_mut(&devid) else { return Ok(()) };
            match disk.front.turn(&mut self.store) {
                Ok(Event::Nothing) => return self.settle(devid),
                Ok(Event::Connected(properties, queues)) => self.start(devid, properties, queues)?,
                Ok(Event::Changed(properties)) => {
                    tracing::info!(sectors = properties.sectors, "{vdev} has changed");
                    disk.properties = Some(properties);
                    if let Some(disk) = self.attached.get(vdev) {
                        disk.change(properties);
                    }
                }
                Ok(Event::Drain) => {
                    tracing::info!("{vdev} is closing");
                    self.attached.remove(vdev);
                    disk.draining = Some(Instant::now() + DRAIN);
                }
                Ok(Event::Gone) => {
                    tracing::info!("{vdev} has been taken away");
                    self.attached.remove(vdev);
                    disk.gone = true;
                    disk.draining = Some(Instant::now() + DRAIN);
                }
                Ok(Event::Finished) => {
                    tracing::info!("{vdev} is closed");
                    self.release(devid);
                }
                Err(error) => {
                    tracing::error!(%error, "{vdev} cannot be used");
                    self.attached.remove(vdev);
                    disk.draining = Some(Instant::now() + DRAIN);
                    survivable(error)?;
                    return self.settle(devid);
                }
            }
        }
    }

    fn follow(&mut self, devid: u32, front: Blkfront) {
        self.serial += 1;
        let disk = Followed {
            front,
            serial: self.serial,
            properties: None,
            lent: 0,
            back: Vec::new(),
            draining: None,
            gone: false,
        };
        self.disks.insert(devid, disk);
    }

    /// A disk is connected: hands its queues to threads and shows it to NBD clients.
    fn start(&mut self, devid: u32, properties: Properties, queues: Vec<Queue>) -> Result<(), GuestError> {
        let vdev = Vdev(devid);
        let Some(disk) = self.disks.get_mut(&devid) else { return Ok(()) };
        disk.properties = Some(properties);
        disk.lent = queues.len();
        let (sender, waker, serial) = (self.ended.0.clone(), self.waker.clone(), disk.serial);
        let ended = move |queue| {
            // Nobody is left to take it only when this process ends.
            let _ = sender.send(Ended { devid, serial, queue });
            waker.wake();
        };
        let started = Disk::start(&vdev.to_string(), properties, queues, ended)?;
        self.attached.add(vdev, Arc::new(started));
        // A client of the toolstack that has seen the state finds the export.
        if let Err(error) = disk.front.ready(&mut self.store) {
            tracing::error!(%error, "{vdev} is connected and nobody hears of it");
            survivable(error)?;
        }
        tracing::info!(
            sectors = properties.sectors,
            persistent = properties.persistent,
            indirect = properties.max_indirect,
            queues = disk.lent,
            "{vdev} is connected"
        );
        Ok(())
    }

    fn take_back(&mut self, ended: Ended) {
        let Some(disk) = self.disks.get_mut(&ended.devid).filter(|disk| disk.serial == ended.serial) else {
            return;
        };
        tracing::debug!(counts = ?ended.queue.counts(), "{} has a queue back", Vdev(ended.devid));
        if disk.draining.is_none() {
            // A device that failed on its own: the thread ended before anybody told us why.
            let reason = disk.front.gate().reason().unwrap_or("its queue ended");
            tracing::error!("{} has failed: {reason}", Vdev(ended.devid));
            self.attached.remove(Vdev(ended.devid));
            disk.draining = Some(Instant::now() + DRAIN);
        }
        disk.lent -= 1;
        disk.back.push(ended.queue);
    }

    /// A draining disk whose queues are all back goes one step on.
    fn settle(&mut self, devid: u32) -> Result<(), GuestError> {
        let Some(disk) = self.disks.get_mut(&devid) else { return Ok(()) };
        if disk.draining.is_none() || disk.lent > 0 {
            return Ok(());
        }
        disk.draining = None;
        let queues = std::mem::take(&mut disk.back);
        if let Err(error) = disk.front.closed(&mut self.store, queues) {
            tracing::error!(%error, "{} cannot be closed", Vdev(devid));
            survivable(error)?;
        }
        let Some(disk) = self.disks.get(&devid) else { return Ok(()) };
        if disk.gone {
            self.release(devid);
            // What is in its place now may be a disk again.
            return self.look(devid);
        }
        Ok(())
    }

    fn release(&mut self, devid: u32) {
        if let Some(disk) = self.disks.remove(&devid) {
            self.leftover.extend(disk.front.release(&mut self.store));
        }
    }

    /// Tries again to end grants that a backend had not let go.
    fn end_leftovers(&mut self) {
        if self.leftover.is_empty() {
            return;
        }
        let Ok(mut grants) = self.machine.grant_access() else { return };
        let left = std::mem::take(&mut self.leftover);
        self.leftover.extend(left.into_iter().filter_map(|granted| Some(grants.end(granted).err()?.0)));
    }
}

/// Only a store that is gone ends the guest; a disk that cannot be used ends alone.
fn survivable(error: FollowError) -> Result<(), GuestError> {
    match error {
        FollowError::Store(error @ (xenstore::Error::Connection { .. } | xenstore::Error::Protocol(_))) => {
            Err(error.into())
        }
        _ => Ok(()),
    }
}

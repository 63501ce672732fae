//! A worker's disks: the queue threads of one process, and the control half that speaks to them.
//!
//! The threads are started before anything of a guest's is looked at. Queue i of a disk lives on thread i mod n; it is
//! attached, run and drained there. Control only sends messages and collects reports.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use grant::journal::{self, Journal};
use grant::meter::{Block, Meter};
use grant::reactor::{Control, Core, Inbox, Outbox, Reactor, mailbox};
use grant::ring::{self, BackRing};
use grant::uring::{FileSlot, Uring};
use grant::{Access, DomId, EventChannel, GrantRef, Grants, Port, SharedMemory};
use serde::{Deserialize, Serialize};

use crate::config::Connect;
use crate::data::{Data, Setup};
use crate::disk;
use crate::proto::{BlkifRequestSegment, MAX_SEGMENTS};
use crate::queue::{BlkQueue, Parts};
use crate::request::Limits;

/// What a thread is started with.
pub struct ThreadParts {
    /// Event channels of its own.
    pub events: Box<dyn EventChannel>,
    /// Write end of its fence pipe: goes into the ring's file table and nowhere else.
    pub fence: OwnedFd,
}

/// What a queue is connected with.
pub struct QueueParts {
    /// See [`create_journal`].
    pub journal: OwnedFd,
    /// The guest's pages.
    pub grants: Box<dyn Grants>,
}

/// What a worker tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// All queues of the disk are served.
    Connected {
        /// Device number.
        devid: u32,
        /// Which data path, for people.
        path: String,
        /// The volume is open for direct I/O.
        direct: bool,
    },
    /// The disk could not be connected; nothing of it is left.
    Failed {
        /// Device number.
        devid: u32,
        /// Why.
        reason: String,
    },
    /// The frontend broke the protocol: the disk takes nothing more and is to be disconnected.
    Broken {
        /// Device number.
        devid: u32,
        /// How.
        reason: String,
    },
    /// Asked for: the last I/O has ended, everything is unmapped.
    Closed {
        /// Device number.
        devid: u32,
    },
}

/// Pages of the arena of a queue that copies.
const ARENA_PAGES: usize = 1024;
/// Pages where zero copy is the rule: two of the largest requests.
const SMALL_ARENA_PAGES: usize = 512;

/// Makes the journal of a queue, with the frozen parameters at its head.
///
/// # Errors
/// What the kernel says.
pub fn create_journal(connect: &Connect, queue: usize) -> io::Result<OwnedFd> {
    let parameters = serde_json::to_vec(&(connect, queue)).map_err(io::Error::other)?;
    let keys = connect.negotiated.queues.get(queue).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let entries = ring::entries(keys.ring_refs.len(), connect.negotiated.abi.slot_size());
    let pool = usize::from(connect.negotiated.max_indirect) * size_of::<BlkifRequestSegment>();
    journal::create(&parameters, entries, pool as u32)
}

struct Attach {
    connect: Arc<Connect>,
    index: usize,
    volume: Option<Arc<OwnedFd>>,
    meter: Block,
    parts: QueueParts,
}

enum Message {
    Attach(Box<Attach>),
    Drain { devid: u32 },
    Stop,
}

enum FromThread {
    Attached { devid: u32, path: String },
    Failed { devid: u32, reason: String },
    Broken { devid: u32, reason: String },
    Drained { devid: u32 },
}

/// A disk as control sees it.
struct Device {
    direct: bool,
    queues: usize,
    attached: usize,
    failed: usize,
    drained: usize,
    failure: Option<String>,
    path: String,
    broken: bool,
}

/// The queue threads of one process.
pub struct Worker {
    threads: Vec<(Outbox<Message>, JoinHandle<()>)>,
    inbox: Inbox<FromThread>,
    devices: HashMap<u32, Device>,
}

impl Worker {
    /// Starts the threads.
    ///
    /// # Errors
    /// What the kernel says: io_uring may be forbidden, see [`grant::caps::check_io_uring`].
    pub fn start(guest: DomId, threads: Vec<ThreadParts>) -> io::Result<Worker> {
        let (outbox, inbox) = mailbox()?;
        let (ready, started) = crossbeam::channel::bounded(threads.len());
        let mut running = Vec::with_capacity(threads.len());
        for (number, parts) in threads.into_iter().enumerate() {
            let (sender, receiver) = mailbox()?;
            let (outbox, ready) = (outbox.clone(), ready.clone());
            let body = move || thread(guest, parts, &receiver, outbox, &ready);
            running.push((sender, std::thread::Builder::new().name(format!("queues-{number}")).spawn(body)?));
        }
        drop(ready);
        for _ in 0..running.len() {
            started.recv().map_err(io::Error::other)??;
        }
        Ok(Worker { threads: running, inbox, devices: HashMap::new() })
    }

    /// Connects a disk; a [`Report`] follows.
    ///
    /// # Errors
    /// `EEXIST` for a device number in use, `EINVAL` when the parts do not fit the description.
    pub fn connect(
        &mut self,
        connect: Connect,
        volume: Option<OwnedFd>,
        meter: OwnedFd,
        queues: Vec<QueueParts>,
    ) -> io::Result<()> {
        let devid = connect.devid;
        if self.devices.contains_key(&devid) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let meter = Meter::open(meter)?;
        if queues.is_empty() || queues.len() != connect.negotiated.queues.len() || meter.queues() < queues.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let device = Device {
            direct: connect.disk.direct,
            queues: queues.len(),
            attached: 0,
            failed: 0,
            drained: 0,
            failure: None,
            path: String::new(),
            broken: false,
        };
        self.devices.insert(devid, device);
        let (connect, volume) = (Arc::new(connect), volume.map(Arc::new));
        for (index, parts) in queues.into_iter().enumerate() {
            let meter = meter.block(index).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            let attach = Attach { connect: Arc::clone(&connect), index, volume: volume.clone(), meter, parts };
            self.threads[index % self.threads.len()].0.send(Message::Attach(Box::new(attach)));
        }
        Ok(())
    }

    /// Takes nothing more of a disk's, finishes what is in flight, unmaps; [`Report::Closed`] follows.
    pub fn disconnect(&mut self, devid: u32) {
        for (sender, _) in &self.threads {
            sender.send(Message::Drain { devid });
        }
    }

    /// Readable when a report waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inbox.fd()
    }

    /// The next report; never waits. Read until there is none.
    pub fn next_report(&mut self) -> Option<Report> {
        self.inbox.clear();
        while let Some(message) = self.inbox.next() {
            if let Some(report) = self.digest(message) {
                return Some(report);
            }
        }
        None
    }

    fn digest(&mut self, message: FromThread) -> Option<Report> {
        let (FromThread::Attached { devid, .. }
        | FromThread::Failed { devid, .. }
        | FromThread::Broken { devid, .. }
        | FromThread::Drained { devid }) = message;
        let device = self.devices.get_mut(&devid)?;
        let mut answered = true;
        match message {
            FromThread::Broken { reason, .. } => {
                return (!std::mem::replace(&mut device.broken, true)).then_some(Report::Broken { devid, reason });
            }
            FromThread::Attached { path, .. } => {
                device.attached += 1;
                device.path = path;
            }
            FromThread::Failed { reason, .. } => {
                device.failed += 1;
                device.failure.get_or_insert(reason);
            }
            FromThread::Drained { .. } => {
                device.drained += 1;
                answered = false;
            }
        }
        if device.failed + device.drained == device.queues {
            let failure = device.failure.take();
            self.devices.remove(&devid);
            return Some(match failure {
                Some(reason) => Report::Failed { devid, reason },
                None => Report::Closed { devid },
            });
        }
        if !answered || device.attached + device.failed < device.queues {
            return None;
        }
        if device.failed > 0 {
            // Some queues are there and some are not: a disk is whole or not at all.
            self.disconnect(devid);
            return None;
        }
        Some(Report::Connected { devid, path: device.path.clone(), direct: device.direct })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        for (sender, thread) in self.threads.drain(..) {
            sender.send(Message::Stop);
            if thread.join().is_err() {
                tracing::error!("a queue thread panicked");
            }
        }
    }
}

fn thread(
    guest: DomId,
    parts: ThreadParts,
    inbox: &Inbox<Message>,
    outbox: Outbox<FromThread>,
    ready: &crossbeam::channel::Sender<io::Result<()>>,
) {
    let uring = match Uring::new(Some(parts.fence)) {
        Ok(uring) => uring,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut reactor = Reactor::new(uring, parts.events);
    reactor.run(inbox, &mut Station { guest, outbox, files: HashMap::new() });
}

/// The control half of a thread.
struct Station {
    guest: DomId,
    outbox: Outbox<FromThread>,
    /// Volumes in the ring's table, with the number of queues that use each.
    files: HashMap<u32, (FileSlot, usize)>,
}

impl Control<BlkQueue> for Station {
    type Message = Message;

    fn message(&mut self, reactor: &mut Reactor<BlkQueue>, message: Message) -> bool {
        match message {
            Message::Attach(attach) => {
                let devid = attach.connect.devid;
                let report = match self.attach(reactor, *attach) {
                    Ok(path) => FromThread::Attached { devid, path },
                    Err(reason) => FromThread::Failed { devid, reason },
                };
                self.outbox.send(report);
            }
            Message::Drain { devid } => {
                reactor.queues().filter(|queue| queue.name().0 == devid).for_each(BlkQueue::drain);
            }
            Message::Stop => return false,
        }
        true
    }

    fn drained(&mut self, core: &mut Core, queue: BlkQueue) {
        let (devid, index) = queue.name();
        let port = queue.port();
        let (memory, ring_memory) = queue.into_remains();
        let results = [core.ring.close_memory(memory), ring_memory.unmap(), core.events().unbind(port)];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::error!(devid, index, %error, "closing a queue failed");
        }
        self.release_file(core, devid);
        self.outbox.send(FromThread::Drained { devid });
    }

    fn broken(&mut self, queue: &BlkQueue, reason: String) {
        let (devid, index) = queue.name();
        self.outbox.send(FromThread::Broken { devid, reason: format!("queue {index}: {reason}") });
    }
}

impl Station {
    fn attach(&mut self, reactor: &mut Reactor<BlkQueue>, attach: Attach) -> Result<String, String> {
        let Attach { connect, index, volume, meter, mut parts } = attach;
        let devid = connect.devid;
        let keys = &connect.negotiated.queues[index];
        let core = &mut reactor.core;
        let refs: Vec<GrantRef> = keys.ring_refs.iter().copied().map(GrantRef).collect();
        let ring_memory = parts
            .grants
            .map(&refs, Access::ReadWrite)
            .map_err(|error| format!("queue {index}: mapping the ring (grants {refs:?}) failed: {error}"))?;
        let ring = BackRing::attach(ring_memory.pages(), connect.negotiated.abi.slot_size())
            .map_err(|error| format!("queue {index}: {error}"))?;
        let journal = Journal::open(parts.journal).map_err(|error| format!("queue {index}: journal: {error}"))?;
        if journal.slots() != ring.entries() {
            return Err(format!(
                "queue {index}: the journal has {} slots, the ring {}",
                journal.slots(),
                ring.entries()
            ));
        }
        let file = self.acquire_file(core, devid, volume.as_deref()).map_err(|error| format!("volume: {error}"))?;
        let built = self.build(core, &connect, index, meter, parts.grants, (ring, ring_memory, journal), file);
        match built {
            Ok((port, queue, path)) => {
                reactor.add(queue.memory(), port, queue);
                Ok(path)
            }
            Err(reason) => {
                self.release_file(core, devid);
                Err(format!("queue {index}: {reason}"))
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one call, the parts of one queue")]
    fn build(
        &self,
        core: &mut Core,
        connect: &Connect,
        index: usize,
        meter: Block,
        grants: Box<dyn Grants>,
        (ring, ring_memory, journal): (BackRing, SharedMemory, Journal),
        file: Option<FileSlot>,
    ) -> Result<(Port, BlkQueue, String), String> {
        let disk = disk::open(&connect.disk, file).ok_or("the volume's descriptor is missing")?;
        let negotiated = &connect.negotiated;
        let zero_copy = connect.zero_copy && negotiated.persistent;
        let fixed_mapping = connect.fixed_buffers && zero_copy && core.ring.takes_fixed(&ring_memory.pages());
        let slots = ring.entries() as usize;
        let memory = core.ring.open_memory(slots * disk.limits().operations);
        let setup = Setup {
            grants,
            memory,
            slots,
            segments: usize::from(negotiated.max_indirect).max(MAX_SEGMENTS),
            arena_pages: if zero_copy { SMALL_ARENA_PAGES } else { ARENA_PAGES },
            max_persistent: if negotiated.persistent { connect.max_persistent as usize } else { 0 },
            zero_copy,
            fixed: connect.fixed_buffers && (!zero_copy || fixed_mapping),
        };
        let data = Data::new(setup, &mut core.ring).map_err(|error| format!("memory: {error}"));
        let port = data.and_then(|data| {
            let remote = Port(negotiated.queues[index].event_channel);
            let bound = core.events().bind(self.guest, remote);
            bound.map(|port| (data, port)).map_err(|error| format!("event channel {remote}: {error}"))
        });
        let (data, port) = match port {
            Ok(both) => both,
            Err(reason) => {
                let closed = core.ring.close_memory(memory);
                return Err(closed.err().map_or(reason.clone(), |error| format!("{reason}; {error}")));
            }
        };
        let fixed = if zero_copy { fixed_mapping } else { data.arena_is_fixed(&core.ring) };
        let path = path(zero_copy, negotiated.persistent, fixed);
        let limits = Limits {
            abi: negotiated.abi,
            max_indirect: negotiated.max_indirect,
            read_only: disk.limits().read_only,
            flush: disk.limits().flush,
        };
        let devid = connect.devid;
        let parts = Parts { devid, index, port, ring, ring_memory, journal, meter, limits, memory, data, disk };
        Ok((port, BlkQueue::new(parts), path))
    }

    fn acquire_file(&mut self, core: &mut Core, devid: u32, volume: Option<&OwnedFd>) -> io::Result<Option<FileSlot>> {
        let Some(volume) = volume else { return Ok(None) };
        if let Some((slot, users)) = self.files.get_mut(&devid) {
            *users += 1;
            return Ok(Some(*slot));
        }
        let slot = core.ring.register_file(volume.as_fd())?;
        self.files.insert(devid, (slot, 1));
        Ok(Some(slot))
    }

    fn release_file(&mut self, core: &mut Core, devid: u32) {
        let Some((slot, users)) = self.files.get_mut(&devid) else { return };
        *users -= 1;
        if *users == 0 {
            if let Err(error) = core.ring.unregister_file(*slot) {
                tracing::error!(devid, %error, "a volume could not be taken out of the ring");
            }
            self.files.remove(&devid);
        }
    }
}

/// The data path in words.
fn path(zero_copy: bool, persistent: bool, fixed: bool) -> String {
    let path = match (zero_copy, persistent) {
        (true, _) => "zero copy",
        (false, true) => "arena, memcpy",
        (false, false) => "arena, grant copy",
    };
    format!("{path}{}", if fixed { ", fixed buffers" } else { "" })
}

//! A worker's disks: the queue threads of one process, and the control half that speaks to them.
//!
//! The threads are started before anything of a guest's is looked at. Queue i of a disk lives on thread i mod n; it is
//! attached, run and drained there. Control only sends messages and collects reports.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use grant::journal;
use grant::meter::Meter;
use grant::reactor::{Inbox, Outbox, mailbox};
use grant::ring;
use grant::{DomId, EventChannel, Grants};
use serde::{Deserialize, Serialize};

use crate::config::Connect;
use crate::disk::{self, Open};
use crate::gate::Gate;
use crate::hold::Trouble;
use crate::proto::BlkifRequestSegment;
use crate::station::{self, Attach, FromThread, Message, Shared};

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
    /// The volume fails and the guest waits for it (`on-error = "hold"`).
    Holding {
        /// Device number.
        devid: u32,
        /// What the volume said.
        reason: String,
    },
    /// Nothing is held any more.
    Resumed {
        /// Device number.
        devid: u32,
    },
    /// Asked for: every queue takes requests up to the new size.
    Resized {
        /// Device number.
        devid: u32,
        /// The size, in 512-byte sectors.
        sectors: u64,
    },
    /// A flush failed: none of the disk succeeds from now on.
    FlushFailed {
        /// Device number.
        devid: u32,
    },
    /// Asked for: the last I/O has ended, everything is unmapped.
    Closed {
        /// Device number.
        devid: u32,
    },
}

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
    /// The size that is being told to the queues, and how many know it.
    resizing: (u64, usize),
    /// Queues that hold requests.
    holding: usize,
    flush_failed: Arc<AtomicBool>,
}

impl Device {
    /// The disk holds from its first queue that does to its last.
    fn trouble(&mut self, devid: u32, trouble: Trouble) -> Option<Report> {
        match trouble {
            Trouble::Holding(reason) => {
                self.holding += 1;
                (self.holding == 1).then_some(Report::Holding { devid, reason })
            }
            Trouble::Resumed => {
                self.holding = self.holding.saturating_sub(1);
                (self.holding == 0).then_some(Report::Resumed { devid })
            }
            Trouble::FlushFailed => Some(Report::FlushFailed { devid }),
        }
    }
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
        Worker::start_with(guest, threads, Arc::new(disk::open))
    }

    /// The same with another way to open disks.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub fn start_with(guest: DomId, threads: Vec<ThreadParts>, open: Open) -> io::Result<Worker> {
        let (outbox, inbox) = mailbox()?;
        let (ready, started) = crossbeam::channel::bounded(threads.len());
        let mut running = Vec::with_capacity(threads.len());
        for (number, parts) in threads.into_iter().enumerate() {
            let (sender, receiver) = mailbox()?;
            let (outbox, own, ready) = (outbox.clone(), sender.clone(), ready.clone());
            let open = Arc::clone(&open);
            let body = move || station::run(guest, (parts, open), &receiver, (own, outbox), &ready);
            running.push((sender, std::thread::Builder::new().name(format!("queues-{number}")).spawn(body)?));
        }
        drop(ready);
        for _ in 0..running.len() {
            started.recv().map_err(io::Error::other)??;
        }
        Ok(Worker { threads: running, inbox, devices: HashMap::new() })
    }

    /// How long its threads look for work before they sleep, where that pays; zero for never.
    pub fn poll_for(&self, budget: Duration) {
        for (sender, _) in &self.threads {
            sender.send(Message::Poll { budget });
        }
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
        let shared = self.shared(&connect);
        let device = Device {
            direct: connect.disk.direct,
            queues: queues.len(),
            attached: 0,
            failed: 0,
            drained: 0,
            failure: None,
            path: String::new(),
            broken: false,
            resizing: (0, 0),
            holding: 0,
            flush_failed: Arc::clone(&shared.flush_failed),
        };
        self.devices.insert(devid, device);
        let (connect, volume) = (Arc::new(connect), volume.map(Arc::new));
        for (index, parts) in queues.into_iter().enumerate() {
            let meter = meter.block(index).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            let (connect, volume, shared) = (Arc::clone(&connect), volume.clone(), shared.clone());
            let attach = Attach { connect, index, volume, meter, parts, shared };
            self.threads[index % self.threads.len()].0.send(Message::Attach(Box::new(attach)));
        }
        Ok(())
    }

    /// What the queues of a disk will share; a gate only where requests may have to run alone.
    fn shared(&self, connect: &Connect) -> Shared {
        let (devid, queues) = (connect.devid, connect.negotiated.queues.len());
        let gate = (connect.disk.barrier || connect.disk.logical_sector_size > 512).then(|| {
            let threads: Vec<Outbox<Message>> = self.threads.iter().map(|(sender, _)| sender.clone()).collect();
            let wake = move |index: usize| {
                threads[index % threads.len()].send(Message::Wake { devid, index });
            };
            Arc::new(Gate::new(queues, Box::new(wake)))
        });
        Shared { gate, flush_failed: Arc::new(AtomicBool::new(connect.disk.flush_failed)) }
    }

    /// The operator says that a disk's volume is well again: held requests are tried at once, flushes count again.
    pub fn resume(&mut self, devid: u32) {
        // Here and not by each queue in its turn: whoever comes late would undo the failure of another's next flush.
        if let Some(device) = self.devices.get(&devid) {
            device.flush_failed.store(false, Ordering::Relaxed);
        }
        for (sender, _) in &self.threads {
            sender.send(Message::Resume { devid });
        }
    }

    /// The volume of a disk has grown to `sectors` of 512 bytes; [`Report::Resized`] follows once no queue refuses what
    /// lies in the new part.
    pub fn resize(&mut self, devid: u32, sectors: u64) {
        let Some(device) = self.devices.get_mut(&devid) else { return };
        device.resizing = (sectors, 0);
        for (sender, _) in &self.threads {
            sender.send(Message::Resize { devid, sectors });
        }
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
        | FromThread::Trouble { devid, .. }
        | FromThread::Resized { devid, .. }
        | FromThread::Drained { devid }) = message;
        let device = self.devices.get_mut(&devid)?;
        let mut answered = true;
        match message {
            FromThread::Broken { reason, .. } => {
                return (!std::mem::replace(&mut device.broken, true)).then_some(Report::Broken { devid, reason });
            }
            FromThread::Trouble { trouble, .. } => return device.trouble(devid, trouble),
            FromThread::Resized { sectors, queues, .. } => {
                if device.resizing.0 != sectors {
                    return None;
                }
                device.resizing.1 += queues;
                let all = queues > 0 && device.resizing.1 == device.queues;
                return all.then_some(Report::Resized { devid, sectors });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_well_again_when_its_last_queue_is() {
        let mut device = Device {
            direct: false,
            queues: 2,
            attached: 2,
            failed: 0,
            drained: 0,
            failure: None,
            path: String::new(),
            broken: false,
            resizing: (0, 0),
            holding: 0,
            flush_failed: Arc::default(),
        };
        let failing = || Trouble::Holding("no space".into());
        assert!(matches!(device.trouble(7, failing()), Some(Report::Holding { devid: 7, .. })));
        assert_eq!(device.trouble(7, failing()), None, "said before");
        assert_eq!(device.trouble(7, Trouble::Resumed), None, "the other still holds");
        assert_eq!(device.trouble(7, Trouble::Resumed), Some(Report::Resumed { devid: 7 }));
    }
}

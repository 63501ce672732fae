//! The worker of one guest's disks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use blkback::config::Connect;
use blkback::device::create_journal;
use grant::DomId;
use grant::meter::Meter;

use super::worker::{self, Worker};
use crate::config::Backend;
use crate::message::{Order, Served, Start};
use crate::world::World;

/// One guest's worker.
#[derive(Debug)]
pub struct Guest {
    /// The guest it serves.
    pub domid: DomId,
    /// Its process.
    pub worker: Worker,
}

/// Everything that a worker needs for one disk.
pub struct Package {
    order: Order,
    volume: Option<OwnedFd>,
    /// The disk's meter, to be read at leisure.
    pub meter: OwnedFd,
    /// Per queue its journal and its way to the guest's pages.
    queues: Vec<OwnedFd>,
}

impl Package {
    /// Makes journals and a meter and opens a way to the guest's pages for each queue.
    ///
    /// # Errors
    /// With what could not be made or opened.
    pub fn new(world: &World, own: DomId, connect: Connect, volume: Option<BorrowedFd<'_>>) -> io::Result<Package> {
        let count = connect.negotiated.queues.len();
        let mut queues = Vec::with_capacity(count * 2);
        for queue in 0..count {
            queues.push(create_journal(&connect, queue)?);
            queues.push(world.open_grants(own)?);
        }
        let volume = volume.map(|volume| volume.try_clone_to_owned()).transpose()?;
        let order = Order::Connect { connect, volume: volume.is_some() };
        Ok(Package { order, volume, meter: Meter::create(count)?, queues })
    }

    /// Copies of the queues' journals: all of a queue's state can be rebuilt from its journal and its ring.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn journals(&self) -> io::Result<Vec<OwnedFd>> {
        self.queues.iter().step_by(2).map(OwnedFd::try_clone).collect()
    }
}

impl Guest {
    /// Starts a worker and as many threads as `backend` says.
    ///
    /// # Errors
    /// With what could not be opened or started.
    pub fn start(world: &World, own: DomId, domid: DomId, backend: &Backend) -> io::Result<Guest> {
        let threads = backend.worker_threads();
        let mut sent = Vec::with_capacity(threads * 2);
        let mut fences = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (read, write) = worker::fence()?;
            sent.push(world.open_events(own)?);
            sent.push(write);
            fences.push(read);
        }
        let start = Start::new(world.kind(), Served::Disks { guest: domid.0, threads, poll_us: backend.poll_us });
        // Our copies of the write ends close here: from now on only the worker can keep a fence up.
        Ok(Guest { domid, worker: Worker::start(&start, &sent, fences)? })
    }

    /// Gives the worker a disk.
    ///
    /// # Errors
    /// `WouldBlock` when it does not read; else what the kernel says.
    pub fn connect(&self, package: &Package) -> io::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = Vec::with_capacity(package.queues.len() + 2);
        fds.extend(package.volume.as_ref().map(AsFd::as_fd));
        fds.push(package.meter.as_fd());
        fds.extend(package.queues.iter().map(AsFd::as_fd));
        self.worker.send(&package.order, &fds)
    }

    /// Asks the worker to give a disk up; it answers `Closed`.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn disconnect(&self, devid: u32) -> io::Result<()> {
        self.worker.send(&Order::Disconnect { devid }, &[])
    }

    /// Tells the worker that a disk has grown; it answers `Resized`.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn resize(&self, devid: u32, sectors: u64) -> io::Result<()> {
        self.worker.send(&Order::Resize { devid, sectors }, &[])
    }

    /// Tells the worker that the volume of a disk is well again.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn resume(&self, devid: u32) -> io::Result<()> {
        self.worker.send(&Order::Resume { devid }, &[])
    }
}

//! The disks of one guest: one thread for each queue at most.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use blkback::config::Connect;
use blkback::device::{QueueParts, Report, ThreadParts, Worker};
use grant::DomId;
use rustix::event::{PollFd, PollFlags, poll};

use super::invalid;
use crate::message::{Channel, Order};
use crate::world::Kind;

/// Starts the threads.
///
/// # Errors
/// When the descriptors are not those of a start message, or the kernel refuses an io_uring.
pub(super) fn start(world: Kind, guest: DomId, threads: usize, fds: Vec<OwnedFd>) -> io::Result<Worker> {
    if threads == 0 || threads.checked_mul(2) != Some(fds.len()) {
        return Err(invalid("the start message does not bring two descriptors for each thread"));
    }
    let mut fds = fds.into_iter();
    let mut parts = Vec::with_capacity(threads);
    while let (Some(events), Some(fence)) = (fds.next(), fds.next()) {
        parts.push(ThreadParts { events: world.events(events, guest)?, fence });
    }
    Worker::start(guest, parts)
}

/// Serves until the supervisor hangs up.
///
/// # Errors
/// When the control socket breaks or brings what no supervisor of this version sends.
pub(super) fn serve(channel: &Channel, mut worker: Worker, world: Kind, guest: DomId) -> io::Result<()> {
    // What the threads hold, so that a supervisor that took over and asks twice gets its answer.
    let mut served = HashSet::new();
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(worker.fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(report) = worker.next_report() {
            if let Report::Closed { devid } | Report::Failed { devid, .. } = report {
                served.remove(&devid);
            }
            channel.send(&report, &[])?;
        }
        loop {
            match channel.receive::<Order>() {
                Ok(Some(order)) => obey(channel, &mut worker, &mut served, (world, guest), order)?,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

fn obey(
    channel: &Channel,
    worker: &mut Worker,
    served: &mut HashSet<u32>,
    (world, guest): (Kind, DomId),
    (order, fds): (Order, Vec<OwnedFd>),
) -> io::Result<()> {
    match order {
        Order::Disconnect { devid } if served.contains(&devid) => worker.disconnect(devid),
        Order::Resize { devid, sectors } => worker.resize(devid, sectors),
        Order::Resume { devid } => worker.resume(devid),
        Order::Disconnect { devid } => channel.send(&Report::Closed { devid }, &[])?,
        Order::Connect { connect, volume } => {
            let devid = connect.devid;
            match begin(worker, world, guest, connect, volume, fds) {
                Ok(()) => drop(served.insert(devid)),
                // What is wrong with one disk must not end the others.
                Err(error) => channel.send(&Report::Failed { devid, reason: error.to_string() }, &[])?,
            }
        }
    }
    Ok(())
}

fn begin(
    worker: &mut Worker,
    world: Kind,
    guest: DomId,
    connect: Connect,
    volume: bool,
    fds: Vec<OwnedFd>,
) -> io::Result<()> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| invalid("a connect message lacks descriptors"));
    let volume = if volume { Some(next()?) } else { None };
    let meter = next()?;
    let mut queues = Vec::with_capacity(connect.negotiated.queues.len());
    for _ in &connect.negotiated.queues {
        let journal = next()?;
        let grants = world.grants(next()?, guest)?;
        queues.push(QueueParts { journal, grants });
    }
    worker.connect(connect, volume, meter, queues)
}

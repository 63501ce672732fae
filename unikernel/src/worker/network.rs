//! The cards of one network, of all its guests: one thread.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use grant::DomId;
use netback::config::{Connect, VifName};
use netback::device::{Report, ThreadParts, VifParts, Worker};
use rustix::event::{PollFd, PollFlags, poll};

use super::invalid;
use crate::message::{Channel, VifOrder};
use crate::world::Kind;

/// Serves until the supervisor hangs up.
///
/// # Errors
/// When the control socket breaks or brings what no supervisor of this version sends.
pub(super) fn run(channel: &Channel, world: Kind, uplink: bool, fds: Vec<OwnedFd>) -> io::Result<()> {
    let mut fds = fds.into_iter();
    let fence = fds.next().ok_or_else(|| invalid("the start message brings no fence"))?;
    let uplink = one(uplink, &mut fds)?;
    let mut worker = Worker::start(uplink, ThreadParts { fence, exchange: world.exchange() })?;
    // What the thread holds, so that a supervisor that took over and asks twice gets its answer.
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
            if let Report::Closed { vif } | Report::Failed { vif, .. } = report {
                served.remove(&vif);
            }
            channel.send(&report, &[])?;
        }
        loop {
            match channel.receive::<VifOrder>() {
                Ok(Some((order, fds))) => obey(channel, &mut worker, &mut served, world, order, fds)?,
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
    served: &mut HashSet<VifName>,
    world: Kind,
    order: VifOrder,
    fds: Vec<OwnedFd>,
) -> io::Result<()> {
    match order {
        VifOrder::Disconnect { vif } if served.contains(&vif) => worker.disconnect(vif),
        VifOrder::Disconnect { vif } => channel.send(&Report::Closed { vif }, &[])?,
        VifOrder::Rate { vif, rate } => worker.rate(vif, rate),
        VifOrder::Multicast { vif, control } => worker.multicast(vif, control),
        VifOrder::Headroom { vif, headroom } => worker.headroom(vif, headroom),
        VifOrder::Uplink { present } => worker.uplink(one(present, &mut fds.into_iter())?),
        VifOrder::Connect { connect } => {
            let vif = connect.vif;
            match begin(worker, world, connect, fds) {
                Ok(()) => drop(served.insert(vif)),
                // What is wrong with one card must not end the others.
                Err(error) => channel.send(&Report::Failed { vif, reason: error.to_string() }, &[])?,
            }
        }
    }
    Ok(())
}

fn begin(worker: &mut Worker, world: Kind, connect: Connect, fds: Vec<OwnedFd>) -> io::Result<()> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| invalid("a connect message lacks descriptors"));
    let events = world.events(next()?, DomId(connect.vif.guest))?;
    let parts = VifParts { events, meter: next()?, grants: next()? };
    worker.connect(connect, parts)
}

/// A descriptor that was announced.
fn one(announced: bool, fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match (announced, fds.next()) {
        (true, None) => Err(invalid("a message lacks the uplink's descriptor")),
        (true, fd) => Ok(fd),
        (false, _) => Ok(None),
    }
}

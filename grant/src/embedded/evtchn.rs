//! The embedded evtchn: one epoll descriptor stands for `/dev/xen/evtchn`, each port is a bell in it.
//!
//! `EPOLLONESHOT` gives the device's rule: a port that was reported stays silent until it is unmasked, and reports
//! again at once if it was notified meanwhile.
//!
//! No peer can make us wait: the eventfd that we write is ours and the host's alone, and what a peer writes is only
//! looked at, through an epoll descriptor (the bell) that is ours alone.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::wire::{self, Link, Request};
use crate::{DomId, EventChannel, MAX_PENDING, Port};

/// One connection of one thread.
pub struct Ports {
    link: Link,
    epoll: OwnedFd,
    /// Indexed by port; the host bounds them.
    channels: Vec<Option<Channel>>,
}

struct Channel {
    /// An epoll descriptor with the peer's eventfd in it, edge-triggered.
    wait: OwnedFd,
    /// An eventfd that nobody reads: each write is an edge.
    notify: OwnedFd,
}

const ARMED: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

/// Takes what is pending of an epoll descriptor; never waits.
fn ready<'a>(epoll: &OwnedFd, events: &'a mut [MaybeUninit<epoll::Event>]) -> io::Result<&'a mut [epoll::Event]> {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    match epoll::wait(epoll, events, Some(&NOW)) {
        Ok((events, _)) => Ok(events),
        Err(Errno::INTR) => Ok(&mut []),
        Err(error) => Err(error.into()),
    }
}

/// Takes the event of a bell: it is silent until the next one.
pub(super) fn hush(bell: &OwnedFd) -> io::Result<()> {
    ready(bell, &mut [MaybeUninit::uninit()]).map(drop)
}

impl Ports {
    /// Uses a connection (see [`super::connect`]); its ports close when it does.
    pub fn new(connection: OwnedFd) -> io::Result<Ports> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Ports { link: Link::new(connection)?, epoll, channels: Vec::new() })
    }

    /// From now on this connection binds to ports of `peer` and nobody else, and allocates none; there is no way back.
    ///
    /// # Errors
    /// `EACCES` when it is restricted already, `EINVAL` for dom0.
    pub fn restrict(&mut self, peer: DomId) -> io::Result<()> {
        self.call(wire::RESTRICT, peer, 0).map(drop)
    }

    fn call(&mut self, op: u32, domid: DomId, value: u32) -> io::Result<wire::Answer> {
        let request = Request { op, domid: domid.0.into(), value, flags: 0 };
        self.link.call(&request, &[], &[], &mut [])
    }

    /// Asks for a port and arms it.
    fn open(&mut self, op: u32, peer: DomId, value: u32) -> io::Result<Port> {
        let mut answer = self.call(op, peer, value)?;
        let (Some(wait), Some(notify)) = (answer.fds[0].take(), answer.fds[1].take()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let port = answer.reply.value;
        epoll::add(&self.epoll, &wait, EventData::new_u64(port.into()), ARMED)?;
        let index = port as usize;
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, || None);
        }
        self.channels[index] = Some(Channel { wait, notify });
        Ok(Port(port))
    }

    fn channel(&self, port: Port) -> io::Result<&Channel> {
        let channel = self.channels.get(port.0 as usize).and_then(Option::as_ref);
        channel.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTCONN))
    }
}

impl EventChannel for Ports {
    fn bind(&mut self, peer: DomId, remote: Port) -> io::Result<Port> {
        self.open(wire::BIND, peer, remote.0)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> io::Result<Port> {
        self.open(wire::ALLOC_UNBOUND, peer, 0)
    }

    fn unbind(&mut self, port: Port) -> io::Result<()> {
        self.channel(port)?;
        if let Some(channel) = self.channels.get_mut(port.0 as usize).and_then(Option::take) {
            // The descriptor may live on in another process, and epoll watches what it refers to: take it out.
            epoll::delete(&self.epoll, &channel.wait)?;
        }
        self.call(wire::UNBIND, DomId(0), port.0).map(drop)
    }

    fn notify(&mut self, port: Port) -> io::Result<()> {
        match rustix::io::write(&self.channel(port)?.notify, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn pending(&mut self, ports: &mut Vec<Port>) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); MAX_PENDING];
        for event in ready(&self.epoll, &mut events)? {
            let port = Port(event.data.u64() as u32);
            // What is notified from here on counts for after the unmask.
            hush(&self.channel(port)?.wait)?;
            ports.push(port);
        }
        Ok(())
    }

    fn unmask(&mut self, ports: &[Port]) -> io::Result<()> {
        for &port in ports {
            // As the device does: a port that was closed meanwhile is passed over.
            if let Ok(channel) = self.channel(port) {
                epoll::modify(&self.epoll, &channel.wait, EventData::new_u64(port.0.into()), ARMED)?;
            }
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

//! What supervisor and worker say to each other: one JSON value per SOCK_SEQPACKET message, descriptors beside it by
//! SCM_RIGHTS. The worker finds the socket as its standard input.
//!
//! The first message says what kind of worker it is to be.
//!
//! ```text
//! supervisor                                     worker of a guest's disks
//!   Start::Disks{guest, threads, poll_us}   -->  starts its threads; fds: per thread event channels, fence
//!   Order::Connect{connect, volume}         -->  fds: [volume], meter, per queue journal and grants
//!   Order::Disconnect{devid}                -->  drains, unmaps
//!   Order::Resize{devid, sectors}           -->  lets requests reach the new size
//!   Order::Resume{devid}                    -->  tries held requests again, trusts flushes again
//!                                          <--   Report (blkback::device)
//!
//! supervisor                                     worker of a network
//!   Start::Network{uplink}                  -->  starts its thread; fds: fence, [uplink]
//!   VifOrder::Connect{connect}              -->  fds: event channels, meter, grants
//!   VifOrder::Disconnect{vif}               -->  drains, unmaps
//!   VifOrder::Rate, Multicast, Headroom     -->  what changes while a card is served
//!   VifOrder::Uplink{present}               -->  another uplink, or none; fds: [uplink]
//!                                          <--   Report (netback::device)
//!
//!                                          <--   of either: a line for the log
//! ```
//!
//! A worker deals with a hostile guest, so the supervisor takes what it says for a stranger's: a message that is too
//! long, carries a descriptor or does not parse ends the worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use blkback::config::Connect;
use netback::config::{Rate, VifName};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keeper::wire;
use crate::world::Kind;

/// Changes whenever a message does: supervisor and worker are the same binary, except while it is being replaced.
pub const VERSION: u32 = 5;

/// The first message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`].
    pub version: u32,
    /// What the descriptors are.
    pub world: Kind,
    /// What the worker is to serve.
    pub what: Served,
}

impl Start {
    /// Of this version.
    pub fn new(world: Kind, what: Served) -> Start {
        Start { version: VERSION, world, what }
    }
}

/// What a worker serves.
#[derive(Debug, Serialize, Deserialize)]
pub enum Served {
    /// The disks of one guest.
    Disks {
        /// The guest.
        guest: u16,
        /// How many threads; two descriptors come for each.
        threads: usize,
        /// How long they look for work before they sleep, in microseconds.
        poll_us: u64,
    },
    /// The cards of all guests in one network.
    Network {
        /// The second descriptor is the uplink's.
        uplink: bool,
    },
}

/// What the supervisor tells a worker of disks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Serve a disk.
    Connect {
        /// The disk and what was negotiated.
        connect: Connect,
        /// The first descriptor is the volume's.
        volume: bool,
    },
    /// Stop serving a disk.
    Disconnect {
        /// Which.
        devid: u32,
    },
    /// A disk has grown.
    Resize {
        /// Which.
        devid: u32,
        /// To how many sectors of 512 bytes.
        sectors: u64,
    },
    /// The operator says that a disk's volume is well again.
    Resume {
        /// Which.
        devid: u32,
    },
}

/// What the supervisor tells a worker of a network.
#[derive(Debug, Serialize, Deserialize)]
pub enum VifOrder {
    /// Serve a card.
    Connect {
        /// The card and what was negotiated.
        connect: netback::config::Connect,
    },
    /// Stop serving a card.
    Disconnect {
        /// Which.
        vif: VifName,
    },
    /// A card's `rate` has changed.
    Rate {
        /// Which.
        vif: VifName,
        /// Each direction's; none for no limit.
        rate: Option<Rate>,
    },
    /// A frontend has changed `request-multicast-control`.
    Multicast {
        /// Which.
        vif: VifName,
        /// It wants only the groups that it asks for.
        control: bool,
    },
    /// A frontend has changed `xdp-headroom`.
    Headroom {
        /// Which.
        vif: VifName,
        /// Bytes.
        headroom: u16,
    },
    /// Another uplink, or none.
    Uplink {
        /// The descriptor is the uplink's.
        present: bool,
    },
}

/// What a worker sends.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Word<R> {
    /// A line for the log.
    Line(Line),
    /// What has become of what it serves.
    Report(R),
}

/// A line of a worker's log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// As syslog numbers them.
    pub level: u8,
    /// Without an end.
    pub text: String,
}

/// Bytes of a line that is sent.
const LINE_BYTES: usize = 400;

/// One end of a control socket.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// A connected pair: one end for us, the other for a child's standard input.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Channel { socket: ours }, theirs))
    }

    /// Takes over an end.
    pub fn new(socket: OwnedFd) -> Channel {
        Channel { socket }
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when the other end does not read; else what the kernel says.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        wire::send(self.socket.as_fd(), message, fds, SendFlags::DONTWAIT)
    }

    /// Sends a line of a worker's log, as much of it as fits.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn line(&self, level: u8, text: &str) -> io::Result<()> {
        let text = text[..text.floor_char_boundary(LINE_BYTES)].to_owned();
        self.send(&Line { level, text }, &[])
    }

    /// Another descriptor of this end.
    ///
    /// # Errors
    /// When there is none left.
    pub fn try_clone(&self) -> io::Result<Channel> {
        Ok(Channel { socket: self.socket.try_clone()? })
    }

    /// Receives without waiting; `None` when the other end is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; `InvalidData` for a message that is none of ours.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        match wire::receive(self.socket.as_fd(), RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            other => other,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_beside_a_message() {
        let (here, there) = Channel::pair().unwrap();
        let there = Channel::new(there);
        let (read, write) = rustix::pipe::pipe().unwrap();
        here.send(&Order::Disconnect { devid: 7 }, &[write.as_fd()]).unwrap();
        drop(write);
        let (order, fds) = there.receive::<Order>().unwrap().unwrap();
        assert!(matches!(order, Order::Disconnect { devid: 7 }));
        rustix::io::write(&fds[0], b"x").unwrap();
        drop(fds);
        let mut byte = [0; 2];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
        // Nobody kept a copy: the pipe hangs up.
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 0);
    }

    #[test]
    fn nothing_there_is_no_end() {
        let (here, there) = Channel::pair().unwrap();
        let error = here.receive::<Order>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(there);
        assert!(here.receive::<Order>().unwrap().is_none());
    }

    #[test]
    fn lines_come_between_reports() {
        let (here, there) = Channel::pair().unwrap();
        let there = Channel::new(there);
        let report = blkback::device::Report::Resized { devid: 7, sectors: u64::MAX };
        there.line(4, &"\u{e9}".repeat(LINE_BYTES)).unwrap();
        there.send(&report, &[]).unwrap();
        let next = || here.receive::<Word<blkback::device::Report>>().unwrap().unwrap().0;
        assert!(matches!(next(), Word::Line(Line { level: 4, text }) if text == "\u{e9}".repeat(LINE_BYTES / 2)));
        assert!(matches!(next(), Word::Report(it) if it == report));
    }

    #[test]
    fn what_does_not_parse_is_refused() {
        let (here, there) = Channel::pair().unwrap();
        rustix::net::send(&there, b"{\"Disconnect\":{\"devid\":-1}}", SendFlags::empty()).unwrap();
        assert!(here.receive::<Order>().is_err());
        rustix::net::send(&there, &vec![b' '; wire::MAX_MESSAGE + 1], SendFlags::empty()).unwrap();
        assert!(here.receive::<Order>().is_err());
    }
}

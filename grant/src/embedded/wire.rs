//! Messages between a domain's processes and the host: one request, one answer, over SOCK_SEQPACKET, descriptors
//! by SCM_RIGHTS. Both ends are the same binary, so words are in native order.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::MAX_MAP;

/// Sent with [`REGISTER`]: a host and a client of different builds find out there.
pub(super) const VERSION: u32 = 2;

/// `DIR/host`: name in the body, memory as descriptor. Answer: the domid.
pub(super) const REGISTER: u32 = 1;
/// `DIR/host`: what is active of `domid`. Answer: grants, ports.
pub(super) const USAGE: u32 = 2;
/// The memory of `domid`. Answer: its size in frames, and the descriptor.
pub(super) const MEMORY: u32 = 16;
/// Pins grants of `domid`; `flags` 1 for writing, references in the body. Answer: a handle, frames in the body.
pub(super) const MAP: u32 = 17;
/// Drops the pins of handle `value`.
pub(super) const UNMAP: u32 = 18;
/// Binds to port `value` of `domid`. Answer: our port, and two descriptors: an epoll to wait on, an eventfd to
/// notify with.
pub(super) const BIND: u32 = 19;
/// Makes a port that `domid` may bind to. Answer: as [`BIND`].
pub(super) const ALLOC_UNBOUND: u32 = 20;
/// Closes our port `value`.
pub(super) const UNBIND: u32 = 21;
/// Event channels of this connection are for `domid` only from now on.
pub(super) const RESTRICT: u32 = 22;

/// Every request starts with this.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Request {
    pub op: u32,
    pub domid: u32,
    pub value: u32,
    pub flags: u32,
}

/// Every answer starts with this; `errno` 0 means that it worked.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Reply {
    pub errno: u32,
    pub value: u32,
    pub extra: u32,
    pub reserved: u32,
}

/// Longest message either way.
pub(super) const MAX_MESSAGE: usize = size_of::<Request>() + MAX_MAP * size_of::<u32>();
/// Most descriptors either way.
pub(super) const MAX_FDS: usize = 2;

/// What a domain may be called: it becomes part of store paths and of messages.
pub(super) fn is_name(name: &[u8]) -> bool {
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=64).contains(&name.len()) && name.iter().all(fine)
}

/// Descriptors that came with a message.
pub(super) type Fds = [Option<OwnedFd>; MAX_FDS];

/// What one receive gave.
pub(super) enum Received {
    /// A message of so many bytes.
    Message(usize, Fds),
    /// Nothing there (non-blocking sockets only, or after the timeout).
    Nothing,
    /// The other side is gone.
    Closed,
    /// Too long, or more descriptors than anybody has a use for: they are closed already.
    Malformed,
}

/// Receives one message.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut vectors = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, &mut vectors, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        }
    };
    let mut fds = Fds::default();
    let mut slots = fds.iter_mut();
    let mut surplus = false;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            for fd in rights {
                match slots.next() {
                    Some(slot) => *slot = Some(fd),
                    None => surplus = true,
                }
            }
        }
    }
    if surplus || message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Ok(Received::Malformed);
    }
    // Both ends always send a header, so an empty message is as good as none.
    Ok(if message.bytes == 0 { Received::Closed } else { Received::Message(message.bytes, fds) })
}

/// Sends one message of several parts, whole or not at all.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    head: &[u8],
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let vectors = [IoSlice::new(head), IoSlice::new(body)];
    loop {
        match rustix::net::sendmsg(socket, &vectors, &mut control, flags | SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A client's end of a connection: one request at a time.
pub(super) struct Link {
    socket: OwnedFd,
    /// An answer was lost, so the next one could be mistaken for another's.
    broken: bool,
}

/// An answer without error.
pub(super) struct Answer {
    pub reply: Reply,
    pub fds: Fds,
}

impl Link {
    /// How long the host may take; it is one thread that never waits for anybody.
    const PATIENCE: Duration = Duration::from_secs(30);

    pub fn new(socket: OwnedFd) -> io::Result<Link> {
        set_socket_timeout(&socket, Timeout::Recv, Some(Link::PATIENCE))?;
        set_socket_timeout(&socket, Timeout::Send, Some(Link::PATIENCE))?;
        Ok(Link { socket, broken: false })
    }

    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// Asks and waits for the answer, whose body goes to `out`.
    ///
    /// # Errors
    /// The host's errno; `TimedOut`, `ConnectionReset` when there is no host any more.
    pub fn call(
        &mut self,
        request: &Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        out: &mut [u8],
    ) -> io::Result<Answer> {
        if self.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.broken = true;
        send(self.socket.as_fd(), request.as_bytes(), body, fds, SendFlags::empty())?;
        let mut buffer = [0; MAX_MESSAGE];
        let (len, fds) = match receive(self.socket.as_fd(), &mut buffer)? {
            Received::Message(len, fds) => (len, fds),
            Received::Nothing => return Err(io::ErrorKind::TimedOut.into()),
            Received::Closed => return Err(io::ErrorKind::ConnectionReset.into()),
            Received::Malformed => return Err(io::ErrorKind::InvalidData.into()),
        };
        let parsed = Reply::read_from_prefix(&buffer[..len]);
        let (reply, body) = parsed.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        self.broken = false;
        if reply.errno != 0 {
            return Err(io::Error::from_raw_os_error(reply.errno as i32));
        }
        let body = body.get(..out.len()).ok_or(io::ErrorKind::InvalidData)?;
        out.copy_from_slice(body);
        Ok(Answer { reply, fds })
    }
}

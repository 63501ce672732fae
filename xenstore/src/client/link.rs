//! One connection as bytes: whole messages out, whole messages in, and no more memory than a few of them.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;

use crate::error::Error;
use crate::wire::{HEADER, Header, PAYLOAD_MAX};

/// Longest message with its header that Linux takes at /dev/xen/xenbus, whose buffer holds both
/// (`xenbus_dev_frontend.c`).
const DEVICE_MAX: usize = 4096;

/// Where a connection leads, to make it again.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A socket.
    Socket(PathBuf),
    /// The kernel's device.
    Device(PathBuf),
    /// Somebody else made it.
    Unknown,
}

impl Place {
    /// Goes there.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Place::Socket(path) => Ok(UnixStream::connect(path)?.into()),
            Place::Device(path) => {
                let flags = OFlags::CLOEXEC.bits() as i32;
                Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?.into())
            }
            Place::Unknown => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    is_device: bool,
    input: Vec<u8>,
}

impl Link {
    /// Over a descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Link> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        let is_device = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::CharacterDevice;
        Ok(Link { fd, is_device, input: Vec::with_capacity(2 * PAYLOAD_MAX) })
    }

    /// Puts a fresh descriptor in the old one's place: half a message that had come is nothing now.
    pub fn replace(&mut self, fd: OwnedFd) -> io::Result<()> {
        *self = Link::new(fd)?;
        Ok(())
    }

    /// True when a message of this length can be sent here.
    pub fn takes(&self, len: usize) -> bool {
        !self.is_device || len <= DEVICE_MAX
    }

    /// Sends as much as there is room for; the kernel's device wants whole messages at once, and has room for one.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(&self.fd, bytes) {
            Ok(count) => Ok(count),
            Err(Errno::INTR | Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The next whole message that is here.
    pub fn message(&mut self) -> Result<Option<(Header, Vec<u8>)>, Error> {
        let Some(header) = self.input.first_chunk::<HEADER>().map(Header::decode) else { return Ok(None) };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(Error::Protocol(format!("a message of {len} bytes")));
        }
        if self.input.len() < HEADER + len {
            return Ok(None);
        }
        let payload = self.input[HEADER..HEADER + len].to_vec();
        self.input.drain(..HEADER + len);
        Ok(Some((header, payload)))
    }

    /// Reads what is there, at most a message: whoever calls takes messages out before the next call.
    pub fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; PAYLOAD_MAX + HEADER];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something can be done; false when the deadline has passed.
    pub fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.fd, flags)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

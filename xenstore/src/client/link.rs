//! One connection as bytes: whole messages out, whole messages in, and no more memory than a few of them.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{DupFlags, Errno, dup3};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};

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
    /// Goes there, without waiting for a daemon that lets others wait: `WouldBlock`.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Place::Socket(path) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(socket)
            }
            Place::Device(path) => {
                let flags = OFlags::CLOEXEC.bits() as i32;
                Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?.into())
            }
            Place::Unknown => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// Nobody will ever be there again: no way is known, or the directory of the socket is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Place::Socket(path) => {
                path.parent().is_some_and(|dir| dir.has_root() && matches!(dir.try_exists(), Ok(false)))
            }
            Place::Device(_) => false,
            Place::Unknown => true,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    /// The same number for ever: another connection takes its place.
    fd: OwnedFd,
    kind: FileType,
    input: Vec<u8>,
}

impl Link {
    /// Over a descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Link> {
        let kind = prepare(&fd)?;
        Ok(Link { fd, kind, input: Vec::with_capacity(2 * PAYLOAD_MAX) })
    }

    /// Puts another connection in the old one's place: half a message that had come is nothing now.
    pub fn replace(&mut self, fd: &OwnedFd) -> io::Result<()> {
        let kind = prepare(fd)?;
        dup3(fd, &mut self.fd, DupFlags::CLOEXEC)?;
        self.kind = kind;
        self.input.clear();
        Ok(())
    }

    /// Lets go of the connection, and with it of all that the daemon keeps for it. Whoever polls sees an end.
    pub fn cut(&mut self) {
        // Without a descriptor for it the old connection stays until there is a new one.
        if let Ok((end, _)) = pipe_with(PipeFlags::CLOEXEC)
            && let Err(error) = self.replace(&end)
        {
            tracing::debug!(%error, "a broken connection stays open");
        }
    }

    /// True for the kernel's device, which wants each message in one piece and refuses by the error of the write.
    pub fn is_device(&self) -> bool {
        self.kind == FileType::CharacterDevice
    }

    /// True when a message of this length can be sent here.
    pub fn takes(&self, len: usize) -> bool {
        !self.is_device() || len <= DEVICE_MAX
    }

    /// Sends as much as there is room for.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let sent = match self.kind {
                // Not every process ignores SIGPIPE.
                FileType::Socket => rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL),
                _ => rustix::io::write(&self.fd, bytes),
            };
            match sent {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next whole message that is here; the error is the length of one that cannot be.
    pub fn message(&mut self) -> Result<Option<(Header, Vec<u8>)>, usize> {
        let Some(header) = self.input.first_chunk::<HEADER>().map(Header::decode) else { return Ok(None) };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(len);
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

/// Makes a descriptor fit for us and says what it is.
fn prepare(fd: &OwnedFd) -> io::Result<FileType> {
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

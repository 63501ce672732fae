//! Messages with descriptors over a SOCK_SEQPACKET socket: JSON as the datagram, descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest message in bytes.
pub const MAX_MESSAGE: usize = 16 << 10;
/// The most descriptors in one message: the kernel's SCM_MAX_FD.
pub const MAX_FDS: usize = 253;
/// The longest key in bytes.
pub const MAX_KEY: usize = 256;

/// What the supervisor asks. Each request gets exactly one reply, in order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Keep the descriptors that come with this message, in place of those kept under the same key.
    Keep {
        /// The name to find them by.
        key: String,
    },
    /// Close what is kept under a key, if anything is.
    Forget {
        /// The name given to `Keep`.
        key: String,
    },
    /// Hand out copies of what is kept under the first key behind this one.
    Next {
        /// The last key seen; `None` asks for the first.
        after: Option<String>,
    },
}

/// What the keeper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; to `Next`: there are no more keys.
    Done,
    /// To `Next`: the descriptors come with this message.
    Kept {
        /// Their key.
        key: String,
    },
    /// Nothing was done.
    Refused {
        /// The reason, for a log.
        why: String,
    },
}

/// Sends one message. `flags` may add `DONTWAIT`; SIGPIPE never comes.
///
/// # Errors
/// Those of sendmsg(2); `InvalidInput` for more than [`MAX_FDS`] descriptors or [`MAX_MESSAGE`] bytes.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        let what = format!("{} bytes with {} descriptors are too much for one message", body.len(), fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(&body)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &parts, &mut control, flags | SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message and its descriptors (close-on-exec); `None` when the other side has closed.
///
/// # Errors
/// Those of recvmsg(2); EMFILE, with the message lost, when descriptors came that this process may not open;
/// `InvalidData` for what is no message or too long.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut body = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut body)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(rustix::io::Errno::MFILE.into());
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&body[..got.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

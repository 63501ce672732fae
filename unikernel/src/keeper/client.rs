//! The supervisor's side of the keeper.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use rustix::net::{RecvFlags, SendFlags, SocketType, sockopt};

use super::wire::{MAX_KEY, Reply, Request, receive, send};

/// The connection to the process that keeps descriptors beyond this one's life.
///
/// Polling it tells one thing: it hangs up when the keeper is gone, and then nobody will start this process again.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    turn: Mutex<()>,
}

impl Keeper {
    /// Takes the socket that is this process's standard input, and puts /dev/null in its place, so that no child
    /// inherits it. When the keeper dies this process gets SIGTERM.
    ///
    /// The process has been started with SIGTERM, SIGINT and SIGCHLD blocked, ready for a signalfd: a stop that comes
    /// before that exists is not lost. Children inherit the mask; one that wants the signals unblocks them itself.
    ///
    /// # Errors
    /// `NotConnected` when standard input is not such a socket: somebody started the supervisor by hand.
    pub fn from_stdin() -> io::Result<Self> {
        let stdin = io::stdin();
        if sockopt::socket_type(&stdin).ok() != Some(SocketType::SEQPACKET) {
            let what = "standard input is not the keeper's socket: `windsor serve` and PID 1 start the supervisor";
            return Err(io::Error::new(io::ErrorKind::NotConnected, what));
        }
        let socket = rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        Ok(Self::new(socket))
    }

    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, turn: Mutex::new(()) }
    }

    /// Hands copies of `fds` over to be kept under `key`, in place of what was kept there before. When this returns
    /// they outlive this process.
    ///
    /// # Errors
    /// The keeper's refusal (too many keys or descriptors), or `NotConnected` when it is gone.
    pub fn keep(&self, key: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if key.len() > MAX_KEY {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a key has at most {MAX_KEY} bytes")));
        }
        done(self.ask(&Request::Keep { key: key.into() }, fds)?)
    }

    /// Has the descriptors kept under `key` closed. A key that is not there is no error.
    ///
    /// # Errors
    /// `NotConnected` when the keeper is gone.
    pub fn forget(&self, key: &str) -> io::Result<()> {
        done(self.ask(&Request::Forget { key: key.into() }, &[])?)
    }

    /// Everything that is kept, in the order of the keys, as copies: it stays kept. Not empty means that this process
    /// takes over from one that died.
    ///
    /// # Errors
    /// `NotConnected` when the keeper is gone; those of recvmsg(2).
    pub fn list(&self) -> io::Result<Vec<(String, Vec<OwnedFd>)>> {
        let mut kept: Vec<(String, Vec<OwnedFd>)> = Vec::new();
        loop {
            let after = kept.last().map(|(key, _)| key.clone());
            match self.ask(&Request::Next { after }, &[])? {
                (Reply::Kept { key }, fds) => kept.push((key, fds)),
                other => return done(other).map(|()| kept),
            }
        }
    }

    /// One request and its reply; one thread at a time, so that replies do not cross.
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        send(self.socket.as_fd(), request, fds, SendFlags::empty())?;
        receive(self.socket.as_fd(), RecvFlags::empty())?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the keeper is gone"))
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn done(answer: (Reply, Vec<OwnedFd>)) -> io::Result<()> {
    match answer.0 {
        Reply::Done => Ok(()),
        Reply::Refused { why } => Err(io::Error::other(why)),
        Reply::Kept { .. } => Err(io::Error::new(io::ErrorKind::InvalidData, "the keeper gave the wrong answer")),
    }
}

//! How whoever runs the daemon tells it about domains.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// What the daemon is told.
pub(super) enum Command {
    Introduce(u16, PathBuf),
    Release(u16),
    Connect(OwnedFd),
    Stop,
}

/// A command, and where its result goes.
pub(super) type Ask = (Command, Sender<io::Result<()>>);

/// Tells the daemon what happens to domains; any thread may hold one.
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) commands: Sender<Ask>,
    pub(super) bell: Arc<OwnedFd>,
}

impl ServerHandle {
    /// Listens at `socket` as domain `domid` and fires `@introduceDomain`. Returns when that is done.
    ///
    /// # Errors
    /// What binding said; `EEXIST` for a domain that is there.
    pub fn introduce(&self, domid: u16, socket: &Path) -> io::Result<()> {
        self.ask(Command::Introduce(domid, socket.to_owned()))
    }

    /// Closes a domain's connections and its socket, removes its nodes, and fires `@releaseDomain`.
    ///
    /// # Errors
    /// `ENOENT` for a domain that is not there.
    pub fn release(&self, domid: u16) -> io::Result<()> {
        self.ask(Command::Release(domid))
    }

    /// A connection as dom0 that needs no socket in the file system.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        self.ask(Command::Connect(theirs))?;
        Ok(ours)
    }

    /// Ends the daemon.
    pub fn stop(&self) {
        if let Err(error) = self.ask(Command::Stop) {
            tracing::debug!(%error, "xenstored had ended already");
        }
    }

    fn ask(&self, command: Command) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::BrokenPipe, "xenstored has ended");
        let (sender, answer) = channel();
        self.commands.send((command, sender)).map_err(|_| ended())?;
        rustix::io::write(&*self.bell, &1u64.to_ne_bytes())?;
        answer.recv().map_err(|_| ended())?
    }
}

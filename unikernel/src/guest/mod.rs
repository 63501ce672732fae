//! A guest on the embedded host: a domain with memory of its own, a blkfront for each disk that a toolstack attaches,
//! and an NBD server through which real programs use them.

mod cards;
mod disk;
mod exports;
mod following;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use frontend::blkfront::{Machine, Options};
use frontend::netfront::Options as CardOptions;
use grant::embedded::{self, Domain, GuestMemory, Ports, RegisterError};
use grant::{DomId, EventChannel, GrantAccess};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::nbd::{Server, StartError};
use crate::store::{self, NoStore};
use crate::world::World;
use cards::Cards;
use exports::Attached;
use following::Following;

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The embedded host's directory.
    pub dir: PathBuf,
    /// The domain's name.
    pub name: String,
    /// Where NBD clients connect, if they are to.
    pub nbd: Option<PathBuf>,
    /// TAPs for its cards: the first for vif 0, and so on.
    pub taps: Vec<String>,
    /// The choices of its cards.
    pub cards: CardOptions,
    /// The widths of its disks.
    pub options: Options,
    /// Memory for rings and data.
    pub memory_mib: u32,
}

/// Why a guest ended.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It has no memory.
    #[error("making {0} MiB of memory for the guest: {1}")]
    Memory(u32, io::Error),
    /// The host would not have it.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The host has no store for it.
    #[error(transparent)]
    NoStore(#[from] NoStore),
    /// The NBD server does not start.
    #[error(transparent)]
    Nbd(#[from] StartError),
    /// The store failed while it ran.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// What was written last may not be durable.
    #[error("{0}: the last flush failed; what was written since the flush before may be lost")]
    Flush(String),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Guest {
    /// Runs the guest until SIGTERM or SIGINT; `ready` is called when it can be used.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn run(&self, ready: impl FnOnce()) -> Result<(), GuestError> {
        // Before there are other threads: they inherit it.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.thread_block().map_err(io::Error::from)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        let signals = signals.map_err(io::Error::from)?;

        let memory = GuestMemory::new(u64::from(self.memory_mib) << 20);
        let memory = memory.map_err(|error| GuestError::Memory(self.memory_mib, error))?;
        // The domain lives as long as this connection.
        let Domain { domid, connection: _alive } = embedded::register(&self.dir, &self.name, Some(&memory))?;
        let store = store::domain(&World::Embedded(self.dir.clone()), Some(domid))?;
        let attached = Arc::new(Attached::default());
        let server = self.nbd.as_ref().map(|path| Server::start(path, Arc::clone(&attached) as _)).transpose()?;
        let machine = Arc::new(Embedded { dir: self.dir.clone(), domid, memory });
        let cards = match self.taps.is_empty() {
            true => None,
            false => {
                let store = store::domain(&World::Embedded(self.dir.clone()), Some(domid))?;
                Some(Cards::start(store, Arc::clone(&machine) as _, self.cards, &self.taps)?)
            }
        };
        let mut following = Following::new(store, machine, self.options.clone(), attached)?;
        tracing::info!(%domid, name = self.name, "guest is up");
        ready();
        following.run(&signals)?;
        if let Some(server) = server {
            server.stop(Duration::from_secs(5));
        }
        let closed = cards.map_or(Ok(()), Cards::close);
        following.close().and(closed)
    }
}

/// A domain of the embedded host.
pub(crate) struct Embedded {
    pub(crate) dir: PathBuf,
    pub(crate) domid: DomId,
    pub(crate) memory: GuestMemory,
}

impl Machine for Embedded {
    fn grant_access(&self) -> io::Result<Box<dyn GrantAccess>> {
        Ok(Box::new(self.memory.clone()))
    }

    fn event_channel(&self) -> io::Result<Box<dyn EventChannel>> {
        Ok(Box::new(Ports::new(embedded::connect(&self.dir, self.domid)?)?))
    }
}

//! The embedded host: xenstored and a stand-in for the hypervisor in one process, and as much of a toolstack as makes
//! domains come and go.
//!
//! ```text
//! DIR/xenstored/socket            dom0's door to the store
//! DIR/host                        a process becomes a domain here
//! DIR/domains/DOMID/xenstored     that domain's door to the store
//! DIR/domains/DOMID/hypervisor    its grants and event channels
//! ```
//! Three threads: the store, the hypervisor, and one that buries domains, which takes as long as their backends do.

pub mod nodes;

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use grant::DomId;
use grant::embedded::{Host, Lifecycle, domain_dir};
use nix::sys::signal::{SigSet, Signal};
use xenstore::Client;
use xenstore::server::{Limits, Server, ServerHandle};

use crate::toolstack::Paths;

/// How long the backends of a domain that ended may take.
const DESTROY_PATIENCE: Duration = Duration::from_secs(10);

/// Runs a host until SIGTERM or SIGINT.
///
/// # Errors
/// When the directory cannot be used, or another host has it; with the directory's name.
pub fn run(dir: &Path, limits: Limits) -> io::Result<()> {
    // Blocked before any thread is there, so that only the wait below gets them.
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block()?;

    let named = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => error,
        _ => io::Error::new(error.kind(), format!("the directory {} cannot be used: {error}", dir.display())),
    };
    // The host first: it makes sure that the directory is nobody else's.
    let toolstack = Toolstack { dir: dir.to_owned(), store: Arc::default() };
    let ways = Arc::clone(&toolstack.store);
    let host = Host::new(dir, toolstack).map_err(named)?;
    let (server, handle) = Server::new(limits)?;
    let (mut server, socket) = (server, dir.join("xenstored/socket"));
    prepare(&socket).and_then(|()| server.listen(&socket)).map_err(named)?;
    let store = thread::Builder::new().name("xenstored".into()).spawn(move || server.run())?;

    let (dead, burials) = channel();
    let gravedigger = Client::from_fd(handle.connect()?)?;
    thread::Builder::new().name("burials".into()).spawn(move || bury(gravedigger, &burials))?;
    let client = Client::from_fd(handle.connect()?)?;
    *ways.lock().unwrap_or_else(PoisonError::into_inner) = Some(Store { client, handle: handle.clone(), dead });

    let stop = host.stopper();
    let hypervisor = thread::Builder::new().name("hypervisor".into()).spawn(move || host.run())?;
    println!("ready");
    io::stdout().flush()?;
    tracing::info!(dir = %dir.display(), "embedded host");
    mask.wait()?;
    stop.stop();
    let ended = hypervisor.join().map_err(|_| io::Error::other("the hypervisor's thread panicked"))?;
    handle.stop();
    store.join().map_err(|_| io::Error::other("the store's thread panicked"))??;
    ended
}

/// Makes the directory of the store's socket and takes a socket away that an earlier host left.
fn prepare(socket: &Path) -> io::Result<()> {
    if let Some(dir) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match std::fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(socket),
        _ => Ok(()),
    }
}

/// A domain that ended, and its devices.
struct Dead {
    domid: DomId,
    name: String,
    devices: Vec<Paths>,
}

/// Waits for the backends of dead domains, one domain after the other.
fn bury(mut store: Client, burials: &Receiver<Dead>) {
    while let Ok(Dead { domid, name, devices }) = burials.recv() {
        if let Err(error) = nodes::bury(&mut store, domid.0, &name, devices) {
            tracing::error!(%domid, name, "what is left of a dead domain stays: {error}");
        }
    }
}

/// Makes and removes what libxl would.
struct Toolstack {
    dir: PathBuf,
    /// There once the store is, before the hypervisor runs.
    store: Arc<Mutex<Option<Store>>>,
}

/// Ways to the store.
struct Store {
    client: Client,
    handle: ServerHandle,
    dead: Sender<Dead>,
}

impl Toolstack {
    fn with_store<T>(&self, act: impl FnOnce(&mut Store) -> io::Result<T>) -> io::Result<T> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        act(store.as_mut().ok_or(io::ErrorKind::NotConnected)?)
    }
}

impl Lifecycle for Toolstack {
    fn introduced(&mut self, domid: DomId, name: &str) -> io::Result<()> {
        let socket = domain_dir(&self.dir, domid).join("xenstored");
        self.with_store(|store| {
            nodes::create(&mut store.client, domid.0, name).map_err(io::Error::other)?;
            store.handle.introduce(domid.0, &socket)
        })
    }

    fn released(&mut self, domid: DomId, name: &str) {
        let released = self.with_store(|store| {
            let devices = nodes::destroy(&mut store.client, domid.0).map_err(io::Error::other);
            store.handle.release(domid.0)?;
            // The other end goes only with the process.
            let _ = store.dead.send(Dead { domid, name: name.to_owned(), devices: devices? });
            Ok(())
        });
        if let Err(error) = released {
            tracing::error!(%domid, name, "what is left of a dead domain stays: {error}");
        }
    }
}

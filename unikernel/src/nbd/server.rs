//! The socket that clients connect to.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};

use super::Exports;
use super::connection::serve;

/// Most clients at once.
const MAX_CLIENTS: usize = 64;

/// A running server; dropping it hangs up on everybody.
pub struct Server {
    path: PathBuf,
    stop: Arc<OwnedFd>,
    clients: Arc<Clients>,
    listener: Option<JoinHandle<()>>,
}

/// The clients there are.
#[derive(Default)]
struct Clients {
    streams: Mutex<HashMap<u64, UnixStream>>,
    /// One has left.
    left: Condvar,
}

impl Clients {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, UnixStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody listens there.
    #[error("{0} is in use by another server")]
    InUse(PathBuf),
    /// There is a file, but no socket.
    #[error("{0} exists and is no socket: give another path")]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("listening on {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Server {
    /// Listens on a Unix socket at `path`; one that a server of before left there is replaced.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(path: &Path, exports: Arc<dyn Exports>) -> Result<Server, StartError> {
        let failed = |source| StartError::Io { path: path.to_owned(), source };
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(StartError::NotASocket(path.to_owned()));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(StartError::InUse(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let (stop, clients) = (Arc::new(stop), Arc::new(Clients::default()));
        let (stopped, all) = (Arc::clone(&stop), Arc::clone(&clients));
        let thread = std::thread::Builder::new().name("nbd".to_owned());
        let listener = thread.spawn(move || accept_all(&listener, &stopped, &all, &exports));
        Ok(Server { path: path.to_owned(), stop, clients, listener: Some(listener.map_err(failed)?) })
    }

    /// Takes no more clients or requests, and waits up to `patience` until what is under way has been answered.
    pub fn stop(mut self, patience: Duration) {
        self.close();
        let deadline = Instant::now() + patience;
        let mut streams = self.clients.streams();
        while !streams.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(clients = streams.len(), "NBD clients still wait for answers");
                break;
            }
            let waited = self.clients.left.wait_timeout(streams, left);
            streams = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn close(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        if let Err(error) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the NBD server could not be told to stop");
        }
        if listener.join().is_err() {
            tracing::error!("the NBD listener panicked");
        }
        // The path may be gone, or somebody else's already.
        let _ = std::fs::remove_file(&self.path);
        for stream in self.clients.streams().values() {
            // Readers see the end of their client; what they have read is still answered.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
        for stream in self.clients.streams().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_all(listener: &UnixListener, stop: &OwnedFd, clients: &Arc<Clients>, exports: &Arc<dyn Exports>) {
    let mut full = false;
    for number in 0.. {
        let stream = loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "waiting for NBD clients failed"),
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "an NBD client could not be accepted");
                    // Out of descriptors, most likely: the client stays in line.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        };
        let was_full = std::mem::replace(&mut full, clients.streams().len() >= MAX_CLIENTS);
        if full {
            if !was_full {
                tracing::warn!("more than {MAX_CLIENTS} NBD clients: they are turned away from now on");
            }
            continue;
        }
        if let Err(error) = start(stream, number, clients, exports) {
            tracing::warn!(%error, "an NBD client could not be served");
        }
    }
}

fn start(stream: UnixStream, number: u64, clients: &Arc<Clients>, exports: &Arc<dyn Exports>) -> io::Result<()> {
    // What an accepted socket inherits from its listener differs between systems.
    stream.set_nonblocking(false)?;
    clients.streams().insert(number, stream.try_clone()?);
    let leave = Leave { clients: Arc::clone(clients), number };
    let exports = Arc::clone(exports);
    let thread = std::thread::Builder::new().name(format!("nbd-{number}"));
    thread.spawn(move || {
        let leave = leave;
        if let Err(error) = serve(stream, leave.number, &*exports) {
            // A client can do this as often as it likes.
            tracing::debug!(%error, client = leave.number, "an NBD connection ended");
        }
    })?;
    Ok(())
}

/// Takes a client off the list, however its thread ends or does not begin.
struct Leave {
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.clients.streams().remove(&self.number);
        self.clients.left.notify_all();
    }
}

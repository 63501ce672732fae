//! Our own daemon as a [`World`]: a domain's connection is its socket beside dom0's.

use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;

use xenstore::server::{Limits, Server, ServerHandle};

use super::World;
use super::link::{Link, Socket};

/// Our daemon in a thread of this process.
pub struct Ours {
    dir: tempfile::TempDir,
    handle: ServerHandle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Ours {
    /// Starts it with a store as the C daemon has at its start.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(limits: Limits) -> io::Result<Ours> {
        let dir = tempfile::tempdir()?;
        let (mut server, handle) = Server::new(limits)?;
        server.listen(&dir.path().join("socket"))?;
        let thread = Some(std::thread::spawn(move || server.run()));
        Ok(Ours { dir, handle, thread })
    }

    /// dom0's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }
}

impl World for Ours {
    fn dom0(&self) -> io::Result<Box<dyn Link>> {
        Ok(Box::new(Socket::connect(&self.socket())?))
    }

    fn build(&self, _domid: u16) -> io::Result<()> {
        Ok(())
    }

    fn domain(&self, domid: u16) -> io::Result<Box<dyn Link>> {
        Ok(Box::new(Socket::connect(&self.dir.path().join(format!("domain-{domid}")))?))
    }

    fn destroy(&self, domid: u16) -> io::Result<()> {
        self.handle.release(domid)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("our daemon panicked").expect("our daemon failed");
        }
    }
}

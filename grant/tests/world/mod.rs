//! A host in a temporary directory, as the tests of the embedded world share it.

// Each test binary takes what it needs.
#![allow(dead_code)]

pub mod raw;

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use grant::embedded::{self, Domain, Foreign, GuestMemory, Host, Lifecycle, Ports, Stop, Usage};
use grant::{DomId, PAGE_SIZE};

/// What the host reported about domains.
#[derive(Debug, PartialEq)]
pub enum Life {
    Introduced(DomId, String),
    Released(DomId, String),
}

pub struct Report(pub Sender<Life>);

impl Lifecycle for Report {
    fn introduced(&mut self, domid: DomId, name: &str) -> io::Result<()> {
        if name == "unwelcome" {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let _ = self.0.send(Life::Introduced(domid, name.into()));
        Ok(())
    }

    fn released(&mut self, domid: DomId, name: &str) {
        let _ = self.0.send(Life::Released(domid, name.into()));
    }
}

/// A host in a directory of its own, with a guest and a service VM.
pub struct World {
    dir: tempfile::TempDir,
    stop: Stop,
    host: Option<JoinHandle<io::Result<()>>>,
    pub lives: Receiver<Life>,
}

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (sender, lives) = channel();
        let host = Host::new(dir.path(), Report(sender)).expect("a host");
        let stop = host.stopper();
        World { dir, stop, host: Some(std::thread::spawn(move || host.run())), lives }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn guest(&self, pages: usize) -> (Domain, GuestMemory) {
        let memory = GuestMemory::new((pages * PAGE_SIZE) as u64).expect("memory");
        let domain = embedded::register(self.dir(), "guest", Some(&memory)).expect("registered");
        (domain, memory)
    }

    pub fn service_vm(&self) -> Domain {
        embedded::register(self.dir(), "acme", None).expect("registered")
    }

    pub fn foreign(&self, us: DomId, peer: DomId) -> Foreign {
        let connection = embedded::connect(self.dir(), us).expect("connected");
        Foreign::new(connection, peer).expect("the peer's memory")
    }

    pub fn ports(&self, us: DomId) -> Ports {
        Ports::new(embedded::connect(self.dir(), us).expect("connected")).expect("ports")
    }

    pub fn usage(&self, domid: DomId) -> io::Result<Usage> {
        embedded::usage(self.dir(), domid)
    }

    /// Waits until the host has noticed what happened.
    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("never came true: {what}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(host) = self.host.take() {
            host.join().expect("the host did not panic").expect("the host ended well");
        }
    }
}

/// The errno of a call that has to fail.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    let error = result.err().expect("should have failed");
    error.raw_os_error().unwrap_or_else(|| panic!("no errno in {error:?}"))
}

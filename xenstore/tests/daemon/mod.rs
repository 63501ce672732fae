//! A daemon for a test.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xenstore::server::{Limits, Server, ServerHandle};
use xenstore::wire::{ErrorName, MessageType, message};
use xenstore::{Client, Error, Permission, Store};

/// A server in a thread of this process, with a directory of its own.
pub struct Daemon {
    dir: tempfile::TempDir,
    pub handle: ServerHandle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub fn new() -> Daemon {
        Daemon::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Daemon {
        Daemon::with_stack(limits, 2 << 20)
    }

    /// With so many bytes for the server's calls.
    pub fn with_stack(limits: Limits, stack: usize) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let (mut server, handle) = Server::new(limits).unwrap();
        server.listen(&dir.path().join("socket")).unwrap();
        let thread = std::thread::Builder::new().stack_size(stack).spawn(move || server.run().unwrap()).unwrap();
        Daemon { dir, handle, thread: Some(thread) }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    pub fn domain_socket(&self, domid: u16) -> PathBuf {
        self.dir.path().join(format!("domain-{domid}"))
    }

    pub fn domain(&self, domid: u16) -> Client {
        let socket = self.domain_socket(domid);
        self.handle.introduce(domid, &socket).unwrap();
        Client::connect(&socket).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Says that a test could not run, where `tests/run` finds and counts it: past what the harness captures.
pub fn skip(case: &str, reason: &str) {
    // Without a stderr nobody is there to read it.
    let _ = std::io::stderr().write_all(format!("\nSKIP {case}: {reason}\n").as_bytes());
}

/// True for the long counts that the issues name; a tenth of them otherwise.
pub fn is_long() -> bool {
    std::env::var_os("WINDSOR_LONG").is_some()
}

/// A file of Debian's xen-utils-4.17, which is not for every machine: installed, or as the lab unpacked it.
pub fn xen_utils(name: &str) -> Option<PathBuf> {
    let installed = Path::new("/usr/lib/xen-4.17/bin").join(name);
    let lab = |place: &str| Path::new(place).join("lab/root/usr/lib/xen-4.17/bin").join(name);
    // The target directory's, which may be elsewhere: above it is the directory of the platform.
    let of_target = lab(concat!(env!("CARGO_TARGET_TMPDIR"), "/../.."));
    let of_checkout = lab(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"));
    [installed, of_target, of_checkout].into_iter().find(|path| path.exists())
}

/// The error that a daemon answered with.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorName {
    result.unwrap_err().name().unwrap().clone()
}

/// Long enough for an event that comes, short enough for one that does not.
pub const SOON: Option<Duration> = Some(Duration::from_millis(300));

/// A domain with a directory `data` of its own, and its socket.
pub fn guest(daemon: &Daemon, domid: u16) -> (Client, UnixStream) {
    let data = format!("/local/domain/{domid}/data");
    daemon.client().mkdir(&data).unwrap();
    daemon.client().set_perms(&data, &[Permission::none(domid)]).unwrap();
    let client = daemon.domain(domid);
    (client, UnixStream::connect(daemon.domain_socket(domid)).unwrap())
}

/// A request outside of transactions.
pub fn request(kind: MessageType, number: u32, payload: &[u8]) -> Vec<u8> {
    message(kind as u32, number, 0, &[payload]).unwrap()
}

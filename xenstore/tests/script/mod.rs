//! A daemon that follows a script, for tests of our client.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{JoinHandle, spawn};

use xenstore::Client;
use xenstore::wire::{HEADER, Header, MessageType, message};

/// The daemon's end of a connection.
pub struct Script(pub UnixStream);

impl Script {
    /// The next request, which there is.
    #[track_caller]
    pub fn request(&mut self) -> (Header, Vec<u8>) {
        self.next().expect("the client is gone")
    }

    /// The next request; none when the client is gone.
    pub fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).ok()?;
        let header = Header::decode(&header);
        let mut payload = vec![0; header.len as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((header, payload))
    }

    /// The next request, of this kind and with this payload.
    #[track_caller]
    pub fn expect(&mut self, kind: MessageType, payload: &[u8]) -> Header {
        let (header, got) = self.request();
        let got = (MessageType::from_number(header.kind).unwrap(), String::from_utf8_lossy(&got).into_owned());
        assert_eq!(got, (kind, String::from_utf8_lossy(payload).into_owned()));
        header
    }

    /// Any message.
    pub fn say(&mut self, kind: MessageType, request: u32, transaction: u32, payload: &[u8]) {
        self.0.write_all(&message(kind as u32, request, transaction, &[payload]).unwrap()).unwrap();
    }

    /// All is well, with this.
    pub fn answer(&mut self, to: &Header, payload: &[u8]) {
        self.0.write_all(&message(to.kind, to.request, to.transaction, &[payload]).unwrap()).unwrap();
    }

    /// No.
    pub fn refuse(&mut self, to: &Header, name: &[u8]) {
        self.say(MessageType::Error, to.request, to.transaction, name);
    }
}

/// A client on a connection, and a script at its other end.
pub fn against<T: Send + 'static>(script: impl FnOnce(Script) -> T + Send + 'static) -> (Client, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Client::from_fd(ours.into()).unwrap(), spawn(move || script(Script(theirs))))
}

/// Where scripts take connections, one after the other.
pub struct Door {
    pub dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Door {
    pub fn new() -> Door {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        Door { dir, listener }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Somebody comes for the first time.
    pub fn first(&self) -> Script {
        Script(self.listener.accept().unwrap().0)
    }

    /// Somebody comes back, and asks first whether anybody is there.
    pub fn again(&self) -> Script {
        let mut daemon = self.first();
        let probe = daemon.expect(MessageType::GetDomainPath, b"0\0");
        daemon.answer(&probe, b"/local/domain/0\0");
        daemon
    }
}

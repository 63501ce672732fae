//! A blocking client: one connection, over a Unix socket or /dev/xen/xenbus.
//!
//! Answers are matched by request number, so a daemon may reorder them; watch events that come in between are queued,
//! one per (path, token), and none is lost. Nothing a daemon sends makes the client allocate more than a message.

use std::collections::{HashSet, VecDeque};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::Error;
use crate::perms::Permission;
use crate::store::{Store, names};
use crate::wire::{self, ErrorName, HEADER, Header, MessageType, PAYLOAD_MAX};

/// A watch has fired.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    /// What changed; relative if the watch was.
    pub path: String,
    /// What the watch was registered with.
    pub token: String,
}

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a transaction is tried.
const TRIES: u32 = 64;

/// A connection to a xenstored.
#[derive(Debug)]
pub struct Client {
    fd: OwnedFd,
    input: Vec<u8>,
    events: VecDeque<WatchEvent>,
    /// The same, to see quickly that one is queued already.
    queued: HashSet<WatchEvent>,
    request: u32,
}

impl Client {
    /// Connects to a socket: `DIR/xenstored/socket`, a domain's own, or the real daemon's.
    ///
    /// # Errors
    /// What connecting said.
    pub fn connect(path: &Path) -> io::Result<Client> {
        Client::from_fd(UnixStream::connect(path)?.into())
    }

    /// Opens the kernel's device, `/dev/xen/xenbus`.
    ///
    /// # Errors
    /// What opening said.
    pub fn open_device(path: &Path) -> io::Result<Client> {
        let flags = rustix::fs::OFlags::CLOEXEC.bits() as i32;
        Client::from_fd(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?.into())
    }

    /// Speaks over a connection that somebody else made.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Client> {
        rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | rustix::fs::OFlags::NONBLOCK)?;
        let input = Vec::with_capacity(2 * PAYLOAD_MAX);
        Ok(Client { fd, input, events: VecDeque::new(), queued: HashSet::new(), request: 0 })
    }

    /// A domain's directory.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn domain_path(&mut self, domid: u16) -> Result<String, Error> {
        let domid = format!("{domid}\0");
        let path = self.ask(MessageType::GetDomainPath, 0, "", &[domid.as_bytes()])?;
        String::from_utf8(trim(path)).map_err(|_| Error::NotUtf8 { path: "domain path".into() })
    }

    /// Watches a path and what is below it. The first event comes at once.
    ///
    /// # Errors
    /// `EEXIST` for a watch that there is.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.ask(MessageType::Watch, 0, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"]).map(drop)
    }

    /// Ends a watch; events of it that are still queued go with it.
    ///
    /// # Errors
    /// `ENOENT` when there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.ask(MessageType::Unwatch, 0, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"])?;
        let ended = |event: &WatchEvent| event.token == token && is_below(&event.path, path);
        self.events.retain(|event| !ended(event));
        self.queued.retain(|event| !ended(event));
        Ok(())
    }

    /// Ends all watches and transactions.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reset_watches(&mut self) -> Result<(), Error> {
        self.ask(MessageType::ResetWatches, 0, "", &[b"\0"])?;
        self.events.clear();
        self.queued.clear();
        Ok(())
    }

    /// The next event; `None` when `timeout` is over. Without a timeout it waits as long as it takes.
    ///
    /// # Errors
    /// When the connection is gone or the daemon breaks the protocol.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            // Late answers to requests that were given up are dropped here.
            while self.message()?.is_some() {}
            if let Some(event) = self.queued_event() {
                return Ok(Some(event));
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// An event that is here already, without looking at the connection.
    pub fn queued_event(&mut self) -> Option<WatchEvent> {
        // Events that were read together with an answer may lie in the input still; answers that nobody waits for
        // any more go, and a broken protocol is for the next request to tell.
        while let Ok(Some(_)) = self.message() {}
        let event = self.events.pop_front()?;
        self.queued.remove(&event);
        Some(event)
    }

    /// Runs `body` in a transaction until nobody has interfered: at most 64 times, with pauses that grow and vary.
    /// The transaction never stays open.
    ///
    /// # Errors
    /// What `body` returned, or [`Error::Conflict`].
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for attempt in 0..TRIES {
            let id = self.ask(MessageType::TransactionStart, 0, "", &[b"\0"])?;
            let id = String::from_utf8_lossy(&trim(id)).parse();
            let id = id.map_err(|_| Error::Protocol("the transaction's number is none".into()))?;
            let mut transaction = Transaction { client: self, id };
            match body(&mut transaction) {
                // A daemon may say at any operation that somebody interfered, not only at the end.
                Err(error) if error.name() == Some(&ErrorName::Eagain) => {
                    let _ = transaction.end(false);
                }
                Err(error) => {
                    // What went wrong is worth more than whether giving up worked.
                    let _ = transaction.end(false);
                    return Err(error);
                }
                Ok(value) => match transaction.end(true) {
                    Ok(()) => return Ok(value),
                    Err(error) if error.name() == Some(&ErrorName::Eagain) => {}
                    Err(error) => return Err(error),
                },
            }
            let most = 1u64 << attempt.min(6);
            std::thread::sleep(Duration::from_micros(fastrand::u64(100..=most * 1000)));
        }
        Err(Error::Conflict { tries: TRIES })
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(
        &mut self,
        kind: MessageType,
        transaction: u32,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Io { operation: kind, path: path.to_owned(), source };
        self.request = self.request.wrapping_add(1).max(1);
        let request = self.request;
        let message = wire::message(kind as u32, request, transaction, parts);
        let message = message.ok_or_else(|| failed(io::Error::from(Errno::TOOBIG)))?;
        let deadline = Instant::now().checked_add(PATIENCE);
        self.send(&message, deadline).map_err(failed)?;
        loop {
            while let Some((header, payload)) = self.message()? {
                // Kernels before 4.11 answer watches with request number 0.
                let unnumbered = header.request == 0 && header.kind == kind as u32;
                if header.request != request && !unnumbered {
                    continue;
                }
                if header.kind == MessageType::Error as u32 {
                    let name = ErrorName::parse(&payload);
                    return Err(Error::Xenstore { operation: kind, path: path.to_owned(), name });
                }
                if header.kind != kind as u32 {
                    return Err(Error::Protocol(format!("{kind:?} was answered with type {}", header.kind)));
                }
                return Ok(payload);
            }
            if !self.fill(deadline)? {
                return Err(failed(io::Error::from(io::ErrorKind::TimedOut)));
            }
        }
    }

    /// Sends a whole message; the kernel's device wants it in one write.
    fn send(&mut self, message: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let mut sent = 0;
        while sent < message.len() {
            match rustix::io::write(&self.fd, &message[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                // The daemon may be waiting for us to read: take in what is there while we wait.
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::OUT | PollFlags::IN, deadline)? {
                        return Err(io::Error::from(io::ErrorKind::TimedOut));
                    }
                    self.take_in()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes the next whole message out of the input; events go to the queue on the way.
    fn message(&mut self) -> Result<Option<(Header, Vec<u8>)>, Error> {
        loop {
            let Some(header) = self.input.first_chunk::<HEADER>().map(Header::decode) else { return Ok(None) };
            let len = header.len as usize;
            if len > PAYLOAD_MAX {
                return Err(Error::Protocol(format!("a message of {len} bytes")));
            }
            if self.input.len() < HEADER + len {
                return Ok(None);
            }
            let payload = self.input[HEADER..HEADER + len].to_vec();
            self.input.drain(..HEADER + len);
            if header.kind != MessageType::WatchEvent as u32 {
                return Ok(Some((header, payload)));
            }
            let mut strings = payload.split(|byte| *byte == 0);
            let (path, token) = (strings.next().unwrap_or_default(), strings.next().unwrap_or_default());
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let event = WatchEvent { path: text(path), token: text(token) };
            if self.queued.insert(event.clone()) {
                self.events.push_back(event);
            }
        }
    }

    /// Waits for input and takes it in; false when the deadline has passed.
    fn fill(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        let gone = |source| Error::Connection { source };
        if !self.wait(PollFlags::IN, deadline).map_err(gone)? {
            return Ok(false);
        }
        self.take_in().map_err(gone)?;
        Ok(true)
    }

    /// Reads what is there.
    fn take_in(&mut self) -> io::Result<()> {
        let mut buffer = [0; PAYLOAD_MAX + HEADER];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.fd, flags)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Client {
    /// Readable when the daemon has said something; look at [`Client::queued_event`] too before waiting for it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Store for Client {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.ask(kind, 0, path, parts)
    }
}

/// An open transaction; see [`Client::transaction`].
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    id: u32,
}

impl Transaction<'_> {
    fn end(self, commit: bool) -> Result<(), Error> {
        let how: &[u8] = if commit { b"T\0" } else { b"F\0" };
        self.client.ask(MessageType::TransactionEnd, self.id, "", &[how]).map(drop)
    }
}

impl Store for Transaction<'_> {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.client.ask(kind, self.id, path, parts)
    }
}

/// Without the NUL at the end.
fn trim(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn is_below(path: &str, of: &str) -> bool {
    path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || of.ends_with('/'))
}

/// All permissions of an answer.
pub(crate) fn permissions(payload: &[u8]) -> Result<Vec<Permission>, Error> {
    let parsed = names(payload).iter().map(|entry| entry.parse()).collect::<Result<_, _>>();
    parsed.map_err(|_| Error::Protocol("permissions that are none".into()))
}

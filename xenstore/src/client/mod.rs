//! A blocking client: one connection, over a Unix socket or /dev/xen/xenbus.
//!
//! Answers are matched by request number, so a daemon may reorder them; watch events that come in between are queued,
//! one per (path, token), and none is lost. Nothing a daemon sends makes the client allocate without bound.
//!
//! ```text
//!   link          the connection as bytes
//!   exchange      a request and its answer; connecting again
//!   events        watches, and what they have fired; watches: registering and taking them
//!   transaction   again until nobody has interfered
//!   domains       what dom0 asks beside nodes
//! ```

mod domains;
mod events;
mod exchange;
mod link;
mod transaction;
mod watches;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::error::Error;
use crate::perms::Permission;
use crate::store::{Store, names};
use crate::wire::MessageType;
use events::Events;
use link::{Link, Place};

pub use events::WatchEvent;
pub use transaction::Transaction;

/// A connection to a xenstored.
#[derive(Debug)]
pub struct Client {
    link: Link,
    place: Place,
    /// How long a daemon may take to come back.
    survives: Duration,
    events: Events,
    /// Watches that a daemon did not take again when it was back.
    lost: Vec<Error>,
    request: u32,
    /// The connection is gone.
    broken: bool,
    generation: u64,
}

impl Client {
    /// Connects to a socket: `DIR/xenstored/socket`, a domain's own, or the real daemon's.
    ///
    /// # Errors
    /// What connecting said.
    pub fn connect(path: &Path) -> io::Result<Client> {
        Client::at(Place::Socket(path.to_owned()))
    }

    /// Opens the kernel's device, `/dev/xen/xenbus`.
    ///
    /// # Errors
    /// What opening said.
    pub fn open_device(path: &Path) -> io::Result<Client> {
        Client::at(Place::Device(path.to_owned()))
    }

    /// Speaks over a connection that somebody else made.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Client> {
        Ok(Client {
            link: Link::new(fd)?,
            place: Place::Unknown,
            survives: Duration::ZERO,
            events: Events::default(),
            lost: Vec::new(),
            request: 0,
            broken: false,
            generation: 0,
        })
    }

    fn at(place: Place) -> io::Result<Client> {
        Ok(Client { place: place.clone(), ..Client::from_fd(place.connect()?)? })
    }

    /// From now on a daemon may end and be started again within `time`: the client connects again, registers every
    /// watch again, asks again what was not answered, and runs an interrupted transaction once more. Each watch fires
    /// then, so whoever reads what a watch is about reads everything again; [`Client::generation`] tells too. What a
    /// daemon forgot is not written again.
    ///
    /// Without it, and for a connection that somebody else made, the end of the daemon is [`Error::Connection`].
    #[must_use]
    pub fn survive(mut self, time: Duration) -> Client {
        self.survives = time;
        self
    }

    /// How often the connection was made anew. [`Client::as_fd`] is another descriptor each time.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The connection is gone, and not made anew yet.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }
}

impl AsFd for Client {
    /// Readable when the daemon has said something; look at [`Client::queued_event`] too before waiting for it. Another
    /// one after each new connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Store for Client {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.ask(kind, 0, path, parts)
    }
}

/// All permissions of an answer.
pub(crate) fn permissions(payload: &[u8]) -> Result<Vec<Permission>, Error> {
    let parsed = names(payload).iter().map(|entry| entry.parse()).collect::<Result<_, _>>();
    parsed.map_err(|_| Error::Protocol("permissions that are none".into()))
}

//! A blocking client: one connection, over a Unix socket or /dev/xen/xenbus.
//!
//! Answers are matched by request number, so a daemon may reorder them; watch events that come in between are queued,
//! one per (path, token), and none is lost. Nothing a daemon sends makes the client allocate without bound.
//!
//! ```text
//!   link          the connection as bytes
//!   exchange      a request and its answer
//!   reconnect     coming back to a daemon that was started again
//!   events        watches, and what they have fired; watches: registering and taking them
//!   transaction   again until nobody has interfered
//!   domains       what dom0 asks beside nodes
//! ```

mod domains;
mod events;
mod exchange;
mod link;
mod reconnect;
mod transaction;
mod watches;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::perms::Permission;
use crate::store::{Store, names};
use crate::wire::MessageType;
use events::{Events, Watch};
use link::{Link, Place};

pub use events::WatchEvent;
pub use transaction::Transaction;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long we stand in line where others connect too.
const LINE: Duration = Duration::from_millis(5);

/// A connection to a xenstored.
#[derive(Debug)]
pub struct Client {
    link: Link,
    place: Place,
    /// How long a daemon may take to answer.
    patience: Duration,
    /// How long a daemon may take to come back.
    survives: Duration,
    events: Events,
    /// Watches that a daemon did not take again when it was back, and why.
    lost: VecDeque<(Watch, Error)>,
    request: u32,
    /// The connection is gone, and not made anew yet.
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
            patience: PATIENCE,
            survives: Duration::ZERO,
            events: Events::default(),
            lost: VecDeque::new(),
            request: 0,
            broken: false,
            generation: 0,
        })
    }

    fn at(place: Place) -> io::Result<Client> {
        let started = Instant::now();
        loop {
            match place.connect() {
                // More connect at once than the daemon has taken in yet.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && started.elapsed() < PATIENCE => {
                    std::thread::sleep(LINE);
                }
                connected => return Ok(Client { place, ..Client::from_fd(connected?)? }),
            }
        }
    }

    /// How long a daemon may take to answer; a minute if nothing is said. Then the connection is given up: nobody knows
    /// what became of the request.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Client {
        self.patience = time;
        self
    }

    /// From now on a daemon may end and be started again within `time`, and may fail to answer: the client connects
    /// again, registers every watch again, asks again what was not answered, and runs an interrupted transaction once
    /// more. Each watch fires then, so whoever reads what a watch is about reads everything again;
    /// [`Client::generation`] tells too. What a daemon forgot is not written again. Requests that are not the same when
    /// done twice (CONTROL, and what changes domains, features or quotas) fail with the connection, which is there
    /// again then. A daemon whose socket's directory is gone does not come back.
    ///
    /// Without it, and for a connection that somebody else made, the end of the daemon is [`Error::Connection`].
    #[must_use]
    pub fn survive(mut self, time: Duration) -> Client {
        self.survives = time;
        self
    }

    /// How often the connection was made anew.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which connection requests go over; none when it is gone.
    pub(crate) fn connection(&self) -> Option<u64> {
        (!self.broken).then_some(self.generation)
    }
}

impl AsFd for Client {
    /// Readable when the daemon has said something or the connection is gone; [`Client::next_event`] is to be called
    /// then, and once before waiting. The number stays the same over new connections: `poll` needs no care, a
    /// descriptor that `epoll` holds on to is to be added again when [`Client::generation`] has changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Store for Client {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.ask(kind, 0, path, parts)
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

/// All permissions of an answer.
pub(crate) fn permissions(payload: &[u8]) -> Result<Vec<Permission>, Error> {
    let parsed = names(payload).iter().map(|entry| entry.parse()).collect::<Result<_, _>>();
    parsed.map_err(|_| Error::Protocol("permissions that are none".into()))
}

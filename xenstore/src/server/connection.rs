//! One client: bytes in, bytes out, its watches and transactions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::transaction::Overlay;
use super::watch::{Event, Told, Watches};
use crate::wire::{HEADER, Header, MessageType, PAYLOAD_MAX, message};

/// A client.
pub struct Connection {
    /// The socket.
    pub fd: OwnedFd,
    /// Who it is.
    pub domid: u16,
    /// Its watches.
    pub watches: Watches,
    /// Its open transactions.
    pub transactions: HashMap<u32, Overlay>,
    /// Number of the last transaction.
    pub last_transaction: u32,
    /// What its entry in the epoll set asks for.
    pub armed: EventFlags,
    input: Vec<u8>,
    /// Bytes of the input that were taken already.
    taken: usize,
    output: VecDeque<u8>,
    /// Events that wait behind unread output; each only once.
    waiting: VecDeque<Event>,
    known: HashSet<Event>,
    waiting_bytes: usize,
    /// Too many waited: until the client has read them, one event per watch stands for all.
    merged: bool,
}

/// The client is to be forgotten.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Connection {
    /// A fresh one.
    pub fn new(fd: OwnedFd, domid: u16) -> Connection {
        Connection {
            fd,
            domid,
            watches: Watches::default(),
            transactions: HashMap::new(),
            last_transaction: 0,
            armed: EventFlags::IN,
            input: Vec::new(),
            taken: 0,
            output: VecDeque::new(),
            waiting: VecDeque::new(),
            known: HashSet::new(),
            waiting_bytes: 0,
            merged: false,
        }
    }

    /// Takes in what is there, a bounded amount, and nothing while a whole request is here already.
    pub fn receive(&mut self) -> Result<(), Gone> {
        if self.has_request() {
            return Ok(());
        }
        self.input.drain(..std::mem::take(&mut self.taken));
        let mut buffer = [0; 4 * (HEADER + PAYLOAD_MAX)];
        match recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(Gone),
            Ok((count, _)) => {
                self.input.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// The next whole request.
    pub fn request(&mut self) -> Result<Option<(Header, Vec<u8>)>, Gone> {
        let input = &self.input[self.taken..];
        let Some(header) = input.first_chunk::<HEADER>().map(Header::decode) else { return Ok(None) };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(Gone);
        }
        let Some(payload) = input.get(HEADER..HEADER + len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.taken += HEADER + len;
        Ok(Some((header, payload)))
    }

    /// A whole request is here already, or something that will never be one.
    pub fn has_request(&self) -> bool {
        let input = &self.input[self.taken..];
        let len = input.first_chunk::<HEADER>().map(|header| Header::decode(header).len as usize);
        len.is_some_and(|len| len > PAYLOAD_MAX || input.len() >= HEADER + len)
    }

    /// Answers a request. A payload that does not fit the wire was checked for before.
    pub fn answer(&mut self, to: &Header, kind: u32, payload: &[u8]) {
        if let Some(bytes) = message(kind, to.request, to.transaction, &[payload]) {
            self.output.extend(bytes);
        }
    }

    /// Tells an event; one that waits already is not told twice. When more than `most` bytes of them wait, each is
    /// replaced by one that names its watch: the client looks at all of that again, and has lost nothing.
    pub fn tell(&mut self, (event, instead): Told, most: usize) {
        if self.output.is_empty() && self.waiting.is_empty() {
            self.put_event(&event);
            return;
        }
        if !self.merged && self.waiting_bytes + event.len() > most {
            self.merged = true;
            let waiting = std::mem::take(&mut self.waiting);
            self.known.clear();
            self.waiting_bytes = 0;
            let instead: Vec<Event> = waiting.iter().flat_map(|event| self.watches.instead_of(event)).collect();
            instead.into_iter().for_each(|event| self.wait(event));
        }
        self.wait(if self.merged { instead } else { event });
    }

    fn wait(&mut self, event: Event) {
        if self.known.insert(event.clone()) {
            self.waiting_bytes += event.len();
            self.waiting.push_back(event);
        }
    }

    /// Forgets events that no watch would fire any more: none may come after the answer to an UNWATCH.
    pub fn unwatched(&mut self) {
        self.waiting.retain(|event| self.watches.covers(event));
        self.known = self.waiting.iter().cloned().collect();
        self.waiting_bytes = self.waiting.iter().map(Event::len).sum();
    }

    fn put_event(&mut self, event: &Event) {
        let parts: [&[u8]; 4] = [event.path.as_bytes(), b"\0", event.token.as_bytes(), b"\0"];
        // Path and token came in one message, so they fit one; a long path below a long token does not, and C drops it.
        if let Some(bytes) = message(MessageType::WatchEvent as u32, 0, 0, &parts) {
            self.output.extend(bytes);
        }
    }

    /// Sends what the client takes.
    pub fn send(&mut self) -> Result<(), Gone> {
        loop {
            while !self.output.is_empty() {
                let (first, _) = self.output.as_slices();
                match send(&self.fd, first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(count) => drop(self.output.drain(..count)),
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(_) => return Err(Gone),
                }
            }
            let Some(event) = self.waiting.pop_front() else {
                self.merged = false;
                return Ok(());
            };
            self.known.remove(&event);
            self.waiting_bytes -= event.len();
            self.put_event(&event);
        }
    }

    /// Bytes the client has not taken.
    pub fn unread(&self) -> usize {
        self.output.len()
    }

    /// What makes sense to wait for: requests while answers are read, room while something waits to be sent.
    pub fn wants(&self, most_unread: usize) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.unread() < most_unread && !self.has_request());
        // A whole request that waits for its turn must not wait for more bytes.
        flags.set(EventFlags::OUT, self.unread() > 0 || self.has_request());
        flags
    }

    /// All watches and transactions end, and the events that wait with them.
    pub fn reset(&mut self) {
        self.watches.clear();
        self.transactions.clear();
        self.unwatched();
    }
}

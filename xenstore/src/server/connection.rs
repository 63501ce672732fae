//! One client: bytes in, bytes out, its transactions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::transaction::Overlay;
use super::watch::{Event, Told, Watches};
use crate::wire::{ErrorName, HEADER, Header, MessageType, PAYLOAD_MAX, message};

/// Bytes of answers that a client may leave unread before its requests wait.
const UNREAD: usize = 32 << 10;

/// A client.
pub struct Connection {
    /// The socket.
    pub fd: OwnedFd,
    /// Its number in this daemon.
    pub number: u64,
    /// Who it is.
    pub domid: u16,
    /// Its open transactions.
    pub transactions: HashMap<u32, Overlay>,
    /// Number of the last transaction.
    pub last_transaction: u32,
    /// What its entry in the epoll set asks for.
    pub armed: EventFlags,
    /// Its domain has written too much: its requests wait for the time to pass.
    pub held: bool,
    input: Vec<u8>,
    /// Bytes of the input that were taken already.
    taken: usize,
    output: VecDeque<u8>,
    /// Where the answers in the output end, counted from the first byte ever sent.
    answers: VecDeque<u64>,
    sent: u64,
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
    pub fn new(fd: OwnedFd, number: u64, domid: u16) -> Connection {
        Connection {
            fd,
            number,
            domid,
            transactions: HashMap::new(),
            last_transaction: 0,
            armed: EventFlags::IN,
            held: false,
            input: Vec::new(),
            taken: 0,
            output: VecDeque::new(),
            answers: VecDeque::new(),
            sent: 0,
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
    fn has_request(&self) -> bool {
        let input = &self.input[self.taken..];
        let len = input.first_chunk::<HEADER>().map(|header| Header::decode(header).len as usize);
        len.is_some_and(|len| len > PAYLOAD_MAX || input.len() >= HEADER + len)
    }

    /// Answers a request; a payload that does not fit the wire is the error that says so.
    pub fn answer(&mut self, to: &Header, result: &Result<Vec<u8>, ErrorName>) {
        let error = |error: &ErrorName| (MessageType::Error as u32, format!("{error}\0").into_bytes());
        let (kind, payload) = match result {
            Ok(payload) if payload.len() <= PAYLOAD_MAX => (to.kind, payload.clone()),
            Ok(_) => error(&ErrorName::E2big),
            Err(name) => error(name),
        };
        // What the request itself has fired comes before its answer, as it does with the C daemon.
        if self.output.is_empty() {
            while let Some(event) = self.next_waiting() {
                self.put_event(&event);
            }
        }
        if let Some(bytes) = message(kind, to.request, to.transaction, &[&payload]) {
            self.output.extend(bytes);
            self.answers.push_back(self.sent + self.output.len() as u64);
        }
    }

    /// Tells an event; one that waits already is not told twice. When more than `most` bytes of them wait, each is
    /// replaced by one that names its watch: the client looks at all of that again, and has lost nothing.
    pub fn tell(&mut self, told: Told, most: usize, watches: &Watches) {
        if !self.merged && self.waiting_bytes + told.event.len() > most {
            self.merged = true;
            let waiting = std::mem::take(&mut self.waiting);
            self.known.clear();
            self.waiting_bytes = 0;
            let instead = waiting.iter().flat_map(|event| watches.instead_of(self.number, event));
            let instead: Vec<Event> = instead.collect();
            instead.into_iter().for_each(|event| self.wait(event));
        }
        self.wait(if self.merged { told.instead } else { told.event });
    }

    fn wait(&mut self, event: Event) {
        if self.known.insert(event.clone()) {
            self.waiting_bytes += event.len();
            self.waiting.push_back(event);
        }
    }

    /// Forgets events that no watch would fire any more: none may come after the answer to an UNWATCH.
    pub fn unwatched(&mut self, watches: &Watches) {
        self.waiting.retain(|event| watches.covers(self.number, event));
        self.known = self.waiting.iter().cloned().collect();
        self.waiting_bytes = self.waiting.iter().map(Event::len).sum();
    }

    fn put_event(&mut self, event: &Event) {
        let parts: [&[u8]; 4] = [&event.path, b"\0", &event.token, b"\0"];
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
                    Ok(count) => {
                        self.output.drain(..count);
                        self.sent += count as u64;
                    }
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(_) => return Err(Gone),
                }
            }
            self.answers.clear();
            let Some(event) = self.next_waiting() else {
                self.merged = false;
                return Ok(());
            };
            self.put_event(&event);
        }
    }

    fn next_waiting(&mut self) -> Option<Event> {
        let event = self.waiting.pop_front()?;
        self.known.remove(&event);
        self.waiting_bytes -= event.len();
        Some(event)
    }

    /// Bytes the client has not taken.
    pub fn unread(&self) -> usize {
        self.output.len() + self.waiting_bytes
    }

    /// It has to read answers before its next request is looked at; `most` of them may wait.
    pub fn is_behind(&mut self, most: usize) -> bool {
        let sent = self.sent;
        let read = self.answers.iter().take_while(|end| **end <= sent).count();
        self.answers.drain(..read);
        self.answers.len() >= most.max(1) || self.output.len() >= UNREAD
    }

    /// What makes sense to wait for: requests while answers are read, room while something waits to be sent.
    pub fn wants(&mut self, most_answers: usize) -> EventFlags {
        let (behind, request) = (self.is_behind(most_answers), self.has_request());
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !behind && !request && !self.held);
        // A whole request that waits for its turn must not wait for more bytes; one that is held has its own time.
        flags.set(EventFlags::OUT, !self.output.is_empty() || request && !behind && !self.held);
        flags
    }
}

//! One client: bytes in, bytes out, its watches and transactions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::transaction::Overlay;
use super::watch::{Event, Watches};
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
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// Events that wait behind unread output; each only once.
    waiting: VecDeque<Event>,
    known: HashSet<Event>,
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
            input: Vec::new(),
            output: VecDeque::new(),
            waiting: VecDeque::new(),
            known: HashSet::new(),
        }
    }

    /// Takes in what is there, a bounded amount.
    pub fn receive(&mut self) -> Result<(), Gone> {
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
        let Some(header) = self.input.first_chunk::<HEADER>().map(Header::decode) else { return Ok(None) };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(Gone);
        }
        if self.input.len() < HEADER + len {
            return Ok(None);
        }
        let payload = self.input[HEADER..HEADER + len].to_vec();
        self.input.drain(..HEADER + len);
        Ok(Some((header, payload)))
    }

    /// Answers a request. A payload that does not fit the wire was checked for before.
    pub fn answer(&mut self, to: &Header, kind: u32, payload: &[u8]) {
        if let Some(bytes) = message(kind, to.request, to.transaction, &[payload]) {
            self.output.extend(bytes);
        }
    }

    /// Tells an event; one that waits already is not told twice. False when too many wait.
    pub fn tell(&mut self, event: Event, most: usize) -> bool {
        if self.output.is_empty() && self.waiting.is_empty() {
            self.put_event(&event);
            return true;
        }
        if !self.known.contains(&event) {
            self.known.insert(event.clone());
            self.waiting.push_back(event);
        }
        self.waiting.len() <= most
    }

    fn put_event(&mut self, (path, token): &Event) {
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
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
            let Some(event) = self.waiting.pop_front() else { return Ok(()) };
            self.known.remove(&event);
            self.put_event(&event);
        }
    }

    /// A whole request is here already.
    pub fn has_request(&self) -> bool {
        let len = self.input.first_chunk::<HEADER>().map(|header| Header::decode(header).len as usize);
        len.is_some_and(|len| len > PAYLOAD_MAX || self.input.len() >= HEADER + len)
    }

    /// Bytes the client has not taken.
    pub fn unread(&self) -> usize {
        self.output.len()
    }

    /// All watches and transactions end, and the events that wait with them.
    pub fn reset(&mut self) {
        self.watches.clear();
        self.transactions.clear();
        self.waiting.clear();
        self.known.clear();
    }
}

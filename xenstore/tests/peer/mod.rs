//! One connection that is spoken to in bytes, one request after the other.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use xenstore::wire::{ErrorName, HEADER, Header, MessageType, message};

/// What a request is answered with: the payload, or an error's name.
pub type Answer = Result<Vec<u8>, ErrorName>;
/// Path and token.
pub type Event = (String, String);

/// A blocking socket. Whatever does not come within a minute is a failure of the test.
pub struct Peer {
    socket: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    events: VecDeque<Event>,
    number: u32,
}

impl Peer {
    pub fn connect(path: &Path) -> Peer {
        Peer::new(UnixStream::connect(path).unwrap())
    }

    pub fn new(socket: UnixStream) -> Peer {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Peer { socket, buffer: Vec::new(), start: 0, events: VecDeque::new(), number: 0 }
    }

    /// The socket, for bytes that are no request.
    pub fn socket(&mut self) -> &mut UnixStream {
        &mut self.socket
    }

    /// Sends a request and waits for its answer; events that come before it are kept.
    pub fn ask(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> Answer {
        self.send(kind, transaction, payload).unwrap();
        self.answer(kind, transaction).unwrap()
    }

    /// A request of a known type outside of transactions.
    pub fn request(&mut self, kind: MessageType, payload: &[u8]) -> Answer {
        self.ask(kind as u32, 0, payload)
    }

    /// Sends a request; its answer is for [`Peer::answer`].
    pub fn send(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> io::Result<()> {
        self.number = self.number.wrapping_add(1);
        self.socket.write_all(&message(kind, self.number, transaction, &[payload]).unwrap())
    }

    /// The answer to the last request.
    pub fn answer(&mut self, kind: u32, transaction: u32) -> io::Result<Answer> {
        loop {
            let (header, payload) = self.next()?;
            if header.kind == MessageType::WatchEvent as u32 {
                self.events.push_back(event(&payload));
                continue;
            }
            assert_eq!((header.request, header.transaction), (self.number, transaction), "echoed");
            if header.kind == MessageType::Error as u32 {
                assert_eq!(payload.last(), Some(&0), "an error's name ends in NUL");
                return Ok(Err(ErrorName::parse(&payload)));
            }
            assert_eq!(header.kind, kind, "echoed");
            return Ok(Ok(payload));
        }
    }

    /// Events that are here and were not asked for yet.
    pub fn waiting(&self) -> usize {
        self.events.len()
    }

    /// The next event, whether it has come or not.
    pub fn event(&mut self) -> io::Result<Event> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        let (header, payload) = self.next()?;
        assert_eq!(header.kind, MessageType::WatchEvent as u32, "nothing was asked");
        Ok(event(&payload))
    }

    /// Events that came before the answer to something asked now.
    pub fn events(&mut self) -> Vec<Event> {
        assert!(self.request(MessageType::GetDomainPath, b"0\0").is_ok());
        self.events.drain(..).collect()
    }

    fn next(&mut self) -> io::Result<(Header, Vec<u8>)> {
        self.fill(HEADER)?;
        let header = Header::decode(self.buffer[self.start..self.start + HEADER].try_into().unwrap());
        let len = header.len as usize;
        self.fill(HEADER + len)?;
        let at = self.start + HEADER;
        self.start = at + len;
        Ok((header, self.buffer[at..at + len].to_vec()))
    }

    /// Reads until `len` bytes have not been looked at.
    fn fill(&mut self, len: usize) -> io::Result<()> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        while self.buffer.len() - self.start < len {
            let had = self.buffer.len();
            self.buffer.resize(had + 8192, 0);
            let got = self.socket.read(&mut self.buffer[had..]);
            self.buffer.truncate(had + got.as_ref().map_or(0, |count| *count));
            if got? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

fn event(payload: &[u8]) -> Event {
    let text = std::str::from_utf8(payload).unwrap();
    let (path, token) = text.split_once('\0').unwrap();
    (path.to_owned(), token.strip_suffix('\0').unwrap().to_owned())
}

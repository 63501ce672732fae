//! A connection to a daemon, at the level of the wire: what is sent may be anything.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use xenstore::wire::{ErrorName, HEADER, Header, MessageType};

/// How long a daemon may take to answer: far more than it ever does, the write-rate limit included.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A message that came.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// True for an event, which is no answer to anything.
    pub fn is_event(&self) -> bool {
        self.header.kind == MessageType::WatchEvent as u32
    }

    /// The error it reports.
    pub fn error(&self) -> Option<ErrorName> {
        (self.header.kind == MessageType::Error as u32).then(|| ErrorName::parse(&self.payload))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MessageType::from_number(self.header.kind) {
            Some(kind) => write!(f, "{kind:?}")?,
            None => write!(f, "type {}", self.header.kind)?,
        }
        if self.header.transaction != 0 {
            write!(f, " in {}", self.header.transaction)?;
        }
        write!(f, " \"{}\"", self.payload.escape_ascii())
    }
}

/// A connection.
pub trait Link {
    /// Sends these bytes.
    ///
    /// # Errors
    /// What the system said; a daemon that has hung up.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The next message.
    ///
    /// # Errors
    /// `UnexpectedEof` when the daemon has hung up, `TimedOut` when nothing comes.
    fn receive(&mut self) -> io::Result<Message>;
}

/// Nothing came.
pub fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the daemon does not answer")
}

/// A Unix socket.
pub struct Socket(UnixStream);

impl Socket {
    /// Connects.
    pub fn connect(path: &Path) -> io::Result<Socket> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Socket(stream))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => timed_out(),
            // A daemon that hangs up on unread requests resets the connection.
            io::ErrorKind::ConnectionReset => io::ErrorKind::UnexpectedEof.into(),
            _ => error,
        })
    }
}

impl Link for Socket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let header = Header::decode(&header);
        let mut payload = vec![0; header.len as usize];
        self.fill(&mut payload)?;
        Ok(Message { header, payload })
    }
}

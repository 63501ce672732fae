//! An NBD server (fixed newstyle, simple replies) for whatever implements [`Export`]: many requests in flight per
//! connection, answered in any order, and as many connections as a client likes up to a bound.
//!
//! A client is not trusted: every length is bounded before anything is read for it, and one that breaks the protocol
//! is hung up on.

mod connection;
mod handshake;
mod replies;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;

pub use replies::{Batch, Ticket, ask};
pub use server::{Server, StartError};

/// Largest read or write, bytes (what the protocol calls the maximum block size).
pub const MAX_REQUEST: u32 = 32 << 20;

/// A disk as clients are shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub size: u64,
    /// Alignment of every request, bytes.
    pub min_block: u32,
    /// Best alignment, bytes.
    pub preferred_block: u32,
    /// Refuses everything but reads.
    pub read_only: bool,
    /// Flush and FUA make writes durable.
    pub flush: bool,
    /// Ranges can be forgotten.
    pub trim: bool,
}

/// The disks that there are now.
pub trait Exports: Send + Sync {
    /// Names of all of them, the default one first.
    fn names(&self) -> Vec<String>;
    /// One of them; the empty name is the default.
    fn open(&self, name: &str) -> Option<Arc<dyn Export>>;
}

/// One disk, shared by all of its connections.
pub trait Export: Send + Sync {
    /// As it is now.
    fn info(&self) -> Info;
    /// Starts a job; its ticket ends it, from any thread.
    fn submit(&self, job: Job);
}

/// What a client wants done. The range lies inside of the disk and is aligned.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub command: Command,
    /// First byte.
    pub offset: u64,
    /// A write's data, or room for a read's.
    pub buffer: Vec<u8>,
    /// To be durable before it is answered.
    pub fua: bool,
    /// Answers it.
    pub ticket: Ticket,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fills the buffer.
    Read,
    /// Writes the buffer.
    Write,
    /// Makes everything answered before durable, whichever connection it came from.
    Flush,
    /// Forgets so many bytes.
    Trim(u32),
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// `EPERM`: a write to a read-only disk.
    NotPermitted = 1,
    /// `EIO`.
    Io = 5,
    /// `EINVAL`: the request makes no sense.
    Invalid = 22,
    /// `ENOSPC`: a write past the end.
    NoSpace = 28,
    /// `ENOTSUP`: the disk cannot.
    Unsupported = 95,
}

//! What stands behind a virtual disk: one trait, one value per queue, driven by the reactor.
//!
//! A disk never waits. It is handed a [`Job`], asks [`Io`] for what it needs, is told when that has ended, and says
//! `finish` once. After a crash and its fence a job starts again at [`Disk::start`]: whatever a disk did for it before
//! must be repeatable or recorded by the disk itself.

mod fault;
mod null;
mod raw;

use std::time::{Duration, Instant};

use grant::memory::Span;
use grant::uring::{Direction, FileSlot, MemoryId, Owner, Transfer, Uring};

pub use fault::Fault;
pub use null::Null;
pub use raw::Raw;

use crate::config::{DiskKind, DiskParams};
use crate::proto::{BLKIF_RSP_ERROR, BLKIF_RSP_OKAY};
use crate::request::Operation;

/// A validated request on its way through a disk.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The queue's name for it.
    pub slot: u16,
    /// What to do.
    pub operation: Operation,
    /// First byte on the disk; the range lies on the disk.
    pub at: u64,
    /// Bytes of data, 0 for a plain flush.
    pub len: u32,
    /// How far the disk has come with it; 0 at the start. The disk's own.
    pub step: u32,
    /// The same for a disk that wraps another one.
    pub outer_step: u32,
}

/// How an operation that a disk asked for has ended; a transfer is complete or failed, never short.
pub type Ended = Result<(), i32>;

/// What a queue needs to know of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Size in 512-byte sectors.
    pub sectors: u64,
    /// Takes flushes.
    pub flush: bool,
    /// Refuses writes.
    pub read_only: bool,
    /// Most operations one job has in flight at a time.
    pub operations: usize,
}

/// One queue's way to a disk.
pub trait Disk: Send {
    /// Begins a job.
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>);
    /// Something the job asked for has ended.
    fn step(&mut self, job: &mut Job, ended: Ended, io: &mut Io<'_>);
    /// Time has passed; called while [`Disk::wants_tick`].
    fn tick(&mut self, _now: Instant) {}
    /// True for a disk that works without being asked.
    fn wants_tick(&self) -> bool {
        false
    }
    /// Sizes and abilities.
    fn limits(&self) -> DiskLimits;
}

/// The disk a description asks for; `file` is the volume in the ring's table.
pub fn open(params: &DiskParams, file: Option<FileSlot>) -> Option<Box<dyn Disk>> {
    let disk: Box<dyn Disk> = match (params.kind, file) {
        (DiskKind::Raw, Some(file)) => Box::new(Raw::new(file, params.sectors, params.read_only)),
        (DiskKind::Raw, None) => return None,
        (DiskKind::Null, _) => Box::new(Null::new(params.sectors, params.read_only)),
    };
    Some(match params.fault {
        Some(fault) => Box::new(Fault::new(disk, fault)),
        None => disk,
    })
}

/// What a disk may ask for, on behalf of one job. Memory is the job's own: byte `start` of its data.
pub struct Io<'a> {
    pub(crate) ring: &'a mut Uring,
    pub(crate) memory: MemoryId,
    pub(crate) spans: &'a [Span],
    pub(crate) pending: &'a mut u16,
    pub(crate) finished: Option<i16>,
    pub(crate) most: u32,
}

impl Io<'_> {
    /// Reads `len` bytes at `at` of the file into the job's memory from byte `start`.
    pub fn read(&mut self, job: &Job, file: FileSlot, at: u64, start: u32, len: u32) {
        self.transfer(job, Transfer { direction: Direction::Read, file, at, start, len });
    }

    /// Writes `len` bytes of the job's memory from byte `start` to `at` of the file.
    pub fn write(&mut self, job: &Job, file: FileSlot, at: u64, start: u32, len: u32) {
        self.transfer(job, Transfer { direction: Direction::Write, file, at, start, len });
    }

    fn transfer(&mut self, job: &Job, transfer: Transfer) {
        // A limited transfer comes back short and is continued: what `fault` uses to prove that.
        *self.pending += 1;
        self.ring.transfer(self.owner(job), transfer, self.spans, self.most);
    }

    /// Makes everything the file has completed so far durable (`fdatasync`).
    pub fn flush(&mut self, job: &Job, file: FileSlot) {
        *self.pending += 1;
        self.ring.flush(self.owner(job), file);
    }

    /// Comes back after `delay`.
    pub fn timeout(&mut self, job: &Job, delay: Duration) {
        *self.pending += 1;
        self.ring.timeout(self.owner(job), delay);
    }

    /// Fills the job's memory with zeros.
    pub fn zero(&mut self) {
        for span in self.spans {
            if let Some(pages) = self.ring.memory(self.memory).pages(span.region) {
                pages.zero(span.offset as usize, span.len as usize);
            }
        }
    }

    /// Flips the lowest bit of byte `index` of the job's memory.
    pub fn flip(&mut self, index: u32) {
        let mut skip = index;
        for span in self.spans {
            if skip >= span.len {
                skip -= span.len;
                continue;
            }
            if let Some(pages) = self.ring.memory(self.memory).pages(span.region) {
                let at = (span.offset + skip) as usize;
                pages.store(at, &(pages.load::<u8>(at) ^ 1));
            }
            return;
        }
    }

    /// Ends the job. What it has in flight is waited for.
    pub fn finish(&mut self, ended: Ended) {
        debug_assert!(self.finished.is_none(), "a job ends once");
        self.finished = Some(match ended {
            Ok(()) => BLKIF_RSP_OKAY,
            Err(_) => BLKIF_RSP_ERROR,
        });
    }

    /// From now on no single transfer moves more than `bytes`.
    pub fn limit_transfers(&mut self, bytes: u32) {
        self.most = bytes;
    }

    fn owner(&self, job: &Job) -> Owner {
        Owner { memory: self.memory, slot: job.slot }
    }
}

//! What stands behind a virtual disk: one trait, one value per queue, driven by the reactor.
//!
//! A disk never waits. It is handed a [`Job`], asks [`Io`] for what it needs, is told when that has ended, and says
//! `finish` once. After a crash and its fence a job starts again at [`Disk::start`]: whatever a disk did for it before
//! must be repeatable or recorded by the disk itself.

mod erase;
mod fault;
mod null;
mod raw;

use std::sync::Arc;
use std::time::{Duration, Instant};

use grant::memory::{RegionId, Span};
use grant::uring::{Direction, FileSlot, MemoryId, Owner, Transfer, Uring};

pub use erase::{Erased, Eraser};
pub use fault::Fault;
pub use null::Null;
pub use raw::Raw;

use crate::config::{Discard, DiskKind, DiskParams};
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
    /// Bytes of data, 0 for a plain flush and for a discard.
    pub len: u32,
    /// How the data lies in whole sectors of the medium.
    pub edges: Edges,
    /// How far the disk has come with it; 0 at the start. The disk's own.
    pub step: u32,
    /// The same for a disk that wraps another one.
    pub outer_step: u32,
    /// The next transfer to end well ends the job, too, and the disk need not be asked: see [`Io::finish_with`].
    pub last: bool,
}

impl Job {
    /// No job: what tables are filled with.
    pub const NONE: Job = Job {
        slot: 0,
        operation: Operation::Read,
        at: 0,
        len: 0,
        edges: Edges { head: 0, tail: 0 },
        step: 0,
        outer_step: 0,
        last: false,
    };

    /// It changes what is on the disk.
    pub fn writes(&self) -> bool {
        !matches!(self.operation, Operation::Read)
    }
}

/// A request that does not begin and end on sectors of the medium (512e): how far it misses them. Its memory begins
/// `head` bytes before its data and ends `tail` bytes after it; a write has room for the two sectors at its ends after
/// that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edges {
    /// Bytes between the sector's begin and the request's, below 4096.
    pub head: u16,
    /// Bytes between the request's end and the sector's, below 4096.
    pub tail: u16,
}

impl Edges {
    /// Of a range on a medium with sectors of `unit` bytes, a power of two.
    pub fn of(at: u64, len: u32, unit: u32) -> Edges {
        let unit = u64::from(unit);
        let (head, end) = (at % unit, (at + u64::from(len)) % unit);
        Edges { head: head as u16, tail: if end == 0 { 0 } else { (unit - end) as u16 } }
    }

    /// It begins and ends on sectors.
    pub fn is_none(self) -> bool {
        self == Edges::default()
    }
}

/// How an operation that a disk asked for has ended; a transfer is complete or failed, never short.
pub type Ended = Result<(), i32>;

/// What a queue needs to know of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Size in 512-byte sectors.
    pub sectors: u64,
    /// The smallest piece that the medium takes, bytes: 512 or 4096.
    pub unit: u32,
    /// Takes flushes.
    pub flush: bool,
    /// Takes discards.
    pub discard: Option<Discard>,
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
    /// The file that a read or write of whole sectors is a single transfer of, in the same place, with nothing to do
    /// before or after it: queues need not ask for such a one, and only tell how it ended if not well.
    fn direct(&self) -> Option<FileSlot> {
        None
    }
    /// Sizes and abilities.
    fn limits(&self) -> DiskLimits;
}

/// How a worker comes to the disks behind its queues: [`open`], or something of its owner's around that.
pub type Open = Arc<dyn Fn(&DiskParams, Option<FileSlot>, Option<Eraser>) -> Option<Box<dyn Disk>> + Send + Sync>;

/// The disk a description asks for; `file` is the volume in the ring's table. `eraser` discards on block devices.
pub fn open(params: &DiskParams, file: Option<FileSlot>, eraser: Option<Eraser>) -> Option<Box<dyn Disk>> {
    let disk: Box<dyn Disk> = match (params.kind, file) {
        (DiskKind::Raw, Some(file)) => Box::new(Raw::new(file, params, eraser)),
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
    pub(crate) finished: Option<Ended>,
    pub(crate) most: u32,
}

impl Io<'_> {
    /// Reads `len` bytes at `at` of the file into the job's memory from byte `start`.
    #[inline(always)]
    pub fn read(&mut self, job: &Job, file: FileSlot, at: u64, start: u32, len: u32) {
        self.transfer(job, Transfer { direction: Direction::Read, file, at, start, len });
    }

    /// Writes `len` bytes of the job's memory from byte `start` to `at` of the file.
    pub fn write(&mut self, job: &Job, file: FileSlot, at: u64, start: u32, len: u32) {
        self.transfer(job, Transfer { direction: Direction::Write, file, at, start, len });
    }

    /// What was just asked for is the last of the job: when it has ended well, the job has. A failure still comes to
    /// [`Disk::step`]. For disks that would do nothing but say `finish`.
    #[inline]
    pub fn finish_with(&mut self, job: &mut Job) {
        job.last = true;
    }

    #[inline(always)]
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

    /// Makes a hole of `len` bytes at `at` of the file.
    pub fn punch(&mut self, job: &Job, file: FileSlot, at: u64, len: u64) {
        *self.pending += 1;
        self.ring.punch(self.owner(job), file, at, len);
    }

    /// Has a block device discard `len` bytes at `at`.
    pub fn erase(&mut self, job: &Job, eraser: &Eraser, at: u64, len: u64, secure: bool) {
        *self.pending += 1;
        eraser.erase(job.slot, at, len, secure);
    }

    /// The job's memory: where each byte of it is, in order.
    pub fn spans(&self) -> &[Span] {
        self.spans
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

    /// Copies `len` bytes of the job's memory from byte `from` to byte `to`; neither crosses a span.
    pub fn copy(&mut self, from: u32, to: u32, len: u32) {
        if len == 0 {
            return;
        }
        if let (Some(from), Some(to)) = (self.place(from), self.place(to)) {
            self.ring.memory(self.memory).copy(to, from, len as usize);
        }
    }

    /// Where byte `index` of the job's memory is.
    fn place(&self, index: u32) -> Option<(RegionId, usize)> {
        let mut skip = index;
        for span in self.spans {
            if skip < span.len {
                return Some((span.region, (span.offset + skip) as usize));
            }
            skip -= span.len;
        }
        None
    }

    /// Flips the lowest bit of byte `index` of the job's memory.
    pub fn flip(&mut self, index: u32) {
        if let Some((region, at)) = self.place(index)
            && let Some(pages) = self.ring.memory(self.memory).pages(region)
        {
            pages.store(at, &(pages.load::<u8>(at) ^ 1));
        }
    }

    /// Ends the job. What it has in flight is waited for.
    pub fn finish(&mut self, ended: Ended) {
        debug_assert!(self.finished.is_none(), "a job ends once");
        self.finished = Some(ended);
    }

    /// From now on no single transfer moves more than `bytes`.
    pub fn limit_transfers(&mut self, bytes: u32) {
        self.most = bytes;
    }

    #[inline(always)]
    fn owner(&self, job: &Job) -> Owner {
        Owner { memory: self.memory, slot: job.slot }
    }
}

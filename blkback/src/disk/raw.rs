//! A file or block device, byte for byte: one operation per job, and on media with sectors of 4096 bytes (4Kn, served
//! as 512e) the reading of the sectors at the ends of an odd write before it.

use grant::uring::FileSlot;

use super::{Disk, DiskLimits, Ended, Eraser, Io, Job};
use crate::config::{Discard, DiskParams};
use crate::request::Operation;

/// One queue's way to a raw volume.
pub struct Raw {
    file: FileSlot,
    sectors: u64,
    unit: u32,
    read_only: bool,
    discard: Option<Discard>,
    eraser: Option<Eraser>,
}

/// `Job::step` while the sectors at the ends of a write are read; one less when one of two is there.
const BOTH_EDGES: u32 = 2;
const LAST_EDGE: u32 = 1;
/// While the data is transferred, or something without data is done.
const DATA: u32 = 3;
/// While what came before is made durable.
const FLUSH: u32 = 4;
/// While a barrier's data is.
const FLUSH_DATA: u32 = 5;

impl Raw {
    /// A volume, `file` in the ring's table. Without `eraser` discards make holes in a file.
    pub fn new(file: FileSlot, params: &DiskParams, eraser: Option<Eraser>) -> Raw {
        let DiskParams { sectors, logical_sector_size: unit, read_only, .. } = *params;
        let discard = params.discard.filter(|discard| !discard.device || eraser.is_some());
        Raw { file, sectors, unit, read_only, discard, eraser }
    }

    /// Begins a write: with its data, or with what is around it in the sectors at its ends.
    fn write(&self, job: &mut Job, io: &mut Io<'_>) {
        let (at, len) = covered(job);
        let (first, last) = (at, at + u64::from(len - self.unit.min(len)));
        let (head, tail) = (job.edges.head > 0, job.edges.tail > 0);
        match (head, tail) {
            (false, false) => self.write_data(job, io),
            (true, true) if first != last => {
                job.step = BOTH_EDGES;
                io.read(job, self.file, first, len, self.unit);
                io.read(job, self.file, last, len + self.unit, self.unit);
            }
            _ => {
                job.step = LAST_EDGE;
                // One sector serves both ends when they are the same.
                let (from, to) = if head { (first, len) } else { (last, len + self.unit) };
                io.read(job, self.file, from, to, self.unit);
            }
        }
    }

    /// Puts what was around the data beside it.
    fn fill_edges(&self, job: &Job, io: &mut Io<'_>) {
        let (_, len) = covered(job);
        let (head, tail) = (u32::from(job.edges.head), u32::from(job.edges.tail));
        let same = head > 0 && len == self.unit;
        let last = if same { len } else { len + self.unit };
        io.copy(len, 0, head);
        io.copy(last + self.unit - tail, len - tail, tail);
    }

    fn write_data(&self, job: &mut Job, io: &mut Io<'_>) {
        let (at, len) = covered(job);
        job.step = DATA;
        io.write(job, self.file, at, 0, len);
        if job.operation == Operation::Write {
            io.finish_with(job);
        }
    }

    fn discard(&self, job: &Job, sectors: u64, secure: bool, io: &mut Io<'_>) {
        let piece = self.discard.map_or(self.unit, |discard| discard.granularity.max(self.unit));
        let odd = sectors * 512 % u64::from(piece);
        let len = sectors * 512 - odd;
        match &self.eraser {
            // What is left of a sector of the medium may be kept, but not when it was to be destroyed.
            _ if secure && odd > 0 => io.finish(Err(EINVAL)),
            _ if len == 0 => io.finish(Ok(())),
            Some(eraser) => io.erase(job, eraser, job.at, len, secure),
            None => io.punch(job, self.file, job.at, len),
        }
    }
}

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

/// The range on the medium, whole sectors of it.
fn covered(job: &Job) -> (u64, u32) {
    let (head, tail) = (job.edges.head, job.edges.tail);
    (job.at - u64::from(head), job.len + u32::from(head) + u32::from(tail))
}

impl Disk for Raw {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        job.step = DATA;
        match job.operation {
            Operation::Read => {
                let (at, len) = covered(job);
                io.read(job, self.file, at, 0, len);
                io.finish_with(job);
            }
            Operation::Write => self.write(job, io),
            // A barrier's data must not be on the medium before that of earlier writes is, whenever the power fails:
            // journals rely on it.
            Operation::Flush | Operation::Barrier => {
                job.step = FLUSH;
                io.flush(job, self.file);
            }
            Operation::Discard { sectors, secure } => self.discard(job, sectors, secure, io),
        }
    }

    fn step(&mut self, job: &mut Job, ended: Ended, io: &mut Io<'_>) {
        if ended.is_err() {
            return io.finish(ended);
        }
        match (job.step, job.operation) {
            (BOTH_EDGES, _) => job.step = LAST_EDGE,
            (LAST_EDGE, _) => {
                self.fill_edges(job, io);
                self.write_data(job, io);
            }
            (DATA, Operation::Barrier) => {
                job.step = FLUSH_DATA;
                io.flush(job, self.file);
            }
            // A flush with data flushes what came before it, then writes (blkif.h allows it).
            (FLUSH, _) if job.len > 0 => self.write(job, io),
            _ => io.finish(Ok(())),
        }
    }

    fn direct(&self) -> Option<FileSlot> {
        Some(self.file)
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits {
            sectors: self.sectors,
            unit: self.unit,
            flush: !self.read_only,
            discard: self.discard,
            read_only: self.read_only,
            operations: if self.unit > 512 { 2 } else { 1 },
        }
    }
}

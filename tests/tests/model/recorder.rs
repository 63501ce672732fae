//! A disk that notes what it is asked to execute, and holds each request against what the header says of the private
//! copy it was made from.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use blkback::disk::{Disk, DiskLimits, Ended, Io, Job};
use blkback::proto::BlkifRequest64;
use blkback::request::Operation;
use grant::PAGE_SIZE;
use grant::journal::Journal;
use grant::memory::RegionId;
use zerocopy::IntoBytes;

use super::validator::{Judged, Offered, Verdict, Work, judge};
use super::wire::{BARRIER, DISCARD, FLUSH, READ, SEGMENT, WRITE, offsets};

/// What was executed.
#[derive(Default)]
pub struct Log {
    /// By operation, as the wire numbers them.
    pub executed: [u64; 6],
    /// The first thing that should not have been.
    pub complaint: Option<String>,
    /// Pages that data was read into.
    pub read_into: HashSet<u32>,
    /// Sectors that were written or discarded.
    pub changed: HashSet<u64>,
}

/// Wraps the disk of one queue.
pub struct Recorder {
    pub inner: Box<dyn Disk>,
    pub journal: Journal,
    pub offered: Offered,
    pub log: Arc<Mutex<Log>>,
}

impl Recorder {
    pub fn journal(fd: OwnedFd) -> Journal {
        Journal::open(fd).unwrap()
    }

    fn judge(&self, slot: u16) -> Judged {
        let copy: BlkifRequest64 = self.journal.request(slot);
        let page = |_| {
            let mut page = vec![0; PAGE_SIZE];
            let room = usize::from(self.offered.max_indirect) * SEGMENT;
            self.journal.read_pool(slot, 0, &mut page[..room]);
            Some(page)
        };
        judge(&self.offered, &copy.as_bytes()[..offsets(self.offered.abi).slot], page)
    }

    /// Why a job should not be.
    fn differs(&self, job: &Job, io: &Io<'_>, work: &Work) -> Option<&'static str> {
        let (operation, sectors) = match job.operation {
            Operation::Read => (READ, u64::from(job.len) / 512),
            Operation::Write => (WRITE, u64::from(job.len) / 512),
            Operation::Flush => (FLUSH, u64::from(job.len) / 512),
            Operation::Barrier => (BARRIER, u64::from(job.len) / 512),
            Operation::Discard { sectors, .. } => (DISCARD, sectors),
        };
        if operation != work.operation {
            return Some("another operation");
        }
        if (job.at, sectors) != (work.sector * 512, work.sectors) {
            return Some("another place on the disk");
        }
        let spans = io.spans();
        let total: u32 = spans.iter().map(|span| span.len).sum();
        if u64::from(total) != if operation == DISCARD { 0 } else { sectors * 512 } {
            return Some("memory of another length");
        }
        if spans.iter().any(|span| span.region == RegionId::ARENA) {
            return (spans.len() != 1).then_some("memory in pieces");
        }
        let pieces = spans.iter().map(|span| (span.offset as usize % PAGE_SIZE, span.len as usize));
        let expected = work
            .segments
            .iter()
            .map(|segment| (usize::from(segment.first) * 512, usize::from(segment.last - segment.first + 1) * 512));
        (!pieces.eq(expected)).then_some("other parts of the pages")
    }
}

impl Disk for Recorder {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        let judged = self.judge(job.slot);
        let mut log = self.log.lock().unwrap();
        let complaint = match &judged.verdict {
            Verdict::Refuse(_) => Some("it should have been refused"),
            Verdict::Execute(work) => {
                log.executed[usize::from(work.operation)] += 1;
                match work.operation {
                    READ => log.read_into.extend(work.segments.iter().map(|segment| segment.gref)),
                    _ => log.changed.extend(work.sector..work.sector + work.sectors),
                }
                self.differs(job, io, work)
            }
        };
        if let Some(complaint) = complaint {
            log.complaint.get_or_insert_with(|| format!("{complaint}: {job:?} for {judged:?}"));
        }
        drop(log);
        self.inner.start(job, io);
    }

    fn step(&mut self, job: &mut Job, ended: Ended, io: &mut Io<'_>) {
        self.inner.step(job, ended, io);
    }

    fn limits(&self) -> DiskLimits {
        self.inner.limits()
    }
}

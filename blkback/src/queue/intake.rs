//! From the ring to requests that have all they need but memory of their own: take, parse, find the segments, check the
//! range, find the pages.

use grant::reactor::Core;

use super::{BATCH, BlkQueue, Parts, Slot};
use crate::disk::{Edges, Job};
use crate::proto::{BLKIF_RSP_ERROR, BlkifRequestSegment, SECTOR_SIZE, SEGMENTS_PER_PAGE};
use crate::request::{Operation, Plain, Rejected, Request, Segments, byte_range, discard_range};
use crate::stats::Counter;

impl BlkQueue {
    /// Copies requests out of the ring, into the journal, and parses the copies.
    pub(super) fn take(&mut self, waiting: u32, core: &mut Core) {
        let room = self.free.len().min(BATCH).min(waiting as usize);
        let (now, mut indirect) = (core.clock(), 0);
        for _ in 0..room {
            let Some(slot) = self.free.pop() else { break };
            let copy = self.parts.journal.take(slot, &mut self.parts.ring);
            let segments = self.parts.data.segments_room(slot);
            if let Some(plain) = Plain::parse(&copy, &self.parts.limits, segments) {
                if self.start_at_once(slot, &plain, now, core) {
                    continue;
                }
                self.parts.data.segments_set(slot, plain.count);
                let Plain { id, operation, response_op, sector, count } = plain;
                // Until its range is known, the number of segments stands in `len`.
                let job = Job { slot, operation, at: sector, len: count.into(), ..Job::NONE };
                self.accept(Slot { id, response_op, job, ..Slot::new(now) });
                continue;
            }
            match Request::parse(zerocopy::IntoBytes::as_bytes(&copy), &self.parts.limits) {
                Ok(request) => {
                    let Request { id, operation, response_op, sector, .. } = request;
                    let job = Job { slot, operation, at: sector, len: request.count() as u32, ..Job::NONE };
                    self.accept(Slot { id, response_op, job, ..Slot::new(now) });
                    match request.segments {
                        Segments::Direct(segments, count) => {
                            self.parts.data.set_segments(slot, &segments[..usize::from(count)]);
                        }
                        Segments::Indirect(..) => {
                            // Offers stay at 256 segments, so one page holds them all.
                            self.parts.data.want_indirect(slot, request.indirect_pages()[0], indirect, &mut core.ring);
                            self.slots[usize::from(slot)].job.step = indirect as u32;
                            indirect += 1;
                        }
                    }
                }
                Err(rejected) => self.reject(slot, rejected, now),
            }
        }
        if indirect > 0 {
            self.fetch_indirect(core);
        }
    }

    #[inline]
    fn accept(&mut self, state: Slot) {
        self.slots[usize::from(state.job.slot)] = state;
        self.batch.push(state.job.slot);
    }

    #[cold]
    fn reject(&mut self, slot: u16, rejected: Rejected, now: u64) {
        let Rejected { id, response_op, status, reason } = rejected;
        tracing::trace!(devid = self.parts.devid, id, reason, "request rejected");
        self.count(Counter::Rejected, 1);
        let job = Job { slot, ..Job::NONE };
        self.slots[usize::from(slot)] = Slot { id, response_op, status, rejected: true, job, ..Slot::new(now) };
        self.ended.push(slot);
    }

    /// Reads the segments of all indirect requests of the batch: one map call or one copy call.
    fn fetch_indirect(&mut self, core: &mut Core) {
        self.parts.data.map(&mut core.ring);
        self.parts.data.copy_indirect();
        let mut raw = [BlkifRequestSegment::default(); SEGMENTS_PER_PAGE];
        let mut batch = std::mem::take(&mut self.batch);
        batch.retain(|&slot| {
            let Parts { data, journal, .. } = &mut self.parts;
            let job = &self.slots[usize::from(slot)].job;
            if data.segments(slot).len() == job.len as usize {
                return true;
            }
            let (count, scratch) = (job.len as usize, job.step as usize);
            match data.fetch_indirect(slot, count, scratch, &mut raw, &core.ring) {
                Ok(()) => {
                    journal.write_pool(slot, 0, zerocopy::IntoBytes::as_bytes(&raw[..count]));
                    true
                }
                Err(reason) => {
                    let Slot { id, response_op, .. } = self.slots[usize::from(slot)];
                    self.reject(slot, Rejected { id, response_op, status: BLKIF_RSP_ERROR, reason }, core.clock());
                    false
                }
            }
        });
        self.batch = batch;
    }

    /// Checks the range, finds the pages: what is left of the batch has all it needs but memory of its own.
    pub(super) fn locate(&mut self, core: &mut Core) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.retain(|&slot| {
            if !self.place(slot) {
                let Slot { id, response_op, .. } = self.slots[usize::from(slot)];
                let reason = "beyond the end of the disk";
                self.reject(slot, Rejected { id, response_op, status: BLKIF_RSP_ERROR, reason }, core.clock());
                return false;
            }
            self.parts.data.locate(slot, &mut core.ring);
            true
        });
        self.batch = batch;
        self.parts.data.map(&mut core.ring);
    }

    /// Finds a request's range on the disk; false when it has none.
    #[inline]
    fn place(&mut self, slot: u16) -> bool {
        let Slot { job, bounce, .. } = &mut self.slots[usize::from(slot)];
        let segments = self.parts.data.segments(slot);
        job.step = 0;
        if let Operation::Discard { sectors, .. } = job.operation {
            let Some((at, _)) = discard_range(job.at, sectors, self.sectors) else { return false };
            job.at = at;
            return true;
        }
        let Some((at, len)) = byte_range(job.at, segments, self.sectors) else { return false };
        (job.at, job.len) = (at, len);
        if self.unit > SECTOR_SIZE as u32 && len > 0 {
            job.edges = Edges::of(at, len, self.unit);
            // Direct I/O on such a medium wants each piece of memory in whole sectors of it, too.
            *bounce = !job.edges.is_none() || segments.iter().any(|segment| segment.span.len() < self.unit);
        }
        true
    }
}

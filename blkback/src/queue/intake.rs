//! From the ring to requests that have all they need but memory of their own: take, parse, find the segments, check the
//! range, find the pages.

use grant::reactor::Core;

use super::{BATCH, BlkQueue, Parts, Slot};
use crate::disk::{Edges, Job};
use crate::proto::{Abi, BLKIF_RSP_ERROR, BlkifRequestSegment, SECTOR_SIZE, SEGMENTS_PER_PAGE};
use crate::request::{Operation, Rejected, Request, Segments, byte_range, data_len, discard_range};
use crate::stats::Counter;

impl BlkQueue {
    /// Copies requests out of the ring, into the journal, and parses the copies.
    pub(super) fn take(&mut self, waiting: u32, core: &mut Core) {
        let room = self.free.len().min(BATCH).min(waiting as usize);
        let now = core.clock();
        let plain_disk = self.parts.pass.is_none() && self.unit == SECTOR_SIZE as u32;
        let direct = self.parts.disk.direct().filter(|_| plain_disk && self.parts.data.takes_at_once());
        match direct {
            Some(file) if self.parts.limits.abi == Abi::X86_64 => self.take_plain(room, file, core),
            _ => self.take_all(room),
        }
        if self.batch.is_empty() {
            return;
        }
        let mut indirect = 0;
        let mut batch = std::mem::take(&mut self.batch);
        batch.retain(|&slot| {
            let started = direct.is_some_and(|file| self.start_at_once(slot, file, now, core));
            !started && self.accept(slot, now, &mut indirect, core)
        });
        self.batch = batch;
        if indirect > 0 {
            self.fetch_indirect(core);
        }
    }

    fn take_all(&mut self, count: usize) {
        for _ in 0..count {
            let Some(slot) = self.free.pop() else { break };
            self.parts.journal.take(slot, &mut self.parts.ring);
            self.batch.push(slot);
        }
    }

    /// Parses whatever may have been taken, for the longer way. Indirect requests are numbered. False when it is answered
    /// at once.
    fn accept(&mut self, slot: u16, now: u64, indirect: &mut usize, core: &mut Core) -> bool {
        let copy = self.parts.journal.slot(slot).words();
        let request = match Request::parse(zerocopy::IntoBytes::as_bytes(&copy), &self.parts.limits) {
            Ok(request) => request,
            Err(rejected) => {
                self.reject(slot, rejected, now);
                return false;
            }
        };
        let Request { id, operation, response_op, sector, .. } = request;
        // Until its range is known, the number of segments stands in `len`.
        let job = Job { slot, operation, at: sector, len: request.count() as u32, ..Job::NONE };
        self.slots[usize::from(slot)] = Slot { id, response_op, job, ..Slot::new(now) };
        match request.segments {
            Segments::Direct(segments, count) => {
                self.parts.data.set_segments(slot, &segments[..usize::from(count)]);
            }
            Segments::Indirect(..) => {
                // Offers stay at 256 segments, so one page holds them all.
                self.parts.data.want_indirect(slot, request.indirect_pages()[0], *indirect, &mut core.ring);
                self.slots[usize::from(slot)].job.step = *indirect as u32;
                *indirect += 1;
            }
        }
        true
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
        let Some((at, len)) = byte_range(job.at, data_len(segments), self.sectors) else { return false };
        (job.at, job.len) = (at, len);
        if self.unit > SECTOR_SIZE as u32 && len > 0 {
            job.edges = Edges::of(at, len, self.unit);
            // Direct I/O on such a medium wants each piece of memory in whole sectors of it, too.
            *bounce = !job.edges.is_none() || segments.iter().any(|segment| segment.span.len() < self.unit);
        }
        true
    }
}

//! One queue of a virtual disk: from the ring to the disk and back. Reads like the protocol: take, parse, find the
//! memory, start; then end, answer, publish once, notify at most once.

use std::collections::VecDeque;
use std::time::Instant;

use grant::journal::{Journal, SlotState};
use grant::meter::Block;
use grant::reactor::{Core, Queue, Turn};
use grant::ring::BackRing;
use grant::uring::{Completion, MemoryId, Operation as RingOperation, Outcome, Owner};
use grant::{Port, SharedMemory};

use crate::data::Data;
use crate::disk::{Disk, Ended, Io, Job};
use crate::proto::{BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifRequest64, BlkifRequestSegment, SEGMENTS_PER_PAGE};
use crate::request::{Limits, Operation, Rejected, Request, Segments, byte_range};
use crate::stats::Counter;

/// Most requests a turn takes.
pub const BATCH: usize = 32;

/// What a queue is made of; everything is mapped and bound already.
pub struct Parts {
    /// Device number, for reports.
    pub devid: u32,
    /// The queue's number on its device.
    pub index: usize,
    /// Our port.
    pub port: Port,
    /// The shared ring and the mapping it stands on.
    pub ring: BackRing,
    /// That mapping.
    pub ring_memory: SharedMemory,
    /// In-flight requests, for whoever comes after us.
    pub journal: Journal,
    /// Counters.
    pub meter: Block,
    /// What requests are checked against.
    pub limits: Limits,
    /// The queue's memory in the ring.
    pub memory: MemoryId,
    /// The way to the data.
    pub data: Data,
    /// The disk.
    pub disk: Box<dyn Disk>,
}

/// A request that was taken and not answered.
#[derive(Clone, Copy)]
struct Slot {
    id: u64,
    response_op: u8,
    status: i16,
    rejected: bool,
    finished: bool,
    pending: u16,
    taken: Instant,
    job: Job,
}

/// One queue.
pub struct BlkQueue {
    parts: Parts,
    sectors: u64,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Taken in this turn.
    batch: Vec<u16>,
    /// Taken, but there was no memory.
    stalled: VecDeque<u16>,
    /// Memory may have come back since.
    retry: bool,
    ended: Vec<u16>,
    draining: bool,
}

impl BlkQueue {
    /// A queue that has not taken anything yet.
    pub fn new(parts: Parts) -> BlkQueue {
        let entries = parts.ring.entries() as usize;
        parts.journal.set_indexes(parts.ring.req_cons(), parts.ring.rsp_prod());
        let job = Job { slot: 0, operation: Operation::Read, at: 0, len: 0, step: 0, outer_step: 0 };
        let slot = Slot {
            id: 0,
            response_op: 0,
            status: 0,
            rejected: false,
            finished: false,
            pending: 0,
            taken: Instant::now(),
            job,
        };
        BlkQueue {
            sectors: parts.disk.limits().sectors,
            slots: vec![slot; entries],
            free: (0..entries as u16).rev().collect(),
            batch: Vec::with_capacity(BATCH.max(entries)),
            stalled: VecDeque::with_capacity(entries),
            retry: false,
            ended: Vec::with_capacity(entries),
            draining: false,
            parts,
        }
    }

    /// Device and queue number.
    pub fn name(&self) -> (u32, usize) {
        (self.parts.devid, self.parts.index)
    }

    /// The queue's port.
    pub fn port(&self) -> Port {
        self.parts.port
    }

    /// The queue's memory in the ring.
    pub fn memory(&self) -> MemoryId {
        self.parts.memory
    }

    /// Takes nothing more; what was taken is finished and answered.
    pub fn drain(&mut self) {
        self.draining = true;
        self.retry = true;
    }

    /// Taken and not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Hands back the memory and the ring mapping of a drained queue, to be closed.
    pub fn into_remains(self) -> (MemoryId, SharedMemory) {
        let Parts { ring, ring_memory, data, memory, .. } = self.parts;
        drop((ring, data));
        (memory, ring_memory)
    }

    fn count(&self, counter: Counter, n: u64) {
        self.parts.meter.add(counter as usize, n);
    }

    /// Copies requests out of the ring, into the journal, and parses the copies.
    fn take(&mut self, waiting: u32, core: &mut Core) {
        let room = self.free.len().min(BATCH).min(waiting as usize);
        let mut indirect = 0;
        for _ in 0..room {
            let Some(slot) = self.free.pop() else { break };
            self.parts.journal.take(slot, &mut self.parts.ring);
            let copy: BlkifRequest64 = self.parts.journal.request(slot);
            match Request::parse(zerocopy::IntoBytes::as_bytes(&copy), &self.parts.limits) {
                Ok(request) => {
                    self.accept(slot, &request, core.now);
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
                    self.batch.push(slot);
                }
                Err(rejected) => self.reject(slot, rejected, core.now),
            }
        }
        if indirect > 0 {
            self.fetch_indirect(core);
        }
    }

    fn accept(&mut self, slot: u16, request: &Request, now: Instant) {
        let job = Job { slot, operation: request.operation, at: request.sector, len: 0, step: 0, outer_step: 0 };
        self.slots[usize::from(slot)] = Slot {
            id: request.id,
            response_op: request.response_op,
            status: BLKIF_RSP_OKAY,
            rejected: false,
            finished: false,
            pending: 0,
            taken: now,
            job,
        };
        // Until its segments are there, the number of segments stands in `len`.
        self.slots[usize::from(slot)].job.len = request.count() as u32;
    }

    #[cold]
    fn reject(&mut self, slot: u16, rejected: Rejected, now: Instant) {
        let Rejected { id, response_op, status, reason } = rejected;
        tracing::trace!(devid = self.parts.devid, id, reason, "request rejected");
        self.count(Counter::Rejected, 1);
        let old = self.slots[usize::from(slot)];
        self.slots[usize::from(slot)] = Slot { id, response_op, status, rejected: true, taken: now, ..old };
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
                    self.reject(slot, Rejected { id, response_op, status: BLKIF_RSP_ERROR, reason }, core.now);
                    false
                }
            }
        });
        self.batch = batch;
    }

    /// Checks the range, finds the pages: what is left of the batch has all it needs but memory of its own.
    fn locate(&mut self, core: &mut Core) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.retain(|&slot| {
            let job = &mut self.slots[usize::from(slot)].job;
            let Some((at, len)) = byte_range(job.at, self.parts.data.segments(slot), self.sectors) else {
                let Slot { id, response_op, .. } = self.slots[usize::from(slot)];
                let reason = "beyond the end of the disk";
                self.reject(slot, Rejected { id, response_op, status: BLKIF_RSP_ERROR, reason }, core.now);
                return false;
            };
            (job.at, job.len, job.step) = (at, len, 0);
            self.parts.data.locate(slot, &mut core.ring);
            true
        });
        self.batch = batch;
        self.parts.data.map(&mut core.ring);
    }

    /// Gives requests their memory, brings the writes' data, and starts them. Those that find none wait in order.
    fn start(&mut self, core: &mut Core) {
        let mut started = 0;
        for at in 0..self.batch.len() {
            let slot = self.batch[at];
            let Job { len, operation, .. } = self.slots[usize::from(slot)].job;
            let write = operation != Operation::Read;
            if !self.stalled.is_empty() || self.parts.data.prepare(slot, len, write, &core.ring).is_err() {
                self.stalled.push_back(slot);
                self.count(Counter::Stalls, 1);
            } else {
                self.batch[started] = slot;
                started += 1;
            }
        }
        self.batch.truncate(started);
        self.parts.data.copy_in(&core.ring);
        for at in 0..self.batch.len() {
            let slot = self.batch[at];
            if self.parts.data.failed(slot) {
                self.end(slot, BLKIF_RSP_ERROR);
            } else {
                self.parts.journal.set_state(slot, SlotState::Submitted);
                self.drive(slot, None, core);
            }
        }
        self.batch.clear();
    }

    /// Lets the disk have a go at a request: its start, or the next step.
    #[inline]
    fn drive(&mut self, slot: u16, ended: Option<Ended>, core: &mut Core) {
        let Slot { job, pending, .. } = &mut self.slots[usize::from(slot)];
        let mut io = Io {
            ring: &mut core.ring,
            memory: self.parts.memory,
            spans: self.parts.data.spans(slot),
            pending,
            finished: None,
            most: u32::MAX,
        };
        match ended {
            None => self.parts.disk.start(job, &mut io),
            Some(ended) => self.parts.disk.step(job, ended, &mut io),
        }
        if let Some(status) = io.finished {
            self.slots[usize::from(slot)].finished = true;
            self.end(slot, status);
        }
    }

    /// A request is over as soon as the disk has said so and nothing of it is in flight; errors add up.
    fn end(&mut self, slot: u16, status: i16) {
        let state = &mut self.slots[usize::from(slot)];
        if status != BLKIF_RSP_OKAY {
            state.status = status;
        }
        if state.pending == 0 {
            self.ended.push(slot);
        }
    }

    /// Answers what has ended: data first, then all responses, one publish, at most one notify.
    fn answer(&mut self, core: &mut Core) {
        for &slot in &self.ended {
            let state = &self.slots[usize::from(slot)];
            if state.status == BLKIF_RSP_OKAY && state.job.operation == Operation::Read && !state.rejected {
                self.parts.data.copy_out(slot, &core.ring);
            }
        }
        self.parts.data.finish_copies(&core.ring);
        let now = Instant::now();
        for at in 0..self.ended.len() {
            let slot = self.ended[at];
            let mut state = self.slots[usize::from(slot)];
            if self.parts.data.failed(slot) {
                state.status = BLKIF_RSP_ERROR;
            }
            let (response, len) = self.parts.limits.abi.response(state.id, state.response_op, state.status);
            self.parts.journal.set_done(slot, state.status, self.parts.ring.rsp_prod());
            self.parts.ring.respond(&response[..len]);
            self.parts.data.release(slot);
            self.account_request(&state, now);
        }
        let notify = self.parts.ring.publish();
        self.parts.journal.set_published(self.parts.ring.rsp_prod());
        for &slot in &self.ended {
            self.parts.journal.set_state(slot, SlotState::Free);
        }
        self.free.append(&mut self.ended);
        self.count(Counter::Publishes, 1);
        if notify {
            core.notify(self.parts.port);
            self.count(Counter::NotifiedOut, 1);
        }
        self.account_copies();
    }

    #[inline]
    fn account_request(&self, state: &Slot, now: Instant) {
        if state.rejected {
            return;
        }
        let (operations, bytes) = match state.job.operation {
            Operation::Read => (Counter::Reads, Counter::ReadBytes),
            Operation::Write => (Counter::Writes, Counter::WriteBytes),
            Operation::Flush => (Counter::Flushes, Counter::WriteBytes),
        };
        self.count(operations, 1);
        self.count(bytes, u64::from(state.job.len));
        if state.status != BLKIF_RSP_OKAY {
            self.count(Counter::Errors, 1);
        }
        self.parts.meter.record(now.duration_since(state.taken).as_nanos() as u64);
    }

    fn account_copies(&mut self) {
        let data = &mut self.parts.data;
        let (memcpy, copied) = (std::mem::take(&mut data.memcpy_bytes), std::mem::take(&mut data.copied_bytes));
        let pages = std::mem::take(&mut data.pages_copied);
        if pages > 0 {
            self.count(Counter::BytesMemcpy, memcpy);
            self.count(Counter::BytesGrantCopy, copied);
            self.count(Counter::PagesCopied, pages);
        }
    }
}

impl Queue for BlkQueue {
    fn turn(&mut self, core: &mut Core) -> Turn {
        self.retry = false;
        if !self.stalled.is_empty() {
            // First come, first served: nothing is taken past those that wait for memory.
            self.batch.extend(self.stalled.drain(..));
            let waited = self.batch.len();
            self.start(core);
            return if self.stalled.len() < waited { Turn::Busy } else { Turn::Idle };
        }
        if self.draining {
            return Turn::Idle;
        }
        let waiting = match self.parts.ring.unconsumed() {
            Ok(0) => return Turn::Idle,
            Ok(waiting) => waiting,
            Err(broken) => return Turn::Broken(broken.to_string()),
        };
        self.take(waiting, core);
        self.locate(core);
        self.start(core);
        self.count(Counter::Batches, 1);
        Turn::Busy
    }

    fn complete(&mut self, completion: Completion, core: &mut Core) {
        let slot = completion.owner.slot;
        let Some(state) = self.slots.get_mut(usize::from(slot)) else { return };
        let ended = match completion.outcome() {
            Outcome::Again(rest) => {
                let owner = Owner { memory: self.parts.memory, slot };
                return core.ring.transfer(owner, rest, self.parts.data.spans(slot), u32::MAX);
            }
            Outcome::Done => Ok(()),
            Outcome::Failed(errno) => {
                if completion.operation != RingOperation::Timeout {
                    log_error(self.parts.devid, errno);
                }
                Err(errno)
            }
        };
        state.pending -= 1;
        if state.finished {
            self.end(slot, if ended.is_ok() { BLKIF_RSP_OKAY } else { BLKIF_RSP_ERROR });
        } else {
            self.drive(slot, Some(ended), core);
        }
    }

    fn settle(&mut self, core: &mut Core) {
        if self.ended.is_empty() {
            return;
        }
        self.answer(core);
        self.retry = true;
    }

    fn has_work(&self) -> bool {
        if !self.stalled.is_empty() {
            return self.retry;
        }
        !self.draining && self.parts.ring.unconsumed() != Ok(0) && !self.free.is_empty()
    }

    fn final_check(&mut self) -> bool {
        if !self.stalled.is_empty() || self.draining {
            return self.has_work();
        }
        // A broken index is work too: the turn will say so.
        self.parts.ring.final_check().unwrap_or(true)
    }

    fn is_drained(&self) -> bool {
        self.draining && self.in_flight() == 0
    }

    fn notified(&mut self) {
        self.count(Counter::NotifiedIn, 1);
    }

    fn account(&mut self, system_calls: u64) {
        let counts = self.parts.data.grants().counts();
        let meter = &self.parts.meter;
        meter.add(Counter::SystemCalls as usize, system_calls);
        meter.set(Counter::MapCalls as usize, counts.map_calls);
        meter.set(Counter::PagesMapped as usize, counts.pages_mapped);
        meter.set(Counter::UnmapCalls as usize, counts.unmap_calls);
        meter.set(Counter::CopyCalls as usize, counts.copy_calls);
    }

    fn tick(&mut self, core: &mut Core) {
        self.parts.disk.tick(core.now);
    }

    fn wants_tick(&self) -> bool {
        self.parts.disk.wants_tick()
    }
}

/// A volume's error is the host's business; a guest that provokes them must not fill the log.
fn log_error(devid: u32, errno: i32) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LOGGED: AtomicU64 = AtomicU64::new(0);
    let nth = LOGGED.fetch_add(1, Ordering::Relaxed);
    if nth < 10 || nth.is_power_of_two() {
        let error = std::io::Error::from_raw_os_error(errno);
        tracing::warn!(devid, %error, total = nth + 1, "the volume failed a request");
    }
}

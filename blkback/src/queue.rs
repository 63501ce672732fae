//! One queue of a virtual disk: from the ring to the disk and back. Reads like the protocol: take, parse, find the
//! memory, start; then end, answer, publish once, notify at most once.

mod account;
mod at_once;
mod intake;
mod plain;

use std::collections::VecDeque;

use account::Tally;
use grant::SharedMemory;
use grant::journal::{Journal, SlotState};
use grant::meter::Block;
use grant::reactor::{Channel, Core, Queue, Turn};
use grant::ring::BackRing;
use grant::uring::{Completion, Direction, MemoryId, Operation as RingOperation, Outcome, Owner};
use plain::Quick;

use crate::data::{Around, Data};
use crate::disk::{Disk, Ended, Erased, Io, Job};
use crate::gate::Pass;
use crate::hold::Hold;
use crate::proto::{BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, response};
use crate::request::{Limits, Operation};
use crate::stats::Counter;

/// Most requests a turn takes.
pub const BATCH: usize = 32;

/// What a queue is made of; everything is mapped and bound already.
pub struct Parts {
    /// Device number, for reports.
    pub devid: u32,
    /// The queue's number on its device.
    pub index: usize,
    /// Our event channel.
    pub channel: Channel,
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
    /// For disks with requests that run alone.
    pub pass: Option<Pass>,
    /// What happens when the volume fails.
    pub hold: Hold,
}

/// A request that was taken and not answered.
#[derive(Clone, Copy)]
struct Slot {
    id: u64,
    response_op: u8,
    /// What the response says: known when the request is rejected, or has ended.
    status: i16,
    /// What the disk said; the first error counts.
    ended: Ended,
    rejected: bool,
    /// It is with the disk.
    started: bool,
    /// The disk has said `finish`.
    finished: bool,
    /// It was held, and whether it succeeds now decides about the others.
    probe: bool,
    /// Its memory has to be the arena's (512e).
    bounce: bool,
    pending: u16,
    /// The reactor's clock.
    taken: u64,
    job: Job,
}

impl Slot {
    fn new(now: u64) -> Slot {
        Slot {
            id: 0,
            response_op: 0,
            status: BLKIF_RSP_OKAY,
            ended: Ok(()),
            rejected: false,
            started: false,
            finished: false,
            probe: false,
            bounce: false,
            pending: 0,
            taken: now,
            job: Job::NONE,
        }
    }

    /// Nothing else of the disk may be under way while it is.
    fn is_exclusive(&self) -> bool {
        self.job.operation == Operation::Barrier || (self.job.writes() && !self.job.edges.is_none())
    }
}

/// One queue.
pub struct BlkQueue {
    parts: Parts,
    sectors: u64,
    unit: u32,
    slots: Vec<Slot>,
    /// The same for requests on the shortest way.
    quick: Vec<Quick>,
    free: Vec<u16>,
    /// Taken in this turn.
    batch: Vec<u16>,
    /// Taken, but there was no memory, or something runs alone.
    stalled: VecDeque<u16>,
    /// What kept them may be over.
    retry: bool,
    /// With the disk.
    running: usize,
    ended: Vec<u16>,
    /// Ended well on the shortest way.
    done: Vec<u16>,
    draining: bool,
}

impl BlkQueue {
    /// A queue that has not taken anything yet.
    pub fn new(parts: Parts) -> BlkQueue {
        let entries = parts.ring.entries() as usize;
        parts.journal.set_indexes(parts.ring.req_cons(), parts.ring.rsp_prod());
        BlkQueue {
            sectors: parts.disk.limits().sectors,
            unit: parts.disk.limits().unit,
            slots: vec![Slot::new(0); entries],
            quick: vec![Quick::NONE; entries],
            free: (0..entries as u16).rev().collect(),
            batch: Vec::with_capacity(BATCH.max(entries)),
            stalled: VecDeque::with_capacity(entries),
            retry: false,
            running: 0,
            ended: Vec::with_capacity(entries),
            done: Vec::with_capacity(entries),
            draining: false,
            parts,
        }
    }

    /// Device and queue number.
    pub fn name(&self) -> (u32, usize) {
        (self.parts.devid, self.parts.index)
    }

    /// The queue's event channel.
    pub fn channel(&self) -> Channel {
        self.parts.channel
    }

    /// The queue's memory in the ring.
    pub fn memory(&self) -> MemoryId {
        self.parts.memory
    }

    /// Takes nothing more; what was taken is finished and answered, what is held with an error.
    pub fn drain(&mut self) {
        self.draining = true;
        self.retry = true;
        for slot in self.parts.hold.abandon() {
            self.ended.push(slot);
        }
    }

    /// The disk has grown.
    pub fn resize(&mut self, sectors: u64) {
        self.sectors = sectors;
    }

    /// Looks again at what was put aside: another queue has become quiet, or has opened the gate.
    pub fn wake(&mut self) {
        self.retry = true;
    }

    /// The operator says that the volume is well again: what is held is tried now, and flushes count again.
    pub fn resume(&mut self, core: &mut Core) {
        for slot in self.parts.hold.resume() {
            self.restart(slot, false, core);
        }
    }

    /// A discard on the thread for them has ended.
    pub fn erased(&mut self, erased: Erased, core: &mut Core) {
        self.advance(erased.slot, erased.ended, core);
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

    /// Gives requests their memory, brings the writes' data, and starts them. Those that find none, or come while
    /// something runs alone, wait in order.
    fn start(&mut self, core: &mut Core) {
        let mut started = 0;
        for at in 0..self.batch.len() {
            let slot = self.batch[at];
            if !self.stalled.is_empty() || !self.admit(slot, started) || !self.prepare(slot, core) {
                self.stalled.push_back(slot);
                self.count(Counter::Stalls, 1);
            } else {
                self.batch[started] = slot;
                started += 1;
            }
        }
        self.batch.truncate(started);
        self.running += started;
        self.parts.data.copy_in(&core.ring);
        for at in 0..self.batch.len() {
            let slot = self.batch[at];
            self.slots[usize::from(slot)].started = true;
            if self.parts.data.failed(slot) {
                self.slots[usize::from(slot)].status = BLKIF_RSP_ERROR;
                self.ended.push(slot);
            } else {
                self.parts.journal.slot(slot).set_state(SlotState::Submitted);
                self.drive(slot, None, core);
            }
        }
        self.batch.clear();
        self.leave();
    }

    /// May this request go to the disk now, after `before` others of its batch?
    #[inline]
    fn admit(&mut self, slot: u16, before: usize) -> bool {
        let exclusive = self.slots[usize::from(slot)].is_exclusive();
        match &mut self.parts.pass {
            None => true,
            Some(pass) if !exclusive => pass.enter(),
            Some(_) if self.running + before > 0 => false,
            Some(pass) => {
                pass.leave();
                pass.close()
            }
        }
    }

    /// Finds memory for a request; false when there is none now.
    #[inline]
    fn prepare(&mut self, slot: u16, core: &mut Core) -> bool {
        let Slot { job, bounce, .. } = &self.slots[usize::from(slot)];
        let around = bounce.then(|| Around {
            before: u32::from(job.edges.head),
            after: u32::from(job.edges.tail) + if job.writes() { 2 * self.unit } else { 0 },
        });
        self.parts.data.prepare(slot, job.len, job.writes(), around, &mut core.ring).is_ok()
    }

    /// Lets the disk have a go at a request: its start, or the next step.
    #[inline]
    fn drive(&mut self, slot: u16, ended: Option<Ended>, core: &mut Core) {
        let Slot { job, pending, .. } = &mut self.slots[usize::from(slot)];
        if job.operation.flushes() && self.parts.hold.flush_failed() {
            return self.end(slot, Err(EIO), core);
        }
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
        if let Some(ended) = io.finished {
            self.slots[usize::from(slot)].finished = true;
            self.end(slot, ended, core);
        }
    }

    /// An operation has ended that was not the last of a plain request, or not well.
    #[inline(never)]
    fn ended_otherwise(&mut self, completion: Completion, core: &mut Core) {
        let slot = completion.owner.slot;
        let ended = match completion.outcome() {
            Outcome::Again(rest) => {
                let owner = Owner { memory: self.parts.memory, slot };
                return core.ring.again(owner, rest, self.parts.data.spans(slot));
            }
            Outcome::Done => Ok(()),
            Outcome::Failed(errno) => {
                self.failed(completion.operation, errno);
                Err(errno)
            }
        };
        self.advance(slot, ended, core);
    }

    /// Something that a request asked for has ended.
    fn advance(&mut self, slot: u16, ended: Ended, core: &mut Core) {
        let Some(state) = self.slots.get_mut(usize::from(slot)) else { return };
        state.pending -= 1;
        if state.finished {
            self.end(slot, ended, core);
        } else {
            self.drive(slot, Some(ended), core);
        }
    }

    /// A request is over as soon as the disk has said so and nothing of it is in flight.
    fn end(&mut self, slot: u16, ended: Ended, core: &mut Core) {
        let state = &mut self.slots[usize::from(slot)];
        state.finished = true;
        state.ended = state.ended.and(ended);
        if state.pending > 0 {
            return;
        }
        state.status = status(state.ended, &state.job);
        if state.ended.is_err() && state.job.operation == Operation::Flush {
            self.parts.hold.fail_flushes();
        }
        let state = &self.slots[usize::from(slot)];
        match state.ended {
            Ok(()) if state.probe => self.cured(core),
            // A discard is a hint: nothing is lost when it fails.
            Err(_) if self.draining || matches!(state.job.operation, Operation::Discard { .. }) => {}
            Err(errno) if self.parts.hold.keep(slot, errno, core.now) => return self.count(Counter::Held, 1),
            _ => {}
        }
        self.ended.push(slot);
    }

    /// Tries a held request again, from its start. The others follow when a probe succeeds, but not whenever one of
    /// those that followed does: some may fail for good.
    fn restart(&mut self, slot: u16, probe: bool, core: &mut Core) {
        let state = &mut self.slots[usize::from(slot)];
        (state.finished, state.probe, state.ended, state.status) = (false, probe, Ok(()), BLKIF_RSP_OKAY);
        (state.job.step, state.job.outer_step, state.job.last) = (0, 0, false);
        self.drive(slot, None, core);
    }

    /// A held request has succeeded: the others have their turn.
    fn cured(&mut self, core: &mut Core) {
        for slot in self.parts.hold.cured() {
            self.restart(slot, false, core);
        }
    }

    /// Tells the disk's other queues when nothing of ours is with it.
    #[inline]
    fn leave(&mut self) {
        if self.running == 0
            && let Some(pass) = &mut self.parts.pass
        {
            pass.leave();
        }
    }

    /// Brings the guest the data of what has been read.
    fn copy_out(&mut self, core: &mut Core) {
        let data = &mut self.parts.data;
        for &slot in &self.ended {
            let state = &self.slots[usize::from(slot)];
            if state.ended.is_ok() && state.job.operation == Operation::Read && !state.rejected {
                data.copy_out(slot, &core.ring);
            }
        }
        if data.finish_copies(&core.ring) {
            for &slot in self.ended.iter().filter(|&&slot| data.failed(slot)) {
                self.slots[usize::from(slot)].status = BLKIF_RSP_ERROR;
            }
        }
    }

    /// Answers what has ended: data first, then all responses, one publish, at most one notify.
    fn answer(&mut self, core: &mut Core) {
        if self.parts.data.copies() {
            self.copy_out_plain(core);
            self.copy_out(core);
        }
        let (now, mut tally) = (core.read_clock(), Tally::default());
        self.answer_plain(now, &mut tally);
        if !self.ended.is_empty() {
            self.answer_others(now, &mut tally, core);
        }
        tally.record(now, &self.parts.meter);
        self.account_tally(&tally);
        let notify = self.parts.ring.publish();
        self.parts.journal.set_published(self.parts.ring.rsp_prod());
        free_all(&mut self.done, &mut self.free, &self.parts.journal);
        if !self.ended.is_empty() {
            free_all(&mut self.ended, &mut self.free, &self.parts.journal);
        }
        self.count(Counter::Publishes, 1);
        if notify {
            core.notify(self.parts.channel);
            self.count(Counter::NotifiedOut, 1);
        }
        self.account_copies();
    }

    /// Answers those that came the longer ways; the frontend does not see it yet.
    fn answer_others(&mut self, now: u64, tally: &mut Tally, core: &mut Core) {
        let len = self.parts.limits.abi.response_len();
        let Parts { data, journal, ring, meter, pass, .. } = &mut self.parts;
        for &slot in &self.ended {
            let state = &self.slots[usize::from(slot)];
            self.running -= usize::from(state.started);
            if let Some(pass) = pass
                && state.started
                && state.is_exclusive()
            {
                pass.open();
            }
            journal.slot(slot).set_done(state.status, ring.rsp_prod());
            ring.respond_words(response(state.id, state.response_op, state.status), len);
            data.release(slot, &mut core.ring);
            tally.add(state, now, meter);
        }
    }
}

impl Queue for BlkQueue {
    // The queues of a disk wake each other by message.
    const INDEPENDENT: bool = true;

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
        if self.in_flight() + waiting as usize >= self.slots.len() {
            self.count(Counter::RingFull, 1);
        }
        self.take(waiting, core);
        if !self.batch.is_empty() {
            self.locate(core);
            self.start(core);
        }
        self.count(Counter::Batches, 1);
        self.parts.meter.set(Counter::InFlight as usize, self.in_flight() as u64);
        Turn::Busy
    }

    fn complete(&mut self, completion: Completion, core: &mut Core) {
        let slot = completion.owner.slot;
        if let RingOperation::Transfer(transfer) = completion.operation
            && completion.result == transfer.len as i32
            && let Some(state) = self.slots.get_mut(usize::from(slot))
            && state.job.last
            && state.pending == 1
            && !state.probe
        {
            // What most requests come to.
            (state.pending, state.finished) = (0, true);
            return self.ended.push(slot);
        }
        self.ended_otherwise(completion, core);
    }

    #[inline(always)]
    fn transferred(&mut self, slot: u16, result: i32) -> bool {
        self.ended_plain(slot, result)
    }

    fn came_short(&mut self, slot: u16, result: i32, core: &mut Core) {
        self.lengthen(slot, result, core);
    }

    fn settle(&mut self, core: &mut Core) {
        if self.ended.is_empty() && self.done.is_empty() {
            return;
        }
        self.answer(core);
        self.leave();
        self.parts.meter.set(Counter::InFlight as usize, self.in_flight() as u64);
        self.retry = true;
    }

    fn has_work(&self) -> bool {
        if !self.stalled.is_empty() {
            return self.retry;
        }
        !self.draining && self.parts.ring.unconsumed() != Ok(0) && !self.free.is_empty()
    }

    fn is_starved(&self) -> bool {
        !self.stalled.is_empty()
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
        meter.set(Counter::GrantsMapped as usize, counts.pages_mapped.saturating_sub(counts.pages_unmapped));
    }

    fn tick(&mut self, core: &mut Core) {
        self.parts.disk.tick(core.now);
        if let Some(slot) = self.parts.hold.probe(core.now) {
            self.restart(slot, true, core);
        }
    }

    fn wants_tick(&self) -> bool {
        self.parts.hold.is_holding() || self.parts.disk.wants_tick()
    }
}

/// Slots whose responses are visible may be taken again.
#[inline(always)]
fn free_all(ended: &mut Vec<u16>, free: &mut Vec<u16>, journal: &Journal) {
    for &slot in &*ended {
        journal.slot(slot).set_state(SlotState::Free);
    }
    free.append(ended);
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
const EOPNOTSUPP: i32 = rustix::io::Errno::OPNOTSUPP.raw_os_error();

#[inline]
fn direction(operation: Operation) -> Direction {
    if operation == Operation::Read { Direction::Read } else { Direction::Write }
}

/// What a response says of a request that ended so.
fn status(ended: Ended, job: &Job) -> i16 {
    match (ended, job.operation) {
        (Ok(()), _) => BLKIF_RSP_OKAY,
        // The guest stops asking after this, so it is for what never works.
        (Err(EOPNOTSUPP), Operation::Discard { .. }) => BLKIF_RSP_EOPNOTSUPP,
        (Err(_), _) => BLKIF_RSP_ERROR,
    }
}

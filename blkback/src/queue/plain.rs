//! The shortest way through a queue: plain reads and writes of one segment whose page is mapped, on a disk that is a file.
//! What such a request is stands in its private copy, which nobody writes any more, so that little is kept beside it.

use grant::journal::SlotState;
use grant::reactor::Core;
use grant::uring::{Completion, FileSlot, Operation as RingOperation, Owner, Transfer};

use super::account::Tally;
use super::{BlkQueue, Parts, Slot, direction};
use crate::data::One;
use crate::disk::Job;
use crate::proto::{BLKIF_OP_READ, BLKIF_RSP_OKAY, BlkifResponse64, response};
use crate::request::{Operation, Plain, Segment, byte_range};

/// A request on this way.
#[derive(Clone, Copy)]
pub(super) struct Quick {
    /// The reactor's clock.
    taken: u64,
    one: One,
}

impl Quick {
    pub(super) const NONE: Quick = Quick { taken: 0, one: One::NONE };
}

impl BlkQueue {
    /// Takes `count` requests from the ring of a 64-bit guest, which has as many, into as many free slots: to the disk's
    /// `file` those that can go this way; the others are left in `batch`.
    pub(super) fn take_plain(&mut self, count: usize, file: FileSlot, core: &mut Core) {
        let now = core.clock();
        let Parts { data, journal, ring, limits, memory, .. } = &mut self.parts;
        let mut wholes = core.ring.wholes(*memory, count);
        let kept = self.free.len() - count;
        for &slot in self.free[kept..].iter().rev() {
            let copy = journal.take(slot, ring);
            if let Some(operation) = Plain::of_one(copy.word(0), limits)
                && let write = operation == Operation::Write
                && let Some((one, piece)) = data.take_one(copy.word(Plain::SEGMENTS_AT), write, &mut wholes)
            {
                self.quick[usize::from(slot)] = Quick { taken: now, one };
                let range = byte_range(copy.word(Plain::SECTOR_AT), piece.len, self.sectors);
                if range.is_some_and(|(at, _)| wholes.transfer(slot, direction(operation), file, at, piece)) {
                    copy.set_state(SlotState::Submitted);
                    continue;
                }
                data.untake_one(&self.quick[usize::from(slot)].one, &mut wholes);
            }
            self.batch.push(slot);
        }
        drop(wholes);
        self.free.truncate(kept);
    }

    /// The transfer of one has ended; false when it has failed, or is to be continued.
    #[inline(always)]
    pub(super) fn ended_plain(&mut self, slot: u16, result: i32) -> bool {
        let whole = self.quick[usize::from(slot)].one.bytes() as i32 == result;
        if whole {
            self.done.push(slot);
        }
        whole
    }

    /// The transfer of one has failed, or is to be continued: the long way takes over.
    #[cold]
    pub(super) fn lengthen(&mut self, slot: u16, result: i32, core: &mut Core) {
        let Quick { taken, one } = self.quick[usize::from(slot)];
        let Parts { data, journal, disk, limits, memory, .. } = &mut self.parts;
        let copy = journal.slot(slot);
        let plain = Plain::parse(|at| copy.word(at), limits);
        let range = plain.as_ref().and_then(|plain| byte_range(plain.sector, one.bytes(), self.sectors));
        let (segment, file) = (Segment::from_word(copy.word(Plain::SEGMENTS_AT)), disk.direct());
        // All this was there when it was taken, and nobody has written it since.
        let (Some(Plain { id, operation, response_op, .. }), Some((at, len)), Some(segment), Some(file)) =
            (plain, range, segment, file)
        else {
            panic!("the private copy of request {slot} has changed");
        };
        let job = Job { slot, operation, at, len, last: true, ..Job::NONE };
        self.slots[usize::from(slot)] = Slot { id, response_op, job, started: true, pending: 1, ..Slot::new(taken) };
        self.running += 1;
        data.lengthen(slot, one, segment);
        let transfer = Transfer { direction: direction(operation), file, at, start: 0, len };
        let owner = Owner { memory: *memory, slot };
        self.ended_otherwise(Completion { owner, operation: RingOperation::Transfer(transfer), result }, core);
    }

    /// Brings the guest the data of what has been read through the arena, and gives the runs there back.
    pub(super) fn copy_out_plain(&mut self, core: &mut Core) {
        let Parts { data, journal, .. } = &mut self.parts;
        for &slot in &self.done {
            let copy = journal.slot(slot);
            let read = Plain::head(|at| copy.word(at)).0 == BLKIF_OP_READ;
            data.leave_arena(self.quick[usize::from(slot)].one, read, &mut core.ring);
        }
    }

    /// Answers those that have ended well; the frontend does not see it yet.
    pub(super) fn answer_plain(&mut self, now: u64, tally: &mut Tally) {
        let Parts { data, journal, ring, meter, .. } = &mut self.parts;
        for &slot in &self.done {
            let Quick { taken, one } = self.quick[usize::from(slot)];
            let copy = journal.slot(slot);
            let (operation, id) = Plain::head(|at| copy.word(at));
            let write = operation != BLKIF_OP_READ;
            data.release_one(one);
            copy.set_done(BLKIF_RSP_OKAY, ring.rsp_prod());
            ring.respond_words(response(id, operation, BLKIF_RSP_OKAY), size_of::<BlkifResponse64>());
            tally.add_plain(write, one.bytes().into(), taken, now, meter);
        }
    }
}

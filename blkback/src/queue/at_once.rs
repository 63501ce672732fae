//! The short way through a queue: plain reads and writes of a few segments, all of whose pages are mapped, on a disk that
//! is a file.

use grant::journal::SlotState;
use grant::reactor::Core;
use grant::uring::{FileSlot, Owner, Transfer};

use super::{BlkQueue, Parts, Slot, direction};
use crate::disk::Job;
use crate::request::{Operation, Plain, byte_range};

impl BlkQueue {
    /// Takes a request all the way from its private copy to the disk's `file`, if it is a plain one and all its pages are
    /// mapped. False leaves it to the longer way, with nothing held.
    pub(super) fn start_at_once(&mut self, slot: u16, file: FileSlot, now: u64, core: &mut Core) -> bool {
        let Parts { data, journal, memory, limits, .. } = &mut self.parts;
        let copy = journal.slot(slot);
        let Some(plain) = Plain::parse(|at| copy.word(at), limits) else { return false };
        let Plain { id, operation, response_op, sector, count } = plain;
        let located = data.locate_at_once(slot, count, |at| copy.word(Plain::SEGMENTS_AT + at));
        let Some(len) = located else { return false };
        let write = operation == Operation::Write;
        let range = byte_range(sector, len, self.sectors);
        let placed = range.filter(|_| data.prepare_at_once(slot, len, write, &mut core.ring));
        let Some((at, len)) = placed else {
            data.forget(slot, &mut core.ring);
            return false;
        };
        let job = Job { slot, operation, at, len, last: true, ..Job::NONE };
        self.slots[usize::from(slot)] = Slot { id, response_op, job, started: true, pending: 1, ..Slot::new(now) };
        self.running += 1;
        copy.set_state(SlotState::Submitted);
        let transfer = Transfer { direction: direction(operation), file, at, start: 0, len };
        core.ring.transfer(Owner { memory: *memory, slot }, transfer, data.spans(slot), u32::MAX);
        true
    }
}

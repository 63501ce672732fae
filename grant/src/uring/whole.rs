//! The transfer that most requests are: one, of all of their memory, which is one registered buffer. Whoever asks for it
//! knows all about it, so that nothing is kept here: whose it is stands in the entry itself.

use io_uring::{CompletionQueue, SubmissionQueue, cqueue};

use super::sqe::Sqe;
use super::{Direction, ENTRIES, FileSlot, MemoryId, Owner, Uring};
use crate::arena::Arena;
use crate::memory::{Memory, Span};

/// What stands in the user data of such an entry, under a mark that numbers of other operations do not have. A memory's
/// number leaves room for the mark: see [`Uring::open_memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) owner: Owner,
    /// The lower half of the memory's generation.
    pub(super) generation: u32,
}

const MARK: u64 = 1 << 63;
const MEMORY_AT: u32 = 48;
/// Below it is the slot; what is above the transfers of a queue have in common, while their memory gives nothing up.
const GENERATION_AT: u32 = 16;

impl Whole {
    #[inline(always)]
    fn user_data(self) -> u64 {
        let common = u64::from(self.owner.memory.0) << MEMORY_AT | u64::from(self.generation) << GENERATION_AT;
        MARK | common | u64::from(self.owner.slot)
    }

    #[inline(always)]
    pub(super) fn from_user_data(user_data: u64) -> Option<Whole> {
        let memory = MemoryId((user_data >> MEMORY_AT) as u16 & 0x7FFF);
        let owner = Owner { memory, slot: user_data as u16 };
        (user_data & MARK != 0).then_some(Whole { owner, generation: (user_data >> GENERATION_AT) as u32 })
    }
}

/// One queue's way to put many such transfers into the submission queue in a row, with what they have in common looked up
/// once.
pub struct Wholes<'a> {
    memory: &'a mut Memory,
    arena: Option<&'a mut Arena>,
    queue: SubmissionQueue<'a>,
    put: &'a mut u32,
    /// Entries in the queue when it began.
    before: usize,
    /// The user data for slot 0.
    user_data: u64,
}

impl Uring {
    /// For at most `most` transfers of a queue.
    ///
    /// # Panics
    /// When that is more than the submission queue holds, or the memory was closed.
    pub fn wholes(&mut self, memory: MemoryId, most: usize) -> Wholes<'_> {
        assert!(most <= ENTRIES as usize);
        if self.put as usize + most > ENTRIES as usize {
            self.submit();
        }
        let owner = Owner { memory, slot: 0 };
        let memory = self.memories[memory.index()].as_mut().expect("an open memory");
        let user_data = Whole { owner, generation: memory.generation() }.user_data();
        let arena = self.arena.as_mut().map(|arena| &mut arena.free);
        let queue = self.ring.submission();
        Wholes { memory, arena, before: queue.len(), queue, put: &mut self.put, user_data }
    }
}

impl Wholes<'_> {
    /// Submits a transfer of all of a request's memory, which is one piece. [`Uring::take_ended`] tells how it ended; what
    /// it was, and what is left of it when it comes short, the caller knows. False, with nothing done, for what is not a
    /// registered buffer.
    ///
    /// # Panics
    /// When the piece is outside of its region, or after more transfers than were announced: both are ours.
    #[inline(always)]
    pub fn transfer(&mut self, slot: u16, direction: Direction, file: FileSlot, at: u64, piece: Span) -> bool {
        let Some((address, buffer)) = self.memory.fixed(piece) else { return false };
        let user_data = self.user_data | u64::from(slot);
        let entry = Sqe::fixed(direction, file, at, address, piece.len, buffer, user_data).entry();
        // SAFETY: the piece lies in a registered buffer, which Memory keeps mapped until the transfer has ended; the file
        // stands in the ring's table. The kernel sees the entry, and Memory counts it, when this is dropped.
        let put = unsafe { self.queue.push(&entry) };
        put.expect("room in the submission queue");
        true
    }

    /// As [`Uring::take_arena`].
    #[inline(always)]
    pub fn take_arena(&mut self, len: u32) -> Option<Span> {
        self.arena.as_mut()?.take(len)
    }

    /// As [`Uring::give_arena`].
    pub fn give_arena(&mut self, run: Span) {
        if let Some(arena) = &mut self.arena {
            arena.give(run);
        }
    }

    /// The queue's memory.
    #[inline(always)]
    pub fn memory(&self) -> &Memory {
        self.memory
    }
}

impl Drop for Wholes<'_> {
    fn drop(&mut self) {
        let count = (self.queue.len() - self.before) as u32;
        self.memory.started_many(count);
        *self.put += count;
    }
}

/// Whole transfers of one queue and generation that have ended, by slot, with the result as the kernel gave it: a count, or a
/// negative errno.
pub struct EndedWholes<'a, 'b> {
    queue: &'a mut CompletionQueue<'b>,
    memory: &'a mut Memory,
    /// The first of them, until it is taken.
    first: Option<cqueue::Entry>,
    /// What comes after them.
    after: Option<cqueue::Entry>,
    common: u64,
    /// Entries in the queue behind the first.
    behind: usize,
}

impl<'a, 'b> EndedWholes<'a, 'b> {
    #[inline(always)]
    pub(super) fn new(
        queue: &'a mut CompletionQueue<'b>,
        memory: &'a mut Memory,
        first: cqueue::Entry,
    ) -> EndedWholes<'a, 'b> {
        let (common, behind) = (first.user_data() >> GENERATION_AT, queue.len());
        EndedWholes { queue, memory, first: Some(first), after: None, common, behind }
    }

    /// What comes after them, none of which is left out, and whether a generation of the memory has ended.
    #[inline(always)]
    pub(super) fn finish(self) -> (Option<cqueue::Entry>, bool) {
        debug_assert!(
            self.first.is_none() && (self.after.is_some() || CompletionQueue::is_empty(self.queue)),
            "all are taken"
        );
        let count = 1 + self.behind - self.queue.len() - usize::from(self.after.is_some());
        (self.after, self.memory.ended_many(self.common as u32, count as u32))
    }
}

impl Iterator for EndedWholes<'_, '_> {
    type Item = (u16, i32);

    #[inline(always)]
    fn next(&mut self) -> Option<(u16, i32)> {
        let entry = match self.first.take() {
            Some(first) => first,
            None => self.queue.next()?,
        };
        if entry.user_data() >> GENERATION_AT != self.common {
            self.after = Some(entry);
            return None;
        }
        Some((entry.user_data() as u16, entry.result()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_names_its_owner_and_nothing_else_is_taken_for_it() {
        for (memory, slot, generation) in [(0, 0, 0), (0x7FFE, u16::MAX, u32::MAX), (5, 31, 7)] {
            let whole = Whole { owner: Owner { memory: MemoryId(memory), slot }, generation };
            assert_eq!(Whole::from_user_data(whole.user_data()), Some(whole));
        }
        assert_eq!(Whole::from_user_data(u64::from(u32::MAX)), None);
    }
}

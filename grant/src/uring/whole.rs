//! The transfer that most requests are: one, of all of their memory, which is one registered buffer. Whoever asks for it
//! knows all about it, so that nothing is kept here: whose it is stands in the entry itself.

use super::sqe::Sqe;
use super::{Direction, FileSlot, MemoryId, Owner, Uring};
use crate::memory::Span;

/// What stands in the user data of such an entry, under a mark that numbers of other operations do not have. A memory's
/// number leaves room for the mark: see [`Uring::open_memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) owner: Owner,
    /// The lower half of the memory's generation.
    pub(super) generation: u32,
}

const MARK: u64 = 1 << 63;

impl Whole {
    #[inline(always)]
    fn user_data(self) -> u64 {
        MARK | u64::from(self.owner.memory.0) << 48 | u64::from(self.owner.slot) << 32 | u64::from(self.generation)
    }

    #[inline(always)]
    pub(super) fn from_user_data(user_data: u64) -> Option<Whole> {
        let memory = MemoryId((user_data >> 48) as u16 & 0x7FFF);
        let owner = Owner { memory, slot: (user_data >> 32) as u16 };
        (user_data & MARK != 0).then_some(Whole { owner, generation: user_data as u32 })
    }
}

impl Uring {
    /// Submits a transfer of all of a request's memory, which is one piece. [`super::Ended::Whole`] tells how it ended; what
    /// it was, and what is left of it when it comes short, the caller knows. False, with nothing done, for what is not a
    /// registered buffer.
    ///
    /// # Panics
    /// When the piece is outside of its region: it is ours.
    #[inline(always)]
    pub fn transfer_whole(&mut self, owner: Owner, direction: Direction, file: FileSlot, at: u64, span: Span) -> bool {
        self.make_room();
        let memory = self.memories[usize::from(owner.memory.0)].as_mut().expect("an open memory");
        let Some((pages, Some(buffer))) = memory.place(span.region) else { return false };
        let address = pages.address(span.offset as usize, span.len as usize).expect("inside of the region");
        let whole = Whole { owner, generation: memory.started() as u32 };
        Sqe::fixed(direction, file, at, address, span.len, buffer, whole.user_data()).put(&mut self.staged);
        true
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

//! A request's own memory: the arena's, which all queues of a thread share, or the queue's spare room, while all of the
//! arena is others' and nothing is the queue's. What others have there may be held, or with a disk that hangs, and
//! must not keep this queue from its disk.

use grant::memory::{RegionId, Span};
use grant::uring::Uring;
use grant::{CopyDirection, CopySegment, PAGE_SIZE, memfd};

use super::Data;

/// Pages that [`super::Around`] takes at most.
const AROUND_PAGES: usize = 4;

/// Room for one request. It is made when it is needed first, and stays.
pub(super) struct Spare {
    region: RegionId,
    bytes: usize,
    user: Option<u16>,
    /// What is to be copied to or from it.
    copies: Vec<CopySegment>,
}

impl Spare {
    /// Takes one more piece of a batched copy, when `run` is here and not in the arena.
    #[inline]
    pub(super) fn takes(&mut self, run: Span, copy: CopySegment) -> bool {
        let ours = run.region == self.region;
        if ours {
            self.copies.push(copy);
        }
        ours
    }
}

impl Data {
    /// Memory for a request; `None` until somebody gives some back.
    #[inline]
    pub(super) fn take_run(&mut self, slot: u16, len: u32, ring: &mut Uring) -> Option<Span> {
        if let Some(run) = ring.take_arena(len) {
            self.in_arena += 1;
            return Some(run);
        }
        if self.in_arena > 0 { None } else { self.take_spare(slot, len, ring) }
    }

    #[cold]
    fn take_spare(&mut self, slot: u16, len: u32, ring: &mut Uring) -> Option<Span> {
        if self.spare.is_none() {
            let bytes = (self.per_slot + AROUND_PAGES) * PAGE_SIZE;
            let region = ring.adopt(self.memory, memfd::anonymous(bytes).ok()?, false).ok()?;
            self.spare = Some(Spare { region, bytes, user: None, copies: Vec::new() });
        }
        let spare = self.spare.as_mut().filter(|spare| spare.user.is_none() && len as usize <= spare.bytes)?;
        spare.user = Some(slot);
        Some(Span { region: spare.region, offset: 0, len })
    }

    /// Gives a request's memory back.
    #[inline]
    pub(super) fn give_run(&mut self, run: Span, ring: &mut Uring) {
        if run.region == RegionId::ARENA {
            self.in_arena -= 1;
            ring.give_arena(run);
        } else if let Some(spare) = &mut self.spare {
            spare.user = None;
        }
    }

    /// Does the copies to or from the spare room, in one call.
    pub(super) fn copy_with_spare(&mut self, direction: CopyDirection, ring: &Uring) {
        let Some(spare) = self.spare.as_mut().filter(|spare| !spare.copies.is_empty()) else { return };
        let (Some(pages), Some(user)) = (ring.memory(self.memory).pages(spare.region), spare.user) else { return };
        std::mem::swap(&mut self.copies, &mut spare.copies);
        self.owners.resize(self.copies.len(), user);
        self.run_copies(direction, pages);
    }
}

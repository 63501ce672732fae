//! Data on its way between the arena and the guest's pages.

use std::time::Instant;

use grant::memory::{RegionId, Span};
use grant::uring::Uring;
use grant::{CopyDirection, CopySegment, GrantStatus, PAGE_SIZE, Pages};

use super::Data;
use crate::request::Segment;

impl Data {
    /// Moves a request's data between its arena run and the guest's pages: memcpy where they are mapped, else
    /// one more segment of the batched grant copy.
    pub(super) fn copy_segments(&mut self, slot: u16, run: Span, into_arena: bool, ring: &Uring) {
        let base = self.base(slot);
        let count = usize::from(self.held[usize::from(slot)].segments);
        let memory = ring.memory(self.memory);
        let mut local = run.offset;
        for at in base..base + count {
            let Segment { gref, span } = self.segments[at];
            let mapped = self.places[at].get().and_then(|place| Some((self.table.region(place.slab)?, place)));
            match mapped {
                Some((region, place)) => {
                    let page = (region, usize::from(place.page) * PAGE_SIZE + span.offset() as usize);
                    let arena = (run.region, local as usize);
                    let (to, from) = if into_arena { (arena, page) } else { (page, arena) };
                    memory.copy(to, from, span.len() as usize);
                    self.memcpy_bytes += u64::from(span.len());
                }
                None => {
                    let (offset, len) = (span.offset() as u16, span.len() as u16);
                    let status = GrantStatus::OKAY;
                    let copy = CopySegment { gref, offset, len, local: local as usize, status };
                    if !self.spare.as_mut().is_some_and(|spare| spare.takes(run, copy)) {
                        self.copies.push(copy);
                        self.owners.push(slot);
                    }
                    self.copied_bytes += u64::from(span.len());
                }
            }
            self.pages_copied += 1;
            local += span.len();
        }
    }

    /// Brings the data of all prepared writes, in one call.
    pub fn copy_in(&mut self, ring: &Uring) {
        self.copy_with_arena(CopyDirection::FromPeer, ring);
    }

    /// A read has its data: lets it go to the guest's pages.
    #[inline]
    pub fn copy_out(&mut self, slot: u16, ring: &Uring) {
        if let Some(data) = self.held[usize::from(slot)].data {
            self.copy_segments(slot, data, false, ring);
        }
    }

    /// Sends the data of all reads, in one call; false when there was nothing to send that way.
    pub fn finish_copies(&mut self, ring: &Uring) -> bool {
        let any = !self.copies.is_empty() || self.spare.is_some();
        if any {
            self.copy_with_arena(CopyDirection::ToPeer, ring);
        }
        any
    }

    fn copy_with_arena(&mut self, direction: CopyDirection, ring: &Uring) {
        if !self.copies.is_empty()
            && let Some(arena) = ring.memory(self.memory).pages(RegionId::ARENA)
        {
            self.run_copies(direction, arena);
        }
        self.copy_with_spare(direction, ring);
    }

    pub(super) fn run_copies(&mut self, direction: CopyDirection, local: &Pages) {
        if self.copies.is_empty() {
            return;
        }
        let begun = self.transient.is_some().then(Instant::now);
        let failed = self.grants.copy(direction, local, &mut self.copies);
        if let (Some(chooser), Some(begun)) = (&mut self.transient, begun) {
            chooser.copied(self.copies.len(), begun.elapsed());
        }
        if let Err(error) = &failed {
            tracing::debug!(%error, "grant copy failed");
        }
        for (copy, owner) in self.copies.iter().zip(&self.owners) {
            let held = &mut self.held[usize::from(*owner)];
            held.failed |= failed.is_err() || !copy.status.is_okay();
            held.more |= held.failed;
        }
        self.copies.clear();
        self.owners.clear();
    }
}

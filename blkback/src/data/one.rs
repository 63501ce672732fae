//! The shortest way, of what nearly all requests are: one segment, whose page is mapped. All that such a request holds is
//! one value, which the queue keeps; the tables of [`Data`] know nothing of it.

use grant::PAGE_SIZE;
use grant::memory::{RegionId, Span};
use grant::persistent::MaybePlace;
use grant::uring::{Uring, Wholes};

use super::{Data, named};
use crate::request::Segment;

/// What a request of one segment holds.
#[derive(Clone, Copy, Debug)]
pub struct One {
    place: MaybePlace,
    /// Its data in the guest's page.
    page: Span,
    /// First byte of its run of the arena, unless the disk works on the page itself.
    run: u32,
}

impl One {
    /// What tables are filled with.
    pub const NONE: One = One { place: MaybePlace::NONE, page: Span::EMPTY, run: 0 };

    /// Bytes of data.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        self.page.len
    }

    #[inline(always)]
    fn run(&self) -> Span {
        Span { region: RegionId::ARENA, offset: self.run, len: self.page.len }
    }
}

impl Data {
    /// Takes the segment of a request as it stands in its slot, holds its page, and gives the request its memory: the page,
    /// or a run of the arena, to which a write's data is then copied. `None`, with nothing held, if the segment is
    /// impossible, its page not mapped, or the arena full.
    #[inline(always)]
    pub fn take_one(&mut self, wire: u64, write: bool, wholes: &mut Wholes<'_>) -> Option<One> {
        let segment = Segment::from_word(wire)?;
        let (held, place, region) = self.table.as_mut()?.hold_mapped(segment.gref)?;
        let page = named(&segment, region, place);
        let mut one = One { place: held, page, run: 0 };
        if !self.zero_copy {
            let Some(run) = wholes.take_arena(page.len) else {
                self.release_page(&one);
                return None;
            };
            self.in_arena += 1;
            one.run = run.offset;
            if write {
                wholes.memory().copy_span(run, page);
                self.count_copy(page.len);
            }
        }
        Some(one)
    }

    /// The memory that the disk works on.
    #[inline(always)]
    pub fn memory_of(&self, one: &One) -> Span {
        if self.zero_copy { one.page } else { one.run() }
    }

    /// Drops what a request was given by [`Data::take_one`] that is not submitted.
    #[cold]
    pub fn untake_one(&mut self, one: &One, wholes: &mut Wholes<'_>) {
        if !self.zero_copy {
            self.in_arena -= 1;
            wholes.give_arena(one.run());
        }
        self.release_page(one);
    }

    /// Brings the guest what was read.
    #[inline(always)]
    pub fn copy_out_one(&mut self, one: &One, ring: &Uring) {
        if !self.zero_copy {
            ring.memory(self.memory).copy_span(one.page, one.run());
            self.count_copy(one.page.len);
        }
    }

    /// Gives everything back that a request holds.
    #[inline(always)]
    pub fn release_one(&mut self, one: &One, ring: &mut Uring) {
        if !self.zero_copy {
            self.in_arena -= 1;
            ring.give_arena(one.run());
        }
        self.release_page(one);
    }

    /// Has a request go on the long way, as if it had come to its disk on it.
    #[cold]
    pub fn lengthen(&mut self, slot: u16, one: &One, segment: Segment) {
        self.set_segments(slot, &[segment]);
        let base = self.base(slot);
        (self.places[base], self.spans[base]) = (one.place, self.memory_of(one));
        let held = &mut self.held[usize::from(slot)];
        held.spans = 1;
        if !self.zero_copy {
            (held.more, held.arena, held.data) = (true, Some(one.run()), Some(one.run()));
        }
    }

    #[inline(always)]
    fn release_page(&mut self, one: &One) {
        if let (Some(table), Some(place)) = (&mut self.table, one.place.get()) {
            table.release(place);
        }
    }

    #[inline(always)]
    fn count_copy(&mut self, len: u32) {
        debug_assert!(len as usize <= PAGE_SIZE);
        self.memcpy_bytes += u64::from(len);
        self.pages_copied += 1;
    }
}

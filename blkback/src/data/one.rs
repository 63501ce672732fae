//! The shortest way, of what nearly all requests are: one segment, whose page is mapped. All that such a request holds is
//! one value, which the queue keeps; the tables of [`Data`] know nothing of it.

use grant::PAGE_SIZE;
use grant::memory::{RegionId, Span};
use grant::persistent::Place;
use grant::uring::{Uring, Wholes};

use super::{Data, named};
use crate::request::Segment;

/// What a request of one segment holds.
#[derive(Clone, Copy, Debug)]
pub struct One {
    place: Place,
    /// Its data in the guest's page.
    first: u16,
    len: u16,
    /// First byte of its run of the arena, unless the disk works on the page itself.
    run: u32,
}

impl One {
    /// What tables are filled with.
    pub const NONE: One = One { place: Place { slab: 0, page: 0 }, first: 0, len: 0, run: 0 };

    /// Bytes of data.
    #[inline(always)]
    pub fn bytes(self) -> u32 {
        self.len.into()
    }

    #[inline(always)]
    fn run(self) -> Span {
        Span { region: RegionId::ARENA, offset: self.run, len: self.bytes() }
    }
}

impl Data {
    /// Takes the segment of a request as it stands in its slot, holds its page, and gives the request its memory, which is
    /// returned: the page, or a run of the arena, to which a write's data is then copied. `None`, with nothing held, if the
    /// segment is impossible, its page not mapped, or the arena full.
    #[inline(always)]
    pub fn take_one(&mut self, wire: u64, write: bool, wholes: &mut Wholes<'_>) -> Option<(One, Span)> {
        let segment = Segment::from_word(wire)?;
        let (place, region) = self.table.hold_mapped(segment.gref)?;
        let page = named(&segment, region, place);
        let (run, piece) = match self.zero_copy {
            true => (0, page),
            false => {
                let run = self.take_one_run(place, page, write, wholes)?;
                (run, Span { region: RegionId::ARENA, offset: run, len: page.len })
            }
        };
        Some((One { place, first: segment.span.offset() as u16, len: page.len as u16, run }, piece))
    }

    /// A run of the arena, by its first byte, for what is on a page that is held, or no longer.
    fn take_one_run(&mut self, place: Place, page: Span, write: bool, wholes: &mut Wholes<'_>) -> Option<u32> {
        let Some(run) = wholes.take_arena(page.len) else {
            self.table.release(place);
            return None;
        };
        self.in_arena += 1;
        if write {
            wholes.memory().copy_span(run, page);
            self.count_copy(page.len);
        }
        Some(run.offset)
    }

    /// Drops what a request was given by [`Data::take_one`] that is not submitted.
    #[cold]
    pub fn untake_one(&mut self, one: &One, wholes: &mut Wholes<'_>) {
        if !self.zero_copy {
            self.in_arena -= 1;
            wholes.give_arena(one.run());
        }
        self.release_one(*one);
    }

    /// Gives a request's run of the arena back, after what was read has been brought from there to the guest.
    #[inline(always)]
    pub fn leave_arena(&mut self, one: One, read: bool, ring: &mut Uring) {
        if self.zero_copy {
            return;
        }
        if read {
            ring.memory(self.memory).copy_span(self.page_of(one), one.run());
            self.count_copy(one.bytes());
        }
        self.in_arena -= 1;
        ring.give_arena(one.run());
    }

    /// Lets go of a request's page.
    #[inline(always)]
    pub fn release_one(&mut self, one: One) {
        self.table.release(one.place);
    }

    /// Has a request go on the long way, as if it had come to its disk on it.
    #[cold]
    pub fn lengthen(&mut self, slot: u16, one: One, segment: Segment) {
        self.set_segments(slot, &[segment]);
        let base = self.base(slot);
        self.places[base] = Some(one.place).into();
        self.spans[base] = if self.zero_copy { self.page_of(one) } else { one.run() };
        let held = &mut self.held[usize::from(slot)];
        held.spans = 1;
        if !self.zero_copy {
            (held.more, held.arena, held.data) = (true, Some(one.run()), Some(one.run()));
        }
    }

    /// Its data in the guest's page, which is mapped for as long as it is held.
    #[inline(always)]
    fn page_of(&self, one: One) -> Span {
        let region = self.table.region(one.place.slab).expect("held pages are mapped");
        let offset = u32::from(one.place.page) * PAGE_SIZE as u32 + u32::from(one.first);
        Span { region, offset, len: one.bytes() }
    }

    #[inline(always)]
    fn count_copy(&mut self, len: u32) {
        self.memcpy_bytes += u64::from(len);
        self.pages_copied += 1;
    }
}

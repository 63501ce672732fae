//! The short way of what most requests are: their segments stand in the slot, and all their pages are mapped.

use grant::uring::Uring;

use super::{Data, named};
use crate::request::Segment;

impl Data {
    /// Whether there can be requests whose pages are all mapped already.
    #[inline]
    pub fn takes_at_once(&self) -> bool {
        self.table.takes_any()
    }

    /// Takes the segments of a request, `count` of them as they stand in its slot, and finds their pages, each of which is
    /// then held. Returns the bytes of data; `None`, with nothing held, if a segment is impossible or its page not mapped.
    pub fn locate_at_once(&mut self, slot: u16, count: u8, wire: impl Fn(usize) -> u64) -> Option<u32> {
        let (base, count) = (self.base(slot), usize::from(count));
        let (segments, places) = (&mut self.segments[base..base + count], &mut self.places[base..base + count]);
        let spans = &mut self.spans[base..base + count];
        let mut len = 0;
        for at in 0..count {
            let segment = Segment::from_word(wire(at));
            let found = segment.and_then(|segment| Some((segment, self.table.hold_mapped(segment.gref)?)));
            let Some((segment, (place, region))) = found else {
                self.release_places(base, at);
                return None;
            };
            (segments[at], places[at], spans[at]) = (segment, Some(place).into(), named(&segment, region, place));
            len += segment.span.len();
        }
        let held = &mut self.held[usize::from(slot)];
        (held.segments, held.spans) = (count as u16, count as u16);
        Some(len)
    }

    /// Gives a request that was located its memory: its pages, or a run of the arena, to which a write's data is then
    /// copied. False when there is no room.
    pub fn prepare_at_once(&mut self, slot: u16, len: u32, write: bool, ring: &mut Uring) -> bool {
        if self.zero_copy {
            return true;
        }
        let Some(run) = self.take_run(slot, len, ring) else { return false };
        let base = self.base(slot);
        self.spans[base] = run;
        let held = &mut self.held[usize::from(slot)];
        (held.spans, held.more, held.arena, held.data) = (1, true, Some(run), Some(run));
        if write {
            self.copy_segments(slot, run, true, ring);
        }
        true
    }

    /// Drops what a request was given, which goes the longer way.
    #[cold]
    pub fn forget(&mut self, slot: u16, ring: &mut Uring) {
        self.release(slot, ring);
    }

    /// Drops the holds on the first `count` pages of a request.
    #[inline(always)]
    pub(super) fn release_places(&mut self, base: usize, count: usize) {
        for place in &mut self.places[base..base + count] {
            if let Some(place) = std::mem::take(place).get() {
                self.table.release(place);
            }
        }
    }
}

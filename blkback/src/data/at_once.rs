//! The short way of what most requests are: their segments stand in the slot, and all their pages are mapped.

use grant::PAGE_SIZE;
use grant::memory::Span;
use grant::persistent::MaybePlace;

use super::{Data, Held};
use crate::request::Segment;

impl Data {
    /// Where a direct request's segments go; [`Data::segments_set`] says how many they are.
    #[inline]
    pub fn segments_room(&mut self, slot: u16) -> &mut [Segment] {
        let base = self.base(slot);
        &mut self.segments[base..base + self.per_slot]
    }

    /// Makes a request's memory of its pages, each of which is then held, if all of its `count` segments lie in pages
    /// that are mapped and I/O may go to them; else nothing is held.
    #[inline]
    pub fn locate_all(&mut self, slot: u16, count: usize) -> Option<&[Span]> {
        if !self.zero_copy {
            return None;
        }
        let base = self.base(slot);
        let table = self.table.as_mut()?;
        let (segments, places) = (&self.segments[base..base + count], &mut self.places[base..base + count]);
        let spans = &mut self.spans[base..base + count];
        for at in 0..count {
            let Segment { gref, span } = segments[at];
            let held = table.hold(gref);
            let mapped = held.and_then(|place| Some((table.region(place.slab)?, place)));
            let Some((region, place)) = mapped else {
                // A slab that is being filled holds on to its pages until it is mapped.
                for place in places[..at].iter_mut().map(std::mem::take).map(MaybePlace::get).chain([held]).flatten() {
                    table.release(place);
                }
                return None;
            };
            places[at] = Some(place).into();
            let offset = u32::from(place.page) * PAGE_SIZE as u32 + span.offset();
            spans[at] = Span { region, offset, len: span.len() };
        }
        self.held[usize::from(slot)] = Held { segments: count as u16, spans: count as u16, ..Held::default() };
        Some(&self.spans[base..base + count])
    }

    /// `count` segments are there.
    #[inline]
    pub fn segments_set(&mut self, slot: u16, count: u8) {
        self.held[usize::from(slot)] = Held { segments: count.into(), ..Held::default() };
    }
}

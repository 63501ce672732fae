//! The short way of what most requests are: their segments stand in the slot, and all their pages are mapped.

use grant::memory::Span;
use grant::persistent::MaybePlace;

use super::{Data, Held, named};
use crate::request::Segment;

impl Data {
    /// Where a direct request's segments go; [`Data::segments_set`] says how many they are.
    #[inline]
    pub fn segments_room(&mut self, slot: u16) -> &mut [Segment] {
        let base = self.base(slot);
        &mut self.segments[base..base + self.per_slot]
    }

    /// Whether I/O may go to the guest's pages themselves: without that no request takes the short way.
    #[inline]
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Makes a request's memory of its pages, each of which is then held, if all of its `count` segments lie in pages
    /// that are mapped; else nothing is held. Only where I/O may go to them.
    #[inline]
    pub fn locate_all(&mut self, slot: u16, count: usize) -> Option<&[Span]> {
        debug_assert!(self.zero_copy);
        let base = self.base(slot);
        let table = self.table.as_mut()?;
        let (segments, places) = (&self.segments[base..base + count], &mut self.places[base..base + count]);
        let spans = &mut self.spans[base..base + count];
        for at in 0..count {
            let segment = &segments[at];
            let held = table.hold(segment.gref);
            let mapped = held.and_then(|place| Some((table.region(place.slab)?, place)));
            let Some((region, place)) = mapped else {
                // A slab that is being filled holds on to its pages until it is mapped.
                for place in places[..at].iter_mut().map(std::mem::take).map(MaybePlace::get).chain([held]).flatten() {
                    table.release(place);
                }
                return None;
            };
            places[at] = Some(place).into();
            spans[at] = named(segment, region, place);
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

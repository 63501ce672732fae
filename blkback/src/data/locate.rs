//! Where the pages of a request are: found in the persistent-grant table, or put there and mapped.

use grant::persistent::Place;
use grant::uring::Uring;
use grant::{Access, GrantRef, MAX_MAP};

use super::{Data, MAX_RETIRED, named};

impl Data {
    /// Finds the pages of a request in the table, and sets up a slab for those that are new.
    #[inline]
    pub fn locate(&mut self, slot: u16, ring: &mut Uring) {
        let base = self.base(slot);
        let count = usize::from(self.held[usize::from(slot)].segments);
        // The places of whoever had the slot before were taken when it was released.
        debug_assert!(self.places[base..base + count].iter().all(|place| place.get().is_none()));
        if !self.table.takes_any() {
            return;
        }
        let named = self.locate_mapped(base, count);
        if named == count {
            self.held[usize::from(slot)].spans = count as u16;
        }
        for at in base + named..base + count {
            let place = self.place(slot, self.segments[at].gref, ring);
            self.places[at] = place.into();
        }
        if self.building.is_some() {
            self.is_unsettled(slot);
        }
    }

    /// Finds and holds those pages of a request that are mapped, up to the first that is not, and makes them its memory.
    #[inline(always)]
    fn locate_mapped(&mut self, base: usize, count: usize) -> usize {
        let (segments, places) = (&self.segments[base..base + count], &mut self.places[base..base + count]);
        let spans = &mut self.spans[base..base + count];
        for at in 0..count {
            let Some((place, region)) = self.table.hold_mapped(segments[at].gref) else { return at };
            (places[at], spans[at]) = (Some(place).into(), named(&segments[at], region, place));
        }
        count
    }

    /// A page's place in the table, held; `None` when it must be copied.
    #[inline]
    pub(super) fn place(&mut self, slot: u16, gref: GrantRef, ring: &mut Uring) -> Option<Place> {
        match self.table.hold(gref) {
            Some(place) => Some(place),
            None if !self.table.takes_any() => None,
            None => {
                // A slab may be mapped, and not be, before this request is through.
                self.is_unsettled(slot);
                self.new_place(gref, ring)
            }
        }
    }

    fn is_unsettled(&mut self, slot: u16) {
        if self.unsettled.last() != Some(&slot) {
            self.unsettled.push(slot);
        }
    }

    #[cold]
    fn new_place(&mut self, gref: GrantRef, ring: &mut Uring) -> Option<Place> {
        loop {
            let table = &mut self.table;
            let slab = match self.building {
                Some(slab) => slab,
                None => *self.building.insert(table.open_slab()?),
            };
            if let Some(place) = table.add(slab, gref) {
                return Some(place);
            }
            if table.refs(slab).len() >= MAX_MAP {
                self.map_slab(ring);
                continue;
            }
            // Behind one slow operation they would pile up, and the cap would be none.
            if ring.memory(self.memory).retired() >= MAX_RETIRED {
                return None;
            }
            let region = table.evict()?;
            if let Err(error) = ring.retire(self.memory, region) {
                tracing::error!(%error, "unmapping persistent grants failed");
            }
        }
    }

    /// Maps the slab that was set up, in one call. What cannot be mapped is copied instead: grant copy answers for
    /// each page alone, where one bad reference fails a whole mapping.
    pub fn map(&mut self, ring: &mut Uring) {
        self.map_slab(ring);
        self.unsettled.clear();
    }

    fn map_slab(&mut self, ring: &mut Uring) {
        let Some(slab) = self.building.take() else { return };
        let mapped = match self.table.refs(slab) {
            [] => None,
            refs => match self.grants.map(refs, Access::ReadWrite) {
                Ok(memory) => ring.adopt(self.memory, memory, self.fixed && self.zero_copy).ok(),
                Err(error) => {
                    tracing::debug!(%error, "mapping grants failed");
                    None
                }
            },
        };
        match mapped {
            Some(region) => self.table.mapped_as(slab, region),
            None => {
                self.table.forget(slab);
                self.forget_places(slab);
            }
        }
    }

    /// Nobody may look for pages in a slab that was not mapped.
    fn forget_places(&mut self, slab: u16) {
        for at in 0..self.unsettled.len() {
            let slot = self.unsettled[at];
            let base = self.base(slot);
            for place in &mut self.places[base..base + self.per_slot] {
                *place = place.get().filter(|place| place.slab != slab).into();
            }
            let held = &mut self.held[usize::from(slot)];
            if held.indirect.is_some_and(|place| place.slab == slab) {
                held.indirect = None;
                self.copy_indirect_page(slot);
            }
        }
    }
}

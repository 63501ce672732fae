//! The persistent-grant table of one queue: which of the frontend's pages are mapped, and where.
//!
//! Pages that were first seen together are mapped together, as a *slab*, and leave together: gntdev can release a
//! batch only as a whole (block.md F1). The number of mapped pages has a cap; at the cap a clock hand gives each
//! idle slab a second chance before it is unmapped. A grant that finds no room is not an error: its request is
//! served by grant copy.
//!
//! Lookup is open addressing over a fixed table, keyed by the grant reference: no allocation, no chains to build.

use crate::memory::RegionId;
use crate::{GrantRef, MAX_MAP};

/// A mapped page: a slab and a page in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Place {
    /// The page in its slab.
    pub page: u16,
    /// The slab.
    pub slab: u16,
}

/// A [`Place`] or none, in four bytes that are zero for none: long tables of it cost nothing until they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(transparent)]
pub struct MaybePlace(u32);

impl MaybePlace {
    /// None.
    pub const NONE: MaybePlace = MaybePlace(0);

    /// The place.
    #[inline]
    pub fn get(self) -> Option<Place> {
        let packed = self.0.checked_sub(1)?;
        Some(Place { slab: (packed >> 16) as u16, page: packed as u16 })
    }
}

impl From<Option<Place>> for MaybePlace {
    #[inline]
    fn from(place: Option<Place>) -> MaybePlace {
        // A page is below MAX_MAP, so one more always fits.
        MaybePlace(place.map_or(0, |place| (u32::from(place.slab) << 16 | u32::from(place.page)) + 1))
    }
}

/// A grant and where it is mapped, or nobody. A place is never all ones: see [`MaybePlace`].
#[derive(Clone, Copy)]
struct Entry {
    gref: GrantRef,
    place: MaybePlace,
}

impl Entry {
    const EMPTY: Entry = Entry { gref: GrantRef(0), place: MaybePlace::NONE };
    /// Somebody was here: a search goes on.
    const GONE: Entry = Entry { gref: GrantRef(0), place: MaybePlace(u32::MAX) };

    #[inline]
    fn is_empty(self) -> bool {
        self.place.0 == 0
    }

    #[inline]
    fn is_full(self) -> bool {
        // Neither of the two ends: one comparison for both.
        self.place.0.wrapping_sub(1) < u32::MAX - 1
    }

    #[inline]
    fn is(self, gref: GrantRef) -> bool {
        self.gref == gref && self.is_full()
    }
}

#[derive(Default)]
struct Slab {
    refs: Vec<GrantRef>,
    region: Option<RegionId>,
    holds: u32,
    used: bool,
}

/// Entries of a new table.
const SMALLEST: usize = 64;

/// The table.
pub struct PersistentTable {
    entries: Vec<Entry>,
    gone: usize,
    slabs: Vec<Slab>,
    vacant: Vec<u16>,
    hand: usize,
    mapped: usize,
    cap: usize,
}

impl PersistentTable {
    /// A table for at most `cap` mapped pages (at most 60,000). It grows as it fills: most disks never need their cap.
    pub fn new(cap: usize) -> PersistentTable {
        let cap = cap.min(60_000);
        let entries = vec![Entry::EMPTY; SMALLEST];
        PersistentTable { entries, gone: 0, slabs: Vec::new(), vacant: Vec::new(), hand: 0, mapped: 0, cap }
    }

    /// False when it was made to hold nothing.
    #[inline]
    pub fn takes_any(&self) -> bool {
        self.cap > 0
    }

    /// Pages mapped, or about to be.
    pub fn mapped(&self) -> usize {
        self.mapped
    }

    /// Looks a grant up and holds its slab until [`PersistentTable::release`].
    #[inline]
    pub fn hold(&mut self, gref: GrantRef) -> Option<Place> {
        let place = self.find(gref)?;
        let slab = &mut self.slabs[usize::from(place.slab)];
        slab.holds += 1;
        slab.used = true;
        Some(place)
    }

    /// The same if its slab is mapped, and as what.
    #[inline(always)]
    pub fn hold_mapped(&mut self, gref: GrantRef) -> Option<(Place, RegionId)> {
        let place = self.find(gref)?;
        let slab = &mut self.slabs[usize::from(place.slab)];
        let region = slab.region?;
        slab.holds += 1;
        slab.used = true;
        Some((place, region))
    }

    #[inline(always)]
    fn find(&self, gref: GrantRef) -> Option<Place> {
        let at = self.start(gref);
        let entry = self.entries[at];
        // Most are found where they would be first.
        if entry.is(gref) { entry.place.get() } else { self.find_after(at, gref).get() }
    }

    #[inline(never)]
    fn find_after(&self, mut at: usize, gref: GrantRef) -> MaybePlace {
        while !self.entries[at].is_empty() {
            at = (at + 1) & (self.entries.len() - 1);
            if self.entries[at].is(gref) {
                return self.entries[at].place;
            }
        }
        MaybePlace::NONE
    }

    /// Drops a hold.
    #[inline]
    pub fn release(&mut self, place: Place) {
        self.slabs[usize::from(place.slab)].holds -= 1;
    }

    /// The region a slab is mapped as; `None` while it is being filled.
    #[inline]
    pub fn region(&self, slab: u16) -> Option<RegionId> {
        self.slabs[usize::from(slab)].region
    }

    /// Starts a slab. Fill it with [`PersistentTable::add`], then map its references and call
    /// [`PersistentTable::mapped_as`] or [`PersistentTable::forget`]. `None` when all slab numbers are taken.
    pub fn open_slab(&mut self) -> Option<u16> {
        if let Some(slab) = self.vacant.pop() {
            return Some(slab);
        }
        let slab = u16::try_from(self.slabs.len()).ok()?;
        self.slabs.push(Slab::default());
        Some(slab)
    }

    /// Puts a grant that is not in the table into an open slab and holds it. `None` when the slab or the table is
    /// full: ask [`PersistentTable::evict`], or do without.
    pub fn add(&mut self, slab: u16, gref: GrantRef) -> Option<Place> {
        let page = self.slabs[usize::from(slab)].refs.len();
        if self.mapped >= self.cap || page >= MAX_MAP {
            return None;
        }
        if (self.mapped + self.gone + 1) * 2 > self.entries.len() {
            self.rebuild();
        }
        let place = Place { slab, page: page as u16 };
        let mut at = self.start(gref);
        while self.entries[at].is_full() {
            at = (at + 1) & (self.entries.len() - 1);
        }
        if !self.entries[at].is_empty() {
            self.gone -= 1;
        }
        self.entries[at] = Entry { gref, place: Some(place).into() };
        let slab = &mut self.slabs[usize::from(slab)];
        slab.refs.push(gref);
        slab.holds += 1;
        slab.used = true;
        self.mapped += 1;
        Some(place)
    }

    /// The references of a slab, in mapping order.
    pub fn refs(&self, slab: u16) -> &[GrantRef] {
        &self.slabs[usize::from(slab)].refs
    }

    /// The slab is mapped.
    pub fn mapped_as(&mut self, slab: u16, region: RegionId) {
        self.slabs[usize::from(slab)].region = Some(region);
    }

    /// Takes a slab out of the table, its holds with it; returns its region for unmapping.
    pub fn forget(&mut self, slab: u16) -> Option<RegionId> {
        let refs = std::mem::take(&mut self.slabs[usize::from(slab)].refs);
        for gref in &refs {
            let mut at = self.start(*gref);
            while !self.entries[at].is(*gref) {
                assert!(!self.entries[at].is_empty(), "a slab's grants are in the table");
                at = (at + 1) & (self.entries.len() - 1);
            }
            self.entries[at] = Entry::GONE;
            self.gone += 1;
        }
        self.mapped -= refs.len();
        let region = std::mem::take(&mut self.slabs[usize::from(slab)]).region;
        self.vacant.push(slab);
        if self.gone > self.entries.len() / 4 {
            self.rebuild();
        }
        region
    }

    /// Chooses an idle slab, second chance first, and takes it out; its region is to be unmapped. `None` when
    /// every slab is in use.
    pub fn evict(&mut self) -> Option<RegionId> {
        for _ in 0..self.slabs.len() * 2 {
            self.hand = (self.hand + 1) % self.slabs.len();
            let slab = &mut self.slabs[self.hand];
            if slab.region.is_none() || slab.holds > 0 {
                continue;
            }
            if !std::mem::take(&mut slab.used) {
                return self.forget(self.hand as u16);
            }
        }
        None
    }

    #[inline]
    fn start(&self, gref: GrantRef) -> usize {
        // Fibonacci hashing: references are dense small numbers, and neighbours must not form one long run.
        (gref.0.wrapping_mul(0x9E37_79B9) >> 7) as usize & self.entries.len().wrapping_sub(1)
    }

    /// Clears the marks of what is gone, and makes room where that is not enough, so that searches stay short.
    #[cold]
    fn rebuild(&mut self) {
        self.entries.fill(Entry::EMPTY);
        self.gone = 0;
        let size = ((self.mapped + 1) * 4).max(SMALLEST).next_power_of_two();
        if size > self.entries.len() {
            self.entries.resize(size, Entry::EMPTY);
        }
        for slab in 0..self.slabs.len() {
            for page in 0..self.slabs[slab].refs.len() {
                let gref = self.slabs[slab].refs[page];
                let mut at = self.start(gref);
                while self.entries[at].is_full() {
                    at = (at + 1) & (self.entries.len() - 1);
                }
                let place = Place { slab: slab as u16, page: page as u16 };
                self.entries[at] = Entry { gref, place: Some(place).into() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Adds a slab of `refs`, mapped as a region of the same number.
    fn add(table: &mut PersistentTable, refs: &[u32]) -> Option<u16> {
        let slab = table.open_slab()?;
        for gref in refs {
            let place = table.add(slab, GrantRef(*gref))?;
            table.release(place);
        }
        table.mapped_as(slab, RegionId(slab));
        Some(slab)
    }

    #[test]
    fn a_place_survives_packing() {
        for place in [(0, 0), (0, 255), (1, 0), (u16::MAX, 255)].map(|(slab, page)| Place { slab, page }) {
            assert_eq!(MaybePlace::from(Some(place)).get(), Some(place));
        }
        assert_eq!(MaybePlace::default().get(), None);
        assert_eq!(MaybePlace::from(None), MaybePlace::default());
    }

    #[test]
    fn what_was_added_is_found_and_what_left_is_not() {
        let mut table = PersistentTable::new(100);
        let slab = add(&mut table, &[8, 9, 10]).unwrap();
        assert_eq!(table.hold(GrantRef(9)), Some(Place { slab, page: 1 }));
        assert_eq!(table.hold(GrantRef(11)), None);
        assert_eq!(table.evict(), None, "a held slab stays");
        table.release(Place { slab, page: 1 });
        assert_eq!(table.evict(), Some(RegionId(slab)));
        assert_eq!(table.hold(GrantRef(9)), None);
        assert_eq!(table.mapped(), 0);
    }

    #[test]
    fn the_cap_holds_whatever_comes() {
        let mut table = PersistentTable::new(64);
        let mut random = fastrand_like(7);
        let mut model: HashMap<u32, ()> = HashMap::new();
        for _ in 0..20_000 {
            let gref = random() % 500;
            if let Some(place) = table.hold(GrantRef(gref)) {
                assert!(model.contains_key(&gref));
                table.release(place);
                continue;
            }
            assert!(!model.contains_key(&gref));
            while table.mapped() >= 64 {
                let before: Vec<u32> = model.keys().copied().collect();
                table.evict().expect("everything is idle");
                model.retain(|gref, ()| {
                    table.hold(GrantRef(*gref)).is_some_and(|place| {
                        table.release(place);
                        true
                    })
                });
                assert!(model.len() < before.len());
            }
            add(&mut table, &[gref]).unwrap();
            model.insert(gref, ());
            assert!(table.mapped() <= 64 && table.mapped() == model.len());
        }
    }

    /// A small generator: the crate has no need of a random-number dependency.
    fn fastrand_like(mut state: u32) -> impl FnMut() -> u32 {
        move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        }
    }
}

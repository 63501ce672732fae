//! What a disk may cost at most: bytes of the service VM's memory and grants of the guest's that stay mapped, from the
//! widths that it offers, or those that its frontend chose. Memory that is never used is never taken; this is what a
//! frontend can make of it.

use grant::memory::Span;
use grant::persistent::MaybePlace;
use grant::{CopySegment, PAGE_SIZE, journal};
use serde::{Deserialize, Serialize};

use crate::config::{Negotiated, Offer};
use crate::proto::{BlkifRequestSegment, MAX_SEGMENTS};
use crate::queue::BATCH;
use crate::request::Segment;

/// Most grants that a queue keeps mapped.
pub const MAX_PERSISTENT: u32 = 16_384;
/// What Linux's backend keeps of a queue: a frontend of its defaults never sees one taken away.
const LINUX_PERSISTENT: u32 = 1056;
/// Fewer are no use to anybody.
const LEAST_PERSISTENT: u32 = 64;
/// Tables of a request besides its segments, and the ring's for it: generous.
const REQUEST: u64 = 512;
/// Where a grant is mapped, and the kernel's part of that.
const GRANT: u64 = 64;
/// Whatever there is once per queue: its counters, the ring's mapping, allocations.
const QUEUE: u64 = 16 << 10;
/// A worker before it serves anything.
const WORKER: u64 = 4 << 20;
/// One of its threads: the arena, its io_uring, its stack.
const THREAD: u64 = (crate::station::ARENA_PAGES * PAGE_SIZE + (256 << 10)) as u64;

/// A cost, or a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Bytes of memory.
    pub memory: u64,
    /// Pages of a guest's that are mapped.
    pub grants: u64,
}

impl Need {
    /// Both of two.
    #[must_use]
    pub fn and(self, other: Need) -> Need {
        let memory = self.memory.saturating_add(other.memory);
        Need { memory, grants: self.grants.saturating_add(other.grants) }
    }

    /// The process that serves a guest, without its disks.
    pub fn worker(threads: usize) -> Need {
        Need { memory: WORKER + THREAD * threads as u64, grants: 0 }
    }

    fn queue(pages: usize, slots: u32, max_indirect: u16, persistent: u32) -> Need {
        let (slots, persistent) = (u64::from(slots), u64::from(persistent));
        let segments = u64::from(max_indirect).max(MAX_SEGMENTS as u64);
        let of_segment = size_of::<Segment>() + size_of::<MaybePlace>() + size_of::<Span>();
        let journal =
            slots * (journal::SLOT as u64 + u64::from(max_indirect) * size_of::<BlkifRequestSegment>() as u64);
        let copies = (BATCH as u64).min(slots) * segments * (size_of::<CopySegment>() + 2) as u64;
        let scratch = if max_indirect > 0 { (BATCH * PAGE_SIZE) as u64 } else { 0 };
        let memory = QUEUE + slots * (REQUEST + segments * of_segment as u64) + journal + copies + scratch;
        Need { memory: memory + persistent * GRANT, grants: pages as u64 + persistent }
    }
}

/// How wide a disk may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Width {
    /// What is published.
    pub offer: Offer,
    /// Most grants that a queue keeps mapped.
    pub max_persistent: u32,
}

impl Width {
    /// The whole of an offer.
    pub fn whole(offer: Offer) -> Width {
        Width { offer, max_persistent: MAX_PERSISTENT }
    }

    /// Grants that a queue keeps mapped: as many as its frontend can have in flight, so that a well-behaved one never
    /// sees one taken away, and at least what Linux's own backend keeps, but no more than allowed.
    fn persistent(&self, slots: u32) -> u32 {
        // An indirect request has pages of segments besides its data.
        let segments = u32::from(self.offer.max_indirect).max(11) + 1;
        slots.saturating_mul(segments).clamp(LINUX_PERSISTENT, MAX_PERSISTENT).min(self.max_persistent)
    }

    /// What a frontend needs that takes all of it.
    pub fn need(&self) -> Need {
        let Offer { max_ring_order, queues, max_indirect, persistent } = self.offer;
        let (pages, slots) = (1usize << max_ring_order.min(4), 32 << max_ring_order.min(4));
        let persistent = if persistent { self.persistent(slots) } else { 0 };
        let queue = Need::queue(pages, slots, max_indirect, persistent);
        (0..queues.max(1)).fold(Need::default(), |need, _| need.and(queue))
    }

    /// What a frontend needs that has chosen, and how many grants its queues keep mapped each.
    pub fn chosen(&self, negotiated: &Negotiated) -> (Need, u32) {
        let pages = negotiated.queues.iter().map(|queue| queue.ring_refs.len()).max().unwrap_or(1);
        let slots = grant::ring::entries(pages, negotiated.abi.slot_size());
        let persistent = if negotiated.persistent { self.persistent(slots) } else { 0 };
        let queue = Need::queue(pages, slots, negotiated.max_indirect, persistent);
        (negotiated.queues.iter().fold(Need::default(), |need, _| need.and(queue)), persistent)
    }

    /// The next smaller one: fewer queues first, then smaller rings, then shorter requests.
    fn narrower(&self) -> Option<Width> {
        let mut it = *self;
        match &mut it.offer {
            Offer { queues, .. } if *queues > 1 => *queues -= 1,
            Offer { max_ring_order, .. } if *max_ring_order > 0 => *max_ring_order -= 1,
            // Below 11, what a direct request has, there is no point.
            Offer { max_indirect, .. } if *max_indirect > 0 => {
                *max_indirect = if *max_indirect >= 22 { *max_indirect / 2 } else { 0 };
            }
            _ => return None,
        }
        Some(it)
    }

    /// The same with fewer grants kept, which costs a frontend the least.
    fn thriftier(&self) -> Option<Width> {
        let fewer = Width { max_persistent: self.max_persistent / 2, ..*self };
        (self.offer.persistent && fewer.max_persistent >= LEAST_PERSISTENT).then_some(fewer)
    }

    /// The widest one not above this that needs no more than `room`; none when not even the smallest fits.
    pub fn within(self, room: Need) -> Option<Width> {
        let fits = |width: &Width| {
            let need = width.need();
            need.memory <= room.memory && need.grants <= room.grants
        };
        let thrifty = |width: Width| std::iter::successors(Some(width), Width::thriftier);
        std::iter::successors(Some(self), Width::narrower).flat_map(thrifty).find(fits)
    }

    /// What is left when everything is made as small as it can be.
    #[must_use]
    pub fn smallest(self) -> Width {
        let narrow = std::iter::successors(Some(self), Width::narrower).last().unwrap_or(self);
        std::iter::successors(Some(narrow), Width::thriftier).last().unwrap_or(narrow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_disk_gets_narrower_in_order() {
        let whole = Width::whole(Offer::default());
        let need = whole.need();
        assert_eq!(whole.within(need), Some(whole));
        let less = Need { memory: need.memory * 4 / 5, ..need };
        let first = whole.within(less).unwrap();
        assert_eq!((first.offer.queues, first.offer.max_ring_order), (3, 4), "{first:?}");
        let small = whole.within(Need { memory: 3 * MIB, grants: 100_000 }).unwrap().offer;
        assert!(small.queues == 1 && small.max_ring_order < 4 && small.max_indirect == 256, "{small:?}");
        let tiny = whole.within(Need { memory: MIB / 4, grants: 100_000 }).unwrap();
        assert_eq!((tiny.offer.queues, tiny.offer.max_ring_order), (1, 0));
        assert!(tiny.offer.max_indirect < 256, "{tiny:?}");
        // Grants alone are no reason for narrower rings.
        let poor = whole.within(Need { grants: 2000, ..need }).unwrap();
        assert!(poor.offer == whole.offer && poor.need().grants <= 2000 && poor.max_persistent == 256, "{poor:?}");
        let poorer = whole.within(Need { grants: 70, ..need }).unwrap();
        assert!(poorer.offer.queues == 1 && poorer.max_persistent == LEAST_PERSISTENT, "{poorer:?}");
        let smallest = whole.smallest();
        assert_eq!(smallest.within(smallest.need()), Some(smallest));
        assert!(smallest.need().memory < 64 << 10 && smallest.need().grants == 65, "{:?}", smallest.need());
        assert_eq!(whole.within(Need { memory: 4096, grants: 100_000 }), None);
        assert_eq!(whole.within(Need { memory: MIB, grants: 10 }), None);
    }

    #[test]
    fn what_a_stock_frontend_takes_is_little() {
        let width = Width::whole(Offer::default());
        let queue = |n: u32| crate::config::QueueKeys { ring_refs: vec![n], event_channel: n };
        let negotiated = Negotiated {
            abi: crate::proto::Abi::X86_64,
            persistent: true,
            max_indirect: 256,
            queues: (1..=4).map(queue).collect(),
        };
        let (need, persistent) = width.chosen(&negotiated);
        assert!(need.memory < 5 * MIB, "{need:?}");
        assert!(persistent >= LINUX_PERSISTENT && need.grants == 4 * (1 + u64::from(persistent)));
        assert!(width.need().memory < 30 * MIB, "{:?}", width.need());
    }
}

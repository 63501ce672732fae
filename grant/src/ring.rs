//! The shared ring of Xen's public `io/ring.h`: requests one way, responses the other, in the same slots, with
//! free-running 32-bit indexes and event indexes that say when the other side wants to be told.
//!
//! ```text
//! byte 0 req_prod   4 req_event   8 rsp_prod   12 rsp_event   16..64 private   64.. slots (a power of two)
//! ```
//!
//! Both halves keep their own indexes in private memory and never read them back: what the peer writes into the
//! shared copy cannot move us. The peer's producer index is checked each time it is read.

use std::sync::atomic::{Ordering, fence};

use zerocopy::IntoBytes;

use crate::pages::{Record, Records};
use crate::{PAGE_SIZE, Pages};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Offset of the first slot (`sizeof` the fixed part of a `struct xxx_sring`).
pub const SLOTS_AT: usize = 64;

/// The peer moved its producer index further than the ring is long. The device must not be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring index out of range: producer {producer}, ours {ours}, {entries} entries")]
pub struct RingBroken {
    /// The index the peer published.
    pub producer: u32,
    /// The index it was compared with.
    pub ours: u32,
    /// Slots in the ring.
    pub entries: u32,
}

/// Slots of `slot_size` bytes in `pages` pages (`__RD32((pages * 4096 - 64) / slot_size)`, ring.h).
pub const fn entries(pages: usize, slot_size: usize) -> u32 {
    let fit = (pages * PAGE_SIZE - SLOTS_AT) / slot_size;
    if fit == 0 { 0 } else { 1 << fit.ilog2() }
}

/// What both halves need to find a slot.
struct Layout {
    pages: Pages,
    /// Slots, less one.
    mask: u32,
    slot_size: usize,
    /// The slots of a block ring for 64-bit guests.
    wide: Option<Records<WIDE>>,
}

/// Bytes of the widest slot, `struct blkif_request` of a 64-bit guest (blkif.h).
const WIDE: usize = 112;
/// The same in words.
pub const WIDE_WORDS: usize = WIDE / 8;

impl Layout {
    fn new(pages: Pages, slot_size: usize) -> Layout {
        let entries = entries(pages.len() / PAGE_SIZE, slot_size);
        assert!(entries > 0, "a ring needs at least one slot");
        let wide = (slot_size == WIDE).then(|| Records::new(&pages, SLOTS_AT, entries as usize)).flatten();
        Layout { pages, mask: entries - 1, slot_size, wide }
    }

    fn entries(&self) -> u32 {
        self.mask + 1
    }

    #[inline]
    fn slot(&self, index: u32) -> usize {
        SLOTS_AT + (index & self.mask) as usize * self.slot_size
    }

    /// A slot that is shorter than the widest, zeros behind it.
    #[cold]
    fn narrow(&self, index: u32) -> [u64; WIDE_WORDS] {
        let mut words = [0; WIDE_WORDS];
        self.pages.read(self.slot(index), &mut words.as_mut_bytes()[..self.slot_size]);
        words
    }

    #[cold]
    fn write_narrow(&self, index: u32, words: [u64; 2], len: usize) {
        self.pages.write(self.slot(index), &words.as_bytes()[..len]);
    }
}

/// The backend's half: takes requests, gives responses.
pub struct BackRing {
    layout: Layout,
    req_cons: u32,
    rsp_prod: u32,
    published: u32,
}

impl BackRing {
    /// Attaches to a ring the frontend has laid out. A ring whose indexes are not zero is taken up where its
    /// `rsp_prod` stands (`BACK_RING_ATTACH`): everything after it is unanswered.
    ///
    /// # Errors
    /// [`RingBroken`] when more requests are outstanding than the ring can hold.
    pub fn attach(pages: Pages, slot_size: usize) -> Result<BackRing, RingBroken> {
        let rsp_prod = pages.load_acquire(RSP_PROD);
        BackRing::attach_at(pages, slot_size, rsp_prod, rsp_prod)
    }

    /// Attaches with indexes that a journal kept.
    ///
    /// # Errors
    /// As [`BackRing::attach`].
    pub fn attach_at(pages: Pages, slot_size: usize, req_cons: u32, rsp_prod: u32) -> Result<BackRing, RingBroken> {
        let ring = BackRing { layout: Layout::new(pages, slot_size), req_cons, rsp_prod, published: rsp_prod };
        ring.unconsumed()?;
        Ok(ring)
    }

    /// Slots in the ring.
    pub fn entries(&self) -> u32 {
        self.layout.entries()
    }

    /// Index of the next request to take.
    pub fn req_cons(&self) -> u32 {
        self.req_cons
    }

    /// Index of the next response to give.
    pub fn rsp_prod(&self) -> u32 {
        self.rsp_prod
    }

    /// Requests waiting to be taken.
    ///
    /// # Errors
    /// [`RingBroken`] when the frontend's index is impossible.
    #[inline]
    pub fn unconsumed(&self) -> Result<u32, RingBroken> {
        let producer = self.layout.pages.load_acquire(REQ_PROD);
        // Everything between rsp_prod and req_prod is outstanding; the frontend may have at most a ring of that.
        let outstanding = producer.wrapping_sub(self.rsp_prod);
        let taken = self.req_cons.wrapping_sub(self.rsp_prod);
        if outstanding > self.layout.entries() || outstanding < taken {
            return Err(RingBroken { producer, ours: self.req_cons, entries: self.layout.entries() });
        }
        Ok(outstanding - taken)
    }

    /// Copies the next request out, once, and moves on. Ask [`BackRing::unconsumed`] first.
    #[inline]
    pub fn take(&mut self, to: &mut [u8]) {
        let offset = self.layout.slot(self.req_cons);
        self.layout.pages.read(offset, &mut to[..self.layout.slot_size]);
        self.req_cons = self.req_cons.wrapping_add(1);
    }

    /// The same into a record from byte `at` on, zeros behind a shorter slot.
    ///
    /// # Panics
    /// When a slot is longer than what is left of the record.
    #[inline(always)]
    pub(crate) fn take_to<const STRIDE: usize>(&mut self, to: Record<'_, STRIDE>, at: usize) {
        match &self.layout.wide {
            Some(slots) => to.copy(at, slots.record((self.req_cons & self.layout.mask) as usize)),
            None => to.store_all(at, &self.layout.narrow(self.req_cons)),
        }
        self.req_cons = self.req_cons.wrapping_add(1);
    }

    /// [`BackRing::respond`] with the first `len` bytes of two words, or with all of them where the slot has padding
    /// behind them.
    #[inline(always)]
    pub fn respond_words(&mut self, response: [u64; 2], len: usize) {
        match &self.layout.wide {
            Some(slots) => slots.record((self.rsp_prod & self.layout.mask) as usize).store_all(0, &response),
            None => self.layout.write_narrow(self.rsp_prod, response, len),
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Writes the next response; it is not visible before [`BackRing::publish`].
    #[inline]
    pub fn respond(&mut self, response: &[u8]) {
        debug_assert!(response.len() <= self.layout.slot_size);
        let offset = self.layout.slot(self.rsp_prod);
        self.layout.pages.write(offset, response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Makes all responses visible and says whether the frontend wants to be told (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.rsp_prod);
        push(&self.layout.pages, RSP_PROD, RSP_EVENT, old, self.rsp_prod)
    }

    /// Before sleeping: asks to be told of the next request, then looks once more (`RING_FINAL_CHECK_FOR_REQUESTS`).
    /// True when there is work after all.
    ///
    /// # Errors
    /// As [`BackRing::unconsumed`].
    #[inline]
    pub fn final_check(&mut self) -> Result<bool, RingBroken> {
        self.final_check_for(1)
    }

    /// The same when `wanted` requests are needed at once: with fewer nothing could be done.
    ///
    /// # Errors
    /// As [`BackRing::unconsumed`].
    #[inline]
    pub fn final_check_for(&mut self, wanted: u32) -> Result<bool, RingBroken> {
        if self.unconsumed()? >= wanted {
            return Ok(true);
        }
        self.layout.pages.store_release(REQ_EVENT, self.req_cons.wrapping_add(wanted));
        // The store must be visible before the peer's index is read again, or both sides may go to sleep.
        fence(Ordering::SeqCst);
        Ok(self.unconsumed()? >= wanted)
    }
}

/// The frontend's half: gives requests, takes responses.
pub struct FrontRing {
    layout: Layout,
    req_prod: u32,
    published: u32,
    rsp_cons: u32,
}

impl FrontRing {
    /// Lays out a fresh ring (`SHARED_RING_INIT`, `FRONT_RING_INIT`).
    pub fn new(pages: Pages, slot_size: usize) -> FrontRing {
        FrontRing::new_at(pages, slot_size, 0)
    }

    /// Lays out a ring whose indexes start at `index`: a backend must cope with any.
    pub fn new_at(pages: Pages, slot_size: usize, index: u32) -> FrontRing {
        pages.zero(0, SLOTS_AT);
        pages.store_release(REQ_EVENT, index.wrapping_add(1));
        pages.store_release(RSP_EVENT, index.wrapping_add(1));
        pages.store_release(RSP_PROD, index);
        pages.store_release(REQ_PROD, index);
        FrontRing { layout: Layout::new(pages, slot_size), req_prod: index, published: index, rsp_cons: index }
    }

    /// Slots in the ring.
    pub fn entries(&self) -> u32 {
        self.layout.entries()
    }

    /// Requests that may still be put.
    #[inline]
    pub fn free(&self) -> u32 {
        self.layout.entries() - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes the next request, invisible before [`FrontRing::push`]. The caller has checked [`FrontRing::free`].
    #[inline]
    pub fn put(&mut self, request: &[u8]) {
        debug_assert!(self.free() > 0 && request.len() <= self.layout.slot_size);
        let offset = self.layout.slot(self.req_prod);
        self.layout.pages.write(offset, request);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Makes the requests visible and says whether the backend wants to be told.
    #[inline]
    pub fn push(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.req_prod);
        push(&self.layout.pages, REQ_PROD, REQ_EVENT, old, self.req_prod)
    }

    /// Responses waiting.
    ///
    /// # Errors
    /// [`RingBroken`] when the backend claims more responses than there were requests.
    #[inline]
    pub fn unconsumed(&self) -> Result<u32, RingBroken> {
        let producer = self.layout.pages.load_acquire(RSP_PROD);
        let waiting = producer.wrapping_sub(self.rsp_cons);
        if waiting > self.published.wrapping_sub(self.rsp_cons) {
            return Err(RingBroken { producer, ours: self.rsp_cons, entries: self.layout.entries() });
        }
        Ok(waiting)
    }

    /// Copies the next response out, once. Ask [`FrontRing::unconsumed`] first.
    #[inline]
    pub fn take(&mut self, to: &mut [u8]) {
        let offset = self.layout.slot(self.rsp_cons);
        self.layout.pages.read(offset, to);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
    }

    /// Asks to be told of the next response, then looks once more. True when there is one.
    ///
    /// # Errors
    /// As [`FrontRing::unconsumed`].
    #[inline]
    pub fn final_check(&mut self) -> Result<bool, RingBroken> {
        if self.unconsumed()? > 0 {
            return Ok(true);
        }
        self.layout.pages.store_release(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        // As in BackRing::final_check.
        fence(Ordering::SeqCst);
        Ok(self.unconsumed()? > 0)
    }
}

/// Publishes `new` as a producer index and compares with the other side's event index.
#[inline]
fn push(pages: &Pages, producer: usize, event: usize, old: u32, new: u32) -> bool {
    pages.store_release(producer, new);
    // The index must be visible before the event index is read: the other side does the two the other way round.
    fence(Ordering::SeqCst);
    let event = pages.load_acquire(event);
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

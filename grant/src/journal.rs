//! What a queue needs to be rebuilt after its worker died: the frozen parameters, both ring indexes, and a private
//! copy of every request that was taken and not answered. A memfd, kept by the supervisor's parent.
//!
//! Responses overwrite requests in the shared ring, so the ring alone never tells what was in flight.
//!
//! ```text
//! 0      header: magic, version, slots, slot size, pool entry size, parameter length, req_cons, rsp_prod
//! 64     parameters (JSON of the device crate), to the next page
//! ...    slots: one state byte and the request, SLOT bytes each
//! ...    pool: one entry per slot for what does not fit (indirect segments); untouched pages cost nothing
//! ```
//!
//! Crash points: a slot is `TAKEN` before the request is looked at, `SUBMITTED` before the kernel has it, `DONE` with
//! status and response index before the response is written, `FREE` after it is published.

use std::io;
use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::pages::{Record, Records};
use crate::ring::{BackRing, WIDE_WORDS};
use crate::{PAGE_SIZE, Pages, memfd};

/// Version of the layout; another one is refused.
pub const VERSION: u32 = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"WINDSORJ");
const PARAMETERS_AT: usize = 64;
const REQ_CONS: usize = 32;
const RSP_PROD: usize = 36;
/// Bytes of a slot: state, status, response index, request.
pub const SLOT: usize = 128;
/// Largest request that fits.
pub const MAX_REQUEST: usize = SLOT - REQUEST_AT;
const STATUS_AT: usize = 2;
const INDEX_AT: usize = 4;
/// Aligned to what moves at a time.
const REQUEST_AT: usize = 16;
/// Longest parameters.
const MAX_PARAMETERS: usize = 1 << 20;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// Empty, or answered and published.
    Free = 0,
    /// Copied out of the ring.
    Taken = 1,
    /// Handed to the disk.
    Submitted = 2,
    /// Ended; the status and the index of the response stand beside it.
    Done = 3,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    slots: u32,
    slot_size: u32,
    pool_entry: u32,
    parameters: u32,
    pad: u32,
}

/// One queue's journal, mapped.
pub struct Journal {
    pages: Pages,
    head: Records<PARAMETERS_AT>,
    slots: Records<SLOT>,
    count: u32,
    slots_at: usize,
    pool_at: usize,
    pool_entry: usize,
}

/// One slot, whose number was checked when it was asked for: the private copy of a request, which nobody writes any more,
/// and how far it has come.
#[derive(Clone, Copy)]
pub struct Slot<'a>(Record<'a, SLOT>);

impl Slot<'_> {
    /// Word `at` of the request.
    ///
    /// # Panics
    /// When there are not so many.
    #[inline(always)]
    pub fn word(self, at: usize) -> u64 {
        self.0.load(REQUEST_AT + at * 8)
    }

    /// All of them.
    pub fn words(self) -> [u64; WIDE_WORDS] {
        std::array::from_fn(|at| self.word(at))
    }

    /// Notes how far the request has come.
    #[inline(always)]
    pub fn set_state(self, state: SlotState) {
        self.0.store(0, state as u64);
    }

    /// Notes that it has ended: its status, and the index its response will have.
    #[inline(always)]
    pub fn set_done(self, status: i16, response: u32) {
        let (status, index) = (u64::from(status as u16), u64::from(response));
        // One word, so that nobody finds one without the others.
        self.0.store(0, SlotState::Done as u64 | status << (8 * STATUS_AT) | index << (8 * INDEX_AT));
    }
}

fn layout(parameters: usize, slots: usize) -> (usize, usize) {
    let slots_at = (PARAMETERS_AT + parameters).next_multiple_of(PAGE_SIZE);
    (slots_at, (slots_at + slots * SLOT).next_multiple_of(PAGE_SIZE))
}

/// Makes a journal for `slots` requests, with `pool_entry` extra bytes each.
///
/// # Errors
/// `EINVAL` for parameters over 1 MiB or no slots; what the kernel says.
pub fn create(parameters: &[u8], slots: u32, pool_entry: u32) -> io::Result<OwnedFd> {
    if parameters.len() > MAX_PARAMETERS || slots == 0 || slots > u32::from(u16::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let (_, pool_at) = layout(parameters.len(), slots as usize);
    let len = (pool_at + slots as usize * pool_entry as usize).next_multiple_of(PAGE_SIZE);
    let fd = memfd::create(c"windsor-journal", len)?;
    let memory = memfd::map(fd.try_clone()?)?;
    let pages = memory.pages();
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        slots,
        slot_size: SLOT as u32,
        pool_entry,
        parameters: parameters.len() as u32,
        pad: 0,
    };
    pages.write(PARAMETERS_AT, parameters);
    pages.store(0, &header);
    Ok(fd)
}

impl Journal {
    /// Maps a journal and checks its head against its size.
    ///
    /// # Errors
    /// `EINVAL` for something that is no journal of this version.
    pub fn open(fd: OwnedFd) -> io::Result<Journal> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let memory = memfd::map(fd)?;
        let pages = memory.pages();
        if pages.len() < PAGE_SIZE {
            return Err(invalid());
        }
        let header: Header = pages.load(0);
        let known = header.magic == MAGIC && header.version == VERSION && header.slot_size as usize == SLOT;
        let sane =
            header.parameters as usize <= MAX_PARAMETERS && header.slots > 0 && header.slots <= u32::from(u16::MAX);
        if !known || !sane {
            return Err(invalid());
        }
        let (slots_at, pool_at) = layout(header.parameters as usize, header.slots as usize);
        let pool_entry = header.pool_entry as usize;
        match pool_entry.checked_mul(header.slots as usize).and_then(|pool| pool.checked_add(pool_at)) {
            Some(end) if end <= pages.len() => {}
            _ => return Err(invalid()),
        }
        let head = Records::new(&pages, 0, 1).ok_or_else(invalid)?;
        let slots = Records::new(&pages, slots_at, header.slots as usize).ok_or_else(invalid)?;
        Ok(Journal { pages, head, slots, count: header.slots, slots_at, pool_at, pool_entry })
    }

    /// The frozen parameters.
    pub fn parameters(&self) -> Vec<u8> {
        let header: Header = self.pages.load(0);
        let mut bytes = vec![0; (header.parameters as usize).min(MAX_PARAMETERS)];
        self.pages.read(PARAMETERS_AT, &mut bytes);
        bytes
    }

    /// Requests it holds.
    pub fn slots(&self) -> u32 {
        self.count
    }

    #[inline]
    fn offset(&self, slot: u16) -> usize {
        debug_assert!(u32::from(slot) < self.count);
        self.slots_at + usize::from(slot) * SLOT
    }

    /// Takes the ring's next request into a slot and marks it taken.
    #[inline(always)]
    pub fn take(&self, slot: u16, ring: &mut BackRing) -> Slot<'_> {
        let slot = self.slot(slot);
        ring.take_to(slot.0, REQUEST_AT);
        slot.set_state(SlotState::Taken);
        self.head.first().store_half(REQ_CONS, ring.req_cons());
        slot
    }

    /// A slot, to be worked on word by word.
    ///
    /// # Panics
    /// When there is no such slot.
    #[inline(always)]
    pub fn slot(&self, slot: u16) -> Slot<'_> {
        Slot(self.slots.record(usize::from(slot)))
    }

    /// The private copy of a request.
    #[inline]
    pub fn request<T: FromBytes + IntoBytes>(&self, slot: u16) -> T {
        debug_assert!(size_of::<T>() <= MAX_REQUEST);
        self.pages.load(self.offset(slot) + REQUEST_AT)
    }

    /// State, status and response index of a slot; `None` for a state that does not exist.
    pub fn slot_state(&self, slot: u16) -> Option<(SlotState, i16, u32)> {
        let at = self.offset(slot);
        let state = match self.pages.load::<u8>(at) {
            0 => SlotState::Free,
            1 => SlotState::Taken,
            2 => SlotState::Submitted,
            3 => SlotState::Done,
            _ => return None,
        };
        Some((state, self.pages.load(at + STATUS_AT), self.pages.load(at + INDEX_AT)))
    }

    /// Notes that the responses up to `rsp_prod` are visible to the frontend.
    #[inline]
    pub fn set_published(&self, rsp_prod: u32) {
        self.head.first().store_half(RSP_PROD, rsp_prod);
    }

    /// Notes where a ring stood when it was attached.
    pub fn set_indexes(&self, req_cons: u32, rsp_prod: u32) {
        self.pages.store_release(REQ_CONS, req_cons);
        self.pages.store_release(RSP_PROD, rsp_prod);
    }

    /// `req_cons` and `rsp_prod` as last noted.
    pub fn indexes(&self) -> (u32, u32) {
        (self.pages.load_acquire(REQ_CONS), self.pages.load_acquire(RSP_PROD))
    }

    /// Writes into a slot's pool entry.
    ///
    /// # Panics
    /// When it does not fit.
    #[inline]
    pub fn write_pool(&self, slot: u16, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.pool_entry);
        self.pages.write(self.pool_at + usize::from(slot) * self.pool_entry + offset, bytes);
    }

    /// Reads from a slot's pool entry.
    ///
    /// # Panics
    /// When it is not all there.
    #[inline]
    pub fn read_pool(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.pool_entry);
        self.pages.read(self.pool_at + usize::from(slot) * self.pool_entry + offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_found_again_as_it_was_left() {
        let fd = create(b"{\"abi\":1}", 32, 2048).unwrap();
        let first = Journal::open(fd.try_clone().unwrap()).unwrap();
        first.set_indexes(7, 5);
        first.slot(3).set_state(SlotState::Submitted);
        first.slot(31).set_done(-1, 6);
        first.write_pool(31, 2040, b"segments");
        let again = Journal::open(fd).unwrap();
        assert_eq!(again.parameters(), b"{\"abi\":1}");
        assert_eq!(again.indexes(), (7, 5));
        assert_eq!(again.slot_state(3), Some((SlotState::Submitted, 0, 0)));
        assert_eq!(again.slot_state(31), Some((SlotState::Done, -1, 6)));
        let mut bytes = [0; 8];
        again.read_pool(31, 2040, &mut bytes);
        assert_eq!(&bytes, b"segments");
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        assert!(create(b"", 0, 0).is_err());
        let other = memfd::create(c"other", PAGE_SIZE).unwrap();
        assert!(Journal::open(other).is_err());
        let lying = memfd::create(c"lying", PAGE_SIZE).unwrap();
        let memory = memfd::map(lying.try_clone().unwrap()).unwrap();
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            slots: 60_000,
            slot_size: SLOT as u32,
            pool_entry: u32::MAX,
            parameters: 8,
            pad: 0,
        };
        memory.pages().store(0, &header);
        assert!(Journal::open(lying).is_err());
    }
}

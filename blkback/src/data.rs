//! Where the data of a queue's requests is: in the guest's own pages (zero copy), or in the arena with copies to and
//! from them. Both paths are first-class (DESIGN, "Zero copy is for PVH"); a request takes the arena too when one of
//! its pages found no room in the persistent-grant table.
//!
//! Per request the order is: [`Data::set_segments`] or [`Data::fetch_indirect`], [`Data::locate`], [`Data::map`],
//! [`Data::prepare`], [`Data::copy_in`]; then the disk; then [`Data::copy_out`], [`Data::finish_copies`],
//! [`Data::release`]. Everything is batched: one map call and one copy call for many requests.

mod at_once;
mod copies;
mod locate;
mod one;
mod spare;

use std::io;
use std::time::{Duration, Instant};

use grant::memory::{RegionId, Span};
use grant::persistent::{MaybePlace, PersistentTable, Place};
use grant::uring::{MemoryId, Uring};
use grant::{Access, CopyDirection, CopySegment, GrantRef, GrantStatus, Grants, MAX_MAP, PAGE_SIZE, Pages, memfd};

use zerocopy::FromZeros;

use crate::config::Transient;
use crate::proto::{BlkifRequestSegment, SEGMENTS_PER_PAGE};
use crate::request::Segment;
use crate::transient::{Chooser, Method};
pub use one::One;
use spare::Spare;

/// What a queue's data path is made of.
pub struct Setup {
    /// The peer's pages.
    pub grants: Box<dyn Grants>,
    /// The queue's memory in the ring.
    pub memory: MemoryId,
    /// Requests in flight at most.
    pub slots: usize,
    /// Segments a request has at most.
    pub segments: usize,
    /// Pages the persistent-grant table may hold mapped; 0 for frontends that are not persistent.
    pub max_persistent: usize,
    /// I/O may touch grant mappings.
    pub zero_copy: bool,
    /// How pages are reached that are not kept mapped, where I/O may touch mappings.
    pub transient: Option<Transient>,
    /// Register memory with the ring where possible.
    pub fixed: bool,
}

/// What one request holds.
#[derive(Clone, Copy, Default)]
struct Held {
    segments: u16,
    /// 1 in the arena, else one per segment; 0 until they are known.
    spans: u16,
    arena: Option<Span>,
    /// The part of `arena` that is the request's data.
    data: Option<Span>,
    /// The page with its segments: where it is mapped, or the scratch page it is copied to.
    indirect: Option<Place>,
    indirect_page: Option<(GrantRef, u16)>,
    /// A grant copy for this request failed.
    failed: bool,
    /// It holds more than pages of the table, or has failed: see below.
    more: bool,
    /// Its pages, mapped for as long as it lasts, and what mapping them took.
    transient: Option<(RegionId, Duration)>,
}

/// The memory of one queue's requests.
pub struct Data {
    grants: Box<dyn Grants>,
    memory: MemoryId,
    per_slot: usize,
    table: PersistentTable,
    scratch: Pages,
    zero_copy: bool,
    fixed: bool,
    transient: Option<Chooser>,
    segments: Vec<Segment>,
    places: Vec<MaybePlace>,
    spans: Vec<Span>,
    held: Vec<Held>,
    /// Requests with memory of the arena's.
    in_arena: usize,
    spare: Option<Spare>,
    building: Option<u16>,
    /// Requests whose places may name the slab being built.
    unsettled: Vec<u16>,
    copies: Vec<CopySegment>,
    owners: Vec<u16>,
    /// Bytes moved by memcpy since asked last.
    pub memcpy_bytes: u64,
    /// Bytes moved by grant copy since asked last.
    pub copied_bytes: u64,
    /// Pages moved either way since asked last.
    pub pages_copied: u64,
}

/// Bytes that a request's memory has besides its data (see [`crate::disk::Edges`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// In front of it.
    pub before: u32,
    /// Behind it.
    pub after: u32,
}

/// Mappings given up that may wait for something slow to end; with more than that no others are given up, and grants
/// that find no room are copied.
const MAX_RETIRED: usize = 16;

fn zeroed<T: FromZeros>(count: usize) -> io::Result<Vec<T>> {
    T::new_vec_zeroed(count).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// A request found no memory now; it comes again when another one has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// A segment's bytes where its page is mapped.
#[inline]
fn named(segment: &Segment, region: RegionId, place: Place) -> Span {
    let offset = u32::from(place.page) * PAGE_SIZE as u32 + segment.span.offset();
    Span { region, offset, len: segment.span.len() }
}

impl Data {
    /// Sets everything aside that requests will need; nothing is allocated afterwards.
    ///
    /// # Errors
    /// What the kernel says about memory.
    pub fn new(setup: Setup) -> io::Result<Data> {
        let total = setup.slots * setup.segments;
        Ok(Data {
            grants: setup.grants,
            memory: setup.memory,
            per_slot: setup.segments,
            table: PersistentTable::new(setup.max_persistent),
            scratch: memfd::anonymous(crate::queue::BATCH * PAGE_SIZE)?.pages(),
            zero_copy: setup.zero_copy,
            fixed: setup.fixed,
            transient: setup.transient.map(Chooser::new),
            // Zeroed pages of the kernel's: what is never in flight is never touched.
            segments: zeroed(total)?,
            places: zeroed(total)?,
            spans: zeroed(total)?,
            held: vec![Held::default(); setup.slots],
            in_arena: 0,
            spare: None,
            building: None,
            unsettled: Vec::with_capacity(setup.slots),
            copies: Vec::with_capacity((crate::queue::BATCH * setup.segments).min(total)),
            owners: Vec::with_capacity((crate::queue::BATCH * setup.segments).min(total)),
            memcpy_bytes: 0,
            copied_bytes: 0,
            pages_copied: 0,
        })
    }

    /// What mapping and copying has cost so far.
    pub fn grants(&self) -> &dyn Grants {
        self.grants.as_ref()
    }

    /// True when the arena is registered with the ring.
    pub fn arena_is_fixed(&self, ring: &Uring) -> bool {
        ring.memory(self.memory).is_fixed(RegionId::ARENA)
    }

    fn base(&self, slot: u16) -> usize {
        usize::from(slot) * self.per_slot
    }

    /// A request's segments.
    #[inline]
    pub fn segments(&self, slot: u16) -> &[Segment] {
        let base = self.base(slot);
        &self.segments[base..base + usize::from(self.held[usize::from(slot)].segments)]
    }

    /// A request's memory, once it is prepared.
    #[inline]
    pub fn spans(&self, slot: u16) -> &[Span] {
        let base = self.base(slot);
        &self.spans[base..base + usize::from(self.held[usize::from(slot)].spans)]
    }

    /// True while a request has memory that its data is copied to or from.
    #[inline]
    pub fn copies(&self) -> bool {
        self.in_arena > 0 || self.spare.is_some()
    }

    /// Takes over the segments of a direct request.
    #[inline]
    pub fn set_segments(&mut self, slot: u16, segments: &[Segment]) {
        let base = self.base(slot);
        self.segments[base..base + segments.len()].copy_from_slice(segments);
        self.held[usize::from(slot)] = Held { segments: segments.len() as u16, ..Held::default() };
    }

    /// Asks for the page with a request's segments; [`Data::map`] and [`Data::copy_indirect`] bring them.
    pub fn want_indirect(&mut self, slot: u16, page: GrantRef, scratch: usize, ring: &mut Uring) {
        let indirect_page = Some((page, scratch as u16));
        self.held[usize::from(slot)] = Held { indirect_page, more: true, ..Held::default() };
        self.unsettled.push(slot);
        let place = self.place(slot, page, ring);
        self.held[usize::from(slot)].indirect = place;
        if place.is_none() {
            self.copy_indirect_page(slot);
        }
    }

    fn copy_indirect_page(&mut self, slot: u16) {
        if let Some((gref, scratch)) = self.held[usize::from(slot)].indirect_page {
            let local = usize::from(scratch) * PAGE_SIZE;
            self.copies.push(CopySegment { gref, offset: 0, len: PAGE_SIZE as u16, local, status: GrantStatus::OKAY });
            self.owners.push(slot);
        }
    }

    /// Brings the indirect pages that are not mapped, in one call.
    pub fn copy_indirect(&mut self) {
        let scratch = self.scratch.clone();
        self.run_copies(CopyDirection::FromPeer, &scratch);
    }

    /// Reads a request's segments from its indirect page, once, and checks them. `raw` gets the private copy.
    ///
    /// # Errors
    /// When the page could not be had, or a segment is impossible.
    pub fn fetch_indirect(
        &mut self,
        slot: u16,
        count: usize,
        scratch: usize,
        raw: &mut [BlkifRequestSegment; SEGMENTS_PER_PAGE],
        ring: &Uring,
    ) -> Result<(), &'static str> {
        let held = &mut self.held[usize::from(slot)];
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut raw[..count]);
        match held.indirect.take() {
            Some(place) => {
                let region = self.table.region(place.slab).ok_or("its page is not mapped")?;
                let pages = ring.memory(self.memory).pages(region).ok_or("its page is not mapped")?;
                pages.read(usize::from(place.page) * PAGE_SIZE, bytes);
                self.table.release(place);
            }
            None if held.failed => {
                held.failed = false;
                return Err("its page could not be copied");
            }
            None => self.scratch.read(scratch * PAGE_SIZE, bytes),
        }
        self.held[usize::from(slot)].indirect_page = None;
        let base = self.base(slot);
        for (to, wire) in self.segments[base..base + count].iter_mut().zip(raw.iter()) {
            *to = Segment::parse(wire).ok_or("impossible sectors in an indirect segment")?;
        }
        self.held[usize::from(slot)].segments = count as u16;
        Ok(())
    }

    /// Gives a request its memory; a write's data is on its way to it. With `around` the memory is the arena's, and
    /// has room before and after the data.
    ///
    /// # Errors
    /// [`NoMemory`] when the arena is full.
    #[inline]
    pub fn prepare(
        &mut self,
        slot: u16,
        len: u32,
        write: bool,
        around: Option<Around>,
        ring: &mut Uring,
    ) -> Result<(), NoMemory> {
        let base = self.base(slot);
        let count = usize::from(self.held[usize::from(slot)].segments);
        if count == 0 {
            self.held[usize::from(slot)].spans = 0;
            return Ok(());
        }
        // Most were named when they were found.
        let named = usize::from(self.held[usize::from(slot)].spans) == count;
        if self.zero_copy && around.is_none() && (named || self.name_guest_pages(base, count)) {
            self.held[usize::from(slot)].spans = count as u16;
            return Ok(());
        }
        if around.is_none() && self.map_transient(slot, write, ring) {
            return Ok(());
        }
        let Around { before, after } = around.unwrap_or_default();
        let run = self.take_run(slot, before + len + after, ring).ok_or(NoMemory)?;
        let data = Span { offset: run.offset + before, len, ..run };
        self.spans[base] = run;
        let held = &mut self.held[usize::from(slot)];
        (held.spans, held.more, held.arena, held.data) = (1, true, Some(run), Some(data));
        if write {
            self.copy_segments(slot, data, true, ring);
        }
        Ok(())
    }

    /// Maps a request's pages for as long as it lasts, if that is what is done now. What cannot be mapped is copied:
    /// a copy tells which page was bad.
    fn map_transient(&mut self, slot: u16, write: bool, ring: &mut Uring) -> bool {
        let base = self.base(slot);
        let count = usize::from(self.held[usize::from(slot)].segments);
        let Some(chooser) = &mut self.transient else { return false };
        if count > MAX_MAP || chooser.choose(count) == Method::Copy {
            return false;
        }
        let begun = Instant::now();
        let mut refs = [GrantRef(0); MAX_MAP];
        for (gref, segment) in refs.iter_mut().zip(&self.segments[base..base + count]) {
            *gref = segment.gref;
        }
        // What the guest wants written it may have granted for reading only.
        let access = if write { Access::ReadOnly } else { Access::ReadWrite };
        let mapped = self.grants.map(&refs[..count], access);
        let region = mapped.ok().and_then(|memory| ring.adopt_transient(self.memory, memory).ok());
        let Some(region) = region else { return false };
        for page in 0..count {
            let span = self.segments[base + page].span;
            self.spans[base + page] =
                Span { region, offset: (page * PAGE_SIZE) as u32 + span.offset(), len: span.len() };
        }
        let held = &mut self.held[usize::from(slot)];
        (held.spans, held.more, held.transient) = (count as u16, true, Some((region, begun.elapsed())));
        true
    }

    /// Makes a request's memory of its pages; false when one of them is not mapped.
    #[inline]
    fn name_guest_pages(&mut self, base: usize, count: usize) -> bool {
        let places = self.places[base..base + count].iter().zip(&self.segments[base..base + count]);
        for ((place, segment), to) in places.zip(&mut self.spans[base..base + count]) {
            let Some(place) = place.get() else { return false };
            let Some(region) = self.table.region(place.slab) else { return false };
            *to = named(segment, region, place);
        }
        true
    }

    /// True when a copy for this request failed: a reference was bad.
    #[inline]
    pub fn failed(&self, slot: u16) -> bool {
        self.held[usize::from(slot)].failed
    }

    /// Gives everything back that a request holds.
    #[inline(always)]
    pub fn release(&mut self, slot: u16, ring: &mut Uring) {
        let base = self.base(slot);
        let held = &mut self.held[usize::from(slot)];
        let segments = usize::from(std::mem::take(&mut held.segments));
        let more = held.more;
        self.release_places(base, segments);
        if more {
            self.release_more(slot, segments, ring);
        }
    }

    fn release_more(&mut self, slot: u16, segments: usize, ring: &mut Uring) {
        let Held { arena, transient, indirect, .. } = std::mem::take(&mut self.held[usize::from(slot)]);
        if let Some(run) = arena {
            self.give_run(run, ring);
        }
        if let Some((region, mapping)) = transient {
            self.unmap_transient(region, segments, mapping, ring);
        }
        if let Some(place) = indirect {
            self.table.release(place);
        }
    }

    /// The response comes after this: a stock frontend gives its disk up over a page that is still mapped then.
    fn unmap_transient(&mut self, region: RegionId, pages: usize, mapping: Duration, ring: &mut Uring) {
        let begun = Instant::now();
        if let Err(error) = ring.unmap_now(self.memory, region) {
            tracing::error!(%error, "unmapping a request's pages failed");
        }
        if let Some(chooser) = &mut self.transient {
            chooser.mapped(pages, mapping + begun.elapsed());
        }
    }
}

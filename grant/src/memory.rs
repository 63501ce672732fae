//! The memory an io_uring may be reading or writing: grant mappings and arenas, owned per queue.
//!
//! The rule is "whoever submits owns": a mapping is *adopted* here, operations name it by [`Span`], and giving it
//! up ([`crate::uring::Uring::retire`]) unmaps it only after every operation that was in flight at that moment has ended. Each
//! operation belongs to a generation; retiring closes the current one. Retiring is rare, so the cost for an
//! operation is two additions.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use zerocopy::FromZeros;

use crate::uring::BufferTable;
use crate::{Pages, SharedMemory};

/// Names an adopted mapping of one queue, or the thread's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromZeros)]
#[repr(transparent)]
pub struct RegionId(pub(crate) u16);

impl RegionId {
    /// The arena, which all queues of a thread share.
    pub const ARENA: RegionId = RegionId(u16::MAX);
}

/// `len` bytes at `offset` of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct Span {
    /// The mapping.
    pub region: RegionId,
    /// First byte in it.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// Nothing, in no particular place: the filler of span tables.
    pub const EMPTY: Span = Span { region: RegionId(0), offset: 0, len: 0 };

    /// True when `next` continues this span in memory.
    #[inline]
    pub fn continues(&self, next: &Span) -> bool {
        self.region == next.region && self.offset + self.len == next.offset
    }
}

struct Region {
    /// Dropped after its buffer was taken out of the ring's table, see `Memory::free`.
    memory: SharedMemory,
    mapped: Mapped,
    /// For one request only, which will be unmapped on the spot: operations on it name nothing else and are counted.
    transient: bool,
    users: u32,
}

/// All memory of one queue. Lives inside [`crate::uring::Uring`], which alone may submit operations on it.
pub struct Memory {
    regions: Vec<Option<Region>>,
    vacant: Vec<u16>,
    /// In flight of the newest generation, and its number.
    newest: u32,
    number: u64,
    /// In flight of the generations before it, the oldest first: none while nothing was given up.
    older: VecDeque<u32>,
    retired: VecDeque<(u64, Region)>,
    refused: bool,
    transients: u32,
    /// The thread's: the ring keeps it mapped for as long as it lives.
    arena: Option<Rc<Mapped>>,
}

/// Where a mapping is, and the fixed buffer that it is registered as, if it is.
pub(crate) struct Mapped {
    pub(crate) pages: Pages,
    pub(crate) buffer: Cell<Option<u16>>,
}

/// Most regions of one queue: slabs of persistent grants. The last number is [`RegionId::ARENA`].
pub const MAX_REGIONS: usize = u16::MAX as usize;

impl Memory {
    pub(crate) fn new(arena: Option<Rc<Mapped>>) -> Memory {
        Memory {
            arena,
            regions: Vec::new(),
            vacant: Vec::new(),
            newest: 0,
            number: 0,
            older: VecDeque::new(),
            retired: VecDeque::new(),
            refused: false,
            transients: 0,
        }
    }

    /// Takes a mapping over, and registers it as a fixed buffer if that is wanted and works.
    ///
    /// # Errors
    /// Gives the mapping back when there are [`MAX_REGIONS`] already.
    pub(crate) fn adopt(
        &mut self,
        memory: SharedMemory,
        fixed: bool,
        table: &mut BufferTable<'_>,
    ) -> Result<RegionId, SharedMemory> {
        let index = match self.vacant.pop() {
            Some(index) => index,
            None if self.regions.len() < MAX_REGIONS => {
                self.regions.push(None);
                (self.regions.len() - 1) as u16
            }
            None => return Err(memory),
        };
        let pages = memory.pages();
        let wanted = fixed && !self.refused;
        let buffer = if wanted { table.insert(&pages) } else { None };
        // A refusal is about the kind of mapping or the memlock limit: asking again for each slab is a waste.
        self.refused |= wanted && buffer.is_none();
        let mapped = Mapped { pages, buffer: Cell::new(buffer) };
        self.regions[usize::from(index)] = Some(Region { memory, mapped, transient: false, users: 0 });
        Ok(RegionId(index))
    }

    /// Takes a mapping over for one request. Every operation on it stays within it, so that its end is known: see
    /// [`Memory::unmap_now`].
    ///
    /// # Errors
    /// As [`Memory::adopt`].
    pub(crate) fn adopt_transient(
        &mut self,
        memory: SharedMemory,
        table: &mut BufferTable<'_>,
    ) -> Result<RegionId, SharedMemory> {
        let id = self.adopt(memory, false, table)?;
        if let Some(region) = &mut self.regions[usize::from(id.0)] {
            region.transient = true;
        }
        self.transients += 1;
        Ok(id)
    }

    /// Unmaps a transient mapping that no operation uses any more, whatever else is in flight.
    pub(crate) fn unmap_now(&mut self, id: RegionId, table: &mut BufferTable<'_>) -> io::Result<()> {
        let place = self.regions.get_mut(usize::from(id.0)).ok_or(io::ErrorKind::NotFound)?;
        match place {
            Some(region) if region.transient && region.users == 0 => {}
            _ => return Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
        let Some(region) = place.take() else { return Ok(()) };
        self.vacant.push(id.0);
        self.transients -= 1;
        Memory::free(region, table)
    }

    /// Mappings that were given up and wait for operations to end.
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Counts an operation on `whole`, the one region that it is about, if that is a transient one.
    ///
    /// # Panics
    /// When an operation on several regions names a transient one: its end would not be known.
    #[inline]
    pub(crate) fn uses(&mut self, whole: Option<RegionId>, spans: &[Span]) -> Option<RegionId> {
        if self.transients == 0 {
            return None;
        }
        let Some(id) = whole else {
            assert!(spans.iter().all(|span| !self.is_transient(span.region)), "a transient region among others");
            return None;
        };
        let region = self.regions.get_mut(usize::from(id.0))?.as_mut().filter(|region| region.transient)?;
        region.users += 1;
        Some(id)
    }

    fn is_transient(&self, id: RegionId) -> bool {
        self.regions.get(usize::from(id.0)).and_then(Option::as_ref).is_some_and(|region| region.transient)
    }

    /// An operation that [`Memory::uses`] counted has ended.
    #[inline]
    pub(crate) fn used(&mut self, id: RegionId) {
        if let Some(Some(region)) = self.regions.get_mut(usize::from(id.0)) {
            region.users -= 1;
        }
    }

    /// True when this mapping is registered as a fixed buffer.
    pub fn is_fixed(&self, region: RegionId) -> bool {
        self.buffer(region).is_some()
    }

    /// Gives a mapping up. It is unmapped now, or when the last operation in flight has ended.
    pub(crate) fn retire(&mut self, region: RegionId, table: &mut BufferTable<'_>) -> io::Result<()> {
        let index = region.0;
        let place = self.regions.get_mut(usize::from(index)).ok_or(io::ErrorKind::NotFound)?;
        // Its users count themselves down by its number, which must not be another's then.
        if place.as_ref().is_some_and(|region| region.users > 0) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let Some(region) = place.take() else { return Err(io::ErrorKind::NotFound.into()) };
        self.vacant.push(index);
        self.transients -= u32::from(region.transient);
        if self.in_flight() == 0 {
            return Memory::free(region, table);
        }
        self.retired.push_back((self.number, region));
        self.older.push_back(std::mem::take(&mut self.newest));
        self.number += 1;
        Ok(())
    }

    fn free(region: Region, table: &mut BufferTable<'_>) -> io::Result<()> {
        // A registered buffer is a long-term pin: it must go first, or the unmap waits for it (block.md F12).
        if let Some(buffer) = region.mapped.buffer.take() {
            table.remove(buffer);
        }
        drop(region.mapped);
        region.memory.unmap()
    }

    /// Operations the kernel has not ended.
    pub fn in_flight(&self) -> u32 {
        self.newest + self.older.iter().sum::<u32>()
    }

    /// Mappings held, given up ones that still wait included.
    pub fn mapped(&self) -> usize {
        self.regions.iter().flatten().count() + self.retired.len()
    }

    /// An operation starts; what is returned goes to [`Memory::ended`].
    #[inline]
    pub(crate) fn started(&mut self) -> u64 {
        self.newest += 1;
        self.number
    }

    /// The same for so many.
    pub(crate) fn started_many(&mut self, count: u32) {
        self.newest += count;
    }

    /// The lower half of what [`Memory::started`] returns until something is given up.
    pub(crate) fn generation(&self) -> u32 {
        self.number as u32
    }

    /// An operation has ended. True when that lets [`Memory::collect`] free something.
    #[inline]
    pub(crate) fn ended(&mut self, generation: u64) -> bool {
        self.count_down(generation, 1)
    }

    /// The same for so many, by the lower half of their generation: the last one that ends so is meant.
    #[inline]
    pub(crate) fn ended_many(&mut self, lower: u32, count: u32) -> bool {
        let before = (self.number as u32).wrapping_sub(lower);
        self.count_down(self.number - u64::from(before), count)
    }

    #[inline]
    fn count_down(&mut self, generation: u64, count: u32) -> bool {
        if generation == self.number {
            self.newest -= count;
            return false;
        }
        let at = (generation - self.oldest()) as usize;
        self.older[at] -= count;
        self.older[at] == 0 && at == 0
    }

    /// Number of the first generation of `older`.
    fn oldest(&self) -> u64 {
        self.number - self.older.len() as u64
    }

    /// Unmaps what was given up and is no longer touched.
    #[cold]
    pub(crate) fn collect(&mut self, table: &mut BufferTable<'_>) {
        while self.older.front() == Some(&0) {
            self.older.pop_front();
        }
        let oldest = self.oldest();
        while self.retired.front().is_some_and(|(generation, _)| *generation < oldest) {
            if let Some((_, region)) = self.retired.pop_front()
                && let Err(error) = Memory::free(region, table)
            {
                tracing::error!(%error, "unmapping retired memory failed");
            }
        }
    }

    /// The pages of a region; `None` after it was given up.
    #[inline]
    pub fn pages(&self, region: RegionId) -> Option<&Pages> {
        self.mapped_as(region).map(|mapped| &mapped.pages)
    }

    /// Where a piece of a fixed buffer is, and which buffer; `None` when its region is not one.
    ///
    /// # Panics
    /// When it is outside of its region: places are ours, never a peer's.
    #[inline(always)]
    pub(crate) fn fixed(&self, piece: Span) -> Option<(NonNull<u8>, u16)> {
        let Mapped { pages, buffer } = self.mapped_as(piece.region)?;
        let buffer = buffer.get()?;
        Some((pages.address(piece.offset as usize, piece.len as usize).expect("inside of the region"), buffer))
    }

    #[inline(always)]
    pub(crate) fn mapped_as(&self, region: RegionId) -> Option<&Mapped> {
        match self.regions.get(usize::from(region.0)) {
            Some(region) => region.as_ref().map(|region| &region.mapped),
            // Its number is beyond all of theirs.
            None => self.arena.as_deref().filter(|_| region == RegionId::ARENA),
        }
    }

    #[inline]
    pub(crate) fn buffer(&self, region: RegionId) -> Option<u16> {
        self.mapped_as(region)?.buffer.get()
    }

    /// Copies `len` bytes inside this memory.
    ///
    /// # Panics
    /// When a place is outside of its region: places are ours, never a peer's.
    #[inline]
    pub fn copy(&self, to: (RegionId, usize), from: (RegionId, usize), len: usize) {
        let (target, source) = (self.pages(to.0).expect("a live region"), self.pages(from.0).expect("a live region"));
        target.copy_from(to.1, source, from.1, len);
    }

    /// Copies what `from` is to where `to` is, which is as long.
    ///
    /// # Panics
    /// As [`Memory::copy`].
    #[inline(always)]
    pub fn copy_span(&self, to: Span, from: Span) {
        debug_assert_eq!(to.len, from.len);
        self.copy((to.region, to.offset as usize), (from.region, from.offset as usize), from.len as usize);
    }

    /// The regions that are not given up.
    pub(crate) fn region_ids(&self) -> Vec<RegionId> {
        (0..self.regions.len()).filter(|&at| self.regions[at].is_some()).map(|at| RegionId(at as u16)).collect()
    }

    /// Leaks every mapping: for a ring that is torn down while the kernel still works on it.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.regions));
        std::mem::forget(std::mem::take(&mut self.retired));
    }
}

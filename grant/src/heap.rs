//! Everything in one process, on plain heap memory: grants without mmap, event channels without a host. For unit
//! tests of what stands on the traits, and for Miri.
//!
//! What it cannot do: show pages in another order than they lie in. [`Grants::map`] takes references that follow
//! each other (as one [`GrantAccess::grant`] returns them) and refuses others with `Unsupported`; use the embedded
//! world for those.

mod ports;

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use ports::HeapPorts;

use crate::pages::Release;
use crate::xen::abi::GNTTAB_NR_RESERVED_ENTRIES;
use crate::{
    Access, CopyDirection, CopySegment, DomId, GrantAccess, GrantCounts, GrantRef, GrantStatus, Granted, Grants,
    MAX_MAP, PAGE_SIZE, Pages, Port, SharedMemory, StillMapped,
};

/// One machine with `pages` pages that its domains grant to each other; clones are the same machine.
#[derive(Clone)]
pub struct Heap {
    arena: Arc<Arena>,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Per page: who may use it, and who does. Its reference is the index plus the reserved ones.
    grants: Vec<Option<Grant>>,
    channels: BTreeMap<(DomId, Port), ports::Channel>,
    refusals: u64,
}

struct Grant {
    peer: DomId,
    access: Access,
    maps: u32,
}

/// Page-aligned zeroed memory.
struct Arena {
    address: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory, touched by raw copies and atomics only, freed when nobody holds it any more.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(pages: usize) -> Arc<Arena> {
        let size = pages.max(1).checked_mul(PAGE_SIZE).expect("a size of memory");
        let layout = Layout::from_size_align(size, PAGE_SIZE).expect("a size of memory");
        // SAFETY: the size is not zero.
        let address = unsafe { std::alloc::alloc_zeroed(layout) };
        match NonNull::new(address) {
            Some(address) => Arc::new(Arena { address, layout }),
            None => std::alloc::handle_alloc_error(layout),
        }
    }

    /// `count` pages from page `first`, which keep the arena alive.
    fn view(self: &Arc<Arena>, first: usize, count: usize, release: Box<dyn Release>) -> SharedMemory {
        let (at, len) = (first * PAGE_SIZE, count * PAGE_SIZE);
        assert!(at + len <= self.layout.size(), "pages outside of the arena");
        // SAFETY: the range is inside of the arena (checked), which `release` keeps until it is dropped; only raw
        // copies and atomics ever touch it.
        unsafe { SharedMemory::new(self.address.add(at), len, Access::ReadWrite, release) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`, and nobody holds it any more.
        unsafe { std::alloc::dealloc(self.address.as_ptr(), self.layout) }
    }
}

/// Keeps an arena.
struct Keep {
    _arena: Arc<Arena>,
}

impl Release for Keep {
    fn release(&mut self, _: NonNull<u8>, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// Zeroed pages of nobody's but ours: what a backend copies to and from.
pub fn pages(count: usize) -> SharedMemory {
    let arena = Arena::new(count);
    arena.view(0, count, Box::new(Keep { _arena: Arc::clone(&arena) }))
}

impl Heap {
    /// A machine with so many pages to grant.
    pub fn new(pages: usize) -> Heap {
        let grants = std::iter::repeat_with(|| None).take(pages).collect();
        let state = State { grants, channels: BTreeMap::new(), refusals: 0 };
        Heap { arena: Arena::new(pages), state: Arc::new(Mutex::new(state)) }
    }

    /// A frontend's way to give pages.
    pub fn access(&self) -> HeapAccess {
        HeapAccess { heap: self.clone() }
    }

    /// The way of `us` to what is granted to it. There is one address space of references, so no peer is named.
    pub fn grants(&self, us: DomId) -> HeapGrants {
        HeapGrants { heap: self.clone(), us, counts: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(gref: GrantRef) -> Option<usize> {
    gref.0.checked_sub(GNTTAB_NR_RESERVED_ENTRIES).map(|index| index as usize)
}

impl State {
    /// The page of a grant that `us` may use so.
    fn allowed(&mut self, gref: GrantRef, us: DomId, write: bool) -> Result<(usize, &mut Grant), GrantStatus> {
        let index = index(gref).filter(|&index| index < self.grants.len());
        let index = index.ok_or(GrantStatus::BAD_GNTREF)?;
        let grant = self.grants[index].as_mut().ok_or(GrantStatus::GENERAL_ERROR)?;
        if grant.peer != us || write && grant.access == Access::ReadOnly {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        Ok((index, grant))
    }
}

/// [`GrantAccess`] of a [`Heap`].
pub struct HeapAccess {
    heap: Heap,
}

impl GrantAccess for HeapAccess {
    fn grant(&mut self, peer: DomId, count: usize, access: Access) -> io::Result<Granted> {
        if count == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut state = self.heap.state();
        let first = state.grants.windows(count).position(|run| run.iter().all(Option::is_none));
        let first = first.ok_or(io::ErrorKind::StorageFull)?;
        for grant in &mut state.grants[first..first + count] {
            *grant = Some(Grant { peer, access, maps: 0 });
        }
        let arena = &self.heap.arena;
        let memory = arena.view(first, count, Box::new(Keep { _arena: Arc::clone(arena) }));
        memory.pages().zero(0, memory.len());
        let refs = (GNTTAB_NR_RESERVED_ENTRIES + first as u32..).take(count).map(GrantRef).collect();
        Ok(Granted { refs, memory })
    }

    fn end(&mut self, granted: Granted) -> Result<(), StillMapped> {
        let mut state = self.heap.state();
        let indices = || granted.refs.iter().copied().filter_map(index);
        let mapped = |grant: Option<&Option<Grant>>| grant.and_then(Option::as_ref).is_some_and(|it| it.maps > 0);
        if indices().any(|index| mapped(state.grants.get(index))) {
            state.refusals += 1;
            drop(state);
            return Err(StillMapped(granted));
        }
        for index in indices() {
            state.grants[index] = None;
        }
        Ok(())
    }

    fn refusals(&self) -> u64 {
        self.heap.state().refusals
    }
}

/// [`Grants`] of a [`Heap`].
pub struct HeapGrants {
    heap: Heap,
    us: DomId,
    counts: Arc<Mutex<GrantCounts>>,
}

impl HeapGrants {
    fn count(&self) -> MutexGuard<'_, GrantCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grants for HeapGrants {
    fn map(&mut self, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory> {
        if refs.is_empty() || refs.len() > MAX_MAP {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.count().map_calls += 1;
        let write = access == Access::ReadWrite;
        let mut state = self.heap.state();
        for &gref in refs {
            state.allowed(gref, self.us, write).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        }
        if !refs.is_sorted_by(|a, b| a.0.checked_add(1) == Some(b.0)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let first = index(refs[0]).ok_or(io::ErrorKind::InvalidInput)?;
        for grant in state.grants[first..first + refs.len()].iter_mut().flatten() {
            grant.maps += 1;
        }
        drop(state);
        self.count().pages_mapped += refs.len() as u64;
        let unmap = Unmap { heap: self.heap.clone(), first, count: refs.len(), counts: Arc::clone(&self.counts) };
        Ok(self.heap.arena.view(first, refs.len(), Box::new(unmap)))
    }

    fn copy(&mut self, direction: CopyDirection, local: &Pages, segments: &mut [CopySegment]) -> io::Result<()> {
        crate::check_copy(local, segments)?;
        {
            let mut counts = self.count();
            counts.copy_calls += 1;
            counts.segments_copied += segments.len() as u64;
        }
        let arena = &self.heap.arena;
        let mut state = self.heap.state();
        for segment in segments {
            let write = direction == CopyDirection::ToPeer;
            segment.status = match state.allowed(segment.gref, self.us, write) {
                Ok((index, _)) => {
                    let page = arena.view(index, 1, Box::new(Keep { _arena: Arc::clone(arena) })).pages();
                    let (len, theirs) = (usize::from(segment.len), usize::from(segment.offset));
                    match direction {
                        CopyDirection::FromPeer => local.copy_from(segment.local, &page, theirs, len),
                        CopyDirection::ToPeer => page.copy_from(theirs, local, segment.local, len),
                    }
                    GrantStatus::OKAY
                }
                Err(status) => status,
            };
        }
        Ok(())
    }

    fn counts(&self) -> GrantCounts {
        *self.count()
    }
}

/// Counts a mapping as gone.
struct Unmap {
    heap: Heap,
    first: usize,
    count: usize,
    counts: Arc<Mutex<GrantCounts>>,
}

impl Release for Unmap {
    fn release(&mut self, _: NonNull<u8>, _: usize) -> io::Result<()> {
        for grant in self.heap.state().grants[self.first..self.first + self.count].iter_mut().flatten() {
            grant.maps -= 1;
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.unmap_calls += 1;
        counts.pages_unmapped += self.count as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: DomId = DomId(2);

    #[test]
    fn grants_map_copy_and_end() {
        let heap = Heap::new(16);
        let (mut access, mut grants) = (heap.access(), heap.grants(VM));
        let granted = access.grant(VM, 3, Access::ReadWrite).expect("granted");
        let readonly = access.grant(VM, 1, Access::ReadOnly).expect("granted");
        let mapped = grants.map(&granted.refs, Access::ReadWrite).expect("mapped");
        mapped.pages().write(PAGE_SIZE, b"shared");
        assert_eq!(granted.memory.pages().load::<[u8; 6]>(PAGE_SIZE), *b"shared");
        assert!(grants.map(&readonly.refs, Access::ReadWrite).is_err());
        let reversed = [granted.refs[1], granted.refs[0]];
        assert_eq!(grants.map(&reversed, Access::ReadOnly).unwrap_err().kind(), io::ErrorKind::Unsupported);

        let local = pages(1);
        let mut segments = [granted.refs[1], readonly.refs[0], GrantRef(3), GrantRef(20)].map(|gref| CopySegment {
            gref,
            offset: 0,
            len: 6,
            local: 8,
            status: GrantStatus::OKAY,
        });
        grants.copy(CopyDirection::ToPeer, &local.pages(), &mut segments).expect("copied");
        let (okay, general, bad) = (GrantStatus::OKAY, GrantStatus::GENERAL_ERROR, GrantStatus::BAD_GNTREF);
        assert_eq!(segments.map(|segment| segment.status), [okay, general, bad, general]);
        assert_eq!(granted.memory.pages().load::<[u8; 6]>(PAGE_SIZE), [0; 6]);

        let granted = access.end(granted).expect_err("mapped").0;
        drop(mapped);
        access.end(granted).expect("not mapped any more");
        assert_eq!(access.refusals(), 1);
        assert!(access.grant(VM, 16, Access::ReadOnly).is_err(), "one page is still granted");
        let counts = grants.counts();
        assert_eq!((counts.pages_mapped, counts.pages_unmapped, counts.segments_copied), (3, 3, 4));
    }
}

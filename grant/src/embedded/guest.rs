//! A guest's memory: a sealed memfd whose first pages are its grant table, and the allocator of the rest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frames::{self, Munmap};
use super::table::{Table, table_frames};
use crate::pages::Release;
use crate::xen::abi::GNTTAB_NR_RESERVED_ENTRIES;
use crate::{Access, DomId, GrantAccess, GrantRef, Granted, PAGE_SIZE, Pages, SharedMemory, StillMapped};

/// The memory of an embedded guest; clones share it, one for each thread that grants.
///
/// Pages of one call stand next to each other in the memory if there is room, as a guest's freshly booted allocator
/// would have it; otherwise they are collected one by one.
#[derive(Clone)]
pub struct GuestMemory {
    fd: Arc<OwnedFd>,
    /// The whole memory, for the guest may touch all of its own pages.
    whole: Pages,
    state: Arc<Mutex<State>>,
}

struct State {
    table: Table,
    /// Per page: in use?
    used: Vec<bool>,
    /// Where to look for free pages next.
    cursor: usize,
    free: usize,
    /// References given back, and the first one never used.
    returned: Vec<u32>,
    fresh: u32,
    /// Per reference: its page.
    frame_of: Vec<u32>,
    refusals: u64,
}

impl GuestMemory {
    /// Makes a memory of `bytes`, rounded up to whole pages; it takes up only what is touched. Its grant table has an
    /// entry for every page, at most 32,768.
    ///
    /// # Errors
    /// `InvalidInput` when there is no room for the table and a page, or more than 1 TiB is asked for.
    pub fn new(bytes: u64) -> io::Result<GuestMemory> {
        let frames =
            u32::try_from(bytes.div_ceil(PAGE_SIZE as u64)).ok().filter(|frames| (2..=1 << 28).contains(frames));
        let frames = frames.ok_or(io::ErrorKind::InvalidInput)?;
        GuestMemory::over(frames::create(frames)?, frames)
    }

    fn over(fd: OwnedFd, frames: u32) -> io::Result<GuestMemory> {
        let whole = frames::map_first(&fd, frames, true)?.pages();
        let reserved = table_frames(frames) as usize;
        let table = whole.slice(0, reserved * PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
        let table = Table::new(table, frames);
        let mut used = vec![false; frames as usize];
        used[..reserved].fill(true);
        let state = State {
            frame_of: vec![0; table.entries() as usize],
            table,
            free: used.len() - reserved,
            used,
            cursor: reserved,
            returned: Vec::new(),
            fresh: GNTTAB_NR_RESERVED_ENTRIES,
            refusals: 0,
        };
        Ok(GuestMemory { fd: Arc::new(fd), whole, state: Arc::new(Mutex::new(state)) })
    }

    /// Takes a memory over from a process that had it before: everything is free but what a peer still has mapped.
    ///
    /// # Errors
    /// What the kernel says, `InvalidInput` for something else than a memory.
    pub fn reopen(fd: OwnedFd) -> io::Result<GuestMemory> {
        let size = rustix::fs::fstat(&fd)?.st_size;
        let frames = u32::try_from(size / PAGE_SIZE as i64).ok().filter(|frames| (2..=1 << 28).contains(frames));
        let frames = frames.ok_or(io::ErrorKind::InvalidInput)?;
        let memory = GuestMemory::over(fd, frames)?;
        let mut state = memory.state();
        for gref in (GNTTAB_NR_RESERVED_ENTRIES..state.table.entries()).rev().map(GrantRef) {
            match state.table.withdraw(gref) {
                Some(_) => state.returned.push(gref.0),
                None => {
                    // Neither the reference nor the page is ever used again.
                    let frame = state.table.frame(gref).map_or(0, |frame| frame as usize);
                    if !std::mem::replace(&mut state.used[frame], true) {
                        state.free -= 1;
                    }
                }
            }
        }
        state.fresh = state.table.entries();
        drop(state);
        Ok(memory)
    }

    /// The memfd, to be shown to the host.
    pub fn fd(&self) -> BorrowedFd<'_> {
        (*self.fd).as_fd()
    }

    /// Pages that are neither granted nor part of the table.
    pub fn free_pages(&self) -> usize {
        self.state().free
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages as one region: part of the whole mapping if they follow each other, else a mapping of their own.
    fn view(&self, frames: &[u32]) -> io::Result<SharedMemory> {
        let len = frames.len() * PAGE_SIZE;
        let (address, release): (NonNull<u8>, Box<dyn Release>) = if frames.is_sorted_by(|a, b| a + 1 == *b) {
            let address = self.whole.address(frames[0] as usize * PAGE_SIZE, len);
            (address.ok_or(io::ErrorKind::InvalidInput)?, Box::new(Keep { _whole: self.whole.clone() }))
        } else {
            (frames::map((*self.fd).as_fd(), frames, true)?, Box::new(Munmap))
        };
        // SAFETY: `len` bytes are mapped at `address` for as long as `release` lives (it keeps the whole mapping or is
        // the only one to unmap); all access is by raw copies.
        Ok(unsafe { SharedMemory::new(address, len, Access::ReadWrite, release) })
    }
}

/// Keeps the whole mapping while a part of it is in use.
struct Keep {
    _whole: Pages,
}

impl Release for Keep {
    fn release(&mut self, _: NonNull<u8>, _: usize) -> io::Result<()> {
        Ok(())
    }
}

impl GrantAccess for GuestMemory {
    fn grant(&mut self, peer: DomId, count: usize, access: Access) -> io::Result<Granted> {
        if count == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (refs, frames) = self.state().take(count).ok_or(io::ErrorKind::StorageFull)?;
        let memory = match self.view(&frames) {
            Ok(memory) => memory,
            Err(error) => {
                self.state().give_back(&refs);
                return Err(error);
            }
        };
        memory.pages().zero(0, memory.len());
        let state = self.state();
        for (&gref, &frame) in refs.iter().zip(&frames) {
            state.table.permit(gref, peer, frame, access == Access::ReadOnly);
        }
        Ok(Granted { refs, memory })
    }

    /// Dropping the pages without ending their grants loses them until the guest is gone: the peer may use them.
    fn end(&mut self, granted: Granted) -> Result<(), StillMapped> {
        let mut state = self.state();
        let mut words = Vec::with_capacity(granted.refs.len());
        for &gref in &granted.refs {
            match state.table.withdraw(gref) {
                Some(word) => words.push(word),
                None => {
                    for (&gref, &word) in granted.refs.iter().zip(&words) {
                        state.table.restore(gref, word);
                    }
                    state.refusals += 1;
                    drop(state);
                    return Err(StillMapped(granted));
                }
            }
        }
        state.give_back(&granted.refs);
        Ok(())
    }

    fn refusals(&self) -> u64 {
        self.state().refusals
    }
}

impl State {
    /// Takes references and pages: all or nothing.
    fn take(&mut self, count: usize) -> Option<(Vec<GrantRef>, Vec<u32>)> {
        let unused = self.frame_of.len().saturating_sub(self.fresh as usize);
        if count > self.free || count > unused + self.returned.len() {
            return None;
        }
        let frames = self.run(count).unwrap_or_else(|| self.scattered(count));
        self.free -= count;
        let mut refs = Vec::with_capacity(count);
        for &frame in &frames {
            self.used[frame as usize] = true;
            let gref = self.returned.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            });
            self.frame_of[gref as usize] = frame;
            refs.push(GrantRef(gref));
        }
        self.cursor = frames.last().map_or(self.cursor, |&last| last as usize + 1);
        Some((refs, frames))
    }

    /// `count` free pages that follow each other, looked for from the cursor on and then from the start.
    fn run(&self, count: usize) -> Option<Vec<u32>> {
        let find = |range: std::ops::Range<usize>| {
            let mut start = range.start;
            for index in range {
                if self.used[index] {
                    start = index + 1;
                } else if index + 1 - start == count {
                    return Some(start);
                }
            }
            None
        };
        let wrapped = (self.cursor + count).min(self.used.len());
        let start = find(self.cursor.min(self.used.len())..self.used.len()).or_else(|| find(0..wrapped))?;
        Some((start as u32..).take(count).collect())
    }

    /// Any `count` free pages; there are as many.
    fn scattered(&self, count: usize) -> Vec<u32> {
        let free = (0..).zip(&self.used).filter(|(_, used)| !**used);
        free.map(|(frame, _)| frame).take(count).collect()
    }

    fn give_back(&mut self, refs: &[GrantRef]) {
        for gref in refs.iter().rev() {
            self.used[self.frame_of[gref.0 as usize] as usize] = false;
            self.returned.push(gref.0);
        }
        self.free += refs.len();
    }
}

//! A grant table of version 1 in a guest's own memory (`struct grant_entry_v1`, grant_table.h): 512 entries a page,
//! written by the guest, status bits written by the host, read by whoever copies.
//!
//! Flags and domid share one 32-bit word, so both are checked and changed at once; the frame is written before the
//! word makes the entry valid and read after the word was found valid.

use std::sync::atomic::Ordering;

use crate::xen::abi::{GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_TYPE_MASK, GTF_WRITING, GrantEntryV1};
use crate::{DomId, GrantRef, GrantStatus, PAGE_SIZE, Pages};

/// Entries in a page of the table.
pub(super) const ENTRIES_PER_PAGE: u32 = (PAGE_SIZE / size_of::<GrantEntryV1>()) as u32;
/// Pages of the largest table, Xen's default `gnttab_max_frames`: 32,768 grants.
const MAX_TABLE_FRAMES: u32 = 64;
/// How often a changing entry is looked at again before its owner is taken for hostile.
const TRIES: u32 = 8;

/// Pages of the table in a memory of `frames` pages: one entry per page as far as the largest table goes.
pub(super) fn table_frames(frames: u32) -> u32 {
    frames.div_ceil(ENTRIES_PER_PAGE).clamp(1, MAX_TABLE_FRAMES)
}

/// A mapped grant table.
pub(super) struct Table {
    pages: Pages,
    entries: u32,
    /// Pages of the memory it describes.
    frames: u32,
}

fn word(flags: u16, domid: DomId) -> u32 {
    u32::from(flags) | u32::from(domid.0) << 16
}

fn flags(word: u32) -> u16 {
    word as u16
}

impl Table {
    /// `pages` holds the first pages of a memory of `frames` pages.
    pub fn new(pages: Pages, frames: u32) -> Table {
        let entries = (pages.len() / size_of::<GrantEntryV1>()) as u32;
        Table { pages, entries, frames }
    }

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn at(gref: GrantRef) -> usize {
        gref.0 as usize * size_of::<GrantEntryV1>()
    }

    /// The guest's side: makes the entry valid.
    pub fn permit(&self, gref: GrantRef, peer: DomId, frame: u32, readonly: bool) {
        let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
        self.pages.atomic32(Table::at(gref) + 4).store(frame, Ordering::Relaxed);
        self.pages.atomic32(Table::at(gref)).store(word(flags, peer), Ordering::Release);
    }

    /// The guest's side: makes the entry invalid unless somebody has it mapped; returns the word it held.
    pub fn withdraw(&self, gref: GrantRef) -> Option<u32> {
        let entry = self.pages.atomic32(Table::at(gref));
        let unused = |word| (flags(word) & (GTF_READING | GTF_WRITING) == 0).then_some(0);
        entry.fetch_update(Ordering::AcqRel, Ordering::Acquire, unused).ok()
    }

    /// The guest's side: undoes [`Table::withdraw`].
    pub fn restore(&self, gref: GrantRef, word: u32) {
        self.pages.atomic32(Table::at(gref)).store(word, Ordering::Release);
    }

    /// May `by` use this entry so? Returns its frame, with the statuses that Xen gives.
    pub fn check(&self, gref: GrantRef, by: DomId, write: bool) -> Result<u32, GrantStatus> {
        if gref.0 >= self.entries {
            return Err(GrantStatus::BAD_GNTREF);
        }
        let word = self.pages.atomic32(Table::at(gref)).load(Ordering::Acquire);
        self.allows(word, by, write)?;
        self.frame(gref)
    }

    /// The host's side: checks the entry and marks it as mapped.
    pub fn pin(&self, gref: GrantRef, by: DomId, write: bool) -> Result<(), GrantStatus> {
        if gref.0 >= self.entries {
            return Err(GrantStatus::BAD_GNTREF);
        }
        let entry = self.pages.atomic32(Table::at(gref));
        let marks = u32::from(GTF_READING | if write { GTF_WRITING } else { 0 });
        let mut word = entry.load(Ordering::Acquire);
        for _ in 0..TRIES {
            self.allows(word, by, write)?;
            match entry.compare_exchange(word, word | marks, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(changed) => word = changed,
            }
        }
        Err(GrantStatus::GENERAL_ERROR)
    }

    /// The host's side: takes marks away.
    pub fn unpin(&self, gref: GrantRef, writing: bool, reading: bool) {
        let mut marks = 0;
        if writing {
            marks |= GTF_WRITING;
        }
        if reading {
            marks |= GTF_READING;
        }
        self.pages.atomic32(Table::at(gref)).fetch_and(!u32::from(marks), Ordering::Release);
    }

    fn allows(&self, word: u32, by: DomId, write: bool) -> Result<(), GrantStatus> {
        let granted = flags(word) & GTF_TYPE_MASK == GTF_PERMIT_ACCESS && word >> 16 == u32::from(by.0);
        if granted && !(write && flags(word) & GTF_READONLY != 0) { Ok(()) } else { Err(GrantStatus::GENERAL_ERROR) }
    }

    /// The entry's frame, if it is one that may be granted: the table itself belongs to the hypervisor. To be read
    /// after the entry was found valid; `gref` is inside of the table.
    pub fn frame(&self, gref: GrantRef) -> Result<u32, GrantStatus> {
        let frame = self.pages.atomic32(Table::at(gref) + 4).load(Ordering::Acquire);
        let grantable = table_frames(self.frames)..self.frames;
        if grantable.contains(&frame) { Ok(frame) } else { Err(GrantStatus::GENERAL_ERROR) }
    }
}

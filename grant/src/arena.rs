//! Whole pages of our own memory for requests whose data is copied: one mapping per thread, whose queues share it,
//! registered with the ring where it can be, handed out in runs of neighbouring pages so that a request is one buffer.

use crate::PAGE_SIZE;
use crate::memory::{RegionId, Span};

/// Which pages of the arena are handed out.
pub struct Arena {
    used: Vec<u64>,
    pages: usize,
    free: usize,
    next: usize,
}

impl Arena {
    /// An arena of `pages` pages.
    pub fn new(pages: usize) -> Arena {
        let mut used = vec![0u64; pages.div_ceil(64)];
        for page in pages..used.len() * 64 {
            used[page / 64] |= 1 << (page % 64);
        }
        Arena { used, pages, free: pages, next: 0 }
    }

    /// Pages not handed out.
    pub fn free(&self) -> usize {
        self.free
    }

    /// A run of pages for `len` bytes, or `None` until something is given back.
    #[inline]
    pub fn take(&mut self, len: u32) -> Option<Span> {
        if len as usize <= PAGE_SIZE && self.used[self.next / 64] & 1 << (self.next % 64) == 0 {
            // What most want: a page, and the next one is free.
            return Some(self.hand_out(self.next, 1, len));
        }
        self.take_run(len)
    }

    fn take_run(&mut self, len: u32) -> Option<Span> {
        let want = (len as usize).div_ceil(PAGE_SIZE).max(1);
        if want > self.free {
            return None;
        }
        let first = self.run(self.next, self.pages, want).or_else(|| self.run(0, self.pages, want))?;
        Some(self.hand_out(first, want, len))
    }

    #[inline(always)]
    fn hand_out(&mut self, first: usize, count: usize, len: u32) -> Span {
        for page in first..first + count {
            self.used[page / 64] |= 1 << (page % 64);
        }
        self.free -= count;
        self.next = if first + count >= self.pages { 0 } else { first + count };
        Span { region: RegionId::ARENA, offset: (first * PAGE_SIZE) as u32, len }
    }

    /// Gives a run back.
    pub fn give(&mut self, span: Span) {
        let first = span.offset as usize / PAGE_SIZE;
        let count = (span.len as usize).div_ceil(PAGE_SIZE).max(1);
        for page in first..first + count {
            debug_assert!(self.used[page / 64] & (1 << (page % 64)) != 0, "given back twice");
            self.used[page / 64] &= !(1 << (page % 64));
        }
        self.free += count;
    }

    /// The first run of `want` free pages in `from..to`.
    fn run(&self, from: usize, to: usize, want: usize) -> Option<usize> {
        let (mut page, mut first) = (from, from);
        while page < to {
            if page.is_multiple_of(64) && self.used[page / 64] == u64::MAX {
                page += 64;
                first = page;
            } else if self.used[page / 64] & (1 << (page % 64)) != 0 {
                page += 1;
                first = page;
            } else {
                page += 1;
                if page - first == want {
                    return Some(first);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_never_overlap_and_all_come_back() {
        let mut arena = Arena::new(300);
        let mut held: Vec<Span> = Vec::new();
        let mut state = 99u32;
        for _ in 0..10_000 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            if state & 1 == 0 && !held.is_empty() {
                let at = (state >> 8) as usize % held.len();
                arena.give(held.swap_remove(at));
            } else if let Some(span) = arena.take((state >> 8) % 200_000 + 1) {
                let end = |s: &Span| s.offset + s.len.next_multiple_of(4096);
                assert!(end(&span) as usize <= 300 * PAGE_SIZE);
                assert!(held.iter().all(|other| end(other) <= span.offset || end(&span) <= other.offset));
                held.push(span);
            }
        }
        held.drain(..).for_each(|span| arena.give(span));
        assert_eq!(arena.free(), 300);
        assert!(arena.take(300 * 4096).is_some());
        assert!(arena.take(1).is_none());
    }
}

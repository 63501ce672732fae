//! One part of one request while the backend has it: its pages, and where the data lies in them.

use blkback::proto::{MAX_SEGMENTS, SECTOR_SIZE, SEGMENTS_PER_PAGE};
use grant::{Granted, PAGE_SIZE, Pages};

use super::pool::Pool;
use super::request::Encoder;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    pub encoder: Encoder,
    pub persistent: bool,
    /// Segments of an indirect request; 0 is none.
    pub max_indirect: usize,
    /// Where data starts in the first page of a request.
    pub first_sect: u8,
}

impl Widths {
    /// Most segments of any request.
    pub fn segments(&self) -> usize {
        self.max_indirect.max(MAX_SEGMENTS)
    }

    /// Pages that the largest request takes, its indirect pages among them.
    pub fn pages(&self) -> usize {
        self.segments() + self.max_indirect.div_ceil(SEGMENTS_PER_PAGE)
    }

    pub fn skew(&self) -> usize {
        usize::from(self.first_sect) * SECTOR_SIZE as usize
    }
}

/// A ring slot under way: one part of one request.
pub struct Slot {
    pub entry: u32,
    pub offset: usize,
    pub len: usize,
    pub memory: Held,
    /// Pages of the pool, data first.
    pub pages: Vec<u32>,
    pub data_pages: usize,
}

/// What a part has granted, beside pages of the pool.
pub enum Held {
    Nothing,
    Pool,
    Once { data: Lent, indirect: Option<Lent> },
}

/// Granted pages and the view of them.
pub struct Lent {
    granted: Granted,
    pages: Pages,
}

impl Lent {
    pub fn new(granted: Granted) -> Lent {
        let pages = granted.memory.pages();
        Lent { granted, pages }
    }

    /// Pages.
    pub fn len(&self) -> usize {
        self.granted.refs.len()
    }

    /// A page's memory, where in it, and its reference.
    pub fn page(&self, index: usize) -> Option<(&Pages, usize, u32)> {
        Some((&self.pages, index * PAGE_SIZE, self.granted.refs.get(index)?.0))
    }

    /// For the grants to be ended.
    pub fn into_granted(self) -> Granted {
        self.granted
    }
}

impl Slot {
    /// Nothing yet, with room for `pages` pages.
    pub fn new(pages: usize) -> Slot {
        Slot { entry: 0, offset: 0, len: 0, memory: Held::Nothing, pages: Vec::with_capacity(pages), data_pages: 0 }
    }

    /// Data page `index`: its memory, where in it, and its reference.
    pub fn page<'a>(&'a self, pool: Option<&'a Pool>, index: usize) -> Option<(&'a Pages, usize, u32)> {
        match &self.memory {
            Held::Nothing => None,
            Held::Pool => pool?.page(*self.pages.get(index)?),
            Held::Once { data, .. } => data.page(index),
        }
    }

    /// Indirect page `index`.
    pub fn indirect_page<'a>(&'a self, pool: Option<&'a Pool>, index: usize) -> Option<(&'a Pages, usize, u32)> {
        match &self.memory {
            Held::Once { indirect, .. } => indirect.as_ref()?.page(index),
            _ => self.page(pool, self.data_pages + index),
        }
    }

    /// Gives up what was granted for this part alone.
    pub fn take_lent(&mut self) -> impl Iterator<Item = Granted> {
        let (data, indirect) = match std::mem::replace(&mut self.memory, Held::Nothing) {
            Held::Once { data, indirect } => (Some(data), indirect),
            Held::Nothing | Held::Pool => (None, None),
        };
        data.into_iter().chain(indirect).map(Lent::into_granted)
    }
}

impl Widths {
    /// Calls `piece(page, offset in it, offset in the data, bytes)` for every page that `len` bytes touch.
    pub fn pieces(&self, len: usize, mut piece: impl FnMut(usize, usize, usize, usize)) {
        let (mut page, mut offset, mut from) = (0, self.skew(), 0);
        while from < len {
            let count = (PAGE_SIZE - offset).min(len - from);
            piece(page, offset, from, count);
            from += count;
            (page, offset) = (page + 1, 0);
        }
    }
}

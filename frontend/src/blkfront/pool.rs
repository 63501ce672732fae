//! Granted pages that are kept: with persistent grants a frontend promises to use the same ones again and again.

use std::io;

use grant::{Access, DomId, GrantAccess, Granted, Pages};

use super::slot::Lent;

/// Pages granted at a time, at least.
const CHUNK: usize = 32;

/// A stack of pages granted read-write to one backend.
///
/// The page given back last is taken first, which keeps the number of grants that a backend must cache as small as
/// the load allows. The pages of a request come back in their own order and so are taken in the opposite order next
/// time, as with Linux: a backend that counts on neighbours staying neighbours finds out here.
pub struct Pool {
    chunks: Vec<Lent>,
    /// Pages in a chunk.
    chunk: usize,
    most_chunks: usize,
    free: Vec<u32>,
    /// The domain has no more pages to grant.
    exhausted: bool,
}

impl Pool {
    /// A pool that holds `reserve` pages from the start, so that a request of that size always goes through in the
    /// end, and at most about `most` pages.
    ///
    /// # Errors
    /// The domain cannot grant the reserve.
    pub fn new(grants: &mut dyn GrantAccess, peer: DomId, reserve: usize, most: usize) -> io::Result<Pool> {
        let chunk = reserve.max(CHUNK);
        let most_chunks = most.div_ceil(chunk).max(1);
        let mut pool = Pool { chunks: Vec::new(), chunk, most_chunks, free: Vec::new(), exhausted: false };
        pool.grow(grants, peer)?;
        Ok(pool)
    }

    fn grow(&mut self, grants: &mut dyn GrantAccess, peer: DomId) -> io::Result<()> {
        let granted = grants.grant(peer, self.chunk, Access::ReadWrite)?;
        let first = (self.chunks.len() * self.chunk) as u32;
        self.free.reserve(self.chunk * (self.chunks.len() + 1));
        self.free.extend((first..first + self.chunk as u32).rev());
        self.chunks.push(Lent::new(granted));
        Ok(())
    }

    /// Takes `count` pages onto the end of `to`; false, and nothing taken, when there are too few.
    pub fn take(&mut self, grants: &mut dyn GrantAccess, peer: DomId, count: usize, to: &mut Vec<u32>) -> bool {
        while self.free.len() < count {
            if self.exhausted || self.chunks.len() == self.most_chunks {
                return false;
            }
            if let Err(error) = self.grow(grants, peer) {
                tracing::debug!(%error, pages = self.len(), "no more pages to grant");
                self.exhausted = true;
                return false;
            }
        }
        to.extend(self.free.drain(self.free.len() - count..).rev());
        true
    }

    /// Puts pages back.
    pub fn give(&mut self, pages: &[u32]) {
        self.free.extend_from_slice(pages);
    }

    /// Pages granted.
    pub fn len(&self) -> usize {
        self.chunks.len() * self.chunk
    }

    /// A page's memory, where in it, and its reference.
    pub fn page(&self, page: u32) -> Option<(&Pages, usize, u32)> {
        self.chunks.get(page as usize / self.chunk)?.page(page as usize % self.chunk)
    }

    /// Takes the pool apart, to end its grants.
    pub fn into_granted(self) -> impl Iterator<Item = Granted> {
        self.chunks.into_iter().map(Lent::into_granted)
    }
}

//! Copies between the pages of several peers and memory of ours, in one batch: what a switch between guests needs.
//!
//! [`crate::Grants`] speaks to one peer. Here one thread speaks to all peers that it serves, and a copy may go straight
//! from one guest's page to another's (`GNTTABOP_copy` with both `GNTCOPY_source_gref` and `GNTCOPY_dest_gref`,
//! grant_table.h): nothing of it is ever seen here.

use std::io;
use std::os::fd::OwnedFd;

use crate::{Access, DomId, GrantCounts, GrantRef, GrantStatus, PAGE_SIZE, Pages, SharedMemory};

/// A peer of an [`Exchange`]: a small number, unique among those that have joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerId(pub u16);

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory given to [`Exchange::copy`], from this byte on.
    Ours(usize),
    /// In a page that a peer granted.
    Peer {
        /// Whose.
        peer: PeerId,
        /// The page.
        gref: GrantRef,
        /// First byte in it.
        offset: u16,
    },
}

/// One element of a batch. It never crosses a page of a peer: `offset + len <= PAGE_SIZE` on either side.
#[derive(Clone, Copy, Debug)]
pub struct Movement {
    /// Where the bytes are.
    pub from: Place,
    /// Where they go.
    pub to: Place,
    /// How many, 1..=4096.
    pub len: u16,
    /// Filled in by the call.
    pub status: GrantStatus,
}

/// One thread's way to the pages of all its peers.
///
/// A batch is either all "to ours" or all "to peers": gntdev keeps a single "writeable" mark per batch (block.md F4).
pub trait Exchange: Send {
    /// Takes a peer in. `grants` is a descriptor of the world for this peer.
    ///
    /// # Errors
    /// `ENOSPC` for too many, `ESRCH` when there is no such domain, or what the world says.
    fn join(&mut self, grants: OwnedFd, domid: DomId) -> io::Result<PeerId>;

    /// Lets a peer go. What is mapped of it stays mapped until its memory is dropped.
    fn leave(&mut self, peer: PeerId);

    /// Maps pages of a peer, as [`crate::Grants::map`].
    ///
    /// # Errors
    /// As there; `ENOENT` for a peer that has not joined.
    fn map(&mut self, peer: PeerId, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory>;

    /// Copies; each element gets its own status.
    ///
    /// # Errors
    /// `Err` means that every status is undefined and everything in the batch failed.
    fn copy(&mut self, local: &Pages, movements: &mut [Movement]) -> io::Result<()>;

    /// Counted since the value was made, over all peers.
    fn counts(&self) -> GrantCounts;
}

/// Most peers of one exchange.
pub const MAX_PEERS: usize = 1024;

/// Refuses a batch that names bytes outside of a page of a peer, outside of `local`, only ours, or both directions:
/// every world does, so that none surprises.
pub(crate) fn check(local: &Pages, movements: &[Movement]) -> io::Result<()> {
    let inside = |place: Place, len: usize| match place {
        Place::Ours(at) => at.checked_add(len).is_some_and(|end| end <= local.len()),
        Place::Peer { offset, .. } => usize::from(offset) + len <= PAGE_SIZE,
    };
    let ours = |place: Place| matches!(place, Place::Ours(_));
    let Some(first) = movements.first() else { return Ok(()) };
    let fits = |movement: &Movement| {
        let len = usize::from(movement.len);
        len != 0
            && inside(movement.from, len)
            && inside(movement.to, len)
            && !(ours(movement.from) && ours(movement.to))
            && ours(movement.to) == ours(first.to)
    };
    if movements.iter().all(fits) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The peers of a world's exchange, by their numbers.
pub(crate) struct Peers<P>(Vec<Option<P>>);

impl<P> Peers<P> {
    pub(crate) const fn new() -> Peers<P> {
        Peers(Vec::new())
    }

    pub(crate) fn join(&mut self, peer: P) -> io::Result<PeerId> {
        let at = match self.0.iter().position(Option::is_none) {
            Some(at) => at,
            None if self.0.len() < MAX_PEERS => {
                self.0.push(None);
                self.0.len() - 1
            }
            None => return Err(io::ErrorKind::StorageFull.into()),
        };
        self.0[at] = Some(peer);
        Ok(PeerId(at as u16))
    }

    pub(crate) fn leave(&mut self, peer: PeerId) -> Option<P> {
        self.0.get_mut(usize::from(peer.0)).and_then(Option::take)
    }

    pub(crate) fn get(&self, peer: PeerId) -> io::Result<&P> {
        self.0.get(usize::from(peer.0)).and_then(Option::as_ref).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(crate) fn get_mut(&mut self, peer: PeerId) -> io::Result<&mut P> {
        self.0.get_mut(usize::from(peer.0)).and_then(Option::as_mut).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &P> {
        self.0.iter().flatten()
    }
}

impl std::ops::AddAssign for GrantCounts {
    fn add_assign(&mut self, other: GrantCounts) {
        self.map_calls += other.map_calls;
        self.pages_mapped += other.pages_mapped;
        self.unmap_calls += other.unmap_calls;
        self.pages_unmapped += other.pages_unmapped;
        self.copy_calls += other.copy_calls;
        self.segments_copied += other.segments_copied;
    }
}

//! Copies between the memories of several embedded guests.

use std::io;
use std::os::fd::OwnedFd;

use super::Foreign;
use crate::exchange::{self, Exchange, Movement, PeerId, Peers, Place};
use crate::{Access, DomId, GrantCounts, GrantRef, GrantStatus, Grants, PAGE_SIZE, Pages, SharedMemory};

/// All peers of one thread.
pub struct ForeignExchange {
    peers: Peers<Foreign>,
    /// What goes from one guest to another rests here for a moment: the hypervisor would need no such place.
    page: Box<[u8; PAGE_SIZE]>,
    counts: GrantCounts,
}

impl Default for ForeignExchange {
    fn default() -> ForeignExchange {
        ForeignExchange { peers: Peers::new(), page: Box::new([0; PAGE_SIZE]), counts: GrantCounts::default() }
    }
}

impl ForeignExchange {
    fn copy_one(&mut self, local: &Pages, movement: &Movement) -> io::Result<GrantStatus> {
        let len = usize::from(movement.len);
        match (movement.from, movement.to) {
            (Place::Peer { peer, gref, offset }, Place::Ours(at)) => {
                self.peers.get(peer)?.copy_to_ours(gref, offset, local, at, len)
            }
            (Place::Ours(at), Place::Peer { peer, gref, offset }) => {
                self.peers.get(peer)?.copy_from_ours(gref, offset, local, at, len)
            }
            (Place::Peer { peer, gref, offset }, Place::Peer { peer: to, gref: to_gref, offset: to_offset }) => {
                let bytes = &mut self.page[..len];
                let read = self.peers.get(peer)?.read(gref, offset, bytes)?;
                if !read.is_okay() {
                    return Ok(read);
                }
                self.peers.get(to)?.write(to_gref, to_offset, bytes)
            }
            (Place::Ours(_), Place::Ours(_)) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Exchange for ForeignExchange {
    fn join(&mut self, grants: OwnedFd, domid: DomId) -> io::Result<PeerId> {
        self.peers.join(Foreign::new(grants, domid)?)
    }

    fn leave(&mut self, peer: PeerId) {
        if let Some(gone) = self.peers.leave(peer) {
            self.counts += gone.counts();
        }
    }

    fn map(&mut self, peer: PeerId, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory> {
        self.peers.get_mut(peer)?.map(refs, access)
    }

    fn copy(&mut self, local: &Pages, movements: &mut [Movement]) -> io::Result<()> {
        exchange::check(local, movements)?;
        if movements.is_empty() {
            return Ok(());
        }
        self.counts.copy_calls += 1;
        self.counts.segments_copied += movements.len() as u64;
        for movement in movements {
            movement.status = self.copy_one(local, movement)?;
        }
        Ok(())
    }

    fn counts(&self) -> GrantCounts {
        let mut counts = self.counts;
        self.peers.iter().for_each(|peer| counts += peer.counts());
        counts
    }
}

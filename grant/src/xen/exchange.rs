//! Copies between several domains through gntdev, whose ioctl names a domain with every segment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::Gntdev;
use super::abi::{self, GntdevCopySide, GntdevForeign, GntdevGrantCopySegment};
use super::gntdev::COPY_BATCH;
use crate::exchange::{self, Exchange, Movement, PeerId, Peers, Place};
use crate::{Access, DomId, GrantCounts, GrantRef, GrantStatus, Grants, Pages, SharedMemory};

/// All peers of one thread.
pub struct GntdevExchange {
    peers: Peers<Gntdev>,
    copy: Vec<GntdevGrantCopySegment>,
    /// Copies, and what was mapped for peers that have left.
    counts: GrantCounts,
}

// SAFETY: the pointers in `copy` are only written right before an ioctl and never read back by anybody else.
unsafe impl Send for GntdevExchange {}

impl Default for GntdevExchange {
    fn default() -> GntdevExchange {
        GntdevExchange { peers: Peers::new(), copy: Vec::with_capacity(COPY_BATCH), counts: GrantCounts::default() }
    }
}

impl GntdevExchange {
    /// One side of a kernel segment, and the flag that says so; `local` was checked to cover it.
    fn side(&self, local: &Pages, place: Place, len: u16, flag: u16) -> io::Result<(GntdevCopySide, u16)> {
        Ok(match place {
            Place::Ours(at) => {
                let address = local.address(at, usize::from(len)).ok_or(io::ErrorKind::InvalidInput)?;
                (GntdevCopySide { virt: address.as_ptr().cast() }, 0)
            }
            Place::Peer { peer, gref, offset } => {
                let domid = self.peers.get(peer)?.peer().0;
                (GntdevCopySide { foreign: GntdevForeign { gref: gref.0, offset, domid } }, flag)
            }
        })
    }
}

impl Exchange for GntdevExchange {
    fn join(&mut self, grants: OwnedFd, domid: DomId) -> io::Result<PeerId> {
        self.peers.join(Gntdev::new(grants, domid))
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
        for batch in movements.chunks_mut(COPY_BATCH) {
            self.copy.clear();
            let mut through = None;
            for movement in &*batch {
                let (source, from) = self.side(local, movement.from, movement.len, abi::GNTCOPY_SOURCE_GREF)?;
                let (dest, to) = self.side(local, movement.to, movement.len, abi::GNTCOPY_DEST_GREF)?;
                let status = GrantStatus::GENERAL_ERROR.0;
                self.copy.push(GntdevGrantCopySegment { source, dest, len: movement.len, flags: from | to, status });
                if let Place::Peer { peer, .. } = movement.from {
                    through = Some(peer);
                } else if let Place::Peer { peer, .. } = movement.to {
                    through = Some(peer);
                }
            }
            // Any descriptor will do, for each segment names its domains.
            let Some(through) = through else { continue };
            self.counts.copy_calls += 1;
            self.counts.segments_copied += batch.len() as u64;
            let mut argument = abi::GntdevGrantCopy { count: batch.len() as u32, segments: self.copy.as_mut_ptr() };
            let device = self.peers.get(through)?.as_fd();
            // SAFETY: `segments` points to `count` segments of ours; each local side names memory that `local` keeps
            // mapped and that is only ever touched by raw copies, so the kernel may write it.
            unsafe {
                let argument = std::ptr::from_mut(&mut argument).cast();
                super::ioctl_raw(device, abi::GNTDEV_GRANT_COPY, argument)?;
            }
            for (movement, done) in batch.iter_mut().zip(&self.copy) {
                movement.status = GrantStatus(done.status);
            }
        }
        Ok(())
    }

    fn counts(&self) -> GrantCounts {
        let mut counts = self.counts;
        self.peers.iter().for_each(|peer| counts += peer.counts());
        counts
    }
}

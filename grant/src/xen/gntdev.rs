//! `/dev/xen/gntdev`: mapping and copying pages that another domain granted to us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::{self, GntdevCopySide, GntdevForeign, GntdevGrantCopySegment, GntdevGrantRef};
use crate::pages::Release;
use crate::{
    Access, CopyDirection, CopySegment, DomId, GrantCounts, GrantRef, GrantStatus, Grants, MAX_MAP, Pages, SharedMemory,
};

/// Segments one ioctl carries; longer batches take several. The kernel turns them into hypercalls of 16.
pub(super) const COPY_BATCH: usize = 512;

/// One gntdev descriptor of one thread, used for one peer.
///
/// gntdev itself takes the domain with every call: what keeps a worker to its guest is that nothing in safe code
/// can make a `Gntdev` ask for another one.
pub struct Gntdev {
    device: Arc<Device>,
    peer: DomId,
    map: Box<abi::GntdevMapGrantRef<MAX_MAP>>,
    copy: Vec<GntdevGrantCopySegment>,
    counts: GrantCounts,
}

// SAFETY: the pointers in `copy` are only written right before an ioctl and never read back by anybody else.
unsafe impl Send for Gntdev {}

/// The descriptor outlives every mapping made through it, and counts what is given back.
struct Device {
    fd: OwnedFd,
    unmap_calls: AtomicU64,
    pages_unmapped: AtomicU64,
}

impl Gntdev {
    /// Opens the device.
    ///
    /// # Errors
    /// `NotFound` where there is no Xen or the module xen-gntdev is not loaded.
    pub fn open() -> io::Result<OwnedFd> {
        super::open("/dev/xen/gntdev", 0)
    }

    /// Uses an open descriptor for grants of `peer`.
    pub fn new(fd: OwnedFd, peer: DomId) -> Gntdev {
        let unmapped = || AtomicU64::new(0);
        Gntdev {
            device: Arc::new(Device { fd, unmap_calls: unmapped(), pages_unmapped: unmapped() }),
            peer,
            map: Box::new(abi::GntdevMapGrantRef {
                count: 0,
                pad: 0,
                index: 0,
                refs: [GntdevGrantRef::default(); MAX_MAP],
            }),
            copy: Vec::with_capacity(COPY_BATCH),
            counts: GrantCounts::default(),
        }
    }

    /// Whose grants it is used for.
    pub(super) fn peer(&self) -> DomId {
        self.peer
    }

    /// Builds one kernel segment; `local` was checked to cover it.
    fn kernel_segment(
        &self,
        direction: CopyDirection,
        local: &Pages,
        segment: &CopySegment,
    ) -> io::Result<GntdevGrantCopySegment> {
        let address = local
            .address(segment.local, usize::from(segment.len))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let ours = GntdevCopySide { virt: address.as_ptr().cast() };
        let foreign = GntdevForeign { gref: segment.gref.0, offset: segment.offset, domid: self.peer.0 };
        let theirs = GntdevCopySide { foreign };
        let (source, dest, flags) = match direction {
            CopyDirection::FromPeer => (theirs, ours, abi::GNTCOPY_SOURCE_GREF),
            CopyDirection::ToPeer => (ours, theirs, abi::GNTCOPY_DEST_GREF),
        };
        let status = GrantStatus::GENERAL_ERROR.0;
        Ok(GntdevGrantCopySegment { source, dest, len: segment.len, flags, status })
    }
}

impl AsFd for Gntdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.fd.as_fd()
    }
}

impl Grants for Gntdev {
    fn map(&mut self, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory> {
        if refs.is_empty() || refs.len() > MAX_MAP {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let domid = u32::from(self.peer.0);
        self.map.count = refs.len() as u32;
        for (slot, gref) in self.map.refs.iter_mut().zip(refs) {
            *slot = GntdevGrantRef { domid, gref: gref.0 };
        }
        self.counts.map_calls += 1;
        // SAFETY: the buffer holds MAX_MAP references and `count` (at most that) of them are filled in; the kernel
        // writes `index` only. The argument is one boxed structure that outlives the call.
        unsafe {
            let argument = std::ptr::from_mut(&mut *self.map).cast();
            super::ioctl_raw(self.device.fd.as_fd(), abi::GNTDEV_MAP_GRANT_REF, argument)?;
        }
        let mut unmap = Unmap { device: Arc::clone(&self.device), index: self.map.index, count: self.map.count };
        let len = refs.len() * crate::PAGE_SIZE;
        let writable = access == Access::ReadWrite;
        let address = match super::map_device(self.device.fd.as_fd(), unmap.index, len, writable) {
            Ok(address) => address,
            Err(error) => {
                // The kernel keeps the references on its list until told otherwise; nothing was mapped.
                if let Err(error) = unmap.forget() {
                    tracing::error!(%error, "gntdev kept references that it could not map");
                }
                return Err(error);
            }
        };
        self.counts.pages_mapped += refs.len() as u64;
        // SAFETY: `len` bytes were just mapped at `address`, nobody else knows them, and only `unmap` takes them away.
        Ok(unsafe { SharedMemory::new(address, len, access, Box::new(unmap)) })
    }

    fn copy(&mut self, direction: CopyDirection, local: &Pages, segments: &mut [CopySegment]) -> io::Result<()> {
        crate::check_copy(local, segments)?;
        for batch in segments.chunks_mut(COPY_BATCH) {
            self.copy.clear();
            for segment in &*batch {
                let segment = self.kernel_segment(direction, local, segment)?;
                self.copy.push(segment);
            }
            self.counts.copy_calls += 1;
            self.counts.segments_copied += batch.len() as u64;
            let mut argument = abi::GntdevGrantCopy { count: batch.len() as u32, segments: self.copy.as_mut_ptr() };
            // SAFETY: `segments` points to `count` segments of ours; each names local memory that `local` keeps mapped
            // and that is only ever touched by raw copies, so the kernel may write it.
            unsafe {
                let argument = std::ptr::from_mut(&mut argument).cast();
                super::ioctl_raw(self.device.fd.as_fd(), abi::GNTDEV_GRANT_COPY, argument)?;
            }
            for (segment, done) in batch.iter_mut().zip(&self.copy) {
                segment.status = GrantStatus(done.status);
            }
        }
        Ok(())
    }

    fn counts(&self) -> GrantCounts {
        GrantCounts {
            unmap_calls: self.device.unmap_calls.load(Ordering::Relaxed),
            pages_unmapped: self.device.pages_unmapped.load(Ordering::Relaxed),
            ..self.counts
        }
    }
}

/// Gives one mapping back: munmap, then the ioctl with exactly the count that was mapped.
struct Unmap {
    device: Arc<Device>,
    index: u64,
    count: u32,
}

impl Unmap {
    /// Takes the references off the descriptor's list.
    fn forget(&mut self) -> io::Result<()> {
        let mut argument = abi::GntdevUnmapGrantRef { index: self.index, count: self.count, pad: 0 };
        super::ioctl(self.device.fd.as_fd(), &mut argument).map(drop)
    }
}

impl Release for Unmap {
    fn release(&mut self, address: NonNull<u8>, len: usize) -> io::Result<()> {
        self.device.unmap_calls.fetch_add(1, Ordering::Relaxed);
        self.device.pages_unmapped.fetch_add(u64::from(self.count), Ordering::Relaxed);
        // SAFETY: the range came from map_device, and the owner of the mapping calls this last.
        let unmapped = unsafe { super::unmap_device(address, len) };
        // The references go even if munmap failed: the kernel holds the pages until their last area is gone.
        self.forget().and(unmapped)
    }
}

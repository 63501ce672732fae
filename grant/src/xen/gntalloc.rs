//! `/dev/xen/gntalloc`: pages of ours that a peer may use, for a frontend in user space.
//!
//! What it cannot tell: whether the peer still has a page mapped. `IOCTL_GNTALLOC_DEALLOC_GREF` succeeds either way;
//! the kernel keeps a page that is still in use out of circulation and tries to end its grant again whenever the
//! device is used, so nothing is ever reused under the peer's hands. Hence [`GrantAccess::end`] never refuses here
//! and [`GrantAccess::refusals`] stays 0; a test about *refusals* belongs to the embedded world or to a stock
//! frontend, and one about *leaks* looks at `xl debug-keys g`.
//!
//! The module's parameter `limit` (1024 by default) bounds the pages of all users together.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, GntallocAllocGref, GntallocDeallocGref};
use crate::pages::Release;
use crate::{Access, DomId, GrantAccess, GrantRef, Granted, MAX_MAP, SharedMemory, StillMapped};

/// One gntalloc descriptor.
pub struct Gntalloc {
    fd: Arc<OwnedFd>,
    argument: Box<GntallocAllocGref<MAX_MAP>>,
}

impl Gntalloc {
    /// Opens the device.
    ///
    /// # Errors
    /// `NotFound` where there is no Xen or the module xen-gntalloc is not loaded.
    pub fn open() -> io::Result<OwnedFd> {
        super::open("/dev/xen/gntalloc", 0)
    }

    /// Uses an open descriptor.
    pub fn new(fd: OwnedFd) -> Gntalloc {
        let argument = GntallocAllocGref { domid: 0, flags: 0, count: 0, index: 0, gref_ids: [0; MAX_MAP] };
        Gntalloc { fd: Arc::new(fd), argument: Box::new(argument) }
    }
}

impl GrantAccess for Gntalloc {
    /// At most [`MAX_MAP`] pages a call.
    fn grant(&mut self, peer: DomId, count: usize, access: Access) -> io::Result<Granted> {
        if count == 0 || count > MAX_MAP {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.argument.domid = peer.0;
        self.argument.flags = if access == Access::ReadWrite { abi::GNTALLOC_FLAG_WRITABLE } else { 0 };
        self.argument.count = count as u32;
        // SAFETY: the buffer has room for MAX_MAP references and the kernel writes `count` (at most that) of them.
        unsafe {
            let argument = std::ptr::from_mut(&mut *self.argument).cast();
            super::ioctl_raw(self.fd.as_fd(), abi::GNTALLOC_ALLOC_GREF, argument)?;
        }
        let mut dealloc = Dealloc { fd: Arc::clone(&self.fd), index: self.argument.index, count: count as u32 };
        let len = count * crate::PAGE_SIZE;
        let address = match super::map_device(self.fd.as_fd(), dealloc.index, len, true) {
            Ok(address) => address,
            Err(error) => {
                if let Err(error) = dealloc.forget() {
                    tracing::error!(%error, "gntalloc kept pages that could not be mapped");
                }
                return Err(error);
            }
        };
        let refs = self.argument.gref_ids[..count].iter().map(|&gref| GrantRef(gref)).collect();
        // SAFETY: `len` bytes were just mapped at `address`, nobody else in this process knows them, and only
        // `dealloc` takes them away.
        let memory = unsafe { SharedMemory::new(address, len, Access::ReadWrite, Box::new(dealloc)) };
        Ok(Granted { refs, memory })
    }

    /// Never refuses: see the head of the module.
    fn end(&mut self, granted: Granted) -> Result<(), StillMapped> {
        // A view that lives elsewhere delays this until it goes; the kernel's own delay looks the same to the peer.
        if let Err(error) = granted.memory.unmap()
            && error.raw_os_error() != Some(libc::EBUSY)
        {
            tracing::error!(%error, "giving pages back to gntalloc failed");
        }
        Ok(())
    }

    fn refusals(&self) -> u64 {
        0
    }
}

/// Gives pages back: munmap, then the ioctl.
struct Dealloc {
    fd: Arc<OwnedFd>,
    index: u64,
    count: u32,
}

impl Dealloc {
    /// Ends the grants; pages that are still mapped somewhere are freed by the kernel later.
    fn forget(&mut self) -> io::Result<()> {
        let mut argument = GntallocDeallocGref { index: self.index, count: self.count };
        super::ioctl(self.fd.as_fd(), &mut argument).map(drop)
    }
}

impl Release for Dealloc {
    fn release(&mut self, address: NonNull<u8>, len: usize) -> io::Result<()> {
        // SAFETY: the range came from map_device, and the owner of the mapping calls this last.
        let unmapped = unsafe { super::unmap_device(address, len) };
        self.forget().and(unmapped)
    }
}

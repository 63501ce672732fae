//! The ring's table of fixed buffers.

use io_uring::Submitter;

use crate::Pages;

/// The ring's table of fixed buffers.
pub struct BufferTable<'a> {
    pub(super) submitter: Submitter<'a>,
    pub(super) vacant: &'a mut Vec<u16>,
}

impl BufferTable<'_> {
    /// Registers a mapping; `None` when the kernel refuses this mapping or the table is full.
    pub(crate) fn insert(&mut self, pages: &Pages) -> Option<u16> {
        let slot = self.vacant.pop()?;
        let address = pages.address(0, pages.len())?;
        let buffer = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: pages.len() };
        // SAFETY: the mapping outlives its registration: Memory::free removes the buffer before it unmaps.
        let result = unsafe { self.submitter.register_buffers_update(u32::from(slot), &[buffer], None) };
        if let Err(error) = result {
            tracing::debug!(%error, bytes = pages.len(), "not usable as a fixed buffer");
            self.vacant.push(slot);
            return None;
        }
        Some(slot)
    }

    /// Takes a mapping out of the table.
    pub(crate) fn remove(&mut self, slot: u16) {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an empty entry refers to no memory.
        match unsafe { self.submitter.register_buffers_update(u32::from(slot), &[nothing], None) } {
            Ok(()) => self.vacant.push(slot),
            Err(error) => tracing::error!(%error, slot, "a fixed buffer could not be unregistered"),
        }
    }
}

//! Sealed memfds shared between our own processes: journals and meters. Never shared with a peer.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::pages::Release;
use crate::{Access, SharedMemory};

/// Makes a memfd of `len` zeroed bytes that can neither shrink nor grow.
///
/// # Errors
/// What the kernel says.
pub fn create(name: &CStr, len: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(len as u64)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Maps a memfd whole.
///
/// # Errors
/// `EINVAL` for one that could still shrink under the mapping, or is empty.
pub fn map(fd: OwnedFd) -> io::Result<SharedMemory> {
    let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
    let file = File::from(fd);
    let len = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
    let (Some(len), true) = (len, seals.contains(SealFlag::F_SEAL_SHRINK)) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let address = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file.as_fd(), 0)? };
    // SAFETY: just mapped, sealed against shrinking, unmapped by Unmap only.
    Ok(unsafe { SharedMemory::new(address.cast(), len.get(), Access::ReadWrite, Box::new(Unmap)) })
}

/// Maps `len` bytes of private zeroed memory.
///
/// # Errors
/// What the kernel says.
pub fn anonymous(len: usize) -> io::Result<SharedMemory> {
    let len = NonZeroUsize::new(len).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let address = unsafe { nix::sys::mman::mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE)? };
    // SAFETY: just mapped, unmapped by Unmap only.
    Ok(unsafe { SharedMemory::new(address.cast(), len.get(), Access::ReadWrite, Box::new(Unmap)) })
}

/// A plain munmap.
struct Unmap;

impl Release for Unmap {
    fn release(&mut self, address: NonNull<u8>, len: usize) -> io::Result<()> {
        // SAFETY: SharedMemory gives exactly what was mapped, once.
        unsafe { munmap(address.cast(), len)? };
        Ok(())
    }
}

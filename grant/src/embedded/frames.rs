//! Pages of a memfd: making it, checking what somebody else made, mapping single pages of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::pages::Release;
use crate::{Access, PAGE_SIZE, SharedMemory};

/// Nobody can change the size, nor lift or add a seal: no access to a mapping can fault.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Seals that would keep the host or a peer from mapping pages for writing.
const UNWANTED: SealFlags = SealFlags::WRITE.union(SealFlags::FUTURE_WRITE);

/// `f_type` of tmpfs, which memfds belong to unless they are of huge pages.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Most pages of one memory: 1 TiB.
const MAX_FRAMES: u64 = 1 << 28;

/// Makes a sealed memfd of `frames` pages.
pub(super) fn create(frames: u32) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("windsor-guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, u64::from(frames) * PAGE_SIZE as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// Checks a memory that somebody else made and returns its size in pages.
///
/// # Errors
/// `EBADF` for anything that is not a memfd of whole small pages whose size is sealed.
pub(super) fn inspect(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let unfit = || io::Error::from_raw_os_error(libc::EBADF);
    if i128::from(rustix::fs::fstatfs(fd)?.f_type) != i128::from(TMPFS_MAGIC) {
        return Err(unfit());
    }
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| unfit())?;
    if !seals.contains(SEALS) || seals.intersects(UNWANTED) {
        return Err(unfit());
    }
    let size = u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| unfit())?;
    let frames = size / PAGE_SIZE as u64;
    if !size.is_multiple_of(PAGE_SIZE as u64) || !(2..=MAX_FRAMES).contains(&frames) {
        return Err(unfit());
    }
    u32::try_from(frames).map_err(|_| unfit())
}

/// Maps pages `frames` of a memory as one region, in that order; pages that follow each other in the memory share
/// one call. The pages must lie inside of the memory.
///
/// # Errors
/// What the kernel said; nothing stays mapped.
pub(super) fn map(fd: BorrowedFd<'_>, frames: &[u32], writable: bool) -> io::Result<NonNull<u8>> {
    let len = frames.len() * PAGE_SIZE;
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
    let slab = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0)
    };
    let slab = match NonNull::new(slab) {
        Some(slab) if slab.as_ptr() != libc::MAP_FAILED => slab.cast::<u8>(),
        _ => return Err(io::Error::last_os_error()),
    };
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let mut done = 0;
    for run in frames.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let bytes = run.len() * PAGE_SIZE;
        // SAFETY: the range lies inside of the slab reserved above, which nobody else knows yet.
        let mapped = unsafe {
            let at = slab.as_ptr().add(done * PAGE_SIZE).cast();
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            libc::mmap(at, bytes, protection, flags, fd.as_raw_fd(), i64::from(run[0]) * PAGE_SIZE as i64)
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: the slab is ours and still unknown to anybody else.
            unsafe { libc::munmap(slab.as_ptr().cast(), len) };
            return Err(error);
        }
        done += run.len();
    }
    // As on Xen: a forked child must not hold a peer's pages. Refusal would only mean that it does.
    // SAFETY: the range is the slab mapped above.
    unsafe { libc::madvise(slab.as_ptr().cast(), len, libc::MADV_DONTFORK) };
    Ok(slab)
}

/// Unmaps what [`map`] mapped.
///
/// # Safety
/// The range came from [`map`] and nothing uses it any more.
pub(super) unsafe fn unmap(address: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { libc::munmap(address.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps the first `count` pages of a memory: its grant table, or for its owner all of it.
pub(super) fn map_first(fd: &OwnedFd, count: u32, writable: bool) -> io::Result<SharedMemory> {
    let frames: Vec<u32> = (0..count).collect();
    let address = map(fd.as_fd(), &frames, writable)?;
    let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
    // SAFETY: just mapped, unknown to anybody else, unmapped by `Munmap` alone.
    Ok(unsafe { SharedMemory::new(address, frames.len() * PAGE_SIZE, access, Box::new(Munmap)) })
}

/// Only unmaps.
pub(super) struct Munmap;

impl Release for Munmap {
    fn release(&mut self, address: NonNull<u8>, len: usize) -> io::Result<()> {
        // SAFETY: made from `map` wherever it is used, and called last by the owner of the mapping.
        unsafe { unmap(address, len) }
    }
}

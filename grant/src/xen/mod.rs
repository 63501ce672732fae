//! The world of real Xen: gntdev, gntalloc and evtchn, spoken to by ioctl.
//!
//! Every constructor takes an open descriptor, so that a supervisor can open the devices and hand them to a
//! worker that can open nothing itself.

pub mod abi;
mod evtchn;
mod exchange;
mod gntalloc;
mod gntdev;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;

pub use evtchn::Evtchn;
pub use exchange::GntdevExchange;
pub use gntalloc::Gntalloc;
pub use gntdev::Gntdev;

use abi::PlainIoctl;

/// Issues an ioctl whose argument is exactly the structure that its number names.
fn ioctl<T: PlainIoctl>(fd: BorrowedFd<'_>, argument: &mut T) -> io::Result<u32> {
    // SAFETY: T::NUMBER encodes size_of::<T>() (asserted in `abi`), T holds no pointers, and the kernel reads and
    // writes at most that many bytes, all of them ours for the length of the call.
    unsafe { ioctl_raw(fd, T::NUMBER, std::ptr::from_mut(argument).cast()) }
}

/// Issues an ioctl and turns its result into a number (0 for most, the port for evtchn).
///
/// # Safety
/// `argument` points to what `number` expects, including whatever variable tail or pointers it carries.
unsafe fn ioctl_raw(fd: BorrowedFd<'_>, number: u32, argument: *mut libc::c_void) -> io::Result<u32> {
    // SAFETY: the caller's promise; the descriptor is borrowed and therefore open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, argument) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Opens a device of Xen for reading and writing, closed on exec.
fn open(path: &str, flags: i32) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    file.map(OwnedFd::from).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// Maps `len` bytes of a grant device at the offset that its ioctl returned.
///
/// A grant whose page the owner's toolstack has paged out gives EAGAIN: tried again, for a bounded time.
fn map_device(fd: BorrowedFd<'_>, index: u64, len: usize, writable: bool) -> io::Result<NonNull<u8>> {
    /// A millisecond apart.
    const TRIES: u32 = 100;
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let offset = libc::off_t::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    for _ in 0..TRIES {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset) };
        if address != libc::MAP_FAILED {
            // On PVH a forked child would inherit the mapping and keep the grants busy (block.md F7). A kernel that
            // refuses the advice (PV marks the area itself) loses nothing.
            // SAFETY: the range was mapped above and belongs to us.
            unsafe { libc::madvise(address, len, libc::MADV_DONTFORK) };
            return NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Undoes [`map_device`].
///
/// # Safety
/// The range came from `map_device` and nothing uses it any more.
unsafe fn unmap_device(address: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { libc::munmap(address.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::{Access, DomId, EventChannel, GrantAccess, GrantRef, Grants, Port};

    fn null() -> OwnedFd {
        open("/dev/null", 0).expect("/dev/null opens")
    }

    #[test]
    fn missing_device_is_named_in_the_error() {
        let error = open("/dev/xen/no-such-device", 0).expect_err("there is none");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/dev/xen/no-such-device"), "{error}");
    }

    #[test]
    fn descriptor_that_is_no_xen_device_gives_errors_and_maps_nothing() {
        let enotty = Some(libc::ENOTTY);
        let mut gntdev = Gntdev::new(null(), DomId(1));
        assert_eq!(gntdev.map(&[GrantRef(8)], Access::ReadOnly).unwrap_err().raw_os_error(), enotty);
        assert_eq!(gntdev.counts().pages_mapped, 0);
        let mut gntalloc = Gntalloc::new(null());
        assert_eq!(gntalloc.grant(DomId(1), 1, Access::ReadWrite).unwrap_err().raw_os_error(), enotty);
        let mut evtchn = Evtchn::new(null()).expect("wraps anything");
        assert_eq!(evtchn.alloc_unbound(DomId(1)).unwrap_err().raw_os_error(), enotty);
        assert_eq!(evtchn.notify(Port(1)).unwrap_err().raw_os_error(), enotty);
        assert_eq!(evtchn.fd().as_raw_fd(), evtchn.fd().as_fd().as_raw_fd());
    }

    #[test]
    fn map_refuses_counts_out_of_range_before_asking_the_kernel() {
        let mut gntdev = Gntdev::new(null(), DomId(1));
        let too_many = vec![GrantRef(8); crate::MAX_MAP + 1];
        for refs in [&[][..], &too_many[..]] {
            assert_eq!(gntdev.map(refs, Access::ReadWrite).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(gntdev.counts().map_calls, 0);
    }
}

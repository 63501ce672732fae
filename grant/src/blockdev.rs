//! What only an ioctl can do to a block device (`linux/fs.h`). These calls block until the device has done it: they
//! belong on a thread of their own.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `BLKDISCARD`: `_IO(0x12, 119)`.
pub const BLKDISCARD: libc::Ioctl = 0x1277;
/// `BLKSECDISCARD`: `_IO(0x12, 125)`.
pub const BLKSECDISCARD: libc::Ioctl = 0x127D;

/// Discards `len` bytes at `at`; with `secure` nothing can bring the old content back.
///
/// # Errors
/// What the kernel says: `EOPNOTSUPP` where the device cannot, `EINVAL` for a range that is not whole logical sectors.
pub fn discard(device: impl AsFd, at: u64, len: u64, secure: bool) -> io::Result<()> {
    let request = if secure { BLKSECDISCARD } else { BLKDISCARD };
    let range = [at, len];
    // SAFETY: both requests read two u64 and write nothing.
    match unsafe { libc::ioctl(device.as_fd().as_raw_fd(), request, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_says_so() {
        let file = std::fs::File::open("/dev/null").unwrap();
        for secure in [false, true] {
            assert_eq!(discard(&file, 0, 512, secure).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}

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

/// `BLKPG`: `_IO(0x12, 105)`, linux/blkpg.h.
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_DEL_PARTITION: libc::c_int = 2;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

/// Where a partition lies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionRange {
    /// Its number, from 1.
    pub number: i32,
    /// First byte.
    pub start: i64,
    /// How many.
    pub length: i64,
}

/// `struct blkpg_partition`, linux/blkpg.h.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    pno: libc::c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// `struct blkpg_ioctl_arg`, linux/blkpg.h.
#[repr(C)]
struct BlkpgIoctlArg {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut libc::c_void,
}

const _: () = assert!(size_of::<BlkpgPartition>() == 152 && size_of::<BlkpgIoctlArg>() == 24);

fn blkpg(device: impl AsFd, op: libc::c_int, range: PartitionRange) -> io::Result<()> {
    let PartitionRange { number, start, length } = range;
    let mut partition = BlkpgPartition { start, length, pno: number, devname: [0; 64], volname: [0; 64] };
    let datalen = size_of::<BlkpgPartition>() as libc::c_int;
    let mut argument = BlkpgIoctlArg { op, flags: 0, datalen, data: std::ptr::from_mut(&mut partition).cast() };
    // SAFETY: the kernel reads the argument and `datalen` bytes behind `data`, both ours for the length of the call.
    match unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKPG, std::ptr::from_mut(&mut argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel know one more partition of a disk, whose others may be in use.
///
/// # Errors
/// What the kernel says: `EBUSY` where another one is.
pub fn add_partition(device: impl AsFd, range: PartitionRange) -> io::Result<()> {
    blkpg(device, BLKPG_ADD_PARTITION, range)
}

/// Has the kernel forget a partition.
///
/// # Errors
/// What the kernel says: `EBUSY` when it is open.
pub fn remove_partition(device: impl AsFd, number: i32) -> io::Result<()> {
    blkpg(device, BLKPG_DEL_PARTITION, PartitionRange { number, start: 0, length: 0 })
}

/// Has the kernel know a partition's new length.
///
/// # Errors
/// What the kernel says: `EBUSY` where another partition is.
pub fn resize_partition(device: impl AsFd, range: PartitionRange) -> io::Result<()> {
    blkpg(device, BLKPG_RESIZE_PARTITION, range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_says_so() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let range = PartitionRange { number: 1, start: 0, length: 512 };
        assert_eq!(add_partition(&file, range).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        for secure in [false, true] {
            assert_eq!(discard(&file, 0, 512, secure).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}

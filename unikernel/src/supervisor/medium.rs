//! What the medium under a volume can do: the sectors it takes, and whether it gives discarded space back.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use blkback::config::Discard;
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, fallocate, ioctl_blkpbszget, ioctl_blksszget, statx};
use rustix::io::Errno;

/// A medium, as far as a disk on it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// The smallest piece that it takes, bytes: 512 or more.
    pub unit: u32,
    /// The smallest piece that it writes without reading first, bytes: `unit` to 4096.
    pub physical: u32,
    /// What discards do on it; none when it takes none.
    pub discard: Option<Discard>,
}

impl Medium {
    /// Looks at an open file or block device of `size` bytes. With `direct` it was opened past the page cache, which
    /// takes pieces of any size; with `writable` it may be asked what discards do.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(file: &File, metadata: &Metadata, size: u64, direct: bool, writable: bool) -> io::Result<Medium> {
        let device = metadata.file_type().is_block_device();
        let (logical, physical) = match device {
            true => (ioctl_blksszget(file)?, ioctl_blkpbszget(file)?),
            false => (direct_alignment(file), u32::try_from(metadata.blksize()).unwrap_or(512)),
        };
        let unit = if direct { logical.max(512) } else { 512 };
        let physical = if physical.is_power_of_two() { physical.clamp(unit.min(4096), 4096) } else { unit };
        let discard = match writable {
            false => None,
            true if device => device_discard(file, size, logical),
            true => file_discard(file, size, unit),
        };
        Ok(Medium { unit, physical, discard })
    }
}

/// What direct I/O on this file has to be aligned to, where the kernel tells (Linux 6.1); else what every disk takes.
fn direct_alignment(file: &File) -> u32 {
    // STATX_DIOALIGN, linux/stat.h.
    let wanted = StatxFlags::from_bits_retain(0x2000);
    match statx(file, c"", AtFlags::EMPTY_PATH, wanted) {
        Ok(stat) if stat.stx_mask & wanted.bits() != 0 && stat.stx_dio_offset_align > 0 => stat.stx_dio_offset_align,
        _ => 512,
    }
}

/// Holes in a file may be of any size; what is less than a block of the file system becomes zeros.
fn file_discard(file: &File, size: u64, unit: u32) -> Option<Discard> {
    // A hole behind the end changes nothing and tells whether there can be any.
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, size, 4096).ok()?;
    Some(Discard { granularity: unit, alignment: 0, secure: false, device: false })
}

fn device_discard(file: &File, size: u64, logical: u32) -> Option<Discard> {
    // A range behind the end is refused as such only by a device that could do the rest.
    let can = |secure| {
        let refusal = grant::blockdev::discard(file, size, 512, secure).err()?;
        (Errno::from_io_error(&refusal) == Some(Errno::INVAL)).then_some(())
    };
    can(false)?;
    // Not the granularity of the device: a guest's block layer does not align to that (its partitions and its file
    // systems' blocks may lie anywhere), and what is not a whole piece the device leaves alone by itself.
    Some(Discard { granularity: logical, alignment: 0, secure: can(true).is_some(), device: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_any_piece_and_gives_space_back() {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let medium = Medium::of(file.as_file(), &metadata, 1 << 20, false, true).unwrap();
        assert_eq!(medium.unit, 512);
        assert_eq!(medium.discard, Some(Discard { granularity: 512, alignment: 0, secure: false, device: false }));
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20, "asking changes nothing");
        let read_only = Medium::of(file.as_file(), &metadata, 1 << 20, false, false).unwrap();
        assert_eq!(read_only.discard, None);
    }
}

//! Opening what stands behind a volume, with a lock that lasts until the last descriptor is closed, wherever it is:
//! a worker's registered file counts, so a volume stays locked until the kernel has ended the last I/O.
//!
//! | opened for | file | block device |
//! | --- | --- | --- |
//! | writing | `flock` exclusive | `flock` exclusive, `O_EXCL` |
//! | reading | `flock` shared | `flock` shared |

use std::fs::{Metadata, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use blkback::config::{DiskKind, DiskParams};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::medium::Medium;
use crate::config::Volume;
use crate::source::partitions;

/// Largest sectors of a medium under 512-byte sectors of a guest, bytes: 4Kn.
const MAX_UNIT: u32 = 4096;

/// A volume in use by one device.
#[derive(Debug)]
pub struct Opened {
    /// The descriptor; none for `null`.
    pub fd: Option<OwnedFd>,
    /// What the guest will see.
    pub disk: DiskParams,
}

impl Opened {
    /// How large the volume is now.
    ///
    /// # Errors
    /// What the kernel says; `null` has no size to be looked at.
    pub fn bytes(&self) -> std::io::Result<u64> {
        let fd = self.fd.as_ref().ok_or(std::io::ErrorKind::Unsupported)?;
        // The one call that is right for files and for block devices.
        Ok(rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))?)
    }

    /// The 512-byte sectors of `bytes`, as far as they fill sectors of the medium.
    pub fn whole_sectors(&self, bytes: u64) -> u64 {
        let unit = u64::from(self.disk.physical_sector_size.max(self.disk.logical_sector_size)).max(512);
        bytes / unit * (unit / 512)
    }

    /// Takes the volume's size as it is now, larger or smaller: for a disk that nobody uses yet.
    ///
    /// # Errors
    /// A sentence when nothing is left of it.
    pub fn settle(&mut self) -> Result<(), String> {
        if self.fd.is_none() {
            return Ok(());
        }
        let bytes = self.bytes().map_err(|error| format!("its volume has no size any more: {error}"))?;
        match self.whole_sectors(bytes) {
            0 => Err(format!("its volume has shrunk to {bytes} bytes")),
            sectors => {
                self.disk.sectors = sectors;
                Ok(())
            }
        }
    }
}

/// Why a volume cannot be used. Every text stands alone on its line.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Somebody else has it.
    #[error("{0}")]
    Busy(String),
    /// Anything else.
    #[error("{0}")]
    Unusable(String),
}

/// Opens a volume for one device.
///
/// # Errors
/// [`VolumeError::Busy`] may pass, the rest will not by itself.
pub fn open(volume: &Volume, read_only: bool) -> Result<Opened, VolumeError> {
    let name = &volume.name;
    let disk = |sectors| DiskParams {
        read_only,
        direct: volume.direct,
        kind: volume.kind,
        on_error: volume.on_error,
        fault: volume.fault,
        ..DiskParams::plain(sectors)
    };
    let named = match (volume.kind, &volume.path) {
        (DiskKind::Raw, Some(path)) => path,
        _ => {
            return Ok(Opened { fd: None, disk: disk(volume.size / 512) });
        }
    };
    let unusable = |why: String| VolumeError::Unusable(format!("volume {name}: {}: {why}", named.display()));
    let busy = |why: String| VolumeError::Busy(format!("volume {name}: {}: {why}", named.display()));
    let partition = volume.label.as_ref().map(|label| partitions::node(named, label)).transpose();
    let partition = partition.map_err(|refusal| unusable(refusal.to_string()))?;
    let path = partition.as_ref().unwrap_or(named);

    // Without O_NONBLOCK a FIFO put there by mistake would hang the supervisor.
    let metadata = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(unusable("neither a file nor a block device".into()));
    }
    let mut flags = OFlags::NONBLOCK;
    flags.set(OFlags::DIRECT, volume.direct);
    flags.set(OFlags::EXCL, kind.is_block_device() && !read_only);
    let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags.bits() as i32).open(path);
    let mut file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => busy("in use on this machine (mounted, or another program has it)".into()),
        Some(Errno::INVAL) if volume.direct => {
            unusable("this file system has no direct I/O; set direct = false for this volume".into())
        }
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) if !read_only => {
            unusable(format!("{error}; mode = \"ro\" would do without writing"))
        }
        _ => unusable(error.to_string()),
    })?;
    let operation = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(&file, operation) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let holder = holder(&metadata).unwrap_or_else(|| "another program".into());
            return Err(busy(format!("locked by {holder}")));
        }
        Err(error) => return Err(unusable(format!("cannot be locked: {error}"))),
    }
    let size = file.seek(SeekFrom::End(0)).map_err(|error| unusable(error.to_string()))?;
    let medium = Medium::of(&file, &metadata, size, volume.direct, !read_only);
    let medium = medium.map_err(|error| unusable(error.to_string()))?;
    if size == 0 {
        return Err(unusable("it is empty, and a disk needs at least one sector".into()));
    }
    if !size.is_multiple_of(512) {
        let short = size - size % 512;
        return Err(unusable(format!(
            "its size, {size} bytes, is no multiple of 512 (truncate -s {short} or -s {} makes it one)",
            short + 512
        )));
    }
    if medium.unit > MAX_UNIT || !size.is_multiple_of(medium.unit.into()) {
        return Err(unusable(format!(
            "direct I/O on it wants pieces of {} bytes and its size is {size}: set direct = false for this volume",
            medium.unit
        )));
    }
    let physical = match size.is_multiple_of(medium.physical.into()) {
        true => medium.physical,
        false => 512,
    };
    let disk = DiskParams {
        physical_sector_size: physical,
        logical_sector_size: medium.unit,
        discard: medium.discard.filter(|_| volume.discard),
        barrier: !read_only,
        ..disk(size / 512)
    };
    Ok(Opened { fd: Some(file.into()), disk })
}

/// Looks whether a volume could be opened, without keeping it: its size in bytes. For a first word at start.
///
/// # Errors
/// [`VolumeError::Unusable`]; a volume that somebody else has is fine for now, and its size unknown (0).
pub fn check(volume: &Volume) -> Result<u64, VolumeError> {
    match open(volume, volume.read_only) {
        Ok(opened) => Ok(opened.disk.sectors * 512),
        Err(VolumeError::Busy(_)) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Who holds a lock on a file, from /proc/locks: `process 123 (qemu-nbd)`.
fn holder(metadata: &Metadata) -> Option<String> {
    let device = metadata.dev();
    let file = format!("{:02x}:{:02x}:{}", rustix::fs::major(device), rustix::fs::minor(device), metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|line| line.split_whitespace().any(|word| word == file))?;
    let pid: u32 = line.split_whitespace().nth(4)?.parse().ok()?;
    let name = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm"));
    Some(match name {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    })
}

#[cfg(test)]
mod tests {
    use blkback::config::OnError;

    use super::*;

    fn volume(path: &Path) -> Volume {
        Volume {
            name: "db".into(),
            path: Some(path.to_owned()),
            label: None,
            source: None,
            read_only: false,
            direct: false,
            kind: DiskKind::Raw,
            size: 0,
            on_error: OnError::Report,
            discard: true,
            fault: None,
        }
    }

    fn file(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn a_second_writer_is_refused_and_told_who_has_it() {
        let file = file(8192);
        let volume = volume(file.path());
        let first = open(&volume, false).unwrap();
        assert_eq!(first.disk.sectors, 16);
        let Err(VolumeError::Busy(why)) = open(&volume, false) else { panic!("opened twice") };
        assert!(why.contains("db") && why.contains(&format!("process {}", std::process::id())), "{why}");
        assert!(matches!(open(&volume, true), Err(VolumeError::Busy(_))));
        // A copy of the descriptor, as a worker has one, keeps the lock.
        let copy = first.fd.as_ref().unwrap().try_clone().unwrap();
        drop(first);
        assert!(matches!(open(&volume, false), Err(VolumeError::Busy(_))));
        drop(copy);
        open(&volume, false).unwrap();
    }

    #[test]
    fn readers_share() {
        let file = file(8192);
        let volume = volume(file.path());
        let _first = open(&volume, true).unwrap();
        let second = open(&volume, true).unwrap();
        assert!(second.disk.read_only);
        assert!(matches!(open(&volume, false), Err(VolumeError::Busy(_))));
    }

    #[test]
    fn what_is_no_disk_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let says = |path: &Path| open(&volume(path), false).expect_err("opened").to_string();
        assert!(says(&dir.path().join("none")).contains("No such file"));
        assert!(says(dir.path()).contains("neither a file nor a block device"));
        assert!(says(file(0).path()).contains("empty"));
        let text = says(file(1000).path());
        assert!(text.contains("1000 bytes, is no multiple of 512") && text.contains("-s 1024"), "{text}");
    }

    #[test]
    fn a_size_is_taken_in_whole_sectors_of_the_medium() {
        let file = file(8192);
        let mut opened = open(&volume(file.path()), false).unwrap();
        opened.disk.physical_sector_size = 4096;
        file.as_file().set_len(12_287 + 4096).unwrap();
        assert_eq!(opened.bytes().unwrap(), 12_287 + 4096);
        opened.settle().unwrap();
        assert_eq!(opened.disk.sectors, 24);
        file.as_file().set_len(4095).unwrap();
        assert!(opened.settle().unwrap_err().contains("4095 bytes"));
        assert_eq!(opened.disk.sectors, 24);
    }

    #[test]
    fn null_needs_no_file() {
        let volume = Volume { path: None, kind: DiskKind::Null, size: 1 << 20, ..volume(Path::new("/")) };
        let opened = open(&volume, false).unwrap();
        assert!(opened.fd.is_none());
        assert_eq!(opened.disk.sectors, 2048);
    }
}

//! Labelled partitions of a disk with a GPT.
//!
//! The table is read by the crate `gpt`, which checks checksums and bounds; the kernel is told of each change by itself
//! (`BLKPG`), so that the other partitions may be in use. A partition keeps its number, by which the kernel knows it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::{GptConfig, GptDisk, partition_types};
use grant::blockdev::{self, PartitionRange};
use rustix::fs::{FlockOperation, OFlags, flock, ioctl_blksszget, major, minor};
use rustix::io::Errno;

use super::{Change, Found, Refusal, table, would_shrink};

/// Partitions start, and sizes are rounded up, to this many bytes.
const ALIGNMENT: u64 = 1 << 20;

/// A disk with its table.
struct Disk<'a> {
    path: &'a Path,
    file: File,
    block: u64,
    device: bool,
    table: GptDisk<File>,
}

/// Every labelled partition.
pub(super) fn look(path: &Path) -> Result<Found, Refusal> {
    let mut found = Found::default();
    let Some(disk) = Disk::open(path, false)? else { return Ok(found) };
    for partition in disk.table.partitions().values().filter(|partition| partition.is_used()) {
        if !partition.name.is_empty() {
            found.take(&partition.name, "partition");
        }
    }
    Ok(found)
}

/// The device node of the partition with this label.
///
/// # Errors
/// When there is none, or several, or the kernel does not know it.
pub fn node(path: &Path, label: &str) -> Result<PathBuf, Refusal> {
    let disk = Disk::open(path, false)?.ok_or_else(|| Refusal::Missing("it has no partitions".into()))?;
    let (number, partition) = disk.labelled(label)?;
    if !disk.device {
        let why = "it is a file, and only partitions of block devices can be served (losetup --partscan makes one)";
        return Err(Refusal::Failed(why.into()));
    }
    disk.node(number, &partition)
}

/// Makes, resizes or removes a partition. A name that is no volume's never gets here.
pub(super) fn change(path: &Path, label: &str, change: &Change) -> Result<u64, Refusal> {
    // New tables and partitions get random numbers, for which `gpt` polls /dev/random: in a VM where nothing happens it
    // would wait for ever. Reading from it has the kernel make itself random.
    File::open("/dev/random")
        .and_then(|mut random| random.read_exact(&mut [0]))
        .map_err(|error| failed(Path::new("/dev/random"), &error))?;
    let disk = match (Disk::open(path, true)?, change) {
        (Some(disk), _) => disk,
        (None, Change::Create { .. }) => Disk::format(path)?,
        (None, _) => return Err(Refusal::Missing("its disk has no partitions".into())),
    };
    match *change {
        Change::Create { bytes, .. } => disk.create(label, bytes),
        Change::Resize { bytes, shrink } => disk.resize(label, bytes, shrink),
        Change::Remove => disk.remove(label),
    }
}

impl<'a> Disk<'a> {
    /// Opens a disk and reads its table; none when it is blank.
    fn open(path: &'a Path, writable: bool) -> Result<Option<Disk<'a>>, Refusal> {
        let (mut file, device, block) = open(path, writable)?;
        if !table::is_usual(&file, block).map_err(|error| failed(path, &error))? {
            return Err(failed(path, &"its GPT has entries of a size, or as many, as no tool makes"));
        }
        let config = GptConfig::new().writable(writable).logical_block_size(block_size(path, block)?);
        let copy = file.try_clone().map_err(|error| failed(path, &error))?;
        match config.open_from_device(copy) {
            Ok(table) => Ok(Some(Disk { path, file, block, device, table })),
            Err(_) if is_blank(&mut file).map_err(|error| failed(path, &error))? => Ok(None),
            Err(error) => Err(failed(path, &format!("no GPT can be read from it: {error}"))),
        }
    }

    /// Gives a blank disk an empty table.
    fn format(path: &'a Path) -> Result<Disk<'a>, Refusal> {
        let (mut file, device, block) = open(path, true)?;
        let size = file.seek(SeekFrom::End(0)).map_err(|error| failed(path, &error))?;
        let blocks = u32::try_from((size / block).saturating_sub(1)).unwrap_or(u32::MAX);
        let mut copy = file.try_clone().map_err(|error| failed(path, &error))?;
        let made = ProtectiveMBR::with_lb_size(blocks).overwrite_lba0(&mut copy);
        made.map_err(|error| failed(path, &error))?;
        let config = GptConfig::new().writable(true).logical_block_size(block_size(path, block)?);
        let table = config.create_from_device(copy, None).map_err(|error| failed(path, &error))?;
        let disk = Disk { path, file, block, device, table };
        disk.write()?;
        Ok(disk)
    }

    /// The one partition with this label.
    fn labelled(&self, label: &str) -> Result<(u32, Partition), Refusal> {
        let used = self.table.partitions().iter().filter(|(_, it)| it.is_used() && it.name == label);
        match used.collect::<Vec<_>>().as_slice() {
            [] => Err(Refusal::Missing(format!("no partition is labelled \"{label}\""))),
            [(number, partition)] => Ok((**number, (*partition).clone())),
            several => Err(Refusal::Failed(format!("{} partitions are labelled \"{label}\"", several.len()))),
        }
    }

    fn range(&self, number: u32, partition: &Partition) -> Result<PartitionRange, Refusal> {
        let blocks = partition.sectors_len().map_err(|error| failed(self.path, &error))?;
        let bytes = |blocks: u64| blocks.checked_mul(self.block).and_then(|bytes| i64::try_from(bytes).ok());
        let (start, length) = (bytes(partition.first_lba), bytes(blocks));
        let number = i32::try_from(number).ok();
        match (number, start, length) {
            (Some(number), Some(start), Some(length)) => Ok(PartitionRange { number, start, length }),
            _ => Err(failed(self.path, &"its table names blocks that no disk has")),
        }
    }

    /// Where the kernel shows a partition, from sysfs: there is no udev in a service VM.
    fn node(&self, number: u32, partition: &Partition) -> Result<PathBuf, Refusal> {
        let rdev = self.file.metadata().map_err(|error| failed(self.path, &error))?.rdev();
        let dir = format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev));
        let range = self.range(number, partition)?;
        for entry in std::fs::read_dir(&dir).map_err(|error| failed(self.path, &error))?.flatten() {
            let number_of = |file: &str| -> Option<i64> {
                std::fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok()
            };
            if number_of("partition") != Some(number.into()) {
                continue;
            }
            // sysfs counts in sectors of 512 bytes, whatever the disk's are.
            if number_of("start") != Some(range.start / 512) || number_of("size") != Some(range.length / 512) {
                let why = "the kernel has another place for this partition than the disk's table: read the table again";
                return Err(failed(self.path, &why));
            }
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
        Err(failed(self.path, &format!("the kernel has no partition {number}: is the disk in use as a whole?")))
    }

    /// Nobody has the partition open for writing, and nobody gets it while the result lives.
    fn unused(&self, number: u32, partition: &Partition) -> Result<Option<File>, Refusal> {
        if !self.device {
            return Ok(None);
        }
        let node = self.node(number, partition)?;
        let exclusive = (OFlags::EXCL | OFlags::NONBLOCK).bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(&node);
        let file = opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Refusal::Busy(format!("{} is in use", node.display())),
            _ => failed(&node, &error),
        })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Err(Refusal::Busy(format!("{} is in use", node.display()))),
            Err(error) => Err(failed(&node, &error)),
        }
    }

    fn create(mut self, label: &str, bytes: u64) -> Result<u64, Refusal> {
        if self.table.partitions().values().any(|it| it.is_used() && it.name == label) {
            return Err(Refusal::Busy(format!("{} has a partition of that label", self.path.display())));
        }
        let size = bytes.div_ceil(ALIGNMENT) * ALIGNMENT;
        let (blocks, align) = (size / self.block, ALIGNMENT / self.block);
        let free = self.table.find_free_sectors();
        let fits = |(start, length): (u64, u64)| {
            let first = start.div_ceil(align) * align;
            (first.saturating_add(blocks) <= start.saturating_add(length)).then_some(first)
        };
        let Some(first) = free.iter().copied().find_map(fits) else {
            let usable = |(start, length): &(u64, u64)| {
                (start + length).saturating_sub(start.div_ceil(align) * align) / align * align * self.block
            };
            let largest = free.iter().map(usable).max().unwrap_or(0);
            let why = format!("no room for {size} bytes in one piece; the largest free one has {largest}");
            return Err(failed(self.path, &why));
        };
        let number = self.table.find_next_partition_id();
        let number = number.ok_or_else(|| failed(self.path, &"its table has no entry left"))?;
        let made = self.table.add_partition_at(label, number, first, blocks, partition_types::LINUX_FS, 0);
        made.map_err(|error| failed(self.path, &error))?;
        let (number, partition) = self.labelled(label)?;
        let range = self.range(number, &partition)?;
        // The kernel first: a disk that is in use as a whole is found out before anything is written.
        self.tell(|file| blockdev::add_partition(file, range))?;
        if let Err(refusal) = self.write() {
            self.tell(|file| blockdev::remove_partition(file, range.number))?;
            return Err(refusal);
        }
        Ok(size)
    }

    fn resize(mut self, label: &str, bytes: u64, shrink: bool) -> Result<u64, Refusal> {
        let (number, mut partition) = self.labelled(label)?;
        let before = self.range(number, &partition)?;
        let (now, size) = (before.length.unsigned_abs(), bytes.div_ceil(ALIGNMENT) * ALIGNMENT);
        if size < now && !shrink {
            return Err(would_shrink(now, size));
        }
        drop(self.unused(number, &partition)?);
        let last = partition.first_lba + size / self.block - 1;
        let others = self.table.partitions().iter().filter(|(other, it)| **other != number && it.is_used());
        let next = others.map(|(_, it)| it.first_lba).filter(|first| *first > partition.first_lba).min();
        let limit = next.unwrap_or(self.table.header().last_usable + 1);
        if last >= limit {
            let most = (limit - partition.first_lba) * self.block;
            return Err(failed(self.path, &format!("no room behind it: it can have {most} bytes at most")));
        }
        partition.last_lba = last;
        let after = self.range(number, &partition)?;
        let mut all = self.table.take_partitions();
        all.insert(number, partition);
        self.table.update_partitions(all).map_err(|error| failed(self.path, &error))?;
        self.tell(|file| blockdev::resize_partition(file, after))?;
        if let Err(refusal) = self.write() {
            self.tell(|file| blockdev::resize_partition(file, before))?;
            return Err(refusal);
        }
        Ok(size)
    }

    fn remove(mut self, label: &str) -> Result<u64, Refusal> {
        let (number, partition) = self.labelled(label)?;
        let range = self.range(number, &partition)?;
        drop(self.unused(number, &partition)?);
        self.tell(|file| blockdev::remove_partition(file, range.number))?;
        self.table.remove_partition(number);
        if let Err(refusal) = self.write() {
            self.tell(|file| blockdev::add_partition(file, range))?;
            return Err(refusal);
        }
        Ok(0)
    }

    /// Has the kernel follow, where the disk is one of its block devices.
    fn tell(&self, change: impl FnOnce(&File) -> io::Result<()>) -> Result<(), Refusal> {
        if !self.device {
            return Ok(());
        }
        change(&self.file).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Refusal::Busy(format!("{}: the kernel says that it is in use", self.path.display())),
            _ => failed(self.path, &format!("the kernel does not take the change: {error}")),
        })
    }

    fn write(&self) -> Result<(), Refusal> {
        let block = block_size(self.path, self.block)?;
        table::write(&self.file, &self.table, block).map_err(|error| failed(self.path, &error))
    }
}

/// Opens a disk: file, whether it is a block device, bytes of its blocks. Whoever changes a table is alone with it.
fn open(path: &Path, writable: bool) -> Result<(File, bool, u64), Refusal> {
    let metadata = std::fs::metadata(path).map_err(|error| failed(path, &error))?;
    let device = metadata.file_type().is_block_device();
    if !device && !metadata.is_file() {
        return Err(failed(path, &"neither a file nor a block device"));
    }
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path);
    let file = file.map_err(|error| failed(path, &error))?;
    if writable {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Refusal::Busy(format!("{} is in use", path.display()))),
            Err(error) => return Err(failed(path, &error)),
        }
    }
    let block = if device { ioctl_blksszget(file.as_fd()).map_err(|error| failed(path, &error))? } else { 512 };
    Ok((file, device, block.into()))
}

fn block_size(path: &Path, block: u64) -> Result<LogicalBlockSize, Refusal> {
    LogicalBlockSize::try_from(block).map_err(|_| failed(path, &format!("blocks of {block} bytes are not known")))
}

/// Nothing but zeros where a table of any kind would be, at either end.
fn is_blank(file: &mut File) -> io::Result<bool> {
    const LOOK: u64 = 1 << 20;
    let size = file.seek(SeekFrom::End(0))?;
    for at in [0, size.saturating_sub(LOOK)] {
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        file.take(LOOK).read_to_end(&mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(size > 0)
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::Failed(format!("{}: {}", path.display(), why.to_string().replace('\n', ", ")))
}

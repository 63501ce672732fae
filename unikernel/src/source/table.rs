//! What the crate `gpt` does not do for a GPT (UEFI 2.10, 5.3). It would close the gaps between partitions that it writes,
//! and so give them other numbers than the kernel has for them; it would change both copies at once; and it panics at
//! entries of an unusual size.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, HeaderBuilder};
use gpt::{GptDisk, GptError};

/// What every tool makes: bytes of an entry, and at most so many of them.
const ENTRY: u32 = 128;
const ENTRIES: u32 = 1024;

/// Whether the crate can read what the headers describe, where there are any; they are no more than looked at.
pub(super) fn is_usual(mut file: &File, block: u64) -> io::Result<bool> {
    let size = file.seek(SeekFrom::End(0))?;
    for at in [block, (size / block).saturating_sub(1) * block] {
        let mut header = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.take(92).read_to_end(&mut header)?;
        let word = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let (Some(number), Some(bytes)) = (word(80), word(84)) else { continue };
        if header.starts_with(b"EFI PART") && (bytes != ENTRY || number > ENTRIES) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the table: every partition to the entry of its number. The copy at the disk's end is whole before the one at
/// its beginning is touched, so that one of them can be read whenever it stops.
pub(super) fn write(file: &File, table: &GptDisk<File>, block: LogicalBlockSize) -> Result<(), GptError> {
    let mut device = file;
    let of = |primary| HeaderBuilder::from_header(table.header()).primary(primary).build(block);
    let (mut primary, mut backup) = (of(true)?, of(false)?);
    let entries = entries(table, &primary, block)?;
    let mut put = |header: &Header| -> io::Result<()> {
        device.seek(SeekFrom::Start(header.part_start * u64::from(block)))?;
        device.write_all(&entries)
    };
    put(&backup)?;
    backup.write_backup(&mut { file }, block)?;
    file.sync_all()?;
    put(&primary)?;
    primary.write_primary(&mut { file }, block)?;
    Ok(file.sync_all()?)
}

/// The array of entries, those without a partition zero.
fn entries(table: &GptDisk<File>, header: &Header, block: LogicalBlockSize) -> Result<Vec<u8>, GptError> {
    let mut entries = Cursor::new(vec![0; header.num_parts as usize * header.part_size as usize]);
    for (number, partition) in table.partitions().iter().filter(|(_, partition)| partition.is_used()) {
        if *number > header.num_parts {
            return Err(GptError::OverflowPartitionCount);
        }
        partition.write_to_device(&mut entries, u64::from(number - 1), 0, block, header.part_size)?;
    }
    Ok(entries.into_inner())
}

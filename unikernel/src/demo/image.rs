//! What the demo serves: a file of the user's, for reading only, or a scratch file of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags, fallocate, fstatfs, ioctl_blksszget, statx};
use rustix::io::Errno;
use tempfile::TempPath;

use crate::cli::{FAILED, Failure, MISSING, USAGE};

/// File systems that are memory (linux/magic.h): tmpfs and ramfs.
const MEMORY_FILE_SYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A raw image.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Bytes that the file system holds for it, where that is fewer: the rest is read without a disk.
    pub allocated: Option<u64>,
    /// Why it is served through the page cache; none when it is not.
    pub buffered: Option<&'static str>,
    /// The guest may not write.
    pub read_only: bool,
}

impl Image {
    /// The user's own.
    ///
    /// # Errors
    /// When it cannot be read, or be a disk.
    pub fn of_user(path: &Path) -> Result<Image, Failure> {
        let wrong = |code, why: String| Failure::new(code, format!("--disk {}: {why}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| wrong(MISSING, error.to_string()))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(wrong(USAGE, "neither a file nor a block device".into()));
        }
        let file = File::open(path).map_err(|error| wrong(MISSING, error.to_string()))?;
        let size = (&file).seek(SeekFrom::End(0)).map_err(|error| wrong(FAILED, error.to_string()))?;
        if size == 0 {
            return Err(wrong(USAGE, "it is empty, and a disk needs at least one sector".into()));
        }
        if !size.is_multiple_of(512) {
            let why = format!(
                "its size, {size} bytes, is no multiple of 512: a raw disk image is whole sectors (a copy made longer \
                 with truncate -s {} would do)",
                size.next_multiple_of(512)
            );
            return Err(wrong(USAGE, why));
        }
        let path = std::path::absolute(path).map_err(|error| wrong(FAILED, error.to_string()))?;
        let buffered = buffered(&path, &file);
        let allocated = Some(metadata.blocks() * 512).filter(|&bytes| kind.is_file() && bytes < size);
        Ok(Image { path, size, allocated, buffered, read_only: true })
    }

    /// A new one of `size` bytes in `$TMPDIR`, all of it allocated. It is gone when the second value is dropped.
    ///
    /// # Errors
    /// When there is no room.
    pub fn scratch(size: u64) -> Result<(Image, TempPath), Failure> {
        let dir = std::env::temp_dir();
        let wrong = |error: io::Error| {
            let why = format!(
                "no scratch image of {} MiB in {}: {error} (set TMPDIR to a directory that has the room, or give \
                 --disk FILE)",
                size >> 20,
                dir.display()
            );
            Failure::new(MISSING, why)
        };
        let made = tempfile::Builder::new().prefix("windsor-demo-").suffix(".img").tempfile_in(&dir).map_err(wrong)?;
        match fallocate(made.as_file(), FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => made.as_file().set_len(size).map_err(wrong)?,
            Err(error) => return Err(wrong(error.into())),
        }
        let buffered = buffered(made.path(), made.as_file());
        let path = made.path().to_owned();
        Ok((Image { path, size, allocated: None, buffered, read_only: false }, made.into_temp_path()))
    }

    /// Writes all of it, so that nothing is a hole and, if there is room, all is in the page cache.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fill(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        let mut chunk = vec![0; 1 << 20];
        for at in (0..self.size).step_by(chunk.len()) {
            fastrand::fill(&mut chunk);
            let len = (self.size - at).min(chunk.len() as u64) as usize;
            file.write_all(&chunk[..len])?;
        }
        file.sync_data()
    }

    /// `[[volume]]` for the configuration of the service VM, as volume `name`.
    ///
    /// # Errors
    /// A path that is not UTF-8 cannot stand in a configuration.
    pub fn volume(&self, name: &str, flip: Option<u64>) -> Result<String, Failure> {
        let path = self.path.to_str().ok_or_else(|| {
            Failure::new(USAGE, format!("{}: a path that is not UTF-8 cannot be configured", self.path.display()))
        })?;
        let path = toml::Value::String(path.to_owned());
        let mode = if self.read_only { "ro" } else { "rw" };
        let direct = self.buffered.is_none();
        let fault = flip.map_or(String::new(), |byte| format!("[volume.fault]\nflip = {byte}\n"));
        Ok(format!("[[volume]]\nname = \"{name}\"\npath = {path}\nmode = \"{mode}\"\ndirect = {direct}\n{fault}"))
    }

    /// True when it is in memory anyway.
    pub fn is_in_memory(&self) -> bool {
        self.buffered == Some(IN_MEMORY)
    }
}

const IN_MEMORY: &str = "its file system is memory";
const NO_DIRECT: &str = "its file system has no direct I/O";
const LARGE_SECTORS: &str = "its sectors are larger than a guest's 512 bytes";

/// Why direct I/O with single sectors cannot be used.
fn buffered(path: &Path, file: &File) -> Option<&'static str> {
    if fstatfs(file).is_ok_and(|found| MEMORY_FILE_SYSTEMS.contains(&found.f_type)) {
        return Some(IN_MEMORY);
    }
    if OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path).is_err() {
        return Some(NO_DIRECT);
    }
    if ioctl_blksszget(file).is_ok_and(|sector| sector > 512) {
        return Some(LARGE_SECTORS);
    }
    // Linux 6.1 knows for files; an older one is believed to take sectors.
    match statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(found) if found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => match found.stx_dio_offset_align {
            0 => Some(NO_DIRECT),
            1..=512 => None,
            _ => Some(LARGE_SECTORS),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let refused = |size: usize| {
            std::fs::write(&path, vec![0; size]).unwrap();
            Image::of_user(&path).unwrap_err()
        };
        let odd = refused(1000);
        assert!(odd.code == USAGE && odd.text.contains("1000 bytes, is no multiple of 512"), "{odd:?}");
        assert!(refused(0).text.contains("empty"));
        assert_eq!(Image::of_user(&dir.path().join("none")).unwrap_err().code, MISSING);
        assert_eq!(Image::of_user(dir.path()).unwrap_err().code, USAGE);
    }

    #[test]
    fn any_path_can_be_configured() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a \"quoted\" \\ one.img");
        std::fs::write(&path, [0; 1024]).unwrap();
        let image = Image::of_user(&path).unwrap();
        let text = format!("[vm]\nname = \"x\"\n{}", image.volume("disk", Some(7)).unwrap());
        let file = dir.path().join("x.toml");
        std::fs::write(&file, text).unwrap();
        let config = crate::config::Config::load(&file).unwrap();
        let volume = config.volume("disk").unwrap();
        assert!(volume.read_only && volume.path.as_ref() == Some(&path));
        assert_eq!(volume.fault.unwrap().flip, Some(7));
    }
}

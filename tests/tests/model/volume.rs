//! The file behind a disk: in memory, or on a real medium with direct I/O where there is one.

use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use tests::skip::skip;

use crate::reference::SECTOR;

/// A file, and how it is opened for the backend.
pub struct Volume {
    /// Through the page cache: what the test looks with.
    plain: OwnedFd,
    pub backend: OwnedFd,
}

impl Volume {
    pub fn in_memory(content: &[u8]) -> Volume {
        let plain = rustix::fs::memfd_create("volume", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(rustix::io::pwrite(&plain, content, 0), Ok(content.len()));
        Volume { backend: plain.try_clone().unwrap(), plain }
    }

    /// With direct I/O if the build's directory knows that: a temporary directory is often a tmpfs.
    pub fn direct(content: &[u8]) -> Volume {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.write_all(content).unwrap();
        file.as_file().sync_all().unwrap();
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        match rustix::fs::open(file.path(), flags, Mode::empty()).ok().filter(takes_sectors) {
            Some(backend) => Volume { plain: file.into_file().into(), backend },
            None => {
                skip("model-direct", &format!("no direct I/O of 512 bytes in {}", env!("CARGO_TARGET_TMPDIR")));
                Volume::in_memory(content)
            }
        }
    }

    /// All of it.
    pub fn content(&self, len: usize) -> Vec<u8> {
        let mut content = vec![0; len];
        assert_eq!(rustix::io::pread(&self.plain, &mut content, 0), Ok(len));
        content
    }
}

/// The medium may be one of 4096 bytes.
fn takes_sectors(file: &OwnedFd) -> bool {
    let mut room = [0u8; 2 * SECTOR];
    let start = room.as_ptr().align_offset(SECTOR);
    rustix::io::pread(file, &mut room[start..start + SECTOR], SECTOR as u64) == Ok(SECTOR)
}

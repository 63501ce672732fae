//! Images in a directory: `NAME.img` is the volume NAME.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, open, openat, unlinkat};
use rustix::io::Errno;

use super::{Change, Found, Refusal, would_shrink};

/// The ending of an image.
const ENDING: &str = ".img";

/// Every image. Links and whatever else is no regular file are none.
pub(super) fn look(dir: &Path) -> Result<Found, Refusal> {
    let mut found = Found::default();
    for entry in std::fs::read_dir(dir).map_err(|error| of_dir(dir, &error))? {
        let entry = entry.map_err(|error| of_dir(dir, &error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(ENDING)) else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            found.take(name, "file");
        }
    }
    Ok(found)
}

/// Makes, resizes or removes an image. A name that is no volume's never gets here.
pub(super) fn change(dir: &Path, name: &str, change: &Change) -> Result<u64, Refusal> {
    let parent = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let parent = parent.map_err(|error| of_dir(dir, &error.into()))?;
    let file = format!("{name}{ENDING}");
    let failed = |error: io::Error| Refusal::Failed(format!("{}: {error}", dir.join(&file).display()));
    let result = match change {
        Change::Create { bytes, .. } => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = match openat(&parent, &file, flags, Mode::RUSR | Mode::WUSR) {
                Ok(made) => File::from(made),
                Err(Errno::EXIST) => return Err(Refusal::Busy(format!("{} exists", dir.join(&file).display()))),
                Err(error) => return Err(failed(error.into())),
            };
            // What is half made is nobody's.
            if let Err(error) = made.set_len(*bytes).and_then(|()| made.sync_all()) {
                unlinkat(&parent, &file, AtFlags::empty()).map_err(|error| failed(error.into()))?;
                return Err(failed(error));
            }
            *bytes
        }
        Change::Resize { bytes, shrink } => {
            let image = unused(&parent, &file, failed)?;
            let now = image.metadata().map_err(failed)?.len();
            if *bytes < now && !shrink {
                return Err(would_shrink(now, *bytes));
            }
            image.set_len(*bytes).and_then(|()| image.sync_all()).map_err(failed)?;
            *bytes
        }
        Change::Remove => {
            let _image = unused(&parent, &file, failed)?;
            unlinkat(&parent, &file, AtFlags::empty()).map_err(|error| failed(error.into()))?;
            0
        }
    };
    rustix::fs::fsync(&parent).map_err(|error| failed(error.into()))?;
    Ok(result)
}

/// Opens an image that nobody uses, and keeps everybody else out of it.
fn unused(parent: &OwnedFd, file: &str, failed: impl Fn(io::Error) -> Refusal) -> Result<File, Refusal> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let image = match openat(parent, file, flags, Mode::empty()) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Err(Refusal::Missing("its image is gone".into())),
        Err(error) => return Err(failed(error.into())),
    };
    match flock(&image, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(File::from(image)),
        Err(Errno::WOULDBLOCK) => Err(Refusal::Busy("somebody has its image open".into())),
        Err(error) => Err(failed(error.into())),
    }
}

fn of_dir(dir: &Path, error: &io::Error) -> Refusal {
    let text = format!("{}: {error}", dir.display());
    if error.kind() == io::ErrorKind::NotFound { Refusal::Missing(text) } else { Refusal::Failed(text) }
}

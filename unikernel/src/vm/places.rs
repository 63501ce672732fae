//! Where things lie in dom0.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::toolstack::Refusal;

/// State of service VMs.
pub const STATE_DIR: &str = "/var/lib/windsor";
/// Configurations of service VMs.
pub const CONFIG_DIR: &str = "/etc/windsor";

/// The two directories.
#[derive(Clone, Debug)]
pub struct Places {
    /// [`STATE_DIR`], unless somebody says otherwise.
    pub state: PathBuf,
    /// [`CONFIG_DIR`], unless somebody says otherwise.
    pub config: PathBuf,
}

impl Places {
    /// Everything of one VM.
    pub fn of(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Its configuration for `windsor`.
    pub fn toml(&self, name: &str) -> PathBuf {
        self.config.join(format!("{name}.toml"))
    }

    /// Its configuration for `xl`.
    pub fn cfg(&self, name: &str) -> PathBuf {
        self.of(name).join(format!("{name}.cfg"))
    }

    /// Its images.
    pub fn images(&self, name: &str) -> PathBuf {
        self.of(name).join("images")
    }

    /// The one that it boots.
    pub fn current(&self, name: &str) -> PathBuf {
        self.images(name).join("current")
    }

    /// The one before that.
    pub fn previous(&self, name: &str) -> PathBuf {
        self.images(name).join("previous")
    }

    /// Guests while they are in no VM.
    pub fn saved(&self, name: &str) -> PathBuf {
        self.of(name).join("saved")
    }

    /// Names of the VMs that have been created.
    ///
    /// # Errors
    /// When the directory cannot be read; one that is not there holds nothing.
    pub fn names(&self) -> Result<Vec<String>, Refusal> {
        let entries = match fs::read_dir(&self.state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| at(&self.state, &error))?,
        };
        let mut names = Vec::new();
        for entry in entries.flatten() {
            if let Ok(name) = entry.file_name().into_string()
                && entry.path().join(super::record::FILE).exists()
                && !name.starts_with('.')
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// A failure with a file's name.
pub fn at(path: &Path, error: &io::Error) -> Refusal {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => " (are you root?)",
        _ => "",
    };
    Refusal::Failed(format!("{}: {error}{hint}", path.display()))
}

/// Makes `link` point to `target`, with no moment in between where it is not there.
///
/// # Errors
/// Those of the file system.
pub fn point(link: &Path, target: &str) -> Result<(), Refusal> {
    let fresh = link.with_extension("new");
    let result = match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, &fresh).and_then(|()| fs::rename(&fresh, link)),
    };
    result.map_err(|error| at(link, &error))
}

/// Where a link points; none when it is not there.
pub fn target(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

/// Writes a file so that it is whole or not there, and on the disk.
///
/// # Errors
/// Those of the file system.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Refusal> {
    let fresh = path.with_extension("new");
    let result = fs::write(&fresh, bytes)
        .and_then(|()| fs::File::open(&fresh)?.sync_all())
        .and_then(|()| fs::rename(&fresh, path));
    result.map_err(|error| at(path, &error))
}

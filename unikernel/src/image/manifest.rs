//! `manifest.json` beside an image: what it is made of, with the SHA-256 of each file, so that a damaged or foreign one
//! is found before a VM is made of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::DomainType;

/// Its name in the directory of an image.
pub const FILE: &str = "manifest.json";
/// The kernel's.
pub const KERNEL: &str = "vmlinuz";
/// The initramfs'.
pub const INITRAMFS: &str = "initramfs.img";
/// Of the format.
const VERSION: u32 = 1;
/// Longest manifest that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the format: 1.
    pub schema_version: u32,
    /// The VM it was built for.
    pub name: String,
    /// `pv` or `pvh`.
    #[serde(rename = "type")]
    pub kind: DomainType,
    /// The version of the program in it.
    pub windsor: String,
    /// The kernel's version.
    pub kernel: String,
    /// Modules in load order.
    pub modules: Vec<String>,
    /// Its files.
    pub files: Vec<Entry>,
    /// What the initramfs holds, unpacked.
    pub contents: Vec<Part>,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name in the image's directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

/// A file in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its path, without a leading slash.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// There is none.
    #[error("{0} holds no image: there is no {FILE} in it (`windsor image build --out` makes one)")]
    NoImage(String),
    /// It is not what it was.
    #[error("{0}")]
    Damaged(String),
}

impl Manifest {
    /// For the files as they are about to be written: version and bytes of the kernel, the initramfs.
    pub fn new(
        name: &str,
        kind: DomainType,
        kernel: (&str, &[u8]),
        modules: Vec<String>,
        initramfs: &[u8],
        contents: Vec<Part>,
    ) -> Manifest {
        let entry = |name: &str, bytes: &[u8]| Entry {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            sha256: hex(Sha256::digest(bytes).as_slice()),
        };
        Manifest {
            schema_version: VERSION,
            name: name.to_owned(),
            kind,
            windsor: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel.0.to_owned(),
            modules,
            files: vec![entry(KERNEL, kernel.1), entry(INITRAMFS, initramfs)],
            contents,
        }
    }

    /// As it is written.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads that of an image, without looking at its files.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn read(dir: &Path) -> Result<Manifest, Damage> {
        let path = dir.join(FILE);
        let damaged = |why: String| Damage::Damaged(format!("{}: {why}", path.display()));
        let mut text = String::new();
        let file = File::open(&path).map_err(|_| Damage::NoImage(dir.display().to_string()))?;
        file.take(LONGEST).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if manifest.schema_version != VERSION {
            let why = format!("it is of format {}, this windsor knows {VERSION}", manifest.schema_version);
            return Err(damaged(why));
        }
        let names: Vec<&str> = manifest.files.iter().map(|entry| entry.name.as_str()).collect();
        if names != [KERNEL, INITRAMFS] {
            return Err(damaged(format!("it names the files {names:?}")));
        }
        Ok(manifest)
    }

    /// Reads that of an image and compares every file with it.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn verify(dir: &Path) -> Result<Manifest, Damage> {
        let manifest = Manifest::read(dir)?;
        for entry in &manifest.files {
            let path = dir.join(&entry.name);
            let damaged =
                |why: String| Damage::Damaged(format!("{} {why}: build the image again, or roll back", path.display()));
            let (bytes, sha256) = digest(&path).map_err(|error| damaged(format!("cannot be read ({error})")))?;
            if bytes != entry.bytes {
                return Err(damaged(format!("has {bytes} bytes where {} were built", entry.bytes)));
            }
            if sha256 != entry.sha256 {
                return Err(damaged(format!("is damaged (its SHA-256 is not that of {FILE})")));
            }
        }
        Ok(manifest)
    }

    /// What tells this image from others: the same files give the same twelve digits.
    pub fn id(&self) -> String {
        let mut hash = Sha256::new();
        for entry in &self.files {
            hash.update(entry.name.as_bytes());
            hash.update(entry.sha256.as_bytes());
        }
        hex(hash.finalize().as_slice()).chars().take(12).collect()
    }

    /// Kernel and initramfs together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }
}

/// Size and SHA-256 of a file.
fn digest(path: &Path) -> io::Result<(u64, String)> {
    let bytes = fs::read(path)?;
    Ok((bytes.len() as u64, hex(Sha256::digest(&bytes).as_slice())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

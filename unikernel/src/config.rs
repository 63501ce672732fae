//! The configuration of a service VM (`serve --config FILE.toml`).
//!
//! ```toml
//! [vm]
//! name = "acme"
//!
//! [[volume]]
//! name = "db"
//! path = "/dev/nvme0n1"
//! mode = "rw"            # or "ro"
//! direct = true          # O_DIRECT, the default
//! on-error = "report"    # or "hold"
//! discard = true
//!
//! [[volume]]
//! name = "logs"
//! disk = "/dev/nvme0n1"
//! label = "acme-logs"    # the partition with this label; without it, every labelled partition is a volume
//!
//! [[volume]]
//! name = "images"
//! directory = "/srv/acme"  # every NAME.img in it is the volume NAME
//!
//! [[network]]
//! name = "lan"
//! uplink = "switch"      # or "bridge:br0", "tap:NAME"
//!
//! [[bridge]]             # made at the start
//! name = "br0"
//! ports = ["eth0"]
//!
//! [backend]
//! queues = 4
//! ```
//!
//! Whatever is wrong is refused as a whole, with the line it stands on.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use blkback::config::{DiskKind, FaultParams, OnError};
use serde::Deserialize;
use toml::Spanned;

mod backend;
mod bridge;
mod network;
mod source;

pub use backend::{Backend, Bytes, DataPath};
pub use bridge::Bridge;
pub use network::{DEFAULT_MTU, MTU, Network, Uplink};
pub use source::{Place, Source};

/// Most volumes of one VM.
const MAX_VOLUMES: usize = 1024;
/// Most threads of one worker.
pub const MAX_THREADS: usize = 16;

/// A whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[vm]`
    pub vm: Vm,
    /// Every `[[volume]]` that is one, in the order of the file; then those that the sources have.
    pub volumes: Vec<Volume>,
    /// Every `[[volume]]` that is a disk full of them, or a directory.
    pub sources: Vec<Source>,
    /// Every `[[bridge]]`, in the order of the file.
    pub bridges: Vec<Bridge>,
    /// Every `[[network]]`, in the order of the file.
    pub networks: Vec<Network>,
    /// `[backend]`
    pub backend: Backend,
}

/// `[vm]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What dom0 calls the VM.
    pub name: String,
    /// Kernel modules, for `windsor image build`.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Seconds that guests are still served once the end was asked for (see [`crate::settings`]).
    #[serde(default)]
    pub linger: Option<u64>,
    /// How much is logged.
    #[serde(default)]
    pub log: Option<String>,
}

/// `[[volume]]`: something a guest can be given as a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name in `windsor attach GUEST VM:NAME`.
    pub name: String,
    /// The file or block device; none for `null`. With a label, the disk that the partition is on.
    pub path: Option<PathBuf>,
    /// The label of a GPT partition.
    pub label: Option<String>,
    /// The source that it was found in; none for one that the file names.
    pub source: Option<String>,
    /// No guest may write.
    pub read_only: bool,
    /// Past the page cache.
    pub direct: bool,
    /// What stands behind it.
    pub kind: DiskKind,
    /// Bytes, for `null` only.
    pub size: u64,
    /// What happens when it fails.
    pub on_error: OnError,
    /// Guests may discard, where the medium can.
    pub discard: bool,
    /// Deliberate faults.
    pub fault: Option<FaultParams>,
}

/// What is wrong with a configuration, on one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {why}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        why: String,
    },
}

/// The file as it stands there; positions are kept for messages.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    vm: Spanned<Vm>,
    #[serde(default)]
    volume: Vec<Spanned<VolumeTable>>,
    #[serde(default)]
    network: Vec<network::NetworkTable>,
    #[serde(default)]
    bridge: Vec<bridge::BridgeTable>,
    #[serde(default)]
    backend: Option<Spanned<Backend>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeTable {
    name: Spanned<String>,
    path: Option<PathBuf>,
    disk: Option<PathBuf>,
    label: Option<String>,
    directory: Option<PathBuf>,
    mode: Option<Mode>,
    direct: Option<bool>,
    kind: Option<DiskKind>,
    size: Option<Spanned<Size>>,
    #[serde(rename = "on-error")]
    on_error: Option<OnError>,
    discard: Option<bool>,
    fault: Option<Spanned<FaultParams>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Rw,
    Ro,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], one line.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Config::parse(&text).map_err(|wrong| {
            let before = text.as_bytes().get(..wrong.at).unwrap_or_default();
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            ConfigError::Wrong { path: path.to_owned(), line, why: wrong.why }
        })
    }

    fn parse(text: &str) -> Result<Config, Wrong> {
        let file: File = toml::from_str(text).map_err(|error| {
            let why = error.message().replace('\n', ", ");
            Wrong { at: error.span().map_or(0, |span| span.start), why }
        })?;
        let at = file.vm.span();
        let vm = file.vm.into_inner();
        check_name(&vm.name, "._-").map_err(|why| wrong(at, format!("[vm] name {:?}: {why}", vm.name)))?;
        if file.volume.len() > MAX_VOLUMES {
            return Err(wrong(0..0, format!("more than {MAX_VOLUMES} volumes")));
        }
        let mut names = HashSet::new();
        let (mut volumes, mut sources) = (Vec::new(), Vec::new());
        for table in file.volume {
            let (at, made) = match source::is_source(table.get_ref()) {
                true => source::source(table).map(|(at, source)| (at, Err(source)))?,
                false => volume(table).map(|(at, volume)| (at, Ok(volume)))?,
            };
            let name = made.as_ref().map_or_else(|source| &source.name, |volume| &volume.name);
            if !names.insert(name.clone()) {
                return Err(wrong(at, format!("a second volume named \"{name}\"; names are unique in a VM")));
            }
            match made {
                Ok(volume) => volumes.push(volume),
                Err(source) => sources.push(source),
            }
        }
        let networks = networks(file.network, &names)?;
        let bridges = bridge::bridges(file.bridge)?;
        let backend = match file.backend {
            None => Backend::default(),
            Some(table) => {
                let at = table.span();
                let backend = table.into_inner();
                backend::check(&backend).map_err(|why| wrong(at, format!("[backend] {why}")))?;
                backend
            }
        };
        Ok(Config { vm, volumes, sources, bridges, networks, backend })
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The network of that name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == name)
    }
}

/// The networks; their names are not those of volumes, for both are given to guests by name.
fn networks(tables: Vec<network::NetworkTable>, volumes: &HashSet<String>) -> Result<Vec<Network>, Wrong> {
    if tables.len() > network::MAX_NETWORKS {
        return Err(wrong(0..0, format!("more than {} networks", network::MAX_NETWORKS)));
    }
    let mut networks: Vec<Network> = Vec::new();
    for table in tables {
        let (at, network) = network::network(table)?;
        let name = &network.name;
        if volumes.contains(name) {
            return Err(wrong(at, format!("network \"{name}\" has the name of a volume; names are unique in a VM")));
        }
        if networks.iter().any(|other| other.name == *name) {
            return Err(wrong(at, format!("a second network named \"{name}\"; names are unique in a VM")));
        }
        networks.push(network);
    }
    Ok(networks)
}

/// Something wrong at a byte of the file.
#[derive(Debug)]
struct Wrong {
    at: usize,
    why: String,
}

fn wrong(at: Range<usize>, why: String) -> Wrong {
    Wrong { at: at.start, why }
}

/// What a volume may be called.
///
/// # Errors
/// A sentence about names.
pub fn check_volume_name(name: &str) -> Result<(), String> {
    check_name(name, "-_")
}

/// Names become part of store paths, file names and command lines.
/// Whether a word can be the name of a VM.
pub fn is_vm_name(name: &str) -> bool {
    check_name(name, "._-").is_ok()
}

fn check_name(name: &str, others: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= 64 && name.chars().all(fine) {
        return Ok(());
    }
    let others: Vec<String> = others.chars().map(|c| format!("'{c}'")).collect();
    Err(format!("a name is 1 to 64 letters, digits, {} and starts with a letter or digit", others.join(" or ")))
}

fn volume(table: Spanned<VolumeTable>) -> Result<(Range<usize>, Volume), Wrong> {
    let table_at = table.span();
    let mut table = table.into_inner();
    let at = table.name.span();
    let name = table.name.into_inner();
    let fail = |at: Range<usize>, why: String| Err(wrong(at, format!("volume \"{name}\": {why}")));
    if let Err(why) = check_name(&name, "-_") {
        return Err(wrong(at, format!("volume name {name:?}: {why}")));
    }
    match (&table.disk, &table.path, &table.label) {
        (Some(_), Some(_), _) => return fail(table_at, "path and disk exclude each other".into()),
        (None, _, Some(_)) => return fail(table_at, "a label is that of a partition of a disk: say disk, too".into()),
        (_, _, Some(label)) => {
            if let Err(why) = source::check_label(label) {
                return fail(table_at, why);
            }
        }
        _ => {}
    }
    table.path = table.path.or(table.disk);
    let kind = table.kind.unwrap_or(DiskKind::Raw);
    let mut size = 0;
    match (kind, &table.path, table.size) {
        (DiskKind::Raw, None, _) => return fail(table_at, "it has no path".into()),
        (DiskKind::Raw, Some(path), _) if path.as_os_str().is_empty() => {
            return fail(table_at, "its path is empty".into());
        }
        (DiskKind::Raw, Some(_), Some(size)) => {
            return fail(size.span(), "size is for kind = \"null\"; a raw volume is as large as its file".into());
        }
        (DiskKind::Raw, Some(_), None) => {}
        (DiskKind::Null, Some(_), _) => {
            return fail(table_at, "kind = \"null\" takes no path".into());
        }
        (DiskKind::Null, None, None) => {
            return fail(table_at, "kind = \"null\" needs a size, such as \"1GiB\"".into());
        }
        (DiskKind::Null, None, Some(given)) => {
            let at = given.span();
            size = match bytes(&given.into_inner()) {
                Some(size) if size > 0 && size.is_multiple_of(512) && size <= 1 << 60 => size,
                _ => {
                    return fail(at, "size must be a multiple of 512 bytes, such as \"1GiB\" or 1073741824".into());
                }
            };
        }
    }
    let fault = match table.fault {
        None => None,
        Some(fault) => {
            let at = fault.span();
            let fault = fault.into_inner();
            if fault.shorten.is_some_and(|bytes| bytes == 0 || bytes % 512 != 0) {
                return fail(at, "fault.shorten must be a multiple of 512".into());
            }
            if fault.delay_ms > 600_000 {
                return fail(at, "fault.delay-ms is at most 600000".into());
            }
            Some(fault)
        }
    };
    let volume = Volume {
        path: table.path,
        label: table.label,
        source: None,
        read_only: table.mode == Some(Mode::Ro),
        direct: table.direct.unwrap_or(kind == DiskKind::Raw),
        kind,
        size,
        on_error: table.on_error.unwrap_or_default(),
        discard: table.discard.unwrap_or(true),
        fault,
        name,
    };
    Ok((at, volume))
}

fn bytes(size: &Size) -> Option<u64> {
    match size {
        Size::Bytes(bytes) => Some(*bytes),
        Size::Text(text) => parse_size(text),
    }
}

/// A size as people write it: `512MiB`, `10G`, `1073741824`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) if self.label.is_some() => {
                write!(f, "{} ({} on {})", self.name, self.label.as_deref().unwrap_or_default(), path.display())
            }
            Some(path) => write!(f, "{} ({})", self.name, path.display()),
            None => write!(f, "{} (null)", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn fails(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, text).unwrap();
        let error = Config::load(&path).expect_err("accepted").to_string();
        assert!(!error.contains('\n'), "{error}");
        let (_, rest) = error.split_once("a.toml:").expect("names the file");
        rest.to_owned()
    }

    #[test]
    fn the_least_there_is() {
        let config = Config::parse("[vm]\nname='acme'\n[[volume]]\nname='db'\npath='/x'\n").unwrap();
        assert_eq!(config.vm.name, "acme");
        let volume = config.volume("db").unwrap();
        assert!(volume.direct && !volume.read_only && volume.kind == DiskKind::Raw);
        assert_eq!(config.backend, Backend::default());
        assert!(config.volume("log").is_none());
    }

    #[test]
    fn everything_there_is() {
        let text = r#"
            [vm]
            name = "acme"
            modules = ["brd rd_nr=2"]
            [[volume]]
            name = "z"
            kind = "null"
            size = "2GiB"
            [[volume]]
            name = "db"
            path = "/x"
            mode = "ro"
            direct = false
            on-error = "hold"
            discard = false
            [volume.fault]
            flip = 4096
            delay-ms = 5
            [backend]
            fixed-buffers = false
            max-ring-order = 0
            max-indirect = 0
            queues = 1
            persistent = false
            barrier = false
            initwait-dwell-ms = 0
            threads = 2
            data-path = "zero-copy"
            memory = "48MiB"
            guest-memory = 1048576
            grants = 5000
        "#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.volumes[0].size, 2 << 30);
        assert_eq!(config.volumes[1].fault.unwrap().flip, Some(4096));
        assert!(config.volumes[1].read_only && !config.volumes[1].direct);
        assert!(config.volumes[1].on_error == OnError::Hold && !config.volumes[1].discard && !config.backend.barrier);
        assert!(config.volumes[0].on_error == OnError::Report && config.volumes[0].discard);
        assert_eq!(config.backend.offer().max_indirect, 0);
        assert_eq!(config.backend.worker_threads(), 2);
        assert_eq!(config.backend.data_path, DataPath::ZeroCopy);
        let (vm, guest) = config.backend.budgets();
        assert_eq!((vm.memory, vm.grants, guest.memory, guest.grants), (48 << 20, 5000, 1 << 20, 5000));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let text = fails("[vm]\nname = 'acme'\n\n[backend]\nqueues = 2\nqueue = 2\n");
        assert!(text.starts_with("6: unknown field `queue`"), "{text}");
        let text = fails("[vm]\nname = 'acme'\n[[volume]]\nname = 'db'\nfile = '/x'\n");
        assert!(text.starts_with("5: unknown field `file`"), "{text}");
        let text = fails("[vm]\nname = 'acme'\n[[volumes]]\n");
        assert!(text.starts_with("3: unknown field `volumes`"), "{text}");
        let text = fails("[vm]\nname = 'acme'\n[[volume]]\nname = 'db'\npath = '/x'\n[volume.fault]\nflop = 1\n");
        assert!(text.starts_with("7: unknown field `flop`"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let head = "[vm]\nname = 'acme'\n[[volume]]\nname = 'db'\n";
        for (text, says) in [
            ("name = 1", "1: "),
            ("[vm]\n", "1: missing field `name`"),
            ("[vm]\nname = 'a b'\n", "1: [vm] name \"a b\""),
            ("[vm]\nname = ''\n", "1: [vm] name \"\""),
            (head, "3: volume \"db\": it has no path"),
            (&format!("{head}path = '/x'\n[[volume]]\nname = 'db'\npath = '/y'\n"), "7: a second volume named \"db\""),
            (&format!("{head}path = '/x'\nmode = 'w'\n"), "6: unknown variant `w`, expected `rw` or `ro`"),
            (&format!("{head}path = '/x'\nsize = 512\n"), "6: volume \"db\": size is for"),
            (&format!("{head}kind = 'null'\n"), "3: volume \"db\": kind = \"null\" needs a size"),
            (&format!("{head}kind = 'null'\nsize = '1000'\n"), "6: volume \"db\": size must be"),
            (&format!("{head}kind = 'null'\nsize = '99999999999TiB'\n"), "6: volume \"db\": size must be"),
            ("[vm]\nname = 'acme'\n[[volume]]\nname = 'a/b'\npath = '/x'\n", "4: volume name \"a/b\""),
            ("[vm]\nname = 'acme'\n[backend]\nqueues = 17\n", "3: [backend] queues = 17: 1 to 16"),
            ("[vm]\nname = 'acme'\n[backend]\nmax-indirect = 5\n", "3: [backend] max-indirect = 5"),
            ("[vm]\nname = 'acme'\n[backend]\nmax-ring-order = -1\n", "4: "),
        ] {
            let said = fails(text);
            assert!(said.starts_with(says), "{text}\n{said}");
        }
    }
}

//! Volumes that are found rather than named: images in a directory, and labelled partitions of a disk. What is made,
//! resized or removed here is named by a volume's name, which is checked before anything is opened: no path comes from
//! anybody but the configuration.

pub mod directory;
pub mod partitions;
mod table;

use std::collections::HashSet;

use crate::config::{Config, Place, Source, Volume, check_volume_name};

/// Most volumes of all sources together: what is published of them, and looked through, has a bound.
pub const MAX_FOUND: usize = 1024;

/// Why something was not done. Every text stands alone on its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something named is not there.
    #[error("{0}")]
    Missing(String),
    /// Somebody uses it.
    #[error("{0}")]
    Busy(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    /// The exit code of a command.
    pub fn exit_code(&self) -> i32 {
        match self {
            Refusal::Failed(_) => 1,
            Refusal::Usage(_) => 2,
            Refusal::Missing(_) => 3,
            Refusal::Busy(_) => 5,
        }
    }
}

/// A change to what a source holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new volume of at least so many bytes; in the named source, or in the only one.
    Create {
        /// Which source.
        source: Option<String>,
        /// Bytes.
        bytes: u64,
    },
    /// Another size; smaller only when that is said, for its end is lost.
    Resize {
        /// Bytes.
        bytes: u64,
        /// It may become smaller.
        shrink: bool,
    },
    /// Its content is gone.
    Remove,
}

/// What a source holds: the names of its volumes, in order, and what is wrong with those that are none.
#[derive(Debug, Default)]
pub struct Found {
    /// Names.
    pub names: Vec<String>,
    /// Lines for the log.
    pub errors: Vec<String>,
}

impl Found {
    /// Takes a candidate: a label, or a file's name without its ending.
    fn take(&mut self, name: &str, what: &str) {
        match check_volume_name(name) {
            Ok(()) => self.names.push(name.to_owned()),
            Err(_) => {
                let shown: String = name.escape_debug().take(80).collect();
                self.errors.push(format!("{what} \"{shown}\" is no volume: that is no name for one"));
            }
        }
    }
}

/// Looks at one source.
///
/// # Errors
/// When it cannot be read.
pub fn look(source: &Source) -> Result<Found, Refusal> {
    let mut found = match &source.place {
        Place::Directory(dir) => directory::look(dir),
        Place::Disk(disk) => partitions::look(disk),
    }?;
    found.names.sort();
    Ok(found)
}

/// Brings the volumes of a configuration up to date with what its sources hold; returns what is wrong.
pub fn refresh(config: &mut Config) -> Vec<String> {
    config.volumes.retain(|volume| volume.source.is_none());
    let mut taken: HashSet<String> = config.volumes.iter().map(|volume| volume.name.clone()).collect();
    taken.extend(config.networks.iter().map(|network| network.name.clone()));
    let mut errors = Vec::new();
    for source in &config.sources {
        let found = match look(source) {
            Ok(found) => found,
            Err(refusal) => {
                errors.push(format!("{}: {refusal}", source.name));
                continue;
            }
        };
        errors.extend(found.errors.into_iter().take(16).map(|error| format!("{}: {error}", source.name)));
        for name in found.names {
            if taken.len() >= MAX_FOUND {
                errors.push(format!("{}: more than {MAX_FOUND} volumes; the others are left out", source.name));
                break;
            }
            if taken.insert(name.clone()) {
                config.volumes.push(source.volume(&name));
            } else {
                errors.push(format!("{}: a second volume or network named \"{name}\" is left out", source.name));
            }
        }
    }
    errors
}

/// A change that has been checked against the configuration: what is left is done with the medium, which may take long.
#[derive(Clone, Debug)]
pub struct Order {
    /// The volume.
    pub name: String,
    /// What is to be done.
    pub change: Change,
    source: Source,
}

/// Checks a change. `config` is fresh (see [`refresh`]); who uses the volume is for the caller to know.
///
/// # Errors
/// [`Refusal`], with what there is instead.
pub fn check(config: &Config, name: &str, change: Change) -> Result<Order, Refusal> {
    check_volume_name(name).map_err(|why| Refusal::Usage(format!("volume name {:?}: {why}", clip(name))))?;
    let vm = &config.vm.name;
    let known = config.volume(name);
    let wanted = match (&change, known) {
        (Change::Create { .. }, Some(_)) => {
            return Err(Refusal::Busy(format!("{vm} has a volume \"{name}\" already")));
        }
        (Change::Create { source, .. }, None) => {
            if config.network(name).is_some() {
                return Err(Refusal::Busy(format!("{vm} has a network \"{name}\"; names are unique in a VM")));
            }
            source.clone()
        }
        (_, Some(Volume { source: Some(source), .. })) => Some(source.clone()),
        (_, Some(_)) => {
            return Err(Refusal::Usage(format!(
                "volume {name} is named by the configuration of {vm}: what it stands on is changed there"
            )));
        }
        (_, None) => {
            let names: Vec<&str> = config.volumes.iter().map(|volume| volume.name.as_str()).collect();
            return Err(Refusal::Missing(format!("{vm} has no volume \"{name}\" (it has: {})", list(&names))));
        }
    };
    let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
    let source = match (&wanted, config.sources.as_slice()) {
        (Some(wanted), sources) => {
            let source = sources.iter().find(|source| source.name == *wanted);
            source.ok_or_else(|| {
                Refusal::Missing(format!("{vm} has no source \"{}\" (it has: {})", clip(wanted), list(&names)))
            })?
        }
        (None, [one]) => one,
        (None, []) => {
            let why = "a [[volume]] with directory or disk is where volumes are made";
            return Err(Refusal::Usage(format!("the configuration of {vm} has no place for new volumes: {why}")));
        }
        (None, _) => {
            return Err(Refusal::Usage(format!("{vm} has several sources ({}): say which with --in", list(&names))));
        }
    };
    if source.read_only {
        return Err(Refusal::Usage(format!("source {} of {vm} is read-only", source.name)));
    }
    if let Change::Create { bytes, .. } | Change::Resize { bytes, .. } = change
        && (bytes == 0 || bytes % 512 != 0 || bytes > 1 << 60)
    {
        return Err(Refusal::Usage(format!("{bytes} bytes is no size for a volume: it is a multiple of 512, not 0")));
    }
    Ok(Order { name: name.to_owned(), change, source: source.clone() })
}

impl Order {
    /// Does it; returns the size that the volume has now, 0 for one that is gone. May take as long as the medium does.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn run(&self) -> Result<u64, Refusal> {
        let done = match &self.source.place {
            Place::Directory(dir) => directory::change(dir, &self.name, &self.change),
            Place::Disk(disk) => partitions::change(disk, &self.name, &self.change),
        };
        done.map_err(|refusal| match refusal {
            Refusal::Failed(why) => Refusal::Failed(format!("volume {}: {why}", self.name)),
            Refusal::Busy(why) => Refusal::Busy(format!("volume {}: {why}", self.name)),
            Refusal::Missing(why) => Refusal::Missing(format!("volume {}: {why}", self.name)),
            other => other,
        })
    }
}

fn list(names: &[&str]) -> String {
    match names.len() {
        0 => "none".to_owned(),
        1..=20 => names.join(", "),
        more => format!("{} and {} more", names[..20].join(", "), more - 20),
    }
}

/// As much of a name as a message may hold.
fn clip(name: &str) -> String {
    name.chars().take(80).collect()
}

/// `shrink` was not said.
fn would_shrink(now: u64, bytes: u64) -> Refusal {
    Refusal::Usage(format!("it has {now} bytes and would lose its end: say --shrink to make it {bytes}"))
}

#[cfg(test)]
mod tests;

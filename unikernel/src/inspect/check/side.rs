//! One half of a device, as its directory says.

use std::collections::BTreeMap;

use blkback::keys::Excerpt;
use xenstore::xenbus::XenbusState;
use xenstore::{Error, Permission, Store};

use super::Finding;
use crate::inspect::tree;

/// Which device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The domain whose backend directory has it; none if no domain's has.
    pub backend: Option<u16>,
    /// The guest.
    pub guest: u16,
    /// Of the device.
    pub number: u32,
}

/// A half.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its directory.
    pub path: String,
    /// The directory's owner first.
    pub perms: Vec<Permission>,
    /// What is below, by its path from here (`state`, `queue-0/ring-ref`).
    pub keys: BTreeMap<String, Vec<u8>>,
}

impl Side {
    /// Reads it; none if there is no such directory.
    ///
    /// # Errors
    /// What the store says.
    pub fn read<S: Store>(store: &mut S, path: &str) -> Result<Option<Side>, Error> {
        let entries = match tree::at(store, path) {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let below = |entry: &tree::Entry| entry.path.strip_prefix(path)?.strip_prefix('/').map(str::to_owned);
        let perms = entries[0].perms.clone().unwrap_or_default();
        let keys = entries.iter().filter_map(|entry| Some((below(entry)?, entry.value.clone()?))).collect();
        Ok(Some(Side { path: path.to_owned(), perms, keys }))
    }

    /// A key's value; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.keys.get(key).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// A key's value as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        let value = self.get(key).filter(|value| value.len() <= 20 && value.iter().all(u8::is_ascii_digit))?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }

    /// Its `state`.
    pub fn state(&self) -> XenbusState {
        XenbusState::parse(self.get("state").unwrap_or_default())
    }

    /// That a key is wrong.
    pub fn finding(&self, key: &str, why: impl ToString, source: &'static str) -> Finding {
        let node = if key.is_empty() { self.path.clone() } else { format!("{}/{key}", self.path) };
        Finding { node, why: why.to_string(), source }
    }

    /// That a key must be there and is not, or must be a number up to `most` and is not.
    pub fn need_number(&self, key: &str, most: u64, source: &'static str, findings: &mut Vec<Finding>) -> Option<u64> {
        let number = self.number(key).filter(|number| *number <= most);
        if number.is_none() {
            findings.push(match self.get(key) {
                None => self.finding(key, "is not there", source),
                Some(value) => self.finding(key, format!("{} is no number up to {most}", Excerpt::new(value)), source),
            });
        }
        number
    }
}

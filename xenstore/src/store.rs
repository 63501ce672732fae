//! The verbs of a store, for a connection and for a transaction on it.

use crate::client::permissions;
use crate::error::Error;
use crate::perms::Permission;
use crate::wire::{ErrorName, MessageType};

/// What can be done to nodes. Paths are absolute, or relative to the caller's domain.
pub trait Store {
    /// Sends one request; everything else is made of this.
    ///
    /// # Errors
    /// See [`Error`].
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error>;

    /// How often the way to the store was made anew: what was read before may be another daemon's.
    fn generation(&self) -> u64 {
        0
    }

    /// A node's value: bytes, not necessarily text.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; see [`Error`].
    fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.request(MessageType::Read, path, &[path.as_bytes(), b"\0"])
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// As [`Store::read`], and [`Error::NotUtf8`].
    fn read_string(&mut self, path: &str) -> Result<String, Error> {
        String::from_utf8(self.read(path)?).map_err(|_| Error::NotUtf8 { path: path.to_owned() })
    }

    /// A node's value, `None` when there is no such node.
    ///
    /// # Errors
    /// As [`Store::read`], but for `ENOENT`.
    fn read_optional(&mut self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.read(path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a node; missing parents are made.
    ///
    /// # Errors
    /// `EACCES`, quota errors; see [`Error`].
    fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.request(MessageType::Write, path, &[path.as_bytes(), b"\0", value]).map(drop)
    }

    /// Makes a node if there is none.
    ///
    /// # Errors
    /// As [`Store::write`].
    fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.request(MessageType::Mkdir, path, &[path.as_bytes(), b"\0"]).map(drop)
    }

    /// Removes a node and what is below it. One that is not there is no error, on any daemon.
    ///
    /// # Errors
    /// `EACCES`; see [`Error`].
    fn rm(&mut self, path: &str) -> Result<(), Error> {
        match self.request(MessageType::Rm, path, &[path.as_bytes(), b"\0"]) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    /// The names of a node's children, in no particular order.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `E2BIG` for more than a message of names from a daemon that has no parts of listings; see
    /// [`Error`].
    fn directory(&mut self, path: &str) -> Result<Vec<String>, Error> {
        match self.request(MessageType::Directory, path, &[path.as_bytes(), b"\0"]) {
            Ok(payload) => Ok(names(&payload)),
            Err(error) if error.name() == Some(&ErrorName::E2big) => match directory_in_parts(self, path) {
                // A daemon without parts: oxenstored, until 2025.
                Err(part) if part.name() == Some(&ErrorName::Enosys) => Err(error),
                other => other,
            },
            Err(error) => Err(error),
        }
    }

    /// A node's permissions, the owner first.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; see [`Error`].
    fn get_perms(&mut self, path: &str) -> Result<Vec<Permission>, Error> {
        permissions(&self.request(MessageType::GetPerms, path, &[path.as_bytes(), b"\0"])?)
    }

    /// Sets a node's permissions, the owner first.
    ///
    /// # Errors
    /// `EPERM` when somebody else than dom0 changes the owner; see [`Error`].
    fn set_perms(&mut self, path: &str, perms: &[Permission]) -> Result<(), Error> {
        let perms: String = perms.iter().map(|permission| format!("{permission}\0")).collect();
        self.request(MessageType::SetPerms, path, &[path.as_bytes(), b"\0", perms.as_bytes()]).map(drop)
    }
}

/// A listing that does not fit one message: parts of one generation, begun anew when the node changes meanwhile.
fn directory_in_parts<S: Store + ?Sized>(store: &mut S, path: &str) -> Result<Vec<String>, Error> {
    let (mut generation, mut listing) = ((0, Vec::new()), Vec::new());
    for _ in 0..10_000 {
        let offset = format!("{}\0", listing.len());
        let part = store.request(MessageType::DirectoryPart, path, &[path.as_bytes(), b"\0", offset.as_bytes()])?;
        let end = part.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| Error::Protocol("a part of a listing without its generation".into()))?;
        let (now, rest) = ((store.generation(), part[..end].to_vec()), &part[end + 1..]);
        if !listing.is_empty() && now != generation {
            listing.clear();
            continue;
        }
        generation = now;
        // An empty name, two NULs in a row, ends the listing.
        let last = rest == b"\0" || rest.ends_with(b"\0\0");
        listing.extend_from_slice(if last { &rest[..rest.len() - 1] } else { rest });
        if last || rest.is_empty() {
            return Ok(names(&listing));
        }
    }
    Err(Error::Protocol(format!("the listing of {path} never ends")))
}

/// NUL-terminated names.
pub(crate) fn names(payload: &[u8]) -> Vec<String> {
    let names = payload.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

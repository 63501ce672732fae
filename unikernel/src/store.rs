//! Connections to the store of a world, and the two questions the control plane asks most.

use std::io;
use std::path::{Path, PathBuf};

use grant::DomId;
use grant::embedded::domain_dir;
use xenstore::{Client, Error, Store};

use crate::world::{STORE_VARIABLE, World};

/// Questions for which a node that is not there has a plain answer.
pub trait Nodes: Store {
    /// A value as text, whatever its bytes; none when there is no such node.
    ///
    /// # Errors
    /// As [`Store::read_optional`].
    fn text(&mut self, path: &str) -> Result<Option<String>, Error> {
        let value = self.read_optional(path)?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// The names of a node's children; none when there is no such node.
    ///
    /// # Errors
    /// As [`Store::directory`].
    fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        match self.directory(path) {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }
}

impl<S: Store + ?Sized> Nodes for S {}

/// No connection to the store.
#[derive(Debug, thiserror::Error)]
#[error("no xenstored answers at {}: {source}{hint}", path.display())]
pub struct NoStore {
    path: PathBuf,
    source: io::Error,
    hint: String,
}

/// Connects as dom0.
///
/// # Errors
/// [`NoStore`].
pub fn toolstack(world: &World) -> Result<Client, NoStore> {
    match world {
        World::Xen => xen(),
        World::Embedded(dir) => {
            let path = dir.join("xenstored/socket");
            Client::connect(&path).map_err(|source| {
                let hint = format!(" (start a host with `windsor host --dir {}`)", dir.display());
                NoStore { path, source, hint }
            })
        }
    }
}

/// Connects as the domain that we are: `own` in the embedded world.
///
/// # Errors
/// [`NoStore`].
pub fn domain(world: &World, own: Option<DomId>) -> Result<Client, NoStore> {
    match (world, own) {
        (World::Embedded(dir), Some(own)) => {
            let path = domain_dir(dir, own).join("xenstored");
            Client::connect(&path).map_err(|source| NoStore { path, source, hint: String::new() })
        }
        (World::Embedded(_), None) => toolstack(world),
        (World::Xen, _) => xen(),
    }
}

/// The socket that the environment names, else the daemon's where there is one (dom0), else the kernel's device.
fn xen() -> Result<Client, NoStore> {
    if let Some(path) = World::store_path() {
        return Client::connect(&path).map_err(|source| {
            let hint = format!(" (${STORE_VARIABLE} says so)");
            NoStore { path, source, hint }
        });
    }
    let socket = Path::new("/run/xenstored/socket");
    if let Ok(client) = Client::connect(socket) {
        return Ok(client);
    }
    let mut last = None;
    for path in ["/dev/xen/xenbus", "/proc/xen/xenbus"] {
        match Client::open_device(Path::new(path)) {
            Ok(client) => return Ok(client),
            Err(source) => {
                let hint = match source.kind() {
                    io::ErrorKind::PermissionDenied => " (are you root?)",
                    _ => "",
                };
                last.get_or_insert(NoStore { path: path.into(), source, hint: hint.into() });
            }
        }
    }
    Err(last.unwrap_or_else(|| NoStore {
        path: socket.into(),
        source: io::ErrorKind::NotFound.into(),
        hint: String::new(),
    }))
}

//! A part of the store, as it was read.

use std::collections::HashSet;

use xenstore::{Error, Permission, Store};

/// A node below (or at) the path that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Absolute, or relative if the root was.
    pub path: String,
    /// How deep below the root: its children are at 0.
    pub depth: usize,
    /// `None` when it may not be read.
    pub value: Option<Vec<u8>>,
    /// The owner first; `None` when they may not be read.
    pub perms: Option<Vec<Permission>>,
}

/// A child's path.
pub fn join(parent: &str, name: &str) -> String {
    if parent.ends_with('/') { format!("{parent}{name}") } else { format!("{parent}/{name}") }
}

/// The nodes above one, the nearest first, without the root.
pub fn above(path: &str) -> impl Iterator<Item = &str> {
    fn parent(path: &str) -> Option<&str> {
        path.rfind('/').filter(|at| *at > 0).map(|at| &path[..at])
    }
    std::iter::successors(parent(path), |path| parent(path))
}

/// Everything below `root`, parents before their children, siblings in the order of the store. A node that vanishes
/// meanwhile is left out, one that may not be read is there without its value.
///
/// # Errors
/// When `root` cannot be listed, and whatever is neither a missing node nor a missing right.
pub fn below<S: Store + ?Sized>(store: &mut S, root: &str) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    let children = |path: &str, names: Vec<String>, depth: usize| -> Vec<(String, usize)> {
        // A store that names a child twice would be walked for ever deeper only if it did so at each level: no such
        // list is followed twice.
        let mut seen = HashSet::new();
        let once = names.into_iter().filter(|name| seen.insert(name.clone()));
        once.map(|name| (join(path, &name), depth)).rev().collect()
    };
    let mut open = children(root, store.directory(root)?, 0);
    while let Some((path, depth)) = open.pop() {
        let Some(value) = allowed(store.read(&path))? else { continue };
        let Some(perms) = allowed(store.get_perms(&path))? else { continue };
        let names = allowed(store.directory(&path))?.flatten().unwrap_or_default();
        open.extend(children(&path, names, depth + 1));
        entries.push(Entry { path, depth, value, perms });
    }
    Ok(entries)
}

/// One node and everything below it.
///
/// # Errors
/// As [`below`].
pub fn at<S: Store + ?Sized>(store: &mut S, root: &str) -> Result<Vec<Entry>, Error> {
    let (value, perms) = (store.read(root)?, store.get_perms(root)?);
    let mut entries = vec![Entry { path: root.to_owned(), depth: 0, value: Some(value), perms: Some(perms) }];
    entries.extend(below(store, root)?.into_iter().map(|entry| Entry { depth: entry.depth + 1, ..entry }));
    Ok(entries)
}

/// `None` for what has vanished, `Some(None)` for what may not be seen.
fn allowed<T>(result: Result<T, Error>) -> Result<Option<Option<T>>, Error> {
    match result {
        Ok(value) => Ok(Some(Some(value))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) if error.is_permission() => Ok(Some(None)),
        Err(error) => Err(error),
    }
}

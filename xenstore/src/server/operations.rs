//! What can be done to the store, with the semantics of the C daemon 4.17. Each operation works on a [`View`], so that
//! it is the same inside of a transaction, and returns what changed.

use std::sync::Arc;

use super::perms::{Need, missing, permits};
use super::quota::Limits;
use super::tree::{Change, Node, View, join, name, parent};
use crate::Permission;
use crate::wire::{ABS_PATH_MAX, ErrorName, REL_PATH_MAX};

/// A node's path as the store knows it.
///
/// # Errors
/// `EINVAL` for one that is none, the special names of watches included.
pub fn canonical(path: &[u8], domid: u16) -> Result<String, ErrorName> {
    let path = std::str::from_utf8(path).map_err(|_| ErrorName::Einval)?;
    let limit = if path.starts_with('/') { ABS_PATH_MAX } else { REL_PATH_MAX };
    let well_formed = path == "/" || !path.is_empty() && !path.ends_with('/') && !path.contains("//");
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte));
    if !well_formed || !plain || path.len() > limit {
        return Err(ErrorName::Einval);
    }
    if path.starts_with('@') {
        return Err(ErrorName::Einval);
    }
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Ok(format!("/local/domain/{domid}/{path}"))
}

/// Who asks, and what limits them.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Its domain; 0 has no limits.
    pub domid: u16,
    /// The limits of the others.
    pub limits: Limits,
}

fn existing(view: &mut dyn View, path: &str, caller: &Caller, need: Need) -> Result<Arc<Node>, ErrorName> {
    match view.get(path) {
        Some(node) if permits(&node, caller.domid, need) => Ok(node),
        Some(_) => Err(ErrorName::Eacces),
        None => Err(missing(view, path, caller.domid, need)),
    }
}

/// READ.
pub fn read(view: &mut dyn View, path: &str, caller: &Caller) -> Result<Vec<u8>, ErrorName> {
    existing(view, path, caller, Need::Read).map(|node| node.value.clone())
}

/// DIRECTORY and DIRECTORY_PART: the children's names and the generation.
pub fn directory(view: &mut dyn View, path: &str, caller: &Caller) -> Result<(Vec<Arc<str>>, u64), ErrorName> {
    existing(view, path, caller, Need::Read).map(|node| (node.children.clone(), node.generation))
}

/// GET_PERMS.
pub fn get_perms(view: &mut dyn View, path: &str, caller: &Caller) -> Result<Vec<Permission>, ErrorName> {
    existing(view, path, caller, Need::Read).map(|node| node.perms.clone())
}

/// WRITE; missing parents are made.
pub fn write(view: &mut dyn View, path: &str, value: &[u8], caller: &Caller) -> Result<Change, ErrorName> {
    let node = match view.get(path) {
        Some(node) if !permits(&node, caller.domid, Need::Write) => return Err(ErrorName::Eacces),
        Some(node) => Node { value: value.to_vec(), ..Node::clone(&node) },
        None => return create(view, path, value, caller),
    };
    check_size(&node, caller)?;
    let perms = node.perms.clone();
    view.put(path, node);
    Ok(change(view, path, perms))
}

/// MKDIR; nothing happens when there is such a node.
pub fn mkdir(view: &mut dyn View, path: &str, caller: &Caller) -> Result<Option<Change>, ErrorName> {
    match view.get(path) {
        Some(node) if !permits(&node, caller.domid, Need::Write) => Err(ErrorName::Eacces),
        Some(_) => Ok(None),
        None => create(view, path, &[], caller).map(Some),
    }
}

/// Makes a node and what is missing above it, or nothing at all.
fn create(view: &mut dyn View, path: &str, value: &[u8], caller: &Caller) -> Result<Change, ErrorName> {
    let mut new: Vec<&str> = vec![path];
    let mut above = parent(path);
    let base = loop {
        match view.get(above) {
            Some(node) => break node,
            None => new.push(above),
        }
        above = parent(above);
    };
    if !permits(&base, caller.domid, Need::Write) {
        return Err(ErrorName::Eacces);
    }
    let mut perms = base.perms.clone();
    if caller.domid != 0 {
        perms[0].domid = caller.domid;
        // An entry of its own would be in the owner's way.
        let mut first = true;
        perms.retain(|entry| std::mem::take(&mut first) || entry.domid != caller.domid);
        if view.owned(caller.domid) + new.len() > caller.limits.nodes {
            return Err(ErrorName::Enospc);
        }
    }
    let mut grown = Node::clone(&base);
    grown.children.push(name(new[new.len() - 1]).into());
    let node = Node { value: value.to_vec(), perms: perms.clone(), children: Vec::new(), generation: 0 };
    check_size(&grown, caller)?;
    check_size(&node, caller)?;
    view.put(above, grown);
    for at in (1..new.len()).rev() {
        let children = vec![Arc::from(name(new[at - 1]))];
        view.put(new[at], Node { value: Vec::new(), perms: perms.clone(), children, generation: 0 });
    }
    view.put(path, node);
    Ok(change(view, path, perms))
}

/// RM: a node and all below it. The changes are the node's own, and one for each node that went with it.
pub fn rm(view: &mut dyn View, path: &str, caller: &Caller) -> Result<Vec<Change>, ErrorName> {
    if path == "/" {
        return Err(ErrorName::Einval);
    }
    let node = match view.get(path) {
        Some(node) if !permits(&node, caller.domid, Need::Write) => return Err(ErrorName::Eacces),
        Some(node) => node,
        None => {
            let error = missing(view, path, caller.domid, Need::Write);
            // One that is not there is removed already, if there is a place where it could have been.
            return if error == ErrorName::Enoent && view.get(parent(path)).is_some() {
                Ok(Vec::new())
            } else {
                Err(error)
            };
        }
    };
    let mut changes = vec![change(view, path, node.perms.clone())];
    let mut open: Vec<(String, Arc<Node>)> = vec![(path.to_owned(), node)];
    let mut order = Vec::new();
    while let Some((path, node)) = open.pop() {
        for child in &node.children {
            let below = join(&path, child);
            if let Some(child) = view.get(&below) {
                let (perms, parent_perms) = (child.perms.clone(), node.perms.clone());
                changes.push(Change { path: below.clone(), exact: true, perms, parent_perms });
                open.push((below, child));
            }
        }
        order.push(path);
    }
    order.iter().rev().for_each(|path| view.remove(path));
    if let Some(above) = view.get(parent(path)) {
        let mut above_now = Node::clone(&above);
        above_now.children.retain(|child| **child != *name(path));
        view.put(parent(path), above_now);
    }
    Ok(changes)
}

/// SET_PERMS: the owner's right; the owner itself is changed by dom0 only.
pub fn set_perms(
    view: &mut dyn View,
    path: &str,
    perms: Vec<Permission>,
    caller: &Caller,
) -> Result<Change, ErrorName> {
    let node = existing(view, path, caller, Need::Own)?;
    let Some(owner) = perms.first() else { return Err(ErrorName::Einval) };
    if caller.domid != 0 {
        if owner.domid != node.owner() {
            return Err(ErrorName::Eperm);
        }
        if perms.len() > caller.limits.perms {
            return Err(ErrorName::Enospc);
        }
    }
    let node = Node { perms, ..Node::clone(&node) };
    check_size(&node, caller)?;
    // Who could see it before may know that it is gone from their sight.
    let mut seen_by = node.perms.clone();
    seen_by.extend(view.get(path).iter().flat_map(|old| old.perms.clone()));
    view.put(path, node);
    Ok(change(view, path, seen_by))
}

fn check_size(node: &Node, caller: &Caller) -> Result<(), ErrorName> {
    if caller.domid != 0 && node.size() > caller.limits.node_size {
        return Err(ErrorName::Enospc);
    }
    Ok(())
}

fn change(view: &mut dyn View, path: &str, perms: Vec<Permission>) -> Change {
    let parent_perms = view.get(parent(path)).map_or(Vec::new(), |node| node.perms.clone());
    Change { path: path.to_owned(), exact: false, perms, parent_perms }
}

//! What can be done to the store, with the semantics of the C daemon 4.17. Each operation works on a [`View`], so that
//! it is the same inside of a transaction as in one of its own.

use std::sync::Arc;

use super::perms::{Need, missing, permits};
use super::quota::Limits;
use super::tree::{Node, View, join, name, parent};
use crate::Permission;
use crate::wire::{ABS_PATH_MAX, ErrorName, REL_PATH_MAX};

/// A node's path as the store knows it.
///
/// # Errors
/// `EINVAL` for one that is none, the special names of watches included.
pub fn canonical(path: &[u8], domid: u16) -> Result<String, ErrorName> {
    let path = std::str::from_utf8(path).map_err(|_| ErrorName::Einval)?;
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte));
    if path.is_empty() || path.starts_with('@') || !plain {
        return Err(ErrorName::Einval);
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/local/domain/{domid}/{path}") };
    let well_formed = path == "/" || !path.ends_with('/') && !path.contains("//");
    // What leads to a domain's own directory is not held against it.
    if !well_formed || path.len() > ABS_PATH_MAX || path.len() - domain_prefix(&path) > REL_PATH_MAX {
        return Err(ErrorName::Einval);
    }
    Ok(path)
}

/// Bytes of `/local/domain/NUMBER/` at the beginning of a path, 0 without it.
fn domain_prefix(path: &str) -> usize {
    let Some(rest) = path.strip_prefix("/local/domain/") else { return 0 };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let whole = (1..=5).contains(&digits) && rest.as_bytes().get(digits) == Some(&b'/');
    if whole { path.len() - rest.len() + digits + 1 } else { 0 }
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
pub fn write(view: &mut dyn View, path: &str, value: &[u8], caller: &Caller) -> Result<(), ErrorName> {
    let node = match view.get(path) {
        Some(node) if !permits(&node, caller.domid, Need::Write) => return Err(ErrorName::Eacces),
        Some(node) => Node { value: value.to_vec(), ..Node::clone(&node) },
        None => return create(view, path, value, caller),
    };
    check_size(&node, caller)?;
    view.put(path, node);
    view.fire(path, false);
    Ok(())
}

/// MKDIR; nothing happens when there is such a node.
pub fn mkdir(view: &mut dyn View, path: &str, caller: &Caller) -> Result<(), ErrorName> {
    match view.get(path) {
        Some(node) if !permits(&node, caller.domid, Need::Write) => Err(ErrorName::Eacces),
        Some(_) => Ok(()),
        None => create(view, path, &[], caller),
    }
}

/// Makes a node and what is missing above it, or nothing at all.
fn create(view: &mut dyn View, path: &str, value: &[u8], caller: &Caller) -> Result<(), ErrorName> {
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
    view.fire(path, false);
    Ok(())
}

/// RM: a node and all below it. Watches hear of the lowest nodes first.
pub fn rm(view: &mut dyn View, path: &str, caller: &Caller) -> Result<(), ErrorName> {
    let node = match view.get(path) {
        Some(node) if !permits(&node, caller.domid, Need::Write) => return Err(ErrorName::Eacces),
        Some(_) if path == "/" => return Err(ErrorName::Einval),
        Some(node) => node,
        None => {
            let error = missing(view, path, caller.domid, Need::Write);
            // One that is not there is removed already, if there is a place where it could have been.
            return if error == ErrorName::Enoent && view.get(parent(path)).is_some() { Ok(()) } else { Err(error) };
        }
    };
    // A stack of its own: a peer decides how deep it goes.
    let mut open: Vec<(String, Arc<Node>, usize)> = vec![(path.to_owned(), node, 0)];
    while let Some((at, node, done)) = open.last_mut() {
        if let Some(child) = node.children.get(*done) {
            *done += 1;
            let below = join(at, child);
            open.extend(view.get(&below).map(|child| (below, child, 0)));
        } else if let Some((at, ..)) = open.pop() {
            view.remove(&at);
            view.fire(&at, at != path);
        }
    }
    if let Some(above) = view.get(parent(path)) {
        let mut above_now = Node::clone(&above);
        above_now.children.retain(|child| **child != *name(path));
        view.put(parent(path), above_now);
    }
    Ok(())
}

/// SET_PERMS: the owner's right; the owner itself is changed by dom0 only.
pub fn set_perms(view: &mut dyn View, path: &str, perms: Vec<Permission>, caller: &Caller) -> Result<(), ErrorName> {
    let Some(owner) = perms.first() else { return Err(ErrorName::Einval) };
    if caller.domid != 0 && perms.len() > caller.limits.perms {
        return Err(ErrorName::Enospc);
    }
    let node = existing(view, path, caller, Need::Own)?;
    if caller.domid != 0 && owner.domid != node.owner() {
        return Err(ErrorName::Eperm);
    }
    let node = Node { perms, ..Node::clone(&node) };
    check_size(&node, caller)?;
    view.put(path, node);
    view.fire(path, false);
    Ok(())
}

fn check_size(node: &Node, caller: &Caller) -> Result<(), ErrorName> {
    if caller.domid != 0 && node.size() > caller.limits.node_size {
        return Err(ErrorName::Enospc);
    }
    Ok(())
}

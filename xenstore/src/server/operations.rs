//! What can be done to the store, with the semantics of the C daemon 4.17. Each operation works on a [`View`], so that
//! it is the same inside of a transaction as in one of its own.

use std::sync::Arc;

use super::perms::{Need, Who, missing, permits};
use super::quota::Limits;
use super::tree::{Look, Node, View, join, name, parent};
use crate::Permission;
use crate::wire::{ABS_PATH_MAX, ErrorName};

/// A node's path as the store knows it: at most `most` bytes beside what leads to a domain's own directory.
///
/// # Errors
/// `EINVAL` for one that is none, the special names of watches included.
pub fn canonical(path: &[u8], domid: u16, most: usize) -> Result<String, ErrorName> {
    let path = std::str::from_utf8(path).map_err(|_| ErrorName::Einval)?;
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte));
    if path.is_empty() || path.starts_with('@') || !plain {
        return Err(ErrorName::Einval);
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/local/domain/{domid}/{path}") };
    let well_formed = path == "/" || !path.ends_with('/') && !path.contains("//");
    // What leads to a domain's own directory is not held against it.
    if !well_formed || path.len() > ABS_PATH_MAX || path.len() - domain_prefix(&path) > most {
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
    /// Its domain.
    pub who: Who,
    /// What it may use, if it is not dom0.
    pub limits: Limits,
}

impl Caller {
    /// True for everybody but dom0.
    pub fn is_limited(&self) -> bool {
        !self.who.is_dom0()
    }
}

fn existing(view: &mut (impl Look + ?Sized), path: &str, caller: &Caller, need: Need) -> Result<Arc<Node>, ErrorName> {
    match view.get(path) {
        Some(node) if permits(&node, caller.who, need) => Ok(node),
        there => Err(refused(view, path, caller, need, there.is_some())),
    }
}

/// Why a node is not given. What is above it is looked at in any case, as the C daemon does: in a transaction a change
/// there is a conflict.
fn refused(view: &mut (impl Look + ?Sized), path: &str, caller: &Caller, need: Need, there: bool) -> ErrorName {
    let of_missing = missing(view, path, caller.who, need);
    if there { ErrorName::Eacces } else { of_missing }
}

/// READ.
pub fn read(view: &mut dyn Look, path: &str, caller: &Caller) -> Result<Vec<u8>, ErrorName> {
    existing(view, path, caller, Need::Read).map(|node| node.value.to_vec())
}

/// DIRECTORY and DIRECTORY_PART: the node with its children's names.
pub fn directory(view: &mut dyn Look, path: &str, caller: &Caller) -> Result<Arc<Node>, ErrorName> {
    existing(view, path, caller, Need::Read)
}

/// GET_PERMS.
pub fn get_perms(view: &mut dyn Look, path: &str, caller: &Caller) -> Result<Arc<[Permission]>, ErrorName> {
    existing(view, path, caller, Need::Read).map(|node| Arc::clone(&node.perms))
}

/// WRITE; missing parents are made.
pub fn write(view: &mut dyn View, path: &str, value: &[u8], caller: &Caller) -> Result<(), ErrorName> {
    let node = match view.get(path) {
        Some(node) if !permits(&node, caller.who, Need::Write) => {
            return Err(refused(view, path, caller, Need::Write, true));
        }
        Some(node) => Node { value: value.into(), ..Node::clone(&node) },
        None => return create(view, path, value, caller),
    };
    check_size(view, &node, caller)?;
    view.put(path, node);
    view.fire(path, false);
    Ok(())
}

/// MKDIR; nothing happens when there is such a node.
pub fn mkdir(view: &mut dyn View, path: &str, caller: &Caller) -> Result<(), ErrorName> {
    match view.get(path) {
        Some(node) if !permits(&node, caller.who, Need::Write) => Err(refused(view, path, caller, Need::Write, true)),
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
    if !permits(&base, caller.who, Need::Write) {
        return Err(ErrorName::Eacces);
    }
    let mut perms = Arc::clone(&base.perms);
    if caller.is_limited() {
        let domid = caller.who.domid;
        if perms[0].domid != domid {
            Arc::make_mut(&mut perms)[0].domid = domid;
        }
        if view.owned(domid) + new.len() > caller.limits.nodes {
            return Err(ErrorName::Enospc);
        }
    }
    let mut grown = Node::clone(&base);
    grown.children.push(name(new[new.len() - 1]));
    let node = Node::new(value, Arc::clone(&perms));
    check_size(view, &grown, caller)?;
    check_size(view, &node, caller)?;
    view.put(above, grown);
    for at in (1..new.len()).rev() {
        let mut node = Node::new(&[], Arc::clone(&perms));
        node.children.push(name(new[at - 1]));
        view.put(new[at], node);
    }
    view.put(path, node);
    view.fire(path, false);
    Ok(())
}

/// RM: a node and all below it. Watches hear of the lowest nodes first.
pub fn rm(view: &mut dyn View, path: &str, caller: &Caller) -> Result<(), ErrorName> {
    let node = match view.get(path) {
        Some(node) if permits(&node, caller.who, Need::Write) => node,
        there => {
            let error = refused(view, path, caller, Need::Write, there.is_some());
            // One that is not there is removed already, if there is a place where it could have been.
            return if error == ErrorName::Enoent && view.get(parent(path)).is_some() { Ok(()) } else { Err(error) };
        }
    };
    if path == "/" {
        return Err(ErrorName::Einval);
    }
    let above = view.get(parent(path));
    // A stack of its own: a peer decides how deep it goes.
    let mut open: Vec<(String, Arc<Node>, usize)> = vec![(path.to_owned(), node, 0)];
    while let Some((at, node, done)) = open.last_mut() {
        if let Some((child, next)) = node.children.at(*done) {
            *done = next;
            let below = join(at, child);
            open.extend(view.get(&below).map(|child| (below, child, 0)));
        } else if let Some((at, ..)) = open.pop() {
            view.remove(&at);
            view.fire(&at, at != path);
        }
    }
    if let Some(above) = above {
        let mut above_now = Node::clone(&above);
        above_now.children.remove(name(path));
        view.put(parent(path), above_now);
    }
    Ok(())
}

/// SET_PERMS: the owner's right; the owner itself is changed by dom0 only.
pub fn set_perms(view: &mut dyn View, path: &str, perms: Vec<Permission>, caller: &Caller) -> Result<(), ErrorName> {
    let Some(owner) = perms.first() else { return Err(ErrorName::Einval) };
    let node = existing(view, path, caller, Need::Own)?;
    if caller.is_limited() && owner.domid != node.owner() {
        return Err(ErrorName::Eperm);
    }
    let node = Node { perms: perms.into(), ..Node::clone(&node) };
    check_size(view, &node, caller)?;
    view.put(path, node);
    view.fire(path, false);
    Ok(())
}

fn check_size(view: &mut dyn View, node: &Node, caller: &Caller) -> Result<(), ErrorName> {
    if caller.is_limited() && node.size() >= caller.limits.node_size {
        view.fail();
        return Err(ErrorName::Enospc);
    }
    Ok(())
}

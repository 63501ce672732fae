//! A dump put back: afterwards the store is below its root what it was, to the order of children.
//!
//! Only what differs is touched, so that restoring what is there fires no watch. All of it is one transaction.

use std::collections::HashMap;

use xenstore::{Error, Store};

use super::dump::{Dump, Node};
use super::tree;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Nodes that were removed, each with what was below it.
    pub removed: usize,
    /// Nodes that were made.
    pub made: usize,
    /// Nodes whose value or permissions were changed.
    pub changed: usize,
}

/// Makes the store below the dump's root what the dump says. To be called in a transaction.
///
/// # Errors
/// What the store says.
pub fn restore<S: Store + ?Sized>(store: &mut S, dump: &Dump) -> Result<Done, Error> {
    let mut children: HashMap<&str, Vec<&Node>> = HashMap::new();
    for node in &dump.nodes[1..] {
        let at = node.path.rfind('/').unwrap_or(0);
        children.entry(if at == 0 { "/" } else { &node.path[..at] }).or_default().push(node);
    }
    let mut done = Done::default();
    let root = &dump.nodes[0];
    if store.read_optional(&root.path)?.is_none() {
        make(store, root, &mut done)?;
    }
    // Breadth does not matter: a directory is right when its children are there in their order.
    let mut open = vec![root];
    while let Some(node) = open.pop() {
        amend(store, node, &mut done)?;
        let wanted = children.get(&*node.path).map(Vec::as_slice).unwrap_or_default();
        arrange(store, &node.path, wanted, &mut done)?;
        open.extend(wanted.iter().rev());
    }
    Ok(done)
}

/// Removes the children that are not wanted or stand in the wrong place, and makes those that are missing.
fn arrange<S: Store + ?Sized>(store: &mut S, path: &str, wanted: &[&Node], done: &mut Done) -> Result<(), Error> {
    let there = store.directory(path)?;
    let name = |node: &Node| node.path.rsplit('/').next().unwrap_or_default().to_owned();
    let names: Vec<String> = wanted.iter().map(|node| name(node)).collect();
    let mut kept = 0;
    for child in there {
        // New children come last, so the old ones can only be the first of those wanted.
        if names.get(kept) == Some(&child) {
            kept += 1;
        } else {
            store.rm(&tree::join(path, &child))?;
            done.removed += 1;
        }
    }
    wanted[kept..].iter().try_for_each(|node| make(store, node, done))
}

fn make<S: Store + ?Sized>(store: &mut S, node: &Node, done: &mut Done) -> Result<(), Error> {
    done.made += 1;
    store.write(&node.path, &node.value)?;
    store.set_perms(&node.path, &node.perms)
}

fn amend<S: Store + ?Sized>(store: &mut S, node: &Node, done: &mut Done) -> Result<(), Error> {
    let (value, perms) = (store.read(&node.path)?, store.get_perms(&node.path)?);
    if value != node.value {
        store.write(&node.path, &node.value)?;
    }
    if perms != node.perms {
        store.set_perms(&node.path, &node.perms)?;
    }
    done.changed += usize::from(value != node.value || perms != node.perms);
    Ok(())
}

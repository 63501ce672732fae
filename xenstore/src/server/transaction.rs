//! A transaction: an overlay over the store that remembers everything it has looked at as it was then.
//!
//! It commits if all of that is still as it was. That includes the parents of what it makes or removes, since their
//! lists of children change: two creators of siblings are in conflict, as they are for the C daemon. An operation
//! outside of a transaction is one of its own, so nothing is ever done by halves.

use std::collections::HashMap;
use std::sync::Arc;

use super::operations::Caller;
use super::tree::{Change, Look, Node, Tree, View, parent};
use crate::wire::ErrorName;

/// Bytes that a transaction takes, and each node that it has looked at, beside the nodes: measured generously.
const TRANSACTION: usize = 1024;
const TOUCHED: usize = 264;

struct Touched {
    /// Which of the transaction's nodes it is, counted from the first: watches fire in this order.
    at: usize,
    /// The last change of the store at first sight.
    since: u64,
    /// At first sight; `None` when there was no such node.
    before: Option<Arc<Node>>,
    now: Option<Arc<Node>>,
    changed: bool,
    /// What watches hear of it, if anything.
    fires: Option<Fire>,
}

struct Fire {
    /// Which of the overlay's events it is, counted from the first.
    at: usize,
    /// Only watches on this very node hear of it.
    exact: bool,
}

/// In which order watches hear of what is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it was done: of a single operation.
    Done,
    /// As the nodes were first looked at: of a transaction.
    Seen,
}

/// What a transaction has seen and done.
#[derive(Default)]
pub struct Overlay {
    touched: HashMap<Box<str>, Touched>,
    owned: HashMap<u16, isize>,
    memory: usize,
    fires: usize,
    /// What the operation under way has changed, as it was before.
    step: Vec<(Box<str>, Option<Arc<Node>>)>,
    /// A limit was hit in the middle of an operation: it cannot commit any more.
    failed: bool,
}

impl Overlay {
    /// Nodes it has touched.
    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// Never to be committed: something that was asked for was refused half-way.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Another operation begins.
    pub fn begin_step(&mut self) {
        self.step.clear();
    }

    /// Bytes that it keeps beside the store.
    pub fn memory(&self) -> usize {
        TRANSACTION + self.memory
    }

    /// Applies it and tells what watches hear of, one change per node.
    ///
    /// # Errors
    /// `ENOMEM` when it has failed, `EAGAIN` when somebody has interfered, `ENOSPC` when it, with what others have done
    /// meanwhile, is more than the caller may own. Nothing is applied then.
    pub fn commit(self, tree: &mut Tree, caller: &Caller, order: Order) -> Result<Vec<Change>, ErrorName> {
        if self.failed {
            return Err(ErrorName::Enomem);
        }
        let too_many = |(owner, change): (&u16, &isize)| {
            *change > 0 && *owner != 0 && tree.owned(*owner).nodes.saturating_add_signed(*change) > caller.limits.nodes
        };
        if !caller.who.is_dom0() && self.owned.iter().any(too_many) {
            return Err(ErrorName::Enospc);
        }
        let generation = |touched: &Touched| touched.before.as_ref().map(|node| node.generation);
        // Rights that were given to a domain which has ended are not for the next one of its number.
        let is_stale = |touched: &Touched| {
            let perms = touched.now.iter().filter(|_| touched.changed).flat_map(|node| node.perms.iter());
            perms.into_iter().any(|entry| tree.has_ended_since(entry.domid, touched.since))
        };
        let has_changed = |path: &str, touched: &Touched| tree.generation(path) != generation(touched);
        if self.touched.iter().any(|(path, touched)| has_changed(path, touched) || is_stale(touched)) {
            return Err(ErrorName::Eagain);
        }
        let mut touched: Vec<(Box<str>, Touched)> =
            self.touched.into_iter().filter(|(_, touched)| touched.changed).collect();
        touched.sort_unstable_by_key(|(_, touched)| match (order, &touched.fires) {
            (Order::Done, Some(fire)) => fire.at,
            // What nobody hears of may come last, or first.
            (Order::Done, None) => usize::MAX,
            (Order::Seen, _) => touched.at,
        });
        let parents: Vec<Option<Arc<Node>>> = touched.iter().map(|(path, _)| tree.get(parent(path)).cloned()).collect();
        let mut changes = Vec::new();
        for ((path, touched), parent_before) in touched.into_iter().zip(parents) {
            // Of a node that nobody has ever seen nobody hears.
            let is_known = touched.before.is_some() || touched.now.is_some();
            if let Some(fire) = touched.fires.filter(|_| is_known) {
                // To the C daemon a node that a transaction has removed has no parent to ask.
                let parent = parent_before.filter(|_| order == Order::Done || touched.now.is_some());
                let known_to = [touched.before, touched.now.clone(), parent];
                changes.push(Change { path: path.to_string(), exact: fire.exact, known_to });
            }
            match touched.now {
                Some(node) => tree.put(&path, Arc::unwrap_or_clone(node)),
                None => tree.remove(&path),
            }
        }
        // Of a node whose parent is as new as itself, the new parent says who may know.
        for change in &mut changes {
            if change.known_to[1].is_some() && change.known_to[2].is_none() {
                change.known_to[2] = tree.get(parent(&change.path)).cloned();
            }
        }
        Ok(changes)
    }
}

/// The store as a transaction sees it.
pub struct Inside<'a> {
    /// What the transaction has done.
    pub overlay: &'a mut Overlay,
    /// The store.
    pub tree: &'a Tree,
}

impl Inside<'_> {
    /// The operation under way wants more nodes than `most`: those beyond it has never seen, the others are as they
    /// were. The transaction cannot commit any more.
    pub fn fail_beyond(&mut self, most: usize) {
        for (path, node) in std::mem::take(&mut self.overlay.step).into_iter().rev() {
            self.change(&path, node.as_deref().cloned());
        }
        self.overlay.step.clear();
        self.overlay.failed = true;
        self.overlay.touched.retain(|_, touched| touched.at < most);
    }

    fn touch(&mut self, path: &str) -> &mut Touched {
        let at = self.overlay.touched.len();
        if !self.overlay.touched.contains_key(path) {
            let before = self.tree.get(path).cloned();
            let since = self.tree.last_change();
            let touched = Touched { at, since, now: before.clone(), before, changed: false, fires: None };
            self.overlay.memory += path.len() + TOUCHED;
            self.overlay.touched.insert(path.into(), touched);
        }
        self.overlay.touched.get_mut(path).expect("just touched")
    }

    fn change(&mut self, path: &str, node: Option<Node>) {
        let now = node.map(Arc::new);
        let memory = |touched: &Touched| match &touched.now {
            Some(node) if touched.changed => node.memory(path),
            _ => 0,
        };
        let new_owner = now.as_ref().map(|node| node.owner());
        let touched = self.touch(path);
        let before = memory(touched);
        touched.changed = true;
        let old = std::mem::replace(&mut touched.now, now);
        let after = memory(touched);
        let old_owner = old.as_ref().map(|node| node.owner());
        self.overlay.step.push((path.into(), old));
        self.overlay.memory = self.overlay.memory - before + after;
        for (owner, change) in [(old_owner, -1), (new_owner, 1)] {
            if let Some(owner) = owner {
                *self.overlay.owned.entry(owner).or_insert(0) += change;
            }
        }
    }
}

impl Look for Inside<'_> {
    fn get(&mut self, path: &str) -> Option<Arc<Node>> {
        self.touch(path).now.clone()
    }
}

impl View for Inside<'_> {
    fn put(&mut self, path: &str, node: Node) {
        self.change(path, Some(node));
    }

    fn remove(&mut self, path: &str) {
        self.change(path, None);
    }

    fn fire(&mut self, path: &str, exact: bool) {
        let at = self.overlay.fires;
        self.overlay.fires += 1;
        // An event for the node and all below it says more than one for the node alone.
        let fires = &mut self.touch(path).fires;
        let exact = exact && fires.as_ref().is_none_or(|fire| fire.exact);
        *fires = Some(Fire { at, exact });
    }

    fn fail(&mut self) {
        self.overlay.fail();
    }

    fn owned(&self, domid: u16) -> usize {
        let change = self.overlay.owned.get(&domid).copied().unwrap_or(0);
        self.tree.owned(domid).nodes.saturating_add_signed(change)
    }
}

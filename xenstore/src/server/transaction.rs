//! A transaction: an overlay over the store that remembers the generation of everything it has looked at.
//!
//! It commits if all of that is still as it was. That includes the parents of what it makes or removes, since their
//! lists of children change: two creators of siblings are in conflict, as they are for the C daemon.

use std::collections::HashMap;
use std::sync::Arc;

use super::tree::{Change, Node, Tree, View};

struct Touched {
    /// At first sight; `None` when there was no such node.
    generation: Option<u64>,
    now: Option<Arc<Node>>,
    changed: bool,
}

/// What a transaction has seen and done.
#[derive(Default)]
pub struct Overlay {
    touched: HashMap<String, Touched>,
    /// In the order in which they were made; the store hears of them at the commit.
    order: Vec<String>,
    owned: HashMap<u16, isize>,
    /// For the watches, if it commits.
    pub changes: Vec<Change>,
}

impl Overlay {
    /// Nodes it has touched.
    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// Applies it, unless somebody has interfered; true when it was applied.
    pub fn commit(self, tree: &mut Tree) -> bool {
        if self.touched.iter().any(|(path, touched)| tree.generation(path) != touched.generation) {
            return false;
        }
        for path in &self.order {
            match &self.touched[path].now {
                Some(node) => tree.put(path, Node::clone(node)),
                None => tree.remove(path),
            }
        }
        true
    }
}

/// The store as a transaction sees it.
pub struct Inside<'a> {
    /// What the transaction has done.
    pub overlay: &'a mut Overlay,
    /// The store.
    pub tree: &'a mut Tree,
}

impl Inside<'_> {
    fn touch(&mut self, path: &str) -> &mut Touched {
        if !self.overlay.touched.contains_key(path) {
            let now = self.tree.get(path);
            let generation = now.as_ref().map(|node| node.generation);
            self.overlay.touched.insert(path.to_owned(), Touched { generation, now, changed: false });
        }
        self.overlay.touched.get_mut(path).expect("just touched")
    }

    fn change(&mut self, path: &str, node: Option<Node>) {
        let now = node.map(Arc::new);
        let new_owner = now.as_ref().map(|node| node.owner());
        let touched = self.touch(path);
        let old = std::mem::replace(&mut touched.now, now);
        let first = !std::mem::replace(&mut touched.changed, true);
        if first {
            self.overlay.order.push(path.to_owned());
        }
        if let Some(owner) = old.map(|node| node.owner()) {
            *self.overlay.owned.entry(owner).or_insert(0) -= 1;
        }
        if let Some(owner) = new_owner {
            *self.overlay.owned.entry(owner).or_insert(0) += 1;
        }
    }
}

impl View for Inside<'_> {
    fn get(&mut self, path: &str) -> Option<Arc<Node>> {
        self.touch(path).now.clone()
    }

    fn put(&mut self, path: &str, node: Node) {
        self.change(path, Some(node));
    }

    fn remove(&mut self, path: &str) {
        self.change(path, None);
    }

    fn owned(&self, domid: u16) -> usize {
        let change = self.overlay.owned.get(&domid).copied().unwrap_or(0);
        self.tree.owned(domid).saturating_add_signed(change)
    }
}

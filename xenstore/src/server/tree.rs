//! The nodes of the store: a flat map from absolute path to node, each with a generation that grows with every change.
//! What an operation sees and does is the same on the store itself and in a transaction ([`View`]).

use std::collections::HashMap;
use std::sync::Arc;

use super::perms;
use crate::Permission;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Bytes.
    pub value: Vec<u8>,
    /// Owner first.
    pub perms: Vec<Permission>,
    /// Names, in the order of creation.
    pub children: Vec<Arc<str>>,
    /// Of the last change to any of the above.
    pub generation: u64,
}

impl Node {
    /// The domain that owns it.
    pub fn owner(&self) -> u16 {
        self.perms.first().map_or(0, |permission| permission.domid)
    }

    /// Bytes that count against the quota: value, permissions and the children's names.
    pub fn size(&self) -> usize {
        let names: usize = self.children.iter().map(|name| name.len() + 1).sum();
        self.value.len() + self.perms.len() * 4 + names
    }
}

/// What changing operations work on: a transaction, if only one of a single operation.
pub trait View {
    /// A node as it is now.
    fn get(&mut self, path: &str) -> Option<Arc<Node>>;
    /// Makes or replaces a node.
    fn put(&mut self, path: &str, node: Node);
    /// Removes a node alone; its children were removed before.
    fn remove(&mut self, path: &str);
    /// Watches at and above the node are to hear of a change, or only those on this very node.
    fn fire(&mut self, path: &str, exact: bool);
    /// Nodes a domain owns.
    fn owned(&self, domid: u16) -> usize;
}

/// The store itself.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<Arc<str>, Arc<Node>>,
    owned: HashMap<u16, usize>,
    generation: u64,
}

impl Tree {
    /// A store with a root that everybody may read and dom0 owns.
    pub fn new() -> Tree {
        let mut tree = Tree { nodes: HashMap::new(), owned: HashMap::new(), generation: 0 };
        let perms = vec![Permission::read(0)];
        tree.put("/", Node { value: Vec::new(), perms, children: Vec::new(), generation: 0 });
        tree
    }

    /// The generation of a node, `None` when there is none.
    pub fn generation(&self, path: &str) -> Option<u64> {
        self.nodes.get(path).map(|node| node.generation)
    }

    /// All nodes, in no order.
    #[cfg(test)]
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (&**path, &**node))
    }

    /// The topmost nodes that a domain owns: each with a parent that somebody else owns.
    pub fn roots_owned_by(&self, domid: u16) -> Vec<String> {
        let owned = |path: &str| self.nodes.get(path).is_some_and(|node| node.owner() == domid);
        let mut roots: Vec<String> = self
            .nodes
            .keys()
            .filter(|path| path.len() > 1 && owned(path) && !owned(parent(path)))
            .map(|path| path.to_string())
            .collect();
        roots.sort();
        roots
    }

    /// A node as it is now.
    pub fn get(&self, path: &str) -> Option<Arc<Node>> {
        self.nodes.get(path).cloned()
    }

    /// Makes or replaces a node.
    pub fn put(&mut self, path: &str, mut node: Node) {
        self.generation += 1;
        node.generation = self.generation;
        self.account(node.owner(), 1);
        if let Some(old) = self.nodes.insert(path.into(), Arc::new(node)) {
            self.account(old.owner(), -1);
        }
    }

    /// Removes a node alone.
    pub fn remove(&mut self, path: &str) {
        self.generation += 1;
        if let Some(old) = self.nodes.remove(path) {
            self.account(old.owner(), -1);
        }
    }

    /// Nodes a domain owns.
    pub fn owned(&self, domid: u16) -> usize {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Takes away what others have granted to a domain that is gone: the next one of its number starts with nothing.
    pub fn forget_domain(&mut self, domid: u16) {
        for node in self.nodes.values_mut() {
            if node.perms.iter().skip(1).any(|entry| entry.domid == domid) {
                // An open transaction that has seen the entry must not bring it back.
                self.generation += 1;
                let (node, mut first) = (Arc::make_mut(node), true);
                node.generation = self.generation;
                node.perms.retain(|entry| std::mem::take(&mut first) || entry.domid != domid);
            }
        }
    }

    fn account(&mut self, owner: u16, change: isize) {
        let owned = self.owned.entry(owner).or_insert(0);
        *owned = owned.saturating_add_signed(change);
        if *owned == 0 {
            self.owned.remove(&owner);
        }
    }
}

/// The path above; `/` is its own.
pub fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

/// The last part of a path.
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// A child's path.
pub fn join(parent: &str, name: &str) -> String {
    if parent == "/" { format!("/{name}") } else { format!("{parent}/{name}") }
}

/// True when `path` is `above` or below it.
pub fn is_at_or_below(path: &str, above: &str) -> bool {
    above == "/" && path.starts_with('/')
        || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Something has changed at a path: what watches are matched against, and what decides who may know.
#[derive(Clone, Debug)]
pub struct Change {
    /// The node.
    pub path: String,
    /// Only watches on this very node: one of many that a removal above it took along.
    pub exact: bool,
    /// Whoever may read one of these may know: the node before and after, and its parent.
    pub known_to: [Option<Arc<Node>>; 3],
}

impl Change {
    /// A domain may know of it: it reads the node, or did before, or reads its parent.
    pub fn is_visible_to(&self, domid: u16) -> bool {
        domid == 0 || self.known_to.iter().flatten().any(|node| perms::allowed(&node.perms, domid).read)
    }
}

//! The nodes of the store: a flat map from absolute path to node, each with a generation that grows with every change.
//! What an operation sees and does is the same on the store itself and in a transaction ([`Look`], [`View`]).

use std::collections::HashMap;
use std::sync::Arc;

use super::names::Names;
use super::perms::{Who, allowed};
use crate::Permission;

/// Bytes that a node takes beside what it says: allocations and indexes, at their worst. The permissions that it says are
/// mostly its parent's, so this is a little less than the sum of its parts.
const NODE: usize = 192;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Bytes.
    pub value: Box<[u8]>,
    /// Owner first. Shared with the parent where they are inherited.
    pub perms: Arc<[Permission]>,
    /// The children's names.
    pub children: Names,
    /// Of the last change to any of the above.
    pub generation: u64,
}

impl Node {
    /// A node without children that no store has seen yet.
    pub fn new(value: &[u8], perms: Arc<[Permission]>) -> Node {
        Node { value: value.into(), perms, children: Names::default(), generation: 0 }
    }

    /// The domain that owns it.
    pub fn owner(&self) -> u16 {
        self.perms.first().map_or(0, |permission| permission.domid)
    }

    /// Bytes that count against the quota of a node, as the C daemon stores it: a header, permissions, value, names.
    pub fn size(&self) -> usize {
        24 + self.perms.len() * 8 + self.value.len() + self.children.as_bytes().len()
    }

    /// Bytes that count against the memory of its owner.
    pub fn memory(&self, path: &str) -> usize {
        path.len() + self.size() + NODE
    }
}

/// What reading operations work on.
pub trait Look {
    /// A node as it is now.
    fn get(&mut self, path: &str) -> Option<Arc<Node>>;
}

/// What changing operations work on: a transaction, if only one of a single operation.
pub trait View: Look {
    /// Makes or replaces a node.
    fn put(&mut self, path: &str, node: Node);
    /// Removes a node alone; its children were removed before.
    fn remove(&mut self, path: &str);
    /// Watches at and above the node are to hear of a change, or only those on this very node.
    fn fire(&mut self, path: &str, exact: bool);
    /// Something was refused half-way: a transaction cannot commit any more.
    fn fail(&mut self);
    /// Nodes a domain owns.
    fn owned(&self, domid: u16) -> usize;
}

/// What a domain owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Nodes.
    pub nodes: usize,
    /// Bytes of them ([`Node::memory`]).
    pub memory: usize,
}

/// The store itself.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<Arc<str>, Arc<Node>>,
    owned: HashMap<u16, Owned>,
    /// When each domain ended, if it ever did: a change of its own.
    ended: HashMap<u16, u64>,
    generation: u64,
}

impl Look for &Tree {
    fn get(&mut self, path: &str) -> Option<Arc<Node>> {
        self.nodes.get(path).cloned()
    }
}

impl Tree {
    /// A store with what the C daemon begins with; nobody but dom0 may look at any of it.
    pub fn new() -> Tree {
        let mut tree = Tree { nodes: HashMap::new(), owned: HashMap::new(), ended: HashMap::new(), generation: 0 };
        let perms: Arc<[Permission]> = [Permission::none(0)].into();
        for (path, child) in [("/", Some("tool")), ("/tool", Some("xenstored")), ("/tool/xenstored", None)] {
            let mut node = Node::new(&[], Arc::clone(&perms));
            child.into_iter().for_each(|child| node.children.push(child));
            tree.put(path, node);
        }
        tree
    }

    /// The generation of a node, `None` when there is none.
    pub fn generation(&self, path: &str) -> Option<u64> {
        self.nodes.get(path).map(|node| node.generation)
    }

    /// The generation of the last change anywhere.
    pub fn last_change(&self) -> u64 {
        self.generation
    }

    /// True when a domain of this number has ended after that change: it is not the one that was meant then.
    pub fn has_ended_since(&self, domid: u16, change: u64) -> bool {
        self.ended.get(&domid).is_some_and(|end| *end > change)
    }

    /// All nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (&**path, &**node))
    }

    /// The topmost nodes that a domain owns, but the root: each below the root or a node that somebody else owns. In the
    /// order of the tree.
    pub fn roots_owned_by(&self, domid: u16) -> Vec<String> {
        if self.owned(domid).nodes == 0 {
            return Vec::new();
        }
        let owned = |path: &str| self.nodes.get(path).is_some_and(|node| node.owner() == domid);
        let roots = self
            .nodes
            .keys()
            .filter(|path| path.len() > 1 && owned(path) && (parent(path) == "/" || !owned(parent(path))));
        let mut roots: Vec<String> = roots.map(|path| path.to_string()).collect();
        roots.sort_by_cached_key(|path| self.place(path));
        roots
    }

    /// Which child of which child of the root a node is.
    fn place(&self, path: &str) -> Vec<usize> {
        let mut place = Vec::new();
        let mut at = path;
        while at != "/" {
            let above = self.nodes.get(parent(at));
            place.push(above.and_then(|node| node.children.find(name(at))).unwrap_or(0));
            at = parent(at);
        }
        place.reverse();
        place
    }

    /// A node as it is now.
    pub fn get(&self, path: &str) -> Option<&Arc<Node>> {
        self.nodes.get(path)
    }

    /// Makes or replaces a node.
    pub fn put(&mut self, path: &str, mut node: Node) {
        self.generation += 1;
        node.generation = self.generation;
        account(&mut self.owned, path, &node, true);
        match self.nodes.get_mut(path) {
            Some(there) => {
                account(&mut self.owned, path, there, false);
                *there = Arc::new(node);
            }
            None => drop(self.nodes.insert(path.into(), Arc::new(node))),
        }
    }

    /// Removes a node alone.
    pub fn remove(&mut self, path: &str) {
        self.generation += 1;
        if let Some(old) = self.nodes.remove(path) {
            account(&mut self.owned, path, &old, false);
        }
    }

    /// What a domain owns.
    pub fn owned(&self, domid: u16) -> Owned {
        self.owned.get(&domid).copied().unwrap_or_default()
    }

    /// Takes away what others have granted to a domain that is gone: the next one of its number starts with nothing.
    pub fn forget_domain(&mut self, domid: u16) {
        self.generation += 1;
        self.ended.insert(domid, self.generation);
        for (path, node) in &mut self.nodes {
            if node.owner() == domid {
                // The root alone outlives its owner.
                account(&mut self.owned, path, node, false);
                self.generation += 1;
                let node = Arc::make_mut(node);
                node.generation = self.generation;
                Arc::make_mut(&mut node.perms)[0].domid = 0;
                account(&mut self.owned, path, node, true);
            }
            if !node.perms.iter().skip(1).any(|entry| entry.domid == domid) {
                continue;
            }
            account(&mut self.owned, path, node, false);
            // The node keeps its generation: who has only read or removed it in an open transaction has seen nothing
            // that is no longer so. One that would bring the entry back asks `has_ended_since`.
            let (node, mut first) = (Arc::make_mut(node), true);
            let stays = |entry: &&Permission| std::mem::take(&mut first) || entry.domid != domid;
            node.perms = node.perms.iter().filter(stays).copied().collect();
            account(&mut self.owned, path, node, true);
        }
    }
}

fn account(owned: &mut HashMap<u16, Owned>, path: &str, node: &Node, more: bool) {
    let entry = owned.entry(node.owner()).or_default();
    let memory = node.memory(path);
    if more {
        *entry = Owned { nodes: entry.nodes + 1, memory: entry.memory + memory };
        return;
    }
    debug_assert!(entry.nodes > 0 && entry.memory >= memory, "{path} was never counted");
    *entry = Owned { nodes: entry.nodes.saturating_sub(1), memory: entry.memory.saturating_sub(memory) };
    if entry.nodes == 0 {
        owned.remove(&node.owner());
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
    pub fn is_visible_to(&self, who: Who) -> bool {
        who.is_dom0() || self.known_to.iter().flatten().any(|node| allowed(&node.perms, who).read)
    }
}

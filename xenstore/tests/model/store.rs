//! Nodes and who may do what with them.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::paths;

/// A domain that had this number the `life`-th time: what one was allowed is not for the next of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub domid: u16,
    pub life: u32,
}

/// One permission entry, with its letter: `n`, `r`, `w` or `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub who: Who,
    pub letter: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub value: Vec<u8>,
    /// Names, in the order of their creation.
    pub children: Vec<String>,
    /// The owner's entry, then others'.
    pub perms: Vec<Entry>,
    /// When it last changed: no two changes happen at the same time.
    pub changed: u64,
}

impl Node {
    pub fn owner(&self) -> Who {
        self.perms[0].who
    }

    /// Takes a name off the list, once: what a transaction looks at at different times may list one twice, and cannot
    /// be committed then.
    pub fn disown(&mut self, name: &str) {
        let at = self.children.iter().position(|child| child == name);
        at.map(|at| self.children.remove(at));
    }
}

/// What somebody wants to do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
    Own,
}

/// Somebody who asks, and for whom else (SET_TARGET).
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub who: Who,
    pub target: Option<Who>,
}

impl Asker {
    fn is(self, who: Who) -> bool {
        self.who == who || self.target == Some(who)
    }
}

/// Whether somebody has a right by these entries: the owner and dom0 have all, others what their own entry says, or else
/// what the owner's says.
pub fn allows(perms: &[Entry], asker: Asker, right: Right) -> bool {
    if asker.who.domid == 0 || asker.is(perms[0].who) {
        return true;
    }
    let letter = perms[1..].iter().find(|entry| asker.is(entry.who)).unwrap_or(&perms[0]).letter;
    match right {
        Right::Read => matches!(letter, b'r' | b'b'),
        Right::Write => matches!(letter, b'w' | b'b'),
        Right::Own => false,
    }
}

/// All nodes by their paths. Copies are cheap enough to be made whenever that is simplest.
#[derive(Clone, Debug, Default)]
pub struct Store {
    nodes: BTreeMap<Rc<str>, Rc<Node>>,
}

impl Store {
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path).map(|node| &**node)
    }

    /// Puts a node there, or takes it away.
    pub fn set(&mut self, path: &str, node: Option<Node>) {
        match node {
            Some(node) => drop(self.nodes.insert(path.into(), Rc::new(node))),
            None => drop(self.nodes.remove(path)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (&**path, &**node))
    }

    /// How many nodes a domain owns.
    pub fn owned(&self, who: Who) -> usize {
        self.nodes.values().filter(|node| node.owner() == who).count()
    }

    /// A node and all that is in it: each after what is in it with `upwards`, else before.
    pub fn subtree(&self, path: &str, upwards: bool) -> Vec<String> {
        let mut below: Vec<String> = Vec::new();
        for name in self.get(path).map_or(&[][..], |node| &node.children) {
            below.extend(self.subtree(&paths::child(path, name), upwards));
        }
        below.insert(if upwards { below.len() } else { 0 }, path.to_owned());
        below
    }
}

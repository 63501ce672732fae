//! A transaction, or one request outside of transactions: what it saw, what it changed, what is to be told.

use std::collections::BTreeMap;
use std::rc::Rc;

use xenstore::server::Limits;
use xenstore::wire::ErrorName;

use super::paths;
use super::store::{Asker, Entry, Node, Right, Store, allows};

/// How a node was when it was first looked at.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    /// `None` if it was not there.
    pub was: Option<Node>,
    pub written: bool,
    /// How often each number had been released.
    pub lives: Rc<BTreeMap<u16, u32>>,
}

/// A change that watches hear of: those on the path and above it, or with `exact` only those on it.
#[derive(Clone, Debug)]
pub struct Fire {
    pub path: String,
    pub exact: bool,
    /// Who may read by one of these hears of it.
    pub readable: Vec<Vec<Entry>>,
}

/// Works on copies of nodes, each made when it is first looked at.
#[derive(Clone, Debug)]
pub struct Work<'a> {
    pub asker: Asker,
    pub state: State,
    all: &'a Store,
    limits: &'a Limits,
    lives: Rc<BTreeMap<u16, u32>>,
}

/// What is left of it between two requests.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub inside: bool,
    pub seen: Vec<Seen>,
    pub copies: Store,
    pub fires: Vec<Fire>,
    /// Nodes more, or less, that the domain owns.
    pub owned: isize,
    /// It has made a node.
    pub created: bool,
    /// It can only be given up.
    pub failed: bool,
}

impl<'a> Work<'a> {
    pub fn new(
        asker: Asker,
        state: State,
        all: &'a Store,
        limits: &'a Limits,
        lives: Rc<BTreeMap<u16, u32>>,
    ) -> Work<'a> {
        Work { asker, state, all, limits, lives }
    }

    fn privileged(&self) -> bool {
        self.asker.who.domid == 0
    }

    /// The node as it stands here.
    fn look(&mut self, path: &str) -> Result<Option<Node>, ErrorName> {
        if !self.state.seen.iter().any(|seen| seen.path == path) {
            let was = self.all.get(path).cloned();
            self.state.copies.set(path, was.clone());
            let lives = Rc::clone(&self.lives);
            self.state.seen.push(Seen { path: path.to_owned(), was, written: false, lives });
        }
        Ok(self.state.copies.get(path).cloned())
    }

    fn put(&mut self, path: &str, node: Option<Node>) {
        self.state.copies.set(path, node);
        let seen = self.state.seen.iter_mut().find(|seen| seen.path == path);
        seen.expect("looked at before").written = true;
    }

    /// The closest node above that exists.
    fn nearest(&mut self, path: &str) -> Result<(String, Node), ErrorName> {
        let mut above = paths::parent(path);
        loop {
            if let Some(node) = self.look(above)? {
                return Ok((above.to_owned(), node));
            }
            assert_ne!(above, "/", "the root is always there");
            above = paths::parent(above);
        }
    }

    /// A node on which there must be a right. Who has not the same right above is not told that it is missing.
    fn find(&mut self, path: &str, right: Right) -> Result<Node, ErrorName> {
        let error = match self.look(path)? {
            Some(node) if allows(&node.perms, self.asker, right) => return Ok(node),
            Some(_) => ErrorName::Eacces,
            None => ErrorName::Enoent,
        };
        let (_, above) = self.nearest(path)?;
        let known = allows(&above.perms, self.asker, right)
            || right == Right::Own && allows(&above.perms, self.asker, Right::Write);
        Err(if known { error } else { ErrorName::Eacces })
    }

    /// For reading.
    pub fn read(&mut self, path: &str) -> Result<Node, ErrorName> {
        self.find(path, Right::Read)
    }

    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), ErrorName> {
        match self.find(path, Right::Write) {
            Ok(mut node) => {
                node.value = value.to_vec();
                self.sized(&node)?;
                self.put(path, Some(node));
            }
            Err(ErrorName::Enoent) => self.create(path, value)?,
            Err(error) => return Err(error),
        }
        self.fire(path, false, None);
        Ok(())
    }

    pub fn mkdir(&mut self, path: &str) -> Result<(), ErrorName> {
        match self.find(path, Right::Write) {
            Err(ErrorName::Enoent) => self.create(path, b"")?,
            other => return other.map(drop),
        }
        self.fire(path, false, None);
        Ok(())
    }

    /// Makes a node and what is missing above it. All of it is owned by the domain that makes it; dom0's belong to
    /// whoever owns what they are in.
    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), ErrorName> {
        let (above, mut parent) = self.nearest(path)?;
        let mut missing = Vec::new();
        let mut at = path;
        while at != above {
            missing.push(at.to_owned());
            at = paths::parent(at);
        }
        let has = self.all.owned(self.asker.who) as isize + self.state.owned;

        if !self.privileged() && has + missing.len() as isize > self.limits.nodes as isize {
            return Err(ErrorName::Enospc);
        }
        let mut made = Vec::new();
        let mut at = above;
        for path in missing.iter().rev() {
            parent.children.push(paths::name(path).to_owned());
            let mut perms = parent.perms.clone();
            if !self.privileged() {
                perms[0].who = self.asker.who;
            }
            let node = Node { value: Vec::new(), children: Vec::new(), perms, changed: 0 };
            made.push((at, std::mem::replace(&mut parent, node)));
            at = path.clone();
        }
        parent.value = value.to_vec();
        made.push((at, parent));
        made.iter().try_for_each(|(_, node)| self.sized(node))?;
        let mine = made[1..].iter().filter(|(_, node)| node.owner() == self.asker.who).count();
        self.state.owned += mine as isize;
        self.state.created = true;
        made.into_iter().for_each(|(path, node)| self.put(&path, Some(node)));
        Ok(())
    }

    /// Removes a node and what is in it, whoever owns that.
    pub fn rm(&mut self, path: &str) -> Result<(), ErrorName> {
        let parent = paths::parent(path);
        match self.find(path, Right::Write) {
            Ok(_) if path == "/" => return Err(ErrorName::Einval),
            Ok(_) => {}
            Err(ErrorName::Enoent) => {
                return if self.look(parent)?.is_some() { Ok(()) } else { Err(ErrorName::Enoent) };
            }
            Err(error) => return Err(error),
        }
        let above = self.look(parent)?;
        self.remove_below(path, path)?;
        // It is gone only in a transaction that cannot be committed.
        if let Some(mut above) = above {
            above.disown(paths::name(path));
            self.put(parent, Some(above));
        }
        Ok(())
    }

    fn remove_below(&mut self, path: &str, root: &str) -> Result<(), ErrorName> {
        // Gone from where it is still listed: only in a transaction that cannot be committed.
        let Some(node) = self.look(path)? else { return Ok(()) };
        for name in &node.children {
            self.remove_below(&paths::child(path, name), root)?;
        }
        self.fire(path, path != root, None);
        self.state.owned -= isize::from(node.owner() == self.asker.who);
        self.put(path, None);
        Ok(())
    }

    pub fn set_perms(&mut self, path: &str, perms: Vec<Entry>) -> Result<(), ErrorName> {
        let mut node = self.find(path, Right::Own)?;
        if !self.privileged() && perms[0].who.domid != node.owner().domid {
            return Err(ErrorName::Eperm);
        }
        let old = std::mem::replace(&mut node.perms, perms);
        self.sized(&node)?;
        self.put(path, Some(node));
        self.fire(path, false, Some(old));
        Ok(())
    }

    /// What a domain writes may not be larger than allowed.
    fn sized(&mut self, node: &Node) -> Result<(), ErrorName> {
        let names: usize = node.children.iter().map(|name| name.len() + 1).sum();
        let size = node.value.len() + names + super::ENTRY_SIZE * node.perms.len() + super::NODE_SIZE;
        if !self.privileged() && size >= self.limits.node_size {
            self.state.failed = true;
            return Err(ErrorName::Enospc);
        }
        Ok(())
    }

    /// Something has happened to a node that is there: whoever may read it or what it is in hears of it, and whoever
    /// might read it before.
    fn fire(&mut self, path: &str, exact: bool, old: Option<Vec<Entry>>) {
        if self.state.inside {
            // Told once for each node, and exactly only when nothing else has happened to it.
            match self.state.fires.iter_mut().find(|fire| fire.path == path) {
                Some(fire) => fire.exact &= exact,
                None => self.state.fires.push(Fire { path: path.to_owned(), exact, readable: Vec::new() }),
            }
            return;
        }
        let perms = |path: &str| {
            let node = self.state.copies.get(path).or_else(|| self.all.get(path));
            node.map(|node| node.perms.clone())
        };
        let readable = [old, perms(path), perms(paths::parent(path))].into_iter().flatten().collect();
        self.state.fires.push(Fire { path: path.to_owned(), exact, readable });
    }
}

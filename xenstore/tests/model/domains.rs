//! Domains that come and go, and who hears of that.

use std::rc::Rc;

use xenstore::wire::ErrorName;

use super::requests::{number, strings};
use super::store::{Asker, Entry, Right, Who, allows};
use super::work::Fire;
use super::{Model, paths};
use crate::peer::Answer;

impl Model {
    /// A domain is there.
    pub fn introduce(&mut self, domid: u16) {
        self.introduced.insert(domid);
        self.tell_special("@introduceDomain");
    }

    /// A domain is dead: its connections, its nodes with all that is in them, what others allowed it.
    pub fn release(&mut self, domid: u16) {
        let dead = self.who(domid);
        self.connections.retain(|_, connection| connection.who != dead);
        for path in self.store.subtree("/", false) {
            if path != "/" && self.store.get(&path).is_some_and(|node| node.owner() == dead) {
                self.remove_orphan(&path);
            }
        }
        self.introduced.remove(&domid);
        // Who acted for it acts for nobody; not for the next of its number.
        self.targets.retain(|of, target| *of != domid && *target != dead);
        *Rc::make_mut(&mut self.lives).entry(domid).or_default() += 1;
        for path in self.store.subtree("/", false) {
            let mut node = self.store.get(&path).expect("listed").clone();
            if node.perms.iter().any(|entry| entry.who == dead) {
                // To lose an entry that nobody can use any more is no change of the node; to become dom0's is.
                if node.owner() == dead {
                    self.clock += 1;
                    node.changed = self.clock;
                }
                node.perms = self.alive(&node.perms);
                self.store.set(&path, Some(node));
            }
        }
        for special in 0..self.specials.len() {
            self.specials[special].1 = self.alive(&self.specials[special].1);
        }
        self.tell_special("@releaseDomain");
    }

    /// Removes a node and what is in it.
    pub(super) fn remove_orphan(&mut self, root: &str) {
        let paths = self.store.subtree(root, true);
        for path in &paths {
            let readable = [path, paths::parent(path)].into_iter().flat_map(|path| self.store.get(path));
            let readable = readable.map(|node| node.perms.clone()).collect();
            self.tell(&Fire { path: path.clone(), exact: path != root, readable });
        }
        paths.iter().for_each(|path| self.store.set(path, None));
        let mut above = self.store.get(paths::parent(root)).expect("a parent exists").clone();
        above.disown(paths::name(root));
        self.clock += 1;
        above.changed = self.clock;
        self.store.set(paths::parent(root), Some(above));
    }

    /// Without the entries of the dead; what one owned is dom0's.
    pub(super) fn alive(&self, perms: &[Entry]) -> Vec<Entry> {
        let lives = |who: Who| who == self.who(who.domid);
        let owner = if lives(perms[0].who) { perms[0].who } else { self.who(0) };
        let others = perms[1..].iter().filter(|entry| lives(entry.who));
        [Entry { who: owner, ..perms[0] }].iter().chain(others).copied().collect()
    }

    /// SET_TARGET.
    pub(super) fn set_target(&mut self, payload: &[u8]) -> Answer {
        let parts = strings(payload);
        let [domain, target] = parts[..] else { return Err(ErrorName::Einval) };
        let (domid, target) = (number(domain)?, number(target)?);
        if !self.introduced.contains(&domid) || !self.introduced.contains(&target) {
            return Err(ErrorName::Enoent);
        }
        // To act for dom0 would be to be dom0.
        if domid == 0 || target == 0 {
            return Err(ErrorName::Einval);
        }
        self.targets.insert(domid, self.who(target));
        Ok(b"OK\0".to_vec())
    }

    /// INTRODUCE of a domain that is there: it begins anew with what it had registered.
    pub(super) fn introduce_again(&mut self, payload: &[u8]) -> Answer {
        let parts = strings(payload);
        let [domain, _, port, ..] = parts[..] else { return Err(ErrorName::Einval) };
        let (who, port) = (self.who(number(domain)?), number(port)?);
        if port == 0 {
            return Err(ErrorName::Einval);
        }
        assert!(self.introduced.contains(&who.domid), "a new one has a socket that the test does not know");
        for connection in self.connections.values_mut().filter(|connection| connection.who == who && who.domid != 0) {
            connection.watches.clear();
            connection.transactions.clear();
        }
        Ok(b"OK\0".to_vec())
    }

    pub(super) fn tell_special(&mut self, name: &str) {
        let perms = self.specials.iter().find(|(special, _)| *special == name).expect("one of them").1.clone();
        // The names are below nothing, not even the root.
        self.tell(&Fire { path: name.to_owned(), exact: true, readable: vec![perms] });
    }

    /// SET_PERMS of what is no node: at once, in a transaction too.
    pub(super) fn set_special(&mut self, who: Who, payload: &[u8]) -> Answer {
        let parts = strings(payload);
        let (name, entries) = parts.split_first().ok_or(ErrorName::Einval)?;
        let perms = self.entries(entries)?;
        let asker = Asker { who, target: self.targets.get(&who.domid).copied() };
        let mine = |perms: &[Entry]| allows(perms, asker, Right::Own);
        let special = self.specials.iter_mut().find(|(special, perms)| mine(perms) && special.as_bytes() == *name);
        special.ok_or(ErrorName::Einval)?.1 = perms;
        Ok(b"OK\0".to_vec())
    }
}

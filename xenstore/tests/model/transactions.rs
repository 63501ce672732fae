//! How transactions begin and end.

use std::collections::BTreeMap;

use xenstore::wire::ErrorName;

use super::requests::one;
use super::store::{Node, Who};
use super::work::{Fire, State};
use super::{Model, paths};
use crate::peer::Answer;

impl Model {
    pub(super) fn start(&self, connection: usize, transaction: u32) -> Answer {
        if transaction != 0 {
            return Err(ErrorName::Ebusy);
        }
        let who = self.connections[&connection].who;
        let open = self.of(who).map(|connection| connection.transactions.len()).sum::<usize>();
        if who.domid != 0 && open >= self.limits.transactions {
            return Err(ErrorName::Enospc);
        }
        Ok(Vec::new())
    }

    pub(super) fn end(&mut self, connection: usize, transaction: u32, payload: &[u8]) -> Answer {
        let commit = match one(payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(ErrorName::Einval),
        };
        let connection = self.connections.get_mut(&connection).expect("open");
        let who = connection.who;
        let state = connection.transactions.remove(&transaction).ok_or(ErrorName::Enoent)?;
        if commit {
            self.commit(who, state)?;
        }
        Ok(b"OK\0".to_vec())
    }

    pub(super) fn commit(&mut self, who: Who, mut state: State) -> Result<(), ErrorName> {
        if state.failed {
            return Err(ErrorName::Enomem);
        }
        let owned = self.store.owned(who) as isize + state.owned;
        if who.domid != 0 && state.owned > 0 && owned > self.limits.nodes as isize {
            return Err(ErrorName::Enospc);
        }
        let changed = |node: Option<&Node>| node.map(|node| node.changed);
        if state.seen.iter().any(|seen| changed(seen.was.as_ref()) != changed(self.store.get(&seen.path))) {
            return Err(ErrorName::Eagain);
        }
        // What a node says of a domain is not for the next of its number, so whoever wrote it looks at it again.
        let life = |lives: &BTreeMap<u16, u32>, domid: u16| lives.get(&domid).copied().unwrap_or(0);
        let written = state.seen.iter().filter(|seen| seen.written);
        let mut named = written.flat_map(|seen| {
            let perms = state.copies.get(&seen.path).map_or(&[][..], |node| &node.perms);
            perms.iter().map(|entry| (life(&seen.lives, entry.who.domid), entry.who.domid))
        });
        if named.any(|(then, domid)| then != life(&self.lives, domid)) {
            return Err(ErrorName::Eagain);
        }
        let before = self.store.clone();
        self.apply(&mut state);
        for seen in &state.seen {
            let Some(fire) = state.fires.iter().find(|fire| fire.path == seen.path) else { continue };
            let is = self.store.get(&seen.path);
            if seen.was.is_none() && is.is_none() {
                continue;
            }
            // What is gone is in nothing any more.
            let parent = paths::parent(&seen.path);
            let above = is.and_then(|_| before.get(parent).or_else(|| self.store.get(parent)));
            let readable = [seen.was.as_ref(), is, above].into_iter().flatten();
            let readable = readable.map(|node| node.perms.clone()).collect();
            self.tell(&Fire { path: fire.path.clone(), exact: fire.exact, readable });
        }
        Ok(())
    }

    /// Takes over what was changed.
    pub(super) fn apply(&mut self, state: &mut State) {
        for seen in state.seen.iter().filter(|seen| seen.written) {
            let mut node = state.copies.get(&seen.path).cloned();
            if let Some(node) = &mut node {
                self.clock += 1;
                node.changed = self.clock;
            }
            self.store.set(&seen.path, node);
        }
    }
}

//! Requests on nodes, from the bytes of their payload.

use std::rc::Rc;

use xenstore::wire::{ErrorName, MessageType, PAYLOAD_MAX};

use super::Model;
use super::paths::absolute;
use super::store::{Asker, Entry, Node};
use super::work::Work;
use crate::peer::Answer;

impl Model {
    pub(super) fn nodes(&mut self, connection: usize, kind: MessageType, transaction: u32, payload: &[u8]) -> Answer {
        let open = self.connections.get_mut(&connection).expect("open");
        let who = open.who;
        let asker = Asker { who, target: self.targets.get(&who.domid).copied() };
        let state = open.transactions.remove(&transaction);
        let before = state.clone().unwrap_or_default();
        let (store, limits) = (self.store.clone(), self.limits);
        let mut work = Work::new(asker, state.unwrap_or_default(), &store, &limits, Rc::clone(&self.lives));
        let mut answer = self.node_request(&mut work, kind, payload);
        let mut state = work.state;
        if state.inside {
            if who.domid != 0 && state.seen.len() > limits.transaction_nodes {
                state.failed = true;
                answer = Err(ErrorName::Enospc);
                // What is beyond the limit it has never seen, and all is as it was before.
                state.seen.truncate(limits.transaction_nodes);
                for seen in &state.seen {
                    let was = match before.seen.iter().any(|earlier| earlier.path == seen.path) {
                        true => before.copies.get(&seen.path),
                        false => store.get(&seen.path),
                    };
                    state.copies.set(&seen.path, was.cloned());
                }
                state.owned = before.owned;
            }
            let open = self.connections.get_mut(&connection).expect("open");
            open.transactions.insert(transaction, state);
        } else if answer.is_ok() {
            self.apply(&mut state);
            state.fires.iter().for_each(|fire| self.tell(fire));
        }
        answer
    }

    pub(super) fn node_request(&self, work: &mut Work, kind: MessageType, payload: &[u8]) -> Answer {
        let domid = work.asker.who.domid;
        let path = |path: &[u8]| absolute(path, domid, false);
        let ok = b"OK\0".to_vec();
        match kind {
            MessageType::Read => Ok(work.read(&path(one(payload)?)?)?.value),
            MessageType::Directory => {
                let names = listed(&work.read(&path(one(payload)?)?)?);
                if names.len() > PAYLOAD_MAX { Err(ErrorName::E2big) } else { Ok(names) }
            }
            MessageType::DirectoryPart => {
                let parts = strings(payload);
                let [name, offset] = parts[..] else { return Err(ErrorName::Einval) };
                let names = listed(&work.read(&path(name)?)?);
                let offset = std::str::from_utf8(offset).ok().and_then(|offset| offset.parse::<usize>().ok());
                Ok(names.get(offset.ok_or(ErrorName::Einval)?..).unwrap_or_default().to_vec())
            }
            MessageType::GetPerms => {
                let node = work.read(&path(one(payload)?)?)?;
                Ok(text(&node.perms).into_bytes())
            }
            MessageType::Write => {
                let end = payload.iter().position(|byte| *byte == 0).ok_or(ErrorName::Einval)?;
                work.write(&path(&payload[..end])?, &payload[end + 1..])?;
                Ok(ok)
            }
            MessageType::Mkdir => work.mkdir(&path(one(payload)?)?).map(|()| ok),
            MessageType::Rm => work.rm(&path(one(payload)?)?).map(|()| ok),
            MessageType::SetPerms => {
                let parts = strings(payload);
                if parts.len() < 2 {
                    return Err(ErrorName::Einval);
                }
                if domid != 0 && parts.len() - 1 > self.limits.permissions {
                    return Err(ErrorName::Enospc);
                }
                let entries = self.entries(&parts[1..])?;
                work.set_perms(&path(parts[0])?, entries).map(|()| ok)
            }
            other => panic!("{other:?} is nothing that the model knows"),
        }
    }

    pub(super) fn entries(&self, parts: &[&[u8]]) -> Result<Vec<Entry>, ErrorName> {
        let entries = parts.iter().map(|part| self.entry(std::str::from_utf8(part).ok()?)).collect::<Option<Vec<_>>>();
        entries.filter(|entries| !entries.is_empty()).ok_or(ErrorName::Einval)
    }

    pub(super) fn entry(&self, text: &str) -> Option<Entry> {
        let letter = *text.as_bytes().first().filter(|letter| b"nrwb".contains(letter))?;
        Some(Entry { who: self.who(text[1..].parse().ok()?), letter })
    }
}

/// The only string of a payload.
pub fn one(payload: &[u8]) -> Result<&[u8], ErrorName> {
    match payload.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(ErrorName::Einval),
    }
}

/// A domain's number.
pub fn number(text: &[u8]) -> Result<u16, ErrorName> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(ErrorName::Einval)
}

/// Everything that ends in a NUL.
pub fn strings(payload: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    parts.pop();
    parts
}

fn listed(node: &Node) -> Vec<u8> {
    node.children.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect()
}

pub fn text(perms: &[Entry]) -> String {
    perms.iter().map(|entry| format!("{}{}\0", char::from(entry.letter), entry.who.domid)).collect()
}

//! One request: which operation it is, on the store or in a transaction, and what the answer is.

use std::collections::BTreeSet;

use super::connection::Connection;
use super::operations::{self as op, Caller, canonical};
use super::quota::Limits;
use super::transaction::{Inside, Overlay};
use super::tree::{Change, Tree, View};
use super::watch::Event;
use crate::Permission;
use crate::wire::{ErrorName, Header, MessageType, PAYLOAD_MAX};

/// What the store knows beside its nodes.
pub struct State {
    /// The nodes.
    pub tree: Tree,
    /// Domains that are there.
    pub introduced: BTreeSet<u16>,
    /// Limits of all domains but dom0.
    pub limits: Limits,
}

/// What a request leads to beside its answer.
#[derive(Default)]
pub struct Effects {
    /// For everybody's watches.
    pub changes: Vec<Change>,
    /// For the one who asked, after the answer.
    pub event: Option<Event>,
}

const OK: &[u8] = b"OK\0";

/// The domain's watches and transactions on all its connections, for its limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Watches.
    pub watches: usize,
    /// Open transactions.
    pub transactions: usize,
}

/// Does what a request asks and queues the answer.
pub fn dispatch(state: &mut State, client: &mut Connection, usage: Usage, header: &Header, payload: &[u8]) -> Effects {
    let mut effects = Effects::default();
    let result = match MessageType::from_number(header.kind) {
        Some(kind) => perform(state, client, usage, kind, header.transaction, payload, &mut effects),
        None => Err(ErrorName::Enosys),
    };
    match result {
        Ok(answer) if answer.len() <= PAYLOAD_MAX => client.answer(header, header.kind, &answer),
        Ok(_) => client.answer(header, MessageType::Error as u32, b"E2BIG\0"),
        Err(error) => {
            let name = format!("{error}\0");
            client.answer(header, MessageType::Error as u32, name.as_bytes());
        }
    }
    effects
}

fn perform(
    state: &mut State,
    client: &mut Connection,
    usage: Usage,
    kind: MessageType,
    transaction: u32,
    payload: &[u8],
    effects: &mut Effects,
) -> Result<Vec<u8>, ErrorName> {
    let (domid, limits) = (client.domid, state.limits);
    match kind {
        MessageType::Watch => {
            let [path, token] = strings(payload)?;
            let event = client.watches.add(path, token, domid, usage.watches, &limits)?;
            effects.event = Some(event);
            Ok(OK.to_vec())
        }
        MessageType::Unwatch => {
            let [path, token] = strings(payload)?;
            client.watches.remove(path, token, domid)?;
            client.unwatched();
            Ok(OK.to_vec())
        }
        MessageType::ResetWatches => {
            client.reset();
            Ok(OK.to_vec())
        }
        MessageType::TransactionStart => {
            if transaction != 0 {
                let open = client.transactions.contains_key(&transaction);
                return Err(if open { ErrorName::Ebusy } else { ErrorName::Enoent });
            }
            if domid != 0 && usage.transactions >= limits.transactions {
                return Err(ErrorName::Enospc);
            }
            let id = loop {
                client.last_transaction = client.last_transaction.wrapping_add(1);
                if client.last_transaction != 0 && !client.transactions.contains_key(&client.last_transaction) {
                    break client.last_transaction;
                }
            };
            client.transactions.insert(id, Overlay::default());
            Ok(format!("{id}\0").into_bytes())
        }
        MessageType::TransactionEnd => {
            let commit = match payload {
                b"T\0" => true,
                b"F\0" => false,
                _ => return Err(ErrorName::Einval),
            };
            let overlay = client.transactions.remove(&transaction).ok_or(ErrorName::Enoent)?;
            if commit {
                effects.changes = overlay.commit(&mut state.tree, &Caller { domid, limits })?;
            }
            Ok(OK.to_vec())
        }
        MessageType::GetDomainPath => {
            let [domain] = strings(payload)?;
            Ok(format!("/local/domain/{}\0", number(domain)?).into_bytes())
        }
        _ if is_node_operation(kind) => {
            let caller = Caller { domid, limits };
            let tree = &mut state.tree;
            if transaction == 0 {
                let mut overlay = Overlay::default();
                let answer = node_operation(&mut Inside { overlay: &mut overlay, tree }, kind, payload, &caller)?;
                effects.changes = overlay.commit(tree, &caller)?;
                return Ok(answer);
            }
            let overlay = client.transactions.get_mut(&transaction).ok_or(ErrorName::Enoent)?;
            if domid != 0 && overlay.len() > limits.transaction_nodes {
                return Err(ErrorName::Enospc);
            }
            node_operation(&mut Inside { overlay, tree }, kind, payload, &caller)
        }
        MessageType::WatchEvent | MessageType::Error => Err(ErrorName::Enosys),
        // What follows changes domains or the daemon; domains come and go with the embedded host, not by request.
        _ if domid != 0 => Err(ErrorName::Eacces),
        MessageType::IsDomainIntroduced => {
            let [domain] = strings(payload)?;
            let domain = number(domain)?;
            let there = domain == 0 || state.introduced.contains(&domain);
            Ok(if there { b"T\0".to_vec() } else { b"F\0".to_vec() })
        }
        _ => Err(ErrorName::Enosys),
    }
}

fn is_node_operation(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::Read
            | MessageType::Write
            | MessageType::Mkdir
            | MessageType::Rm
            | MessageType::Directory
            | MessageType::DirectoryPart
            | MessageType::GetPerms
            | MessageType::SetPerms
    )
}

fn node_operation(
    view: &mut dyn View,
    kind: MessageType,
    payload: &[u8],
    caller: &Caller,
) -> Result<Vec<u8>, ErrorName> {
    let end = payload.iter().position(|byte| *byte == 0).ok_or(ErrorName::Einval)?;
    let (path, rest) = (canonical(&payload[..end], caller.domid)?, &payload[end + 1..]);
    let nothing_follows = if rest.is_empty() { Ok(()) } else { Err(ErrorName::Einval) };
    match kind {
        MessageType::Read => nothing_follows.and_then(|()| op::read(view, &path, caller)),
        MessageType::Directory => {
            nothing_follows?;
            Ok(listing(&op::directory(view, &path, caller)?.0))
        }
        MessageType::DirectoryPart => {
            let [offset] = strings(rest)?;
            let (names, generation) = op::directory(view, &path, caller)?;
            part(&listing(&names), generation, offset)
        }
        MessageType::GetPerms => {
            nothing_follows?;
            let perms = op::get_perms(view, &path, caller)?;
            Ok(perms.iter().flat_map(|entry| format!("{entry}\0").into_bytes()).collect())
        }
        MessageType::Write => op::write(view, &path, rest, caller).map(|()| OK.to_vec()),
        MessageType::Mkdir => {
            nothing_follows?;
            op::mkdir(view, &path, caller).map(|()| OK.to_vec())
        }
        MessageType::Rm => {
            nothing_follows?;
            op::rm(view, &path, caller).map(|()| OK.to_vec())
        }
        _ => {
            let entries = rest.strip_suffix(b"\0").ok_or(ErrorName::Einval)?;
            let entries = std::str::from_utf8(entries).map_err(|_| ErrorName::Einval)?;
            let perms: Result<Vec<Permission>, _> = entries.split('\0').map(str::parse).collect();
            op::set_perms(view, &path, perms.map_err(|_| ErrorName::Einval)?, caller).map(|()| OK.to_vec())
        }
    }
}

/// Exactly `N` strings, each with its NUL.
fn strings<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], ErrorName> {
    let payload = payload.strip_suffix(b"\0").ok_or(ErrorName::Einval)?;
    let strings: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    strings.try_into().map_err(|_| ErrorName::Einval)
}

fn number(text: &[u8]) -> Result<u16, ErrorName> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).map_err(|_| ErrorName::Einval)?;
    if digits { text.parse().map_err(|_| ErrorName::Einval) } else { Err(ErrorName::Einval) }
}

fn listing(names: &[std::sync::Arc<str>]) -> Vec<u8> {
    names.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

/// A part of a listing: the generation, whole names from `offset`, and an empty name after the last.
fn part(listing: &[u8], generation: u64, offset: &[u8]) -> Result<Vec<u8>, ErrorName> {
    let offset = std::str::from_utf8(offset).ok().and_then(|text| text.parse::<usize>().ok());
    let offset = offset.ok_or(ErrorName::Einval)?.min(listing.len());
    let mut answer = format!("{generation}\0").into_bytes();
    let (room, rest) = (PAYLOAD_MAX - answer.len() - 1, &listing[offset..]);
    if rest.len() <= room {
        answer.extend_from_slice(rest);
        answer.push(0);
        return Ok(answer);
    }
    let whole = rest[..room].iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
    answer.extend_from_slice(&rest[..whole]);
    Ok(answer)
}

//! One request: which operation it is, on the store or in a transaction, and what the answer is.

use super::connection::Connection;
use super::control;
use super::domains::Domains;
use super::operations::{self as op, Caller, canonical};
use super::special::Specials;
use super::transaction::{Inside, Order, Overlay};
use super::tree::{Change, Look, Tree, View};
use super::watch::{Event, Watches, Wish};
use crate::Permission;
use crate::wire::{ErrorName, Header, MessageType, PAYLOAD_MAX};

/// What the daemon knows beside its sockets.
pub struct State {
    /// The nodes.
    pub tree: Tree,
    /// Everybody's watches.
    pub watches: Watches,
    /// The domains that are there.
    pub domains: Domains,
    /// What is no node but has permissions.
    pub specials: Specials,
}

/// What a request leads to beside its answer.
#[derive(Default)]
pub struct Effects {
    /// For everybody's watches.
    pub changes: Vec<Change>,
    /// For the one who asked, after the answer.
    pub event: Option<Event>,
}

/// What has become of a request.
pub enum Outcome {
    /// It is done.
    Answer(Vec<u8>),
    /// A domain is to come: whoever has the sockets does that.
    Introduce(u16),
    /// A domain is to go.
    Release(u16),
}

/// What a domain uses on all its connections, for its limits; dom0 has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Watches.
    pub watches: usize,
    /// Open transactions.
    pub transactions: usize,
    /// Bytes of nodes, watches, transactions, and of what is not read yet.
    pub memory: usize,
}

/// An answer that says no more than that it was done.
pub const OK: &[u8] = b"OK\0";

/// True for requests that a limit of the domain may refuse.
pub fn is_limited(header: &Header) -> bool {
    use MessageType::{Mkdir, SetPerms, TransactionStart, Watch, Write};
    header.transaction != 0
        || [Watch, TransactionStart, Write, Mkdir, SetPerms].iter().any(|kind| *kind as u32 == header.kind)
}

/// Does what a request asks.
pub fn perform(
    state: &mut State,
    client: &mut Connection,
    usage: Usage,
    header: &Header,
    payload: &[u8],
    effects: &mut Effects,
) -> Result<Outcome, ErrorName> {
    let kind = MessageType::from_number(header.kind).ok_or(ErrorName::Enosys)?;
    let (domid, limits) = (client.domid, state.domains.limits(client.domid));
    if kind == MessageType::WatchEvent || kind == MessageType::Error {
        return Err(ErrorName::Enosys);
    }
    let is_full = domid != 0 && usage.memory >= limits.memory;
    let grows = is_limited(header) && !matches!(kind, MessageType::Rm | MessageType::TransactionEnd);
    if is_full && grows {
        return Err(ErrorName::Enomem);
    }
    if control::is_for_dom0(kind, payload) && domid != 0 {
        return Err(ErrorName::Eacces);
    }
    let ignores_transactions = matches!(kind, MessageType::Watch | MessageType::Unwatch);
    let inside = Some(header.transaction).filter(|id| *id != 0 && !ignores_transactions);
    if inside.is_some_and(|id| !client.transactions.contains_key(&id)) {
        return Err(ErrorName::Enoent);
    }
    let who = state.domains.who(domid);
    let answer = match kind {
        MessageType::Watch => {
            let [path, token] = strings(payload)?;
            let room = if domid == 0 { usize::MAX } else { limits.watches.saturating_sub(usage.watches) };
            let wish = Wish { client: client.number, domid, path, token };
            effects.event = Some(state.watches.add(&wish, room, limits.path_max)?);
            OK.to_vec()
        }
        MessageType::Unwatch => {
            let [path, token] = strings(payload)?;
            state.watches.remove(&Wish { client: client.number, domid, path, token }, limits.path_max)?;
            client.unwatched(&state.watches);
            OK.to_vec()
        }
        MessageType::ResetWatches => {
            reset(&mut state.watches, client);
            OK.to_vec()
        }
        MessageType::TransactionStart => {
            let room = domid == 0 || usage.transactions < limits.transactions;
            start(client, header.transaction, room)?
        }
        MessageType::TransactionEnd => {
            let commit = match payload {
                b"T\0" => true,
                b"F\0" => false,
                _ => return Err(ErrorName::Einval),
            };
            let overlay = client.transactions.remove(&header.transaction).ok_or(ErrorName::Enoent)?;
            if commit {
                effects.changes = overlay.commit(&mut state.tree, &Caller { who, limits }, Order::Seen)?;
            }
            OK.to_vec()
        }
        MessageType::GetDomainPath => {
            let domain = string(payload)?;
            format!("/local/domain/{}\0", number::<u16>(domain)?).into_bytes()
        }
        MessageType::SetPerms if payload.starts_with(b"@") => {
            let end = payload.iter().position(|byte| *byte == 0).ok_or(ErrorName::Einval)?;
            state.specials.set_perms(&payload[..end], permissions(&payload[end + 1..])?, who)?;
            OK.to_vec()
        }
        _ if is_node_operation(kind) => {
            let caller = Caller { who, limits };
            if header.transaction != 0 {
                let overlay = client.transactions.get_mut(&header.transaction).ok_or(ErrorName::Enoent)?;
                overlay.begin_step();
                let mut inside = Inside { overlay, tree: &state.tree };
                let answer = changing_or_reading(&mut inside, kind, payload, &caller);
                if domid != 0 && inside.overlay.len() > limits.transaction_nodes {
                    inside.fail_beyond(limits.transaction_nodes);
                    return Err(ErrorName::Enospc);
                }
                answer?
            } else if is_reading(kind) {
                reading(&mut &state.tree, kind, payload, &caller)?
            } else {
                let mut overlay = Overlay::default();
                let view = &mut Inside { overlay: &mut overlay, tree: &state.tree };
                let answer = changing_or_reading(view, kind, payload, &caller)?;
                effects.changes = overlay.commit(&mut state.tree, &caller, Order::Done)?;
                answer
            }
        }
        _ => return control::perform(state, kind, payload),
    };
    Ok(Outcome::Answer(answer))
}

/// All watches and transactions of a client end, and the events that wait with them.
pub fn reset(watches: &mut Watches, client: &mut Connection) {
    watches.clear(client.number);
    client.transactions.clear();
    client.unwatched(watches);
}

fn start(client: &mut Connection, inside: u32, room: bool) -> Result<Vec<u8>, ErrorName> {
    if inside != 0 {
        return Err(ErrorName::Ebusy);
    }
    if !room {
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

fn is_reading(kind: MessageType) -> bool {
    use MessageType::{Directory, DirectoryPart, GetPerms, Read};
    matches!(kind, Read | Directory | DirectoryPart | GetPerms)
}

fn is_node_operation(kind: MessageType) -> bool {
    use MessageType::{Mkdir, Rm, SetPerms, Write};
    is_reading(kind) || matches!(kind, Write | Mkdir | Rm | SetPerms)
}

/// The path and what follows it.
fn path_and_rest<'a>(payload: &'a [u8], caller: &Caller) -> Result<(String, &'a [u8]), ErrorName> {
    let end = payload.iter().position(|byte| *byte == 0).ok_or(ErrorName::Einval)?;
    let path = canonical(&payload[..end], caller.who.domid, caller.limits.path_max)?;
    Ok((path, &payload[end + 1..]))
}

fn nothing(rest: &[u8]) -> Result<(), ErrorName> {
    if rest.is_empty() { Ok(()) } else { Err(ErrorName::Einval) }
}

fn reading(look: &mut dyn Look, kind: MessageType, payload: &[u8], caller: &Caller) -> Result<Vec<u8>, ErrorName> {
    let (path, rest) = path_and_rest(payload, caller)?;
    if kind == MessageType::DirectoryPart {
        let [offset] = strings(rest)?;
        let node = op::directory(look, &path, caller)?;
        return part(node.children.as_bytes(), node.generation, offset);
    }
    nothing(rest)?;
    match kind {
        MessageType::Read => op::read(look, &path, caller),
        MessageType::Directory => Ok(op::directory(look, &path, caller)?.children.as_bytes().to_vec()),
        _ => {
            let perms = op::get_perms(look, &path, caller)?;
            Ok(perms.iter().flat_map(|entry| format!("{entry}\0").into_bytes()).collect())
        }
    }
}

fn changing_or_reading(
    view: &mut Inside<'_>,
    kind: MessageType,
    payload: &[u8],
    caller: &Caller,
) -> Result<Vec<u8>, ErrorName> {
    if is_reading(kind) { reading(view, kind, payload, caller) } else { changing(view, kind, payload, caller) }
}

fn changing(view: &mut dyn View, kind: MessageType, payload: &[u8], caller: &Caller) -> Result<Vec<u8>, ErrorName> {
    if kind == MessageType::SetPerms {
        // The entries are counted before anything else is looked at.
        let entries = payload.iter().filter(|byte| **byte == 0).count().saturating_sub(1);
        if entries > 0 && caller.is_limited() && entries > caller.limits.permissions {
            return Err(ErrorName::Enospc);
        }
    }
    let (path, rest) = path_and_rest(payload, caller)?;
    match kind {
        MessageType::Write => op::write(view, &path, rest, caller)?,
        MessageType::Mkdir => {
            nothing(rest)?;
            op::mkdir(view, &path, caller)?;
        }
        MessageType::Rm => {
            nothing(rest)?;
            op::rm(view, &path, caller)?;
        }
        _ => {
            op::set_perms(view, &path, permissions(rest)?, caller)?;
        }
    }
    Ok(OK.to_vec())
}

/// At least one entry, each with its NUL.
fn permissions(payload: &[u8]) -> Result<Vec<Permission>, ErrorName> {
    let end = payload.iter().rposition(|byte| *byte == 0).ok_or(ErrorName::Einval)?;
    let entries = std::str::from_utf8(&payload[..end]).map_err(|_| ErrorName::Einval)?;
    entries.split('\0').map(str::parse).collect::<Result<_, _>>().map_err(|_| ErrorName::Einval)
}

/// One string with its NUL, and nothing else.
pub fn string(payload: &[u8]) -> Result<&[u8], ErrorName> {
    match payload.split_last() {
        Some((0, string)) if !string.contains(&0) => Ok(string),
        _ => Err(ErrorName::Einval),
    }
}

/// Exactly `N` strings, each with its NUL. Bytes without one after them are nothing, to the C daemon too.
pub fn strings<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], ErrorName> {
    let mut strings: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    strings.pop();
    strings.try_into().map_err(|_| ErrorName::Einval)
}

/// A decimal number of the type that is asked for.
pub fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, ErrorName> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).map_err(|_| ErrorName::Einval)?;
    if digits { text.parse().map_err(|_| ErrorName::Einval) } else { Err(ErrorName::Einval) }
}

/// A part of a listing: the generation, whole names from `offset`, and an empty name after the last.
fn part(listing: &[u8], generation: u64, offset: &[u8]) -> Result<Vec<u8>, ErrorName> {
    let offset: usize = number(offset)?;
    let rest = &listing[offset.min(listing.len())..];
    let mut answer = format!("{generation}\0").into_bytes();
    let room = PAYLOAD_MAX - answer.len() - 1;
    if rest.len() <= room {
        answer.extend_from_slice(rest);
        answer.push(0);
        return Ok(answer);
    }
    let whole = rest[..room].iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
    answer.extend_from_slice(&rest[..whole]);
    Ok(answer)
}

//! What only dom0 may ask: about domains, and about the daemon itself. The operations on features and quotas are those
//! of Xen 4.22; the C daemon of 4.17 answers them with `ENOSYS`.

use super::dispatch::{OK, Outcome, State, number, string, strings};
use super::quota::{QUOTAS, Quota, SOFT_QUOTAS};
use super::tree::parent;
use crate::wire::{ErrorName, MessageType};

/// Features of the ring page (`XENSTORE_SERVER_FEATURE_*`) that we have: a Unix socket has none of them.
const FEATURES: u32 = 0;
/// "Whoever asks" (xen.h), which is always there.
const DOMID_SELF: u16 = 0x7FF0;

/// True for what domains may not ask. What they can count on, everybody may.
pub fn is_for_dom0(kind: MessageType, payload: &[u8]) -> bool {
    use MessageType::*;
    match kind {
        GetFeature => payload.len() > 1,
        Control | Introduce | Release | IsDomainIntroduced | Resume | SetTarget | SetFeature | GetQuota | SetQuota => {
            true
        }
        _ => false,
    }
}

/// Does what a request asks that is neither about nodes nor about the client itself.
pub fn perform(state: &mut State, kind: MessageType, payload: &[u8]) -> Result<Outcome, ErrorName> {
    let answer = match kind {
        MessageType::IsDomainIntroduced => {
            let domid = number(string(payload)?)?;
            let there = domid == DOMID_SELF || state.domains.contains(domid);
            if there { b"T\0".to_vec() } else { b"F\0".to_vec() }
        }
        MessageType::Introduce => {
            // Reserved strings may follow.
            let mut strings = payload.split(|byte| *byte == 0);
            let (Some(domain), Some(_frame), Some(port), Some(_)) =
                (strings.next(), strings.next(), strings.next(), strings.next())
            else {
                return Err(ErrorName::Einval);
            };
            let (domid, port): (u16, u32) = (number(domain)?, number(port)?);
            return if port == 0 { Err(ErrorName::Einval) } else { Ok(Outcome::Introduce(domid)) };
        }
        MessageType::Release => return Ok(Outcome::Release(existing(state, payload)?)),
        // A domain that was shut down is one that is gone here, so there is nothing to be told of again.
        MessageType::Resume => existing(state, payload).map(|_| OK.to_vec())?,
        MessageType::SetTarget => {
            let [domain, target] = strings(payload)?;
            let (domid, target) = (number(domain)?, number(target)?);
            if !state.domains.contains(target) || !state.domains.contains(domid) {
                return Err(ErrorName::Enoent);
            }
            set_target(state, domid, target)?;
            OK.to_vec()
        }
        MessageType::GetFeature => {
            if payload.len() > 1 {
                let domain = string(payload)?;
                known(state, number(domain)?)?;
            }
            format!("{FEATURES}\0").into_bytes()
        }
        MessageType::SetFeature => {
            let [domain, features] = strings(payload)?;
            let (domid, features): (u16, u32) = (number(domain)?, number(features)?);
            if features & !FEATURES != 0 {
                return Err(ErrorName::Einval);
            }
            // A domain's features are settled when it is introduced, and here there is none before that.
            known(state, domid)?;
            return Err(ErrorName::Ebusy);
        }
        MessageType::GetQuota => get_quota(state, payload)?,
        MessageType::SetQuota => {
            set_quota(state, payload)?;
            OK.to_vec()
        }
        MessageType::Control => control(state, payload)?,
        _ => return Err(ErrorName::Enosys),
    };
    Ok(Outcome::Answer(answer))
}

fn known(state: &State, domid: u16) -> Result<u16, ErrorName> {
    if state.domains.contains(domid) { Ok(domid) } else { Err(ErrorName::Enoent) }
}

/// The one domain that is named, which is there and not dom0.
fn existing(state: &State, payload: &[u8]) -> Result<u16, ErrorName> {
    let domain = string(payload)?;
    match number(domain)? {
        0 => Err(ErrorName::Einval),
        domid => known(state, domid),
    }
}

/// A domain acts for another one from now on. To act for dom0 would be to be dom0.
fn set_target(state: &mut State, domid: u16, target: u16) -> Result<(), ErrorName> {
    let domain = state.domains.get_mut(domid).filter(|_| target != 0).ok_or(ErrorName::Einval)?;
    domain.target = Some(target);
    Ok(())
}

fn quota<'a>(quotas: &'a [Quota], name: &[u8]) -> Result<&'a Quota, ErrorName> {
    quotas.iter().find(|quota| quota.name.as_bytes() == name).ok_or(ErrorName::Einval)
}

/// A limit, 0 for none, of a domain or the one for new domains; or the names of all.
fn get_quota(state: &State, payload: &[u8]) -> Result<Vec<u8>, ErrorName> {
    if payload.len() <= 1 {
        let names: Vec<&str> = QUOTAS.iter().map(|quota| quota.name).collect();
        return Ok(format!("{}\0", names.join(" ")).into_bytes());
    }
    let (mut limits, name) = match strings(payload) {
        Ok([domain, name]) => (state.domains.limits(known(state, number(domain)?)?), name),
        Err(_) => (state.domains.limits, string(payload)?),
    };
    Ok(format!("{}\0", quota(&QUOTAS, name)?.get(&mut limits)).into_bytes())
}

fn set_quota(state: &mut State, payload: &[u8]) -> Result<(), ErrorName> {
    if let Ok([name, value]) = strings(payload) {
        quota(&QUOTAS, name)?.set(&mut state.domains.limits, number(value)?);
        return Ok(());
    }
    let [domain, name, value] = strings(payload)?;
    let domain = state.domains.get_mut(number(domain)?).ok_or(ErrorName::Enoent)?;
    quota(&QUOTAS, name)?.set(&mut domain.limits, number(value)?);
    Ok(())
}

/// CONTROL, as `xenstore-control` sends it: a command and its words.
fn control(state: &mut State, payload: &[u8]) -> Result<Vec<u8>, ErrorName> {
    let words: Vec<&[u8]> = payload.strip_suffix(b"\0").ok_or(ErrorName::Einval)?.split(|byte| *byte == 0).collect();
    match words[..] {
        [b"help"] => Ok(b"Commands: check, help, log, memreport, print, quota, quota-soft\0".to_vec()),
        [b"check"] => check(state),
        // What is logged is decided by whoever started us.
        [b"log", b"on" | b"off"] => Ok(OK.to_vec()),
        [b"print", text] => {
            tracing::info!(text = %String::from_utf8_lossy(&text[..text.len().min(256)]), "xenstore-control print");
            Ok(OK.to_vec())
        }
        [b"memreport"] => Ok(memory_report(state)),
        [b"quota"] => Ok(settings(state, &QUOTAS)),
        [b"quota-soft"] => Ok(settings(state, &SOFT_QUOTAS)),
        [b"quota", domain] => usage(state, number(domain)?),
        [command @ (b"quota" | b"quota-soft"), b"set", name, value] => {
            let quotas: &[Quota] = if command == b"quota" { &QUOTAS } else { &SOFT_QUOTAS };
            state.domains.set_limit(quota(quotas, name)?, number(value)?);
            Ok(OK.to_vec())
        }
        _ => Err(ErrorName::Einval),
    }
}

fn settings(state: &mut State, quotas: &[Quota]) -> Vec<u8> {
    let limits = &mut state.domains.limits;
    let lines = quotas.iter().map(|quota| format!("{:<17}: {:8} {}\n", quota.name, quota.get(limits), quota.about));
    format!("Quota settings:\n{}\0", lines.collect::<String>()).into_bytes()
}

fn usage(state: &State, domid: u16) -> Result<Vec<u8>, ErrorName> {
    let domain = state.domains.get(domid).ok_or(ErrorName::Enoent)?;
    let owned = state.tree.owned(domid);
    let watches: usize = domain.connections.iter().map(|client| state.watches.of(*client).0).sum();
    let text = format!(
        "Domain {domid}:\n{:<17}: {:8}\n{:<17}: {:8}\n{:<17}: {:8}\n{:<17}: {:8}\n\0",
        "nodes",
        owned.nodes,
        "watches",
        watches,
        "memory",
        owned.memory,
        "connections",
        domain.connections.len()
    );
    Ok(text.into_bytes())
}

fn memory_report(state: &State) -> Vec<u8> {
    let domains = std::iter::once(0).chain(state.domains.iter().map(|(domid, _)| domid));
    let lines = domains.take(64).map(|domid| {
        let owned = state.tree.owned(domid);
        format!("domain {domid}: {} nodes, {} bytes\n", owned.nodes, owned.memory)
    });
    format!("{} nodes\n{}\0", state.tree.nodes().count(), lines.collect::<String>()).into_bytes()
}

/// Every node hangs on its parent and is counted by name there once. Anything else is a fault of ours.
fn check(state: &State) -> Result<Vec<u8>, ErrorName> {
    let names: usize = state.tree.nodes().map(|(_, node)| node.children.iter().count()).sum();
    let lost = state.tree.nodes().find(|(path, _)| state.tree.get(parent(path)).is_none());
    if let Some((path, _)) = lost {
        tracing::error!(path, "a node without a parent");
        return Err(ErrorName::Eio);
    }
    if names + 1 != state.tree.nodes().count() {
        tracing::error!(names, nodes = state.tree.nodes().count(), "names and nodes differ");
        return Err(ErrorName::Eio);
    }
    Ok(OK.to_vec())
}

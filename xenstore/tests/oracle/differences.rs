//! What the two daemons do differently on purpose, one function for each row of docs/xenstore-differences.md that random
//! operations can meet. Nothing else is excused.

use std::collections::BTreeSet;

use xenstore::wire::{ErrorName, MessageType};

use super::link::Message;

/// True when answers to a request differ as they are meant to.
pub fn is_meant(kind: u32, payload: &[u8], real: &[Message], ours: &[Message]) -> bool {
    let ([real], [ours]) = (real, ours) else { return false };
    let known = MessageType::from_number(kind);
    is_newer_operation(known, real)
        || is_odd_number(known, payload, ours)
        || is_stale_errno(kind, payload, real, ours)
        || is_torn(kind, real, ours)
}

/// Features and quotas by message came with Xen 4.22.
fn is_newer_operation(kind: Option<MessageType>, real: &Message) -> bool {
    use MessageType::{GetFeature, GetQuota, SetFeature, SetQuota};
    matches!(kind, Some(GetFeature | SetFeature | GetQuota | SetQuota)) && real.error() == Some(ErrorName::Enosys)
}

/// The C daemon finds a number in every string; ours refuses what is none.
fn is_odd_number(kind: Option<MessageType>, payload: &[u8], ours: &Message) -> bool {
    use MessageType::{DirectoryPart, GetDomainPath, IsDomainIntroduced, Release, Resume, SetTarget};
    let numbers = match kind {
        Some(DirectoryPart) => payload.splitn(2, |byte| *byte == 0).nth(1),
        Some(GetDomainPath | IsDomainIntroduced | Resume | SetTarget | Release) => Some(payload),
        _ => None,
    };
    let is_number = |text: &[u8]| {
        let digits = text.iter().all(u8::is_ascii_digit);
        digits && std::str::from_utf8(text).is_ok_and(|text| text.parse::<u16>().is_ok())
    };
    let is_odd = |numbers: &[u8]| !numbers.split(|byte| *byte == 0).filter(|text| !text.is_empty()).all(is_number);
    let is_empty = |numbers: &[u8]| numbers.starts_with(b"\0");
    ours.error() == Some(ErrorName::Einval) && numbers.is_some_and(|numbers| is_odd(numbers) || is_empty(numbers))
}

/// The C daemon refuses these with the errno of whatever has failed last: what takes one string and gets something else,
/// and permissions of a special node.
pub fn answers_with_stale_errno(kind: u32, payload: &[u8]) -> bool {
    use MessageType::{Directory, GetPerms, Mkdir, Read, Rm, SetPerms};
    if kind == SetPerms as u32 {
        return payload.starts_with(b"@");
    }
    let is_one_string = payload.ends_with(b"\0") && payload.iter().filter(|byte| **byte == 0).count() == 1;
    [Read, Directory, GetPerms, Mkdir, Rm].iter().any(|one| *one as u32 == kind) && !is_one_string
}

fn is_stale_errno(kind: u32, payload: &[u8], real: &Message, ours: &Message) -> bool {
    answers_with_stale_errno(kind, payload) && real.error().is_some() && ours.error() == Some(ErrorName::Einval)
}

/// RM in a transaction that does not get at a child which it has seen the name of (the child has gone outside meanwhile,
/// or there are no more nodes to be had), or whose parent it has seen missing before it was made outside. The C daemon
/// takes the store for damaged then. Neither lets it commit.
pub fn is_torn(kind: u32, real: &Message, ours: &Message) -> bool {
    let agrees = match real.error() {
        Some(ErrorName::Eio) => ours.error().is_none() || ours.error() == Some(ErrorName::Enospc),
        Some(ErrorName::Einval) => ours.error().is_none(),
        _ => false,
    };
    kind == MessageType::Rm as u32 && agrees
}

/// What was granted to a domain that has gone is granted to nobody: the C daemon goes on showing it, ours forgets it.
/// True for permissions that are the same but for that.
pub fn is_without_the_dead(reborn: &BTreeSet<u16>, real: &Message, ours: &Message) -> bool {
    let entries = |message: &Message| -> Vec<String> {
        String::from_utf8_lossy(&message.payload).split_terminator('\0').map(str::to_owned).collect()
    };
    let (mut left, mut gone) = (entries(ours).into_iter().peekable(), Vec::new());
    for entry in entries(real) {
        if left.peek() == Some(&entry) {
            left.next();
        } else {
            gone.push(entry);
        }
    }
    let is_dead = |entry: &String| entry[1..].parse().is_ok_and(|domid| reborn.contains(&domid));
    let both = real.error().is_none() && ours.error().is_none();
    both && left.next().is_none() && !gone.is_empty() && gone.iter().all(is_dead)
}

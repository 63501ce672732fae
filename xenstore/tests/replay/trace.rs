//! A recording of a xenstored, as the lab's `dom0/recorder.c` writes it.

use std::fmt;

use xenstore::wire::MessageType::{self, *};

/// What happened at the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connection `connection` begins, dom0's or a domain's ring.
    Begin { connection: u32, ring: Option<u16> },
    /// It ends.
    End { connection: u32 },
    /// A request is here.
    Request { connection: u32, transaction: u32, message: Message },
    /// An answer or an event is out.
    Told { connection: u32, message: Message },
    /// Xen says that a domain has shut down or is gone; the rings of those that are gone end next.
    Changed,
}

/// A message without what only its two ends have to know.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: MessageType,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// True for an event, false for an answer.
    pub fn is_event(&self) -> bool {
        self.kind == WatchEvent
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} \"{}\"", self.kind, self.payload.escape_ascii())
    }
}

/// The steps, each with the number of its line.
///
/// # Errors
/// The first line that is none.
pub fn parse(text: &str) -> Result<Vec<(usize, Step)>, String> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.map(|(number, line)| Ok((number, step(line).ok_or(format!("line {number}: {line}"))?))).collect()
}

fn step(line: &str) -> Option<Step> {
    let mut words = line.splitn(3, ' ');
    let (what, connection, rest) = (words.next()?, words.next().unwrap_or_default(), words.next());
    if what == "!" {
        return line.len().eq(&1).then_some(Step::Changed);
    }
    let connection = connection.parse().ok()?;
    match (what, rest) {
        ("+", Some("socket")) => Some(Step::Begin { connection, ring: None }),
        ("+", Some(ring)) => Some(Step::Begin { connection, ring: Some(ring.strip_prefix("ring ")?.parse().ok()?) }),
        ("-", None) => Some(Step::End { connection }),
        (">", Some(rest)) => {
            let mut words = rest.splitn(3, ' ');
            let (name, transaction) = (words.next()?, words.next()?.parse().ok()?);
            Some(Step::Request { connection, transaction, message: message(name, words.next()?)? })
        }
        ("<", Some(rest)) => {
            let (name, payload) = rest.split_once(' ')?;
            Some(Step::Told { connection, message: message(name, payload)? })
        }
        _ => None,
    }
}

fn message(name: &str, payload: &str) -> Option<Message> {
    let kind = TYPES.iter().find(|(known, _)| *known == name)?.1;
    let (mut bytes, mut rest) = (Vec::new(), payload);
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let code = escape.strip_prefix('x').and_then(|escape| escape.get(..2))?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        rest = &escape[3..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(Message { kind, payload: bytes })
}

const TYPES: [(&str, MessageType); 26] = [
    ("CONTROL", Control),
    ("DIRECTORY", Directory),
    ("READ", Read),
    ("GET_PERMS", GetPerms),
    ("WATCH", Watch),
    ("UNWATCH", Unwatch),
    ("TRANSACTION_START", TransactionStart),
    ("TRANSACTION_END", TransactionEnd),
    ("INTRODUCE", Introduce),
    ("RELEASE", Release),
    ("GET_DOMAIN_PATH", GetDomainPath),
    ("WRITE", Write),
    ("MKDIR", Mkdir),
    ("RM", Rm),
    ("SET_PERMS", SetPerms),
    ("WATCH_EVENT", WatchEvent),
    ("ERROR", Error),
    ("IS_DOMAIN_INTRODUCED", IsDomainIntroduced),
    ("RESUME", Resume),
    ("SET_TARGET", SetTarget),
    ("RESET_WATCHES", ResetWatches),
    ("DIRECTORY_PART", DirectoryPart),
    ("GET_FEATURE", GetFeature),
    ("SET_FEATURE", SetFeature),
    ("GET_QUOTA", GetQuota),
    ("SET_QUOTA", SetQuota),
];

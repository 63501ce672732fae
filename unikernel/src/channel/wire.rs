//! What is said over a channel: pieces with a head of 12 bytes, and JSON in them.
//!
//! ```text
//! 0  u32  bytes that follow the head
//! 4  u32  number of the question; an answer has its question's
//! 8  u16  version
//! 10 u8   1: the last piece of a message
//! 11 u8   0
//! ```
//! A question is one piece; an answer is as many as it takes. Everything is little-endian.

use blkback::stats::Stats;
use serde::{Deserialize, Serialize};

use crate::source;

/// The version of all of this. A side that does not know the other's says so and does nothing else.
pub const VERSION: u16 = 1;
/// Bytes of a head.
pub const HEAD: usize = 12;
/// Most bytes of a question.
pub const MAX_ASK: usize = 2048;
/// Most bytes in one piece of an answer.
pub const MAX_PIECE: usize = 8192;
/// Most bytes of an answer.
pub const MAX_ANSWER: usize = 4 << 20;

/// The head of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes that follow.
    pub len: u32,
    /// The question's number.
    pub id: u32,
    /// [`VERSION`] of who wrote it.
    pub version: u16,
    /// Whether it is the last piece of its message.
    pub last: bool,
}

impl Head {
    /// As it stands in the ring.
    pub fn bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = self.last.into();
        bytes
    }

    /// From the ring.
    pub fn parse(bytes: [u8; HEAD]) -> Head {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Head { len: word(0), id: word(4), version: u16::from_le_bytes([bytes[8], bytes[9]]), last: bytes[10] == 1 }
    }
}

/// The whole message, piece by piece.
pub fn pieces(id: u32, body: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(body.len() + HEAD * (body.len() / MAX_PIECE + 1));
    let count = body.len().div_ceil(MAX_PIECE).max(1);
    for number in 0..count {
        let piece = &body[number * MAX_PIECE..body.len().min((number + 1) * MAX_PIECE)];
        let head = Head { len: piece.len() as u32, id, version: VERSION, last: number + 1 == count };
        all.extend_from_slice(&head.bytes());
        all.extend_from_slice(piece);
    }
    all
}

/// Where a channel is, as announced at `data/windsor/channel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Of the protocol.
    pub version: u16,
    /// The event channel, unbound, for dom0.
    pub port: u32,
    /// The pages, granted to dom0, in their order.
    pub refs: Vec<u32>,
}

/// What dom0 asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Lines of the log behind this number.
    Logs {
        /// The last line known; 0 for all that are kept.
        after: u64,
    },
    /// Numbers of every disk and card that is served.
    Top,
    /// All numbers, as Prometheus takes them.
    Metrics,
    /// Every volume.
    Volumes,
    /// Makes a volume.
    Create {
        /// Its name.
        name: String,
        /// In which source.
        source: Option<String>,
        /// Bytes.
        bytes: u64,
    },
    /// Gives a volume another size.
    Resize {
        /// Its name.
        name: String,
        /// Bytes.
        bytes: u64,
        /// It may become smaller.
        shrink: bool,
    },
    /// Removes a volume.
    Remove {
        /// Its name.
        name: String,
    },
    /// What has become of a change.
    Outcome {
        /// As in [`Answer::Working`].
        ticket: u64,
    },
}

impl Ask {
    /// Whether asking twice is the same as asking once.
    pub fn is_repeatable(&self) -> bool {
        !matches!(self, Ask::Create { .. } | Ask::Resize { .. } | Ask::Remove { .. })
    }

    /// The change that is asked for.
    pub fn change(self) -> Option<(String, source::Change)> {
        match self {
            Ask::Create { name, source, bytes } => Some((name, source::Change::Create { source, bytes })),
            Ask::Resize { name, bytes, shrink } => Some((name, source::Change::Resize { bytes, shrink })),
            Ask::Remove { name } => Some((name, source::Change::Remove)),
            _ => None,
        }
    }
}

/// What the VM answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Ask::Logs`].
    Logs {
        /// In the order of their numbers.
        lines: Vec<LogLine>,
        /// There are more.
        more: bool,
    },
    /// To [`Ask::Top`].
    Top {
        /// By guest and number.
        devices: Vec<TopDevice>,
        /// The same.
        #[serde(default)]
        cards: Vec<TopCard>,
    },
    /// To [`Ask::Metrics`].
    Metrics {
        /// Lines.
        text: String,
    },
    /// To [`Ask::Volumes`].
    Volumes {
        /// By name.
        volumes: Vec<VolumeLine>,
    },
    /// A change has begun.
    Working {
        /// To ask for its outcome with.
        ticket: u64,
    },
    /// A change is done.
    Done {
        /// The size that the volume has now; 0 for one that is gone.
        bytes: u64,
    },
    /// It was not done.
    Refused {
        /// The exit code of a command.
        code: i32,
        /// One line.
        why: String,
    },
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Grows by one with each line.
    pub number: u64,
    /// Milliseconds since 1970, by the VM's clock.
    pub time_ms: u64,
    /// As syslog counts: 3 error, 4 warning, 6 info, 7 debug.
    pub level: u8,
    /// Without a line's end.
    pub text: String,
}

/// A disk that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopDevice {
    /// The guest's domain.
    pub guest: u16,
    /// The device's number.
    pub devid: u32,
    /// Its volume.
    pub volume: String,
    /// As in `windsor status`.
    pub phase: String,
    /// Queues that count.
    pub queues: usize,
    /// Requests taken and not answered.
    pub in_flight: u64,
    /// Batches after which its ring had no free slot, since it was connected.
    pub ring_full: u64,
    /// Pages of the guest that are mapped.
    pub grants_mapped: u64,
    /// Since it was connected.
    pub stats: Stats,
    /// How many requests took how long: buckets of `grant::meter` that are not empty.
    pub latency: Vec<(u16, u64)>,
}

/// A card that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopCard {
    /// The guest's domain.
    pub guest: u16,
    /// The device's number.
    pub devid: u32,
    /// Its network.
    pub network: String,
    /// Since it was connected.
    pub stats: netback::stats::Stats,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLine {
    /// Its name.
    pub name: String,
    /// Bytes; 0 when it cannot be opened now.
    pub size: u64,
    /// `rw` or `ro`.
    pub mode: String,
    /// The source that it was found in; empty for one that the configuration names.
    pub source: String,
    /// Devices that have it open.
    #[serde(rename = "used-by")]
    pub used_by: Vec<String>,
    /// Why it cannot be used.
    pub error: String,
}

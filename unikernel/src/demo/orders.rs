//! What the demo tells its guest and what the guest answers: JSON, one line each, over the guest's stdin and stdout.

use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the guest is to do next. It ends after [`Order::Close`], or when there are no more orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Read the whole disk: a [`Answer::Chunk`] for each MiB of it, in order, then [`Answer::Digest`].
    Digest,
    /// Write a pattern to the whole disk, flush, read it back and check it: [`Answer::Progress`], then
    /// [`Answer::Checked`].
    Check,
    /// Read for some time: [`Answer::Measured`].
    Measure(Load),
    /// Send small packets there and back for some time, one after the other: [`Answer::Exchanged`].
    RoundTrips {
        /// For how long.
        seconds: u64,
    },
    /// Send large packets one way for some time: [`Answer::Exchanged`].
    Stream {
        /// For how long.
        seconds: u64,
    },
    /// Give the disk or the cards back: [`Answer::Closed`].
    Close,
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of each read.
    pub block: u32,
    /// Reads under way at any time.
    pub depth: usize,
    /// At random places, or one after the other.
    pub random: bool,
    /// For how long.
    pub seconds: u64,
}

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is a domain, and waits for its disk.
    Up {
        /// Its number.
        domid: u16,
    },
    /// It has its disk.
    Connected {
        /// In 512-byte units.
        sectors: u64,
    },
    /// Hashes of the 4 KiB blocks of the next MiB.
    Chunk {
        /// One for each block.
        blocks: Vec<u64>,
    },
    /// SHA-256 of the disk, in hexadecimal digits.
    Digest {
        /// The digits.
        sha256: String,
        /// How long reading took.
        seconds: f64,
    },
    /// So far.
    Progress {
        /// Bytes.
        done: u64,
    },
    /// Everything that was written has been read again.
    Checked {
        /// The first 4 KiB block that is not what was written.
        differs: Option<u64>,
        /// How long writing took, the flush included.
        write_seconds: f64,
        /// How long reading took.
        read_seconds: f64,
    },
    /// What a load came to.
    Measured(Measured),
    /// The guests with cards are domains, and wait for these.
    CardsUp {
        /// Their numbers.
        domids: [u16; 2],
    },
    /// They have them.
    CardsConnected,
    /// What an exchange of packets came to.
    Exchanged(Exchanged),
    /// The backend has let go of the disk, or of the cards.
    Closed {
        /// Pages that the backend still has mapped.
        mapped: usize,
    },
    /// It cannot go on; the last thing it says.
    Failed {
        /// Why.
        why: String,
    },
}

/// What a load came to, as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Reads that ended well.
    pub ios: u64,
    /// How long they took together.
    pub seconds: f64,
    /// Half of them took at most this long, in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 did.
    pub p99_ns: u64,
}

/// What an exchange of packets came to, as the guests see it. A packet that is lost ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchanged {
    /// Packets there; those that came back are not counted.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long they took together.
    pub seconds: f64,
    /// Half of them were back after this long, in nanoseconds; 0 where none comes back.
    pub p50_ns: u64,
    /// 99 of 100 were.
    pub p99_ns: u64,
    /// The first that did not arrive as it was sent.
    pub differs: Option<u64>,
}

/// Writes one line.
///
/// # Errors
/// When nobody reads.
pub fn say(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line; none at the end.
///
/// # Errors
/// When it is not what it should be.
pub fn hear<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    match from.read_line(&mut line)? {
        0 => Ok(None),
        _ => Ok(Some(serde_json::from_str(&line)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let load = Load { block: 4096, depth: 32, random: true, seconds: 5 };
        let orders = [Order::Digest, Order::Check, Order::Measure(load), Order::Stream { seconds: 2 }, Order::Close];
        let mut bytes = Vec::new();
        for order in &orders {
            say(&mut bytes, order).unwrap();
        }
        let mut from = bytes.as_slice();
        for order in orders {
            assert_eq!(hear(&mut from).unwrap(), Some(order));
        }
        assert_eq!(hear::<Order>(&mut from).unwrap(), None);
        assert!(hear::<Answer>(&mut "{}\n".as_bytes()).is_err());
    }
}

//! What a bench is asked for, in fio's words, and what a guest found: JSON lines between the bench and its guest.

use std::str::FromStr;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Which requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rw {
    /// Reads, one after the other.
    Read,
    /// Writes, one after the other.
    Write,
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Reads and writes at random places, half of each.
    RandRw,
}

impl Rw {
    /// fio's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Rw::Read => "read",
            Rw::Write => "write",
            Rw::RandRead => "randread",
            Rw::RandWrite => "randwrite",
            Rw::RandRw => "randrw",
        }
    }

    /// The places are drawn.
    pub fn is_random(self) -> bool {
        !matches!(self, Rw::Read | Rw::Write)
    }

    /// There are writes among them.
    pub fn writes(self) -> bool {
        !matches!(self, Rw::Read | Rw::RandRead)
    }
}

impl FromStr for Rw {
    type Err = String;

    fn from_str(text: &str) -> Result<Rw, String> {
        let all = [Rw::Read, Rw::Write, Rw::RandRead, Rw::RandWrite, Rw::RandRw];
        let found = all.into_iter().find(|rw| rw.name() == text);
        found.ok_or_else(|| "read, write, randread, randwrite or randrw".to_owned())
    }
}

/// A load on one disk; each of its queues gets the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Which requests.
    pub rw: Rw,
    /// Bytes of each.
    pub bs: u32,
    /// Requests under way at any time.
    pub iodepth: usize,
    /// All of them are published with one store of the index and waited for before the next ones are put.
    pub lock_step: bool,
    /// For how long.
    pub runtime_ms: u64,
    /// Requests of each queue at most.
    pub number_ios: Option<u64>,
    /// Bytes of the disk that are used, from its start.
    pub size: u64,
    /// What places and pages are drawn with.
    pub seed: u64,
}

/// What the guest is to do next; it ends after [`Order::Close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// A load: [`Answer::Ran`].
    Run(Job),
    /// Give the disk back: [`Answer::Closed`].
    Close,
}

/// What the guest says.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
        /// Its queues.
        queues: usize,
        /// Pages granted for data, of each queue.
        grants: usize,
    },
    /// What each queue came to.
    Ran {
        /// In their order.
        queues: Vec<Ran>,
    },
    /// The backend has let go.
    Closed {
        /// Pages that it still has mapped.
        mapped: usize,
    },
    /// It cannot go on; the last thing it says.
    Failed {
        /// Why.
        why: String,
    },
}

/// What one queue did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ran {
    /// Its reads.
    pub read: Side,
    /// Its writes.
    pub write: Side,
    /// From the first request to the last response.
    pub seconds: f64,
    /// Times it published requests.
    pub publishes: u64,
    /// Events that it sent.
    pub notifications_sent: u64,
    /// Events that it received.
    pub notifications_received: u64,
}

/// Reads or writes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Side {
    /// Those that ended.
    pub ios: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// How many took how many nanoseconds, rounded to three digits.
    pub latencies: Vec<(u64, u64)>,
}

impl Side {
    /// The latencies of several as one histogram.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn histogram<'a>(sides: impl Iterator<Item = &'a Side>) -> Result<Histogram<u64>, String> {
        let mut all = histogram()?;
        for (value, count) in sides.flat_map(|side| &side.latencies) {
            all.saturating_record_n(*value, *count);
        }
        Ok(all)
    }
}

/// Room for a minute in nanoseconds, with three digits.
///
/// # Errors
/// Never: the bounds are right.
pub fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|error| error.to_string())
}

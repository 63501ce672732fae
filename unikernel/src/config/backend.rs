//! `[backend]` of a configuration: how wide and how costly all disks of the VM may be, and which ways they go.

use std::ops::RangeInclusive;
use std::time::Duration;

use blkback::config::{Offer, Transient};
use blkback::limit::Need;
use grant::reactor::POLL;
use serde::Deserialize;

use super::{MAX_THREADS, Size, bytes};

/// `[backend]`: what every disk of the VM offers and how it is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Backend {
    /// Register memory with io_uring where the kernel lets us.
    pub fixed_buffers: bool,
    /// Largest ring, 2 to this power in pages: 0 to 4.
    pub max_ring_order: u8,
    /// Segments of an indirect request: 0 (none) or 11 to 256.
    pub max_indirect: u16,
    /// Queues of a disk: 1 to 16.
    pub queues: u16,
    /// Offer persistent grants.
    pub persistent: bool,
    /// Offer barriers.
    pub barrier: bool,
    /// How long InitWait is kept up for a toolstack to see, in milliseconds: 0 to 8000.
    pub initwait_dwell_ms: u64,
    /// Threads of a worker, 1 to 16; 0 means one per CPU, at most 4.
    pub threads: usize,
    /// How long a thread that has nothing to do looks for work before it sleeps, where that pays lately, in
    /// microseconds: 0 (never) to 1000.
    pub poll_us: u64,
    /// Where the data of a request goes.
    pub data_path: DataPath,
    /// How the pages of frontends without persistent grants are reached on the zero-copy path: `auto`, `copy`, `map`.
    pub transient: Transient,
    /// Memory that all guests' disks may need; half of the machine's if nothing is said.
    pub memory: Option<Bytes>,
    /// Memory that one guest's may need; all of it if nothing is said.
    pub guest_memory: Option<Bytes>,
    /// Pages of guests that may be mapped. Xen has 262,144 maptrack entries for a domain (1024 frames), and a PV domain
    /// needs two for each page.
    pub grants: u32,
    /// Pages of one guest that may be mapped; all of them if nothing is said.
    pub guest_grants: Option<u32>,
}

/// A number of bytes, such as "32MiB".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Size")]
pub struct Bytes(pub u64);

impl TryFrom<Size> for Bytes {
    type Error = &'static str;

    fn try_from(size: Size) -> Result<Bytes, &'static str> {
        bytes(&size).map(Bytes).ok_or("a size is a number of bytes, such as \"32MiB\" or 33554432")
    }
}

impl Default for Backend {
    fn default() -> Backend {
        let offer = Offer::default();
        Backend {
            fixed_buffers: true,
            max_ring_order: offer.max_ring_order,
            max_indirect: offer.max_indirect,
            queues: offer.queues,
            persistent: offer.persistent,
            barrier: true,
            initwait_dwell_ms: 500,
            threads: 0,
            poll_us: POLL.as_micros() as u64,
            data_path: DataPath::Auto,
            transient: Transient::Auto,
            memory: None,
            guest_memory: None,
            grants: 131_072,
            guest_grants: None,
        }
    }
}

impl Backend {
    /// What its disks publish.
    pub fn offer(&self) -> Offer {
        Offer {
            max_ring_order: self.max_ring_order,
            max_indirect: self.max_indirect,
            queues: self.queues,
            persistent: self.persistent,
        }
    }

    /// What the disks of all guests, and those of one, may need.
    pub fn budgets(&self) -> (Need, Need) {
        let memory = self.memory.map_or_else(|| machine_memory() / 2, |bytes| bytes.0);
        let grants = u64::from(self.grants);
        let guest = Need {
            memory: self.guest_memory.map_or(memory, |bytes| bytes.0),
            grants: self.guest_grants.map_or(grants, u64::from),
        };
        (Need { memory, grants }, guest)
    }

    /// How long InitWait is kept up.
    pub fn dwell(&self) -> Duration {
        Duration::from_millis(self.initwait_dwell_ms)
    }

    /// Threads of one worker.
    pub fn worker_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(4)),
            threads => threads,
        }
    }
}

/// Bytes of memory that this machine has.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    // As much as the smallest service VM has, where nobody says.
    kib.unwrap_or(64 << 10) << 10
}

/// Where the data of a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataPath {
    /// Zero copy where it is safe.
    Auto,
    /// Through registered memory of ours.
    Arena,
    /// Straight into the guest's pages; refused in a PV service VM.
    ZeroCopy,
}

/// What is wrong with it, as a sentence.
pub(super) fn check(backend: &Backend) -> Result<(), String> {
    let within = |key: &str, value: u64, allowed: RangeInclusive<u64>, text: &str| match allowed.contains(&value) {
        true => Ok(()),
        false => Err(format!("{key} = {value}: {text}")),
    };
    within("max-ring-order", backend.max_ring_order.into(), 0..=4, "0 to 4 (16 pages)")?;
    if backend.max_indirect != 0 {
        within("max-indirect", backend.max_indirect.into(), 11..=256, "0 (off) or 11 to 256 segments")?;
    }
    within("queues", backend.queues.into(), 1..=16, "1 to 16")?;
    within("initwait-dwell-ms", backend.initwait_dwell_ms, 0..=8000, "0 to 8000; a toolstack waits 10 s in all")?;
    within("poll-us", backend.poll_us, 0..=1000, "0 (never) to 1000 microseconds")?;
    within("threads", backend.threads as u64, 0..=MAX_THREADS as u64, "0 (one per CPU, at most 4) to 16")
}

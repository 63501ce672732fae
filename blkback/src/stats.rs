//! What a disk counts. The limits of what is counted: every number is per device, summed over its queues, since it was
//! connected.

use grant::meter::{Meter, percentile};
use serde::{Deserialize, Serialize};

/// Where each counter stands in a queue's block of the meter.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Counter {
    /// Reads answered.
    Reads,
    /// Writes answered.
    Writes,
    /// Flushes answered.
    Flushes,
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Requests answered with an error of the disk or of a grant.
    Errors,
    /// Requests that broke the protocol or asked for what was not offered.
    Rejected,
    /// Notifications the guest sent that arrived.
    NotifiedIn,
    /// Notifications sent to the guest.
    NotifiedOut,
    /// System calls of the queue's thread.
    SystemCalls,
    /// Bytes moved by memcpy between grants and the arena.
    BytesMemcpy,
    /// Bytes moved by grant copy.
    BytesGrantCopy,
    /// Pages moved, whole or in part, either way of copying.
    PagesCopied,
    /// Calls that mapped grants.
    MapCalls,
    /// Pages mapped by them.
    PagesMapped,
    /// Calls that unmapped.
    UnmapCalls,
    /// Calls of grant copy.
    CopyCalls,
    /// Batches taken from the ring.
    Batches,
    /// Times responses were published.
    Publishes,
    /// Times a request waited for memory, or for a request that runs alone.
    Stalls,
    /// Barriers answered.
    Barriers,
    /// Discards answered.
    Discards,
    /// Bytes discarded.
    DiscardBytes,
    /// Times a request was held instead of being answered with an error.
    Held,
    /// Flushes that failed: one is enough to distrust all later ones.
    FlushFailures,
    /// Requests taken and not answered, now.
    InFlight,
    /// Pages mapped, now.
    GrantsMapped,
    /// Batches after which the guest had no free slot in its ring.
    RingFull,
    /// Time from ring to response of all requests together, nanoseconds.
    Nanoseconds,
}

/// A device's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the counters' own documentation stands at Counter")]
pub struct Stats {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub errors: u64,
    pub rejected: u64,
    pub notified_in: u64,
    pub notified_out: u64,
    pub system_calls: u64,
    pub bytes_memcpy: u64,
    pub bytes_grant_copy: u64,
    pub pages_copied: u64,
    pub map_calls: u64,
    pub pages_mapped: u64,
    pub unmap_calls: u64,
    pub copy_calls: u64,
    pub batches: u64,
    pub publishes: u64,
    pub stalls: u64,
    pub barriers: u64,
    pub discards: u64,
    pub discard_bytes: u64,
    pub held: u64,
    pub flush_failures: u64,
    /// Half of all requests took at most this long from ring to response, nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 requests did.
    pub p99_ns: u64,
}

/// Reads a device's numbers.
pub fn snapshot(meter: &Meter) -> Stats {
    let sum = |counter: Counter| meter.sum(counter as usize);
    let histogram = meter.histogram();
    Stats {
        reads: sum(Counter::Reads),
        writes: sum(Counter::Writes),
        flushes: sum(Counter::Flushes),
        read_bytes: sum(Counter::ReadBytes),
        write_bytes: sum(Counter::WriteBytes),
        errors: sum(Counter::Errors),
        rejected: sum(Counter::Rejected),
        notified_in: sum(Counter::NotifiedIn),
        notified_out: sum(Counter::NotifiedOut),
        system_calls: sum(Counter::SystemCalls),
        bytes_memcpy: sum(Counter::BytesMemcpy),
        bytes_grant_copy: sum(Counter::BytesGrantCopy),
        pages_copied: sum(Counter::PagesCopied),
        map_calls: sum(Counter::MapCalls),
        pages_mapped: sum(Counter::PagesMapped),
        unmap_calls: sum(Counter::UnmapCalls),
        copy_calls: sum(Counter::CopyCalls),
        batches: sum(Counter::Batches),
        publishes: sum(Counter::Publishes),
        stalls: sum(Counter::Stalls),
        barriers: sum(Counter::Barriers),
        discards: sum(Counter::Discards),
        discard_bytes: sum(Counter::DiscardBytes),
        held: sum(Counter::Held),
        flush_failures: sum(Counter::FlushFailures),
        p50_ns: percentile(&histogram, 0.5),
        p99_ns: percentile(&histogram, 0.99),
    }
}

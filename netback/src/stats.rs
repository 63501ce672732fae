//! What a card counts. Every number is per card, summed over its queues, since it was connected. "Sent" and "received"
//! are the guest's words: what it sent came to us by its transmit ring.

use grant::meter::Meter;
use serde::{Deserialize, Serialize};

/// Where each counter stands in a queue's block of the meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Packets the guest sent that were taken, whatever became of them.
    SentPackets,
    /// Their bytes.
    SentBytes,
    /// Packets the guest was given.
    ReceivedPackets,
    /// Their bytes.
    ReceivedBytes,
    /// Packets answered with an error: malformed, or of pages that could not be copied.
    SentErrors,
    /// Packets the guest was to be given into pages that could not be copied to.
    ReceivedErrors,
    /// Packets of the guest's that its policy forbids.
    DroppedPolicy,
    /// Packets of the guest's for nobody.
    DroppedNobody,
    /// Packets for the guest that found no room: it posts no buffers and its backlog is full or too old.
    DroppedNoRoom,
    /// Packets for the guest that it cannot take in any form.
    DroppedUnfit,
    /// Packets for groups that the guest has not asked for.
    DroppedGroup,
    /// Packets for which the thread had no memory.
    DroppedMemory,
    /// Packets that waited in the guest's backlog.
    Queued,
    /// Packets whose checksum was worked out in software.
    Checksums,
    /// Packets that were cut into segments in software.
    Segmented,
    /// Notifications the guest sent that arrived.
    NotifiedIn,
    /// Notifications sent to the guest.
    NotifiedOut,
    /// System calls of the network's thread while this queue kept it busy, grant copies included.
    SystemCalls,
    /// Calls of grant copy for what this queue sent.
    CopyCalls,
    /// Segments they carried.
    SegmentsCopied,
    /// Batches taken from the transmit ring.
    Batches,
    /// Times the guest had used up its rate.
    Limited,
}

/// A card's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the counters' own documentation stands at Counter")]
pub struct Stats {
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_errors: u64,
    pub received_errors: u64,
    pub dropped_policy: u64,
    pub dropped_nobody: u64,
    pub dropped_no_room: u64,
    pub dropped_unfit: u64,
    pub dropped_group: u64,
    pub dropped_memory: u64,
    pub queued: u64,
    pub checksums: u64,
    pub segmented: u64,
    pub notified_in: u64,
    pub notified_out: u64,
    pub system_calls: u64,
    pub copy_calls: u64,
    pub segments_copied: u64,
    pub batches: u64,
    pub limited: u64,
}

impl Stats {
    /// Packets that came to nothing, for whatever reason.
    pub fn dropped(&self) -> u64 {
        let Stats {
            dropped_policy, dropped_nobody, dropped_no_room, dropped_unfit, dropped_group, dropped_memory, ..
        } = *self;
        let all = [dropped_policy, dropped_nobody, dropped_no_room, dropped_unfit, dropped_group, dropped_memory];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Reads a card's numbers.
pub fn snapshot(meter: &Meter) -> Stats {
    let sum = |counter: Counter| meter.sum(counter as usize);
    Stats {
        sent_packets: sum(Counter::SentPackets),
        sent_bytes: sum(Counter::SentBytes),
        received_packets: sum(Counter::ReceivedPackets),
        received_bytes: sum(Counter::ReceivedBytes),
        sent_errors: sum(Counter::SentErrors),
        received_errors: sum(Counter::ReceivedErrors),
        dropped_policy: sum(Counter::DroppedPolicy),
        dropped_nobody: sum(Counter::DroppedNobody),
        dropped_no_room: sum(Counter::DroppedNoRoom),
        dropped_unfit: sum(Counter::DroppedUnfit),
        dropped_group: sum(Counter::DroppedGroup),
        dropped_memory: sum(Counter::DroppedMemory),
        queued: sum(Counter::Queued),
        checksums: sum(Counter::Checksums),
        segmented: sum(Counter::Segmented),
        notified_in: sum(Counter::NotifiedIn),
        notified_out: sum(Counter::NotifiedOut),
        system_calls: sum(Counter::SystemCalls),
        copy_calls: sum(Counter::CopyCalls),
        segments_copied: sum(Counter::SegmentsCopied),
        batches: sum(Counter::Batches),
        limited: sum(Counter::Limited),
    }
}

//! What a disk offers, what its frontend chose, and the description a worker gets. The supervisor reads and checks
//! all of it once, before Connected; it is frozen from then on.

use serde::{Deserialize, Serialize};

use crate::proto::Abi;

/// Upper bounds a backend publishes before InitWait (block.md A3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// `max-ring-page-order`, 0..=4.
    pub max_ring_order: u8,
    /// `feature-max-indirect-segments`; 0 hides the key, else 11..=256.
    pub max_indirect: u16,
    /// `multi-queue-max-queues`, 1..=16.
    pub queues: u16,
    /// `feature-persistent`.
    pub persistent: bool,
}

/// The default widths: what Linux's own backend offers.
impl Default for Offer {
    fn default() -> Offer {
        Offer { max_ring_order: 4, max_indirect: 256, queues: 4, persistent: true }
    }
}

/// One queue's keys, as the frontend wrote them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueKeys {
    /// `ring-ref`, or `ring-ref0..N`: 1, 2, 4, 8 or 16 grant references.
    pub ring_refs: Vec<u32>,
    /// `event-channel`: the frontend's port.
    pub event_channel: u32,
}

/// Everything a frontend negotiated, checked; frozen at Connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// `protocol`.
    pub abi: Abi,
    /// `feature-persistent` of both sides.
    pub persistent: bool,
    /// Segments an indirect request may have: what we offered.
    pub max_indirect: u16,
    /// One entry per queue.
    pub queues: Vec<QueueKeys>,
}

/// What stands behind a disk. The descriptor travels beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskParams {
    /// Size in 512-byte sectors.
    pub sectors: u64,
    /// `physical-sector-size`, bytes.
    pub physical_sector_size: u32,
    /// The smallest piece that the medium takes, bytes: 512, or 4096 for 4Kn media that are served as 512e.
    pub logical_sector_size: u32,
    /// Refuses everything but reads.
    pub read_only: bool,
    /// The descriptor was opened with `O_DIRECT`.
    pub direct: bool,
    /// `feature-discard`: none when it is not offered.
    pub discard: Option<Discard>,
    /// `feature-barrier`: offered when the disk is writable.
    pub barrier: bool,
    /// What happens when the volume fails.
    pub on_error: OnError,
    /// A flush failed earlier: none succeeds until the disk is attached anew or an operator says so.
    pub flush_failed: bool,
    /// Which implementation of [`crate::disk::Disk`].
    pub kind: DiskKind,
    /// What `fault` does, if it is wrapped around.
    pub fault: Option<FaultParams>,
}

impl DiskParams {
    /// A writable raw volume of `sectors` 512-byte sectors and nothing special.
    pub fn plain(sectors: u64) -> DiskParams {
        DiskParams {
            sectors,
            physical_sector_size: 512,
            logical_sector_size: 512,
            read_only: false,
            direct: false,
            discard: None,
            barrier: false,
            on_error: OnError::Report,
            flush_failed: false,
            kind: DiskKind::Raw,
            fault: None,
        }
    }
}

/// What discards a disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// `discard-granularity`, bytes: what a discard gives back is whole pieces of this size.
    pub granularity: u32,
    /// `discard-alignment`, bytes: where the first piece begins.
    pub alignment: u32,
    /// `discard-secure`: old content can be made unrecoverable.
    pub secure: bool,
    /// The volume is a block device: `BLKDISCARD` instead of a hole in a file.
    pub device: bool,
}

/// What happens to a request that the volume fails (EIO, ENOSPC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest gets the error.
    #[default]
    Report,
    /// The guest waits: the request is tried again until it succeeds.
    Hold,
}

/// The implementations of [`crate::disk::Disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// A file or block device, byte for byte.
    Raw,
    /// Reads are zeros, writes vanish: what the ring itself costs.
    Null,
}

/// Deliberate faults, for tests and `windsor demo --fault`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FaultParams {
    /// Reads return this byte of the disk with its lowest bit flipped.
    pub flip: Option<u64>,
    /// Requests that touch this byte fail.
    pub fail: Option<u64>,
    /// Flushes fail.
    pub fail_flush: bool,
    /// Every request waits this long first, in milliseconds.
    pub delay_ms: u64,
    /// Each I/O is done in pieces of at most this many bytes (a multiple of 512).
    pub shorten: Option<u32>,
}

/// How the pages of a frontend without persistent grants are reached, where zero copy may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transient {
    /// Whatever costs less, as measured.
    #[default]
    Auto,
    /// Grant copy, many requests in a call.
    Copy,
    /// Each request's pages are mapped while it lasts.
    Map,
}

/// One disk for one guest, as the supervisor hands it to a worker.
///
/// Descriptors that travel with it, in this order: the volume (absent for `null`), then per queue its journal and
/// its grant descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The frontend's domain.
    pub guest: u16,
    /// Device number (the directory's name).
    pub devid: u32,
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// The disk.
    pub disk: DiskParams,
    /// Most persistent grants kept mapped per queue.
    pub max_persistent: u32,
    /// Register memory with io_uring where the kernel lets us.
    pub fixed_buffers: bool,
    /// For a frontend that is not persistent.
    pub transient: Transient,
    /// Zero copy may be used: never in a PV service VM (DESIGN, "Zero copy is for PVH").
    pub zero_copy: bool,
}

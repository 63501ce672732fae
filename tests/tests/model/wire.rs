//! The bytes of requests and responses, by the offsets of Xen's `io/blkif.h` as a C compiler lays them out for 64-bit
//! and for 32-bit x86 guests. Nothing here comes from the backend but the names of the two layouts.

use blkback::proto::Abi;

pub const READ: u8 = 0;
pub const WRITE: u8 = 1;
pub const BARRIER: u8 = 2;
pub const FLUSH: u8 = 3;
pub const DISCARD: u8 = 5;
pub const INDIRECT: u8 = 6;

pub const OKAY: i16 = 0;
pub const ERROR: i16 = -1;
pub const UNSUPPORTED: i16 = -2;

/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const DIRECT: usize = 11;
/// Bytes of `struct blkif_request_segment`.
pub const SEGMENT: usize = 8;

/// `struct blkif_request_segment`, with whatever in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub gref: u32,
    pub first: u8,
    pub last: u8,
}

impl Segment {
    pub fn bytes(self) -> [u8; SEGMENT] {
        let gref = self.gref.to_le_bytes();
        [gref[0], gref[1], gref[2], gref[3], self.first, self.last, 0, 0]
    }

    pub fn of(bytes: &[u8]) -> Segment {
        let gref = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        Segment { gref, first: bytes[4], last: bytes[5] }
    }
}

/// Where things stand in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// `sizeof(struct blkif_request)`.
    pub slot: usize,
    pub id: usize,
    pub sector: usize,
    /// `seg` of a read or write, `nr_sectors` of a discard.
    pub rest: usize,
    pub indirect_grefs: usize,
    /// `sizeof(struct blkif_response)`.
    pub response: usize,
}

pub fn offsets(abi: Abi) -> Offsets {
    match abi {
        Abi::X86_64 => Offsets { slot: 112, id: 8, sector: 16, rest: 24, indirect_grefs: 28, response: 16 },
        Abi::X86_32 => Offsets { slot: 108, id: 4, sector: 12, rest: 20, indirect_grefs: 24, response: 12 },
    }
}

fn slot(abi: Abi, operation: u8, second: u8, id: u64, sector: u64) -> Vec<u8> {
    let offsets = offsets(abi);
    // What a field does not cover is what somebody left there.
    let mut bytes = vec![0xA5; offsets.slot];
    (bytes[0], bytes[1]) = (operation, second);
    bytes[offsets.id..offsets.id + 8].copy_from_slice(&id.to_le_bytes());
    bytes[offsets.sector..offsets.sector + 8].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A request with its segments in the slot; `count` says how many there are, true or not.
pub fn direct(abi: Abi, operation: u8, count: u8, id: u64, sector: u64, segments: &[Segment]) -> Vec<u8> {
    let mut bytes = slot(abi, operation, count, id, sector);
    for (at, segment) in segments.iter().take(DIRECT).enumerate() {
        let start = offsets(abi).rest + at * SEGMENT;
        bytes[start..start + SEGMENT].copy_from_slice(&segment.bytes());
    }
    bytes
}

/// A request whose segments stand on pages of their own.
pub fn indirect(abi: Abi, operation: u8, count: u16, id: u64, sector: u64, lists: &[u32]) -> Vec<u8> {
    let mut bytes = slot(abi, INDIRECT, operation, id, sector);
    bytes[2..4].copy_from_slice(&count.to_le_bytes());
    for (at, gref) in lists.iter().enumerate() {
        let start = offsets(abi).indirect_grefs + at * 4;
        bytes[start..start + 4].copy_from_slice(&gref.to_le_bytes());
    }
    bytes
}

pub fn discard(abi: Abi, flag: u8, id: u64, sector: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = slot(abi, DISCARD, flag, id, sector);
    let start = offsets(abi).rest;
    bytes[start..start + 8].copy_from_slice(&sectors.to_le_bytes());
    bytes
}

/// Segments as they stand on a page of an indirect request.
pub fn list(segments: &[Segment]) -> Vec<u8> {
    segments.iter().flat_map(|segment| segment.bytes()).collect()
}

/// `struct blkif_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    pub id: u64,
    pub operation: u8,
    pub status: i16,
    /// The bytes that are no field.
    pub padding: u64,
}

pub fn response(abi: Abi, bytes: &[u8]) -> Response {
    let mut padding = [0; 8];
    padding[0] = bytes[9];
    padding[1..1 + offsets(abi).response - 12].copy_from_slice(&bytes[12..offsets(abi).response]);
    Response {
        id: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        operation: bytes[8],
        status: i16::from_le_bytes([bytes[10], bytes[11]]),
        padding: u64::from_le_bytes(padding),
    }
}

//! What Xen's `io/blkif.h` says of a slot: may it be executed, and what would that touch? Written from the header's text,
//! not from the backend's parser, so that the two can be held against each other.

use blkback::proto::Abi;

use super::wire::{
    BARRIER, DIRECT, DISCARD, ERROR, FLUSH, INDIRECT, READ, SEGMENT, Segment, UNSUPPORTED, WRITE, offsets,
};

/// What the disk offered its frontend.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    pub abi: Abi,
    /// `sectors`.
    pub sectors: u64,
    /// `feature-max-indirect-segments`, 0 when there is no such key.
    pub max_indirect: u16,
    /// `mode` is `r`.
    pub read_only: bool,
    /// `feature-barrier`.
    pub barrier: bool,
    /// `discard-granularity` in sectors, none without `feature-discard`; `discard-alignment` is 0.
    pub discard: Option<u64>,
}

/// What a good request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// READ, WRITE, BARRIER, FLUSH or DISCARD: of an indirect request the inner one.
    pub operation: u8,
    /// First sector on the disk.
    pub sector: u64,
    /// Sectors on the disk.
    pub sectors: u64,
    /// Where the data is, in order.
    pub segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Execute(Work),
    /// To be answered with this status.
    Refuse(i16),
}

/// A slot, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub id: u64,
    /// What the response must name.
    pub operation: u8,
    pub verdict: Verdict,
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Judges a slot; `page` reads a page of segments, if that reference is good for reading.
pub fn judge(offered: &Offered, slot: &[u8], page: impl Fn(u32) -> Option<Vec<u8>>) -> Judged {
    let offsets = offsets(offered.abi);
    let id = word64(slot, offsets.id);
    let answer = |operation, verdict| Judged { id, operation, verdict };
    let sector = word64(slot, offsets.sector);
    let operation = slot[0];
    match operation {
        READ => {}
        // A read-only disk takes nothing that changes it; flushes are not offered on one.
        WRITE | BARRIER | DISCARD if offered.read_only => return answer(operation, Verdict::Refuse(ERROR)),
        WRITE => {}
        BARRIER if offered.barrier => {}
        FLUSH if !offered.read_only => {}
        DISCARD => {
            let sectors = word64(slot, offsets.rest);
            return answer(operation, discard(offered, sector, sectors));
        }
        INDIRECT => {
            let inner = if offered.max_indirect > 0 { slot[1] } else { operation };
            return answer(inner, indirect(offered, slot, sector, page));
        }
        _ => return answer(operation, Verdict::Refuse(UNSUPPORTED)),
    }
    let count = usize::from(slot[1]);
    if count > DIRECT || (count == 0 && matches!(operation, READ | WRITE)) {
        return answer(operation, Verdict::Refuse(ERROR));
    }
    answer(operation, data(offered, operation, sector, &slot[offsets.rest..], count))
}

fn discard(offered: &Offered, sector: u64, sectors: u64) -> Verdict {
    let Some(granularity) = offered.discard else { return Verdict::Refuse(UNSUPPORTED) };
    let end = u128::from(sector) + u128::from(sectors);
    if !sector.is_multiple_of(granularity) || end > u128::from(offered.sectors) {
        return Verdict::Refuse(ERROR);
    }
    Verdict::Execute(Work { operation: DISCARD, sector, sectors, segments: Vec::new() })
}

fn indirect(offered: &Offered, slot: &[u8], sector: u64, page: impl Fn(u32) -> Option<Vec<u8>>) -> Verdict {
    if offered.max_indirect == 0 {
        return Verdict::Refuse(UNSUPPORTED);
    }
    let (inner, count) = (slot[1], u16::from_le_bytes([slot[2], slot[3]]));
    let writes = inner == WRITE;
    if !(writes || inner == READ) || (writes && offered.read_only) || count == 0 || count > offered.max_indirect {
        return Verdict::Refuse(ERROR);
    }
    let per_page = 4096 / SEGMENT;
    let mut segments = Vec::new();
    for at in 0..usize::from(count).div_ceil(per_page) {
        let start = offsets(offered.abi).indirect_grefs + at * 4;
        let gref = u32::from_le_bytes(slot[start..start + 4].try_into().unwrap());
        let Some(bytes) = page(gref) else { return Verdict::Refuse(ERROR) };
        segments.extend_from_slice(&bytes);
    }
    data(offered, inner, sector, &segments, usize::from(count))
}

fn data(offered: &Offered, operation: u8, sector: u64, bytes: &[u8], count: usize) -> Verdict {
    let segments: Vec<Segment> = bytes.chunks_exact(SEGMENT).take(count).map(Segment::of).collect();
    assert_eq!(segments.len(), count);
    if !segments.iter().all(|segment| segment.first <= segment.last && segment.last <= 7) {
        return Verdict::Refuse(ERROR);
    }
    let sectors: u64 = segments.iter().map(|segment| u64::from(segment.last - segment.first) + 1).sum();
    // An empty flush or barrier has no place on the disk.
    if count > 0 && u128::from(sector) + u128::from(sectors) > u128::from(offered.sectors) {
        return Verdict::Refuse(ERROR);
    }
    Verdict::Execute(Work { operation, sector: if count > 0 { sector } else { 0 }, sectors, segments })
}

//! From the bytes of a ring slot to a request that cannot be wrong.
//!
//! Parsing works on the private copy and returns typed values: a [`SectorSpan`] exists only with
//! `first <= last <= 7` (XSA-513), counts fit their type, the range fits the disk. Nothing downstream looks at the
//! copy again.

use grant::GrantRef;
use zerocopy::{FromBytes, FromZeros};

use crate::config::Discard;
use crate::proto::{
    Abi, BLKIF_DISCARD_SECURE, BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT, BLKIF_OP_READ,
    BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BlkifRequest32, BlkifRequest64,
    BlkifRequestDiscard32, BlkifRequestDiscard64, BlkifRequestIndirect32, BlkifRequestIndirect64, BlkifRequestSegment,
    MAX_INDIRECT_PAGES, MAX_SEGMENTS, SECTOR_SIZE, SECTORS_PER_PAGE, SEGMENTS_PER_PAGE,
};

/// Sectors `first..=last` of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
pub struct SectorSpan {
    first: u8,
    /// Sectors after the first.
    more: u8,
}

impl SectorSpan {
    /// `None` unless `first <= last <= 7`.
    #[inline]
    pub fn new(first: u8, last: u8) -> Option<SectorSpan> {
        let more = last.checked_sub(first)?;
        (last < SECTORS_PER_PAGE).then_some(SectorSpan { first, more })
    }

    /// Byte offset in the page.
    #[inline]
    pub fn offset(self) -> u32 {
        u32::from(self.first) * SECTOR_SIZE as u32
    }

    /// Bytes, 512..=4096.
    #[inline]
    pub fn len(self) -> u32 {
        (u32::from(self.more) + 1) * SECTOR_SIZE as u32
    }

    /// Never: there is at least one sector in a span.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// Part of a page the guest granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
pub struct Segment {
    /// The page.
    pub gref: GrantRef,
    /// The part.
    pub span: SectorSpan,
}

impl Segment {
    /// What tables are filled with.
    pub const NONE: Segment = Segment { gref: GrantRef(0), span: SectorSpan { first: 0, more: 0 } };

    /// `None` when the sectors are impossible.
    #[inline]
    pub fn parse(wire: &BlkifRequestSegment) -> Option<Segment> {
        SectorSpan::new(wire.first_sect, wire.last_sect).map(|span| Segment { gref: GrantRef(wire.gref), span })
    }

    /// The same from a word: reference, first and last sector, padding.
    #[inline(always)]
    pub fn from_word(wire: u64) -> Option<Segment> {
        let span = SectorSpan::new((wire >> 32) as u8, (wire >> 40) as u8)?;
        Some(Segment { gref: GrantRef(wire as u32), span })
    }
}

/// What the guest wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `BLKIF_OP_READ`.
    Read,
    /// `BLKIF_OP_WRITE`.
    Write,
    /// `BLKIF_OP_FLUSH_DISKCACHE`; with data it flushes, then writes.
    Flush,
    /// `BLKIF_OP_WRITE_BARRIER`: everything before it ends first and is flushed, then it writes, then it flushes;
    /// nothing after it begins earlier.
    Barrier,
    /// `BLKIF_OP_DISCARD`.
    Discard {
        /// 512-byte sectors.
        sectors: u64,
        /// Nothing may bring the old content back.
        secure: bool,
    },
}

impl Operation {
    /// Its success says that something is durable.
    pub fn flushes(self) -> bool {
        matches!(self, Operation::Flush | Operation::Barrier)
    }
}

/// Where the segments stand.
#[derive(Clone, Copy, Debug)]
pub enum Segments {
    /// In the request.
    Direct([Segment; MAX_SEGMENTS], u8),
    /// On pages of their own: how many, and the pages.
    Indirect(u16, [GrantRef; MAX_INDIRECT_PAGES]),
}

/// A request, checked as far as the slot alone allows.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Echoed in the response.
    pub id: u64,
    /// The operation a response names: for an indirect request the inner one.
    pub response_op: u8,
    /// What to do.
    pub operation: Operation,
    /// First 512-byte sector on the disk.
    pub sector: u64,
    /// Where the data is.
    pub segments: Segments,
}

/// Why a request is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Echoed in the response.
    pub id: u64,
    /// The operation a response names.
    pub response_op: u8,
    /// `BLKIF_RSP_ERROR` or `BLKIF_RSP_EOPNOTSUPP`.
    pub status: i16,
    /// For the log.
    pub reason: &'static str,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The guest's layout.
    pub abi: Abi,
    /// Most segments of an indirect request; 0 when none were offered.
    pub max_indirect: u16,
    /// Everything but reads is refused.
    pub read_only: bool,
    /// Flush is offered.
    pub flush: bool,
    /// Barriers are offered.
    pub barrier: bool,
    /// Discards are offered, and of what kind.
    pub discard: Option<Discard>,
}

/// The common fields of both layouts.
struct Slot {
    operation: u8,
    nr_segments: u8,
    id: u64,
    sector: u64,
    seg: [BlkifRequestSegment; MAX_SEGMENTS],
}

fn wide(halves: [u32; 2]) -> u64 {
    u64::from(halves[0]) | u64::from(halves[1]) << 32
}

fn slot(bytes: &[u8], abi: Abi) -> Option<Slot> {
    Some(match abi {
        Abi::X86_64 => {
            let r = BlkifRequest64::read_from_prefix(bytes).ok()?.0;
            Slot { operation: r.operation, nr_segments: r.nr_segments, id: r.id, sector: r.sector_number, seg: r.seg }
        }
        Abi::X86_32 => {
            let r = BlkifRequest32::read_from_prefix(bytes).ok()?.0;
            Slot {
                operation: r.operation,
                nr_segments: r.nr_segments,
                id: wide(r.id),
                sector: wide(r.sector_number),
                seg: r.seg,
            }
        }
    })
}

/// A read or write with nothing wrong in its slot, whose segments stand in the slot: what nearly all requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// As in [`Request`].
    pub id: u64,
    /// Read or write.
    pub operation: Operation,
    /// As in [`Request`].
    pub response_op: u8,
    /// As in [`Request`].
    pub sector: u64,
    /// Segments in the slot, 1..=11, not looked at yet.
    pub count: u8,
}

impl Plain {
    /// The word of the slot that is the first sector.
    pub const SECTOR_AT: usize = 2;
    /// Words of the slot before the first segment, each of which is one word.
    pub const SEGMENTS_AT: usize = 3;

    /// What a response needs of the private copy of such a request: operation and id.
    #[inline(always)]
    pub fn head(word: impl Fn(usize) -> u64) -> (u8, u64) {
        (word(0) as u8, word(1))
    }

    /// What a 64-bit guest wants done whose slot begins with word `head`, if that is a plain request of one segment.
    #[inline(always)]
    pub fn of_one(head: u64, limits: &Limits) -> Option<Operation> {
        const READ: u16 = BLKIF_OP_READ as u16 | 1 << 8;
        const WRITE: u16 = BLKIF_OP_WRITE as u16 | 1 << 8;
        match head as u16 {
            READ => Some(Operation::Read),
            WRITE if !limits.read_only => Some(Operation::Write),
            _ => None,
        }
    }

    /// Takes the private copy of a 64-bit guest's slot apart, of which `word` gives word n, without its segments. `None`
    /// for whatever is not that plain: [`Request::parse`] knows what it is, or what is wrong with it.
    #[inline(always)]
    pub fn parse(word: impl Fn(usize) -> u64, limits: &Limits) -> Option<Plain> {
        let head = word(0);
        let (response_op, count) = (head as u8, (head >> 8) as u8);
        let operation = match response_op {
            BLKIF_OP_READ => Operation::Read,
            BLKIF_OP_WRITE if !limits.read_only => Operation::Write,
            _ => return None,
        };
        if limits.abi != Abi::X86_64 || count == 0 || usize::from(count) > MAX_SEGMENTS {
            return None;
        }
        Some(Plain { id: word(1), operation, response_op, sector: word(Plain::SECTOR_AT), count })
    }
}

impl Request {
    /// Parses the private copy of a ring slot (at least [`Abi::slot_size`] bytes).
    ///
    /// # Errors
    /// With the response to give.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Request, Rejected> {
        let unsupported = |id, response_op, reason| Rejected { id, response_op, status: BLKIF_RSP_EOPNOTSUPP, reason };
        let Some(slot) = slot(bytes, limits.abi) else {
            return Err(unsupported(0, 0, "short slot"));
        };
        let error = |reason| Rejected { id: slot.id, response_op: slot.operation, status: BLKIF_RSP_ERROR, reason };
        let operation = match slot.operation {
            BLKIF_OP_READ => Operation::Read,
            BLKIF_OP_INDIRECT => return Request::parse_indirect(bytes, limits),
            BLKIF_OP_WRITE | BLKIF_OP_WRITE_BARRIER if limits.read_only => return Err(error("the disk is read-only")),
            BLKIF_OP_DISCARD => return Request::parse_discard(bytes, limits),
            BLKIF_OP_WRITE => Operation::Write,
            BLKIF_OP_WRITE_BARRIER if limits.barrier => Operation::Barrier,
            BLKIF_OP_FLUSH_DISKCACHE if limits.flush => Operation::Flush,
            BLKIF_OP_FLUSH_DISKCACHE => return Err(unsupported(slot.id, slot.operation, "flush was not offered")),
            BLKIF_OP_WRITE_BARRIER => return Err(unsupported(slot.id, slot.operation, "barrier was not offered")),
            _ => return Err(unsupported(slot.id, slot.operation, "unknown operation")),
        };
        let count = usize::from(slot.nr_segments);
        let Some(wire) = slot.seg.get(..count) else {
            return Err(error("more than 11 segments"));
        };
        if count == 0 && !operation.flushes() {
            return Err(error("no segments"));
        }
        let mut segments = [Segment::NONE; MAX_SEGMENTS];
        for (to, from) in segments.iter_mut().zip(wire) {
            *to = Segment::parse(from).ok_or_else(|| error("impossible sectors in a segment"))?;
        }
        let segments = Segments::Direct(segments, slot.nr_segments);
        Ok(Request { id: slot.id, response_op: slot.operation, operation, sector: slot.sector, segments })
    }

    fn parse_discard(bytes: &[u8], limits: &Limits) -> Result<Request, Rejected> {
        let fields = match limits.abi {
            Abi::X86_64 => BlkifRequestDiscard64::read_from_prefix(bytes)
                .ok()
                .map(|(r, _)| (r.flag, r.id, r.sector_number, r.nr_sectors)),
            Abi::X86_32 => BlkifRequestDiscard32::read_from_prefix(bytes)
                .ok()
                .map(|(r, _)| (r.flag, wide(r.id), wide(r.sector_number), wide(r.nr_sectors))),
        };
        let (flag, id, sector, sectors) = fields.unwrap_or_default();
        let refuse = |status, reason| Rejected { id, response_op: BLKIF_OP_DISCARD, status, reason };
        if limits.read_only {
            return Err(refuse(BLKIF_RSP_ERROR, "the disk is read-only"));
        }
        let Some(discard) = limits.discard else {
            return Err(refuse(BLKIF_RSP_EOPNOTSUPP, "discard was not offered"));
        };
        // Where secure discards were not offered the flag says nothing (blkif.h).
        let secure = discard.secure && flag & BLKIF_DISCARD_SECURE != 0;
        let granularity = u64::from(discard.granularity).max(SECTOR_SIZE);
        let misplaced = sector
            .checked_mul(SECTOR_SIZE)
            .is_none_or(|at| at % granularity != u64::from(discard.alignment) % granularity);
        if misplaced {
            return Err(refuse(BLKIF_RSP_ERROR, "the discard is not aligned"));
        }
        let operation = Operation::Discard { sectors, secure };
        let segments = Segments::Direct([Segment::NONE; MAX_SEGMENTS], 0);
        Ok(Request { id, response_op: BLKIF_OP_DISCARD, operation, sector, segments })
    }

    fn parse_indirect(bytes: &[u8], limits: &Limits) -> Result<Request, Rejected> {
        let fields = match limits.abi {
            Abi::X86_64 => BlkifRequestIndirect64::read_from_prefix(bytes)
                .ok()
                .map(|(r, _)| (r.indirect_op, r.nr_segments, r.id, r.sector_number, r.indirect_grefs)),
            Abi::X86_32 => BlkifRequestIndirect32::read_from_prefix(bytes)
                .ok()
                .map(|(r, _)| (r.indirect_op, r.nr_segments, wide(r.id), wide(r.sector_number), r.indirect_grefs)),
        };
        let (indirect_op, count, id, sector, grefs) = fields.unwrap_or_default();
        let refuse = |status, reason| Rejected { id, response_op: indirect_op, status, reason };
        if limits.max_indirect == 0 {
            return Err(Rejected {
                response_op: BLKIF_OP_INDIRECT,
                ..refuse(BLKIF_RSP_EOPNOTSUPP, "indirect was not offered")
            });
        }
        let operation = match indirect_op {
            BLKIF_OP_READ => Operation::Read,
            BLKIF_OP_WRITE => Operation::Write,
            _ => return Err(refuse(BLKIF_RSP_ERROR, "indirect operation is neither read nor write")),
        };
        if count == 0 || count > limits.max_indirect {
            return Err(refuse(BLKIF_RSP_ERROR, "number of indirect segments out of range"));
        }
        if limits.read_only && operation != Operation::Read {
            return Err(refuse(BLKIF_RSP_ERROR, "the disk is read-only"));
        }
        let segments = Segments::Indirect(count, grefs.map(GrantRef));
        Ok(Request { id, response_op: indirect_op, operation, sector, segments })
    }

    /// Segments, wherever they stand.
    pub fn count(&self) -> usize {
        match self.segments {
            Segments::Direct(_, count) => usize::from(count),
            Segments::Indirect(count, _) => usize::from(count),
        }
    }

    /// Pages the segments of an indirect request stand on.
    pub fn indirect_pages(&self) -> &[GrantRef] {
        match &self.segments {
            Segments::Direct(..) => &[],
            Segments::Indirect(count, grefs) => &grefs[..usize::from(*count).div_ceil(SEGMENTS_PER_PAGE)],
        }
    }
}

/// Bytes of these segments.
#[inline]
pub fn data_len(segments: &[Segment]) -> u32 {
    segments.iter().map(|segment| segment.span.len()).sum()
}

/// The byte range on the disk of a request with so many bytes of data; `None` when it does not fit a disk of `sectors`.
/// Without data there is no range, and Linux writes -1 into the sector of an empty flush.
#[inline]
pub fn byte_range(sector: u64, len: u32, sectors: u64) -> Option<(u64, u32)> {
    if len == 0 {
        return Some((0, 0));
    }
    let last = sectors.checked_sub(u64::from(len) / SECTOR_SIZE)?;
    if sector > last {
        return None;
    }
    Some((sector.checked_mul(SECTOR_SIZE)?, len))
}

/// The byte range on the disk of a discard; `None` when it does not fit a disk of `sectors`.
pub fn discard_range(sector: u64, count: u64, sectors: u64) -> Option<(u64, u64)> {
    let end = sector.checked_add(count)?;
    if end > sectors {
        return None;
    }
    Some((sector.checked_mul(SECTOR_SIZE)?, count.checked_mul(SECTOR_SIZE)?))
}

#[cfg(test)]
mod tests;

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
    last: u8,
}

impl SectorSpan {
    /// `None` unless `first <= last <= 7`.
    #[inline]
    pub fn new(first: u8, last: u8) -> Option<SectorSpan> {
        (first <= last && last < SECTORS_PER_PAGE).then_some(SectorSpan { first, last })
    }

    /// Byte offset in the page.
    #[inline]
    pub fn offset(self) -> u32 {
        u32::from(self.first) * SECTOR_SIZE as u32
    }

    /// Bytes, 512..=4096.
    #[inline]
    pub fn len(self) -> u32 {
        (u32::from(self.last - self.first) + 1) * SECTOR_SIZE as u32
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
    pub const NONE: Segment = Segment { gref: GrantRef(0), span: SectorSpan { first: 0, last: 0 } };

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
    /// Words of the slot before the first segment, each of which is one word.
    pub const SEGMENTS_AT: usize = 3;

    /// What a response needs of the private copy of such a request: operation and id.
    #[inline(always)]
    pub fn head(word: impl Fn(usize) -> u64) -> (u8, u64) {
        (word(0) as u8, word(1))
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
        Some(Plain { id: word(1), operation, response_op, sector: word(2), count })
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
    let end = sector.checked_add(u64::from(len) / SECTOR_SIZE)?;
    if end > sectors {
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
mod tests {
    use super::*;
    use grant::ring::WIDE_WORDS;
    use zerocopy::IntoBytes;

    const LIMITS: Limits =
        Limits { abi: Abi::X86_64, max_indirect: 256, read_only: false, flush: true, barrier: false, discard: None };

    fn rw(operation: u8, nr_segments: u8, first: u8, last: u8) -> BlkifRequest64 {
        let seg = [BlkifRequestSegment { gref: 8, first_sect: first, last_sect: last, pad: 0xFFFF }; MAX_SEGMENTS];
        BlkifRequest64 { operation, nr_segments, id: 77, sector_number: 5, seg, ..Default::default() }
    }

    #[test]
    fn of_all_sector_pairs_only_the_36_valid_ones_pass() {
        let mut accepted = 0;
        for first in 0..=255 {
            for last in 0..=255 {
                let parsed = Request::parse(rw(BLKIF_OP_READ, 11, first, last).as_bytes(), &LIMITS);
                assert_eq!(parsed.is_ok(), first <= last && last <= 7, "{first} {last}");
                accepted += usize::from(parsed.is_ok());
            }
        }
        assert_eq!(accepted, 36);
    }

    /// The short way takes what the long way takes, and finds the same in it; whatever else it leaves to that.
    #[test]
    fn the_short_way_agrees_with_the_long_one() {
        let mut plain = 0;
        for read_only in [false, true] {
            let limits = Limits { read_only, ..LIMITS };
            for (operation, count) in (0..=8u8).flat_map(|operation| (0..=13u8).map(move |count| (operation, count))) {
                for (first, last) in [(0, 0), (0, 7), (3, 5), (7, 7), (5, 3), (0, 8), (255, 255)] {
                    let mut request = rw(operation, count, 0, 7);
                    let odd = usize::from(count.saturating_sub(1)).min(MAX_SEGMENTS - 1);
                    request.seg[odd] =
                        BlkifRequestSegment { gref: u32::MAX, first_sect: first, last_sect: last, pad: 9 };
                    let words: [u64; WIDE_WORDS] = zerocopy::transmute!(request);
                    let long = Request::parse(request.as_bytes(), &limits);
                    let short = Plain::parse(|at| words[at], &limits).and_then(|plain| {
                        let wire = &words[Plain::SEGMENTS_AT..][..usize::from(plain.count)];
                        let found: Option<Vec<Segment>> = wire.iter().map(|wire| Segment::from_word(*wire)).collect();
                        Some((plain, found?))
                    });
                    let Some((short, found)) = short else {
                        let plain = |request: &Request| matches!(request.operation, Operation::Read | Operation::Write);
                        let direct = |request: &Request| matches!(request.segments, Segments::Direct(..));
                        assert!(!long.is_ok_and(|request| plain(&request) && direct(&request)), "{request:?}");
                        continue;
                    };
                    let long = long.unwrap();
                    assert_eq!((short.id, short.sector), (long.id, long.sector));
                    assert_eq!((short.operation, short.response_op), (long.operation, long.response_op));
                    let Segments::Direct(segments, segment_count) = long.segments else { panic!("{long:?}") };
                    assert_eq!(short.count, segment_count);
                    assert_eq!(found, segments[..usize::from(count)]);
                    plain += 1;
                }
            }
        }
        assert_eq!(plain, 3 * 11 * 4, "reads and writes, 1 to 11 segments, the four pairs that are possible");
        let words: [u64; WIDE_WORDS] = zerocopy::transmute!(rw(BLKIF_OP_READ, 1, 0, 7));
        let narrow = Limits { abi: Abi::X86_32, ..LIMITS };
        assert!(Plain::parse(|at| words[at], &narrow).is_none());
    }

    #[test]
    fn segment_counts_out_of_range_are_errors_with_the_right_id() {
        for count in (12..=255).chain([0]) {
            let rejected = Request::parse(rw(BLKIF_OP_WRITE, count, 0, 7).as_bytes(), &LIMITS).unwrap_err();
            assert_eq!((rejected.id, rejected.status, rejected.response_op), (77, BLKIF_RSP_ERROR, BLKIF_OP_WRITE));
        }
        assert!(Request::parse(rw(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 0).as_bytes(), &LIMITS).is_ok());
    }

    #[test]
    fn what_was_not_offered_is_eopnotsupp_and_the_rest_is_never_a_panic() {
        for operation in 0..=255u8 {
            let parsed = Request::parse(rw(operation, 1, 0, 7).as_bytes(), &LIMITS);
            match operation {
                0 | 1 | 3 => assert!(parsed.is_ok()),
                6 => assert_eq!(parsed.unwrap_err().response_op, 1, "the inner operation"),
                _ => assert_eq!(parsed.unwrap_err().status, BLKIF_RSP_EOPNOTSUPP),
            }
        }
    }

    #[test]
    fn a_read_only_disk_takes_reads_only() {
        let discard = Some(Discard { granularity: 512, alignment: 0, secure: false, device: false });
        let limits = Limits { read_only: true, flush: false, barrier: true, discard, ..LIMITS };
        assert!(Request::parse(rw(BLKIF_OP_READ, 1, 0, 7).as_bytes(), &limits).is_ok());
        for (operation, status) in [(1, BLKIF_RSP_ERROR), (2, BLKIF_RSP_ERROR), (3, BLKIF_RSP_EOPNOTSUPP)] {
            assert_eq!(Request::parse(rw(operation, 1, 0, 7).as_bytes(), &limits).unwrap_err().status, status);
        }
        assert_eq!(Request::parse(rw(5, 0, 0, 0).as_bytes(), &limits).unwrap_err().status, BLKIF_RSP_ERROR);
        let inner = BlkifRequestIndirect64 { operation: 6, indirect_op: 1, nr_segments: 3, ..Default::default() };
        let mut bytes = [0; 112];
        bytes[..64].copy_from_slice(inner.as_bytes());
        assert_eq!(Request::parse(&bytes, &limits).unwrap_err().status, BLKIF_RSP_ERROR);
    }

    #[test]
    fn indirect_counts_and_inner_operations_are_checked() {
        let parse = |indirect_op, nr_segments| {
            let inner = BlkifRequestIndirect64 { operation: 6, indirect_op, nr_segments, id: 3, ..Default::default() };
            let mut bytes = [0; 112];
            bytes[..64].copy_from_slice(inner.as_bytes());
            Request::parse(&bytes, &LIMITS)
        };
        assert!(parse(0, 256).is_ok() && parse(1, 1).is_ok());
        assert_eq!(parse(0, 256).unwrap().indirect_pages().len(), 1);
        for (operation, count) in [(0, 0), (0, 257), (1, u16::MAX), (2, 1), (3, 1), (5, 1), (6, 1), (255, 1)] {
            let rejected = parse(operation, count).unwrap_err();
            assert_eq!((rejected.id, rejected.status), (3, BLKIF_RSP_ERROR));
        }
    }

    #[test]
    fn a_barrier_may_carry_data_or_none() {
        let limits = Limits { barrier: true, ..LIMITS };
        for count in [0, 1, 11] {
            let parsed = Request::parse(rw(BLKIF_OP_WRITE_BARRIER, count, 0, 7).as_bytes(), &limits).unwrap();
            assert_eq!((parsed.operation, parsed.count()), (Operation::Barrier, usize::from(count)));
        }
        let rejected = Request::parse(rw(BLKIF_OP_WRITE_BARRIER, 12, 0, 7).as_bytes(), &limits).unwrap_err();
        assert_eq!(rejected.status, BLKIF_RSP_ERROR);
    }

    #[test]
    fn discards_are_read_in_both_layouts_and_held_to_their_alignment() {
        let wide = |flag, sector_number, nr_sectors| {
            let discard =
                BlkifRequestDiscard64 { operation: 5, flag, id: 9, sector_number, nr_sectors, ..Default::default() };
            let mut bytes = [0; 112];
            bytes[..32].copy_from_slice(discard.as_bytes());
            bytes
        };
        let mut limits = Limits {
            discard: Some(Discard { granularity: 4096, alignment: 512, secure: false, device: true }),
            ..LIMITS
        };
        let parsed = Request::parse(&wide(1, 9, 3), &limits).unwrap();
        // Not offered, so not asked for.
        assert_eq!(parsed.operation, Operation::Discard { sectors: 3, secure: false });
        assert_eq!((parsed.id, parsed.sector, parsed.response_op, parsed.count()), (9, 9, 5, 0));
        for sector in [0, 8, 10, u64::MAX, u64::MAX / 512] {
            let rejected = Request::parse(&wide(0, sector, 1), &limits).unwrap_err();
            assert_eq!((rejected.status, rejected.id, rejected.response_op), (BLKIF_RSP_ERROR, 9, 5), "{sector}");
        }
        limits.discard = Some(Discard { granularity: 512, alignment: 0, secure: true, device: true });
        limits.abi = Abi::X86_32;
        let narrow = BlkifRequestDiscard32 {
            operation: 5,
            flag: 0xFF,
            handle: 0,
            id: [3, 4],
            sector_number: [1, 2],
            nr_sectors: [5, 6],
        };
        let mut bytes = [0; 112];
        bytes[..28].copy_from_slice(narrow.as_bytes());
        let parsed = Request::parse(&bytes, &limits).unwrap();
        assert_eq!(parsed.operation, Operation::Discard { sectors: 5 | 6 << 32, secure: true });
        assert_eq!((parsed.id, parsed.sector), (3 | 4 << 32, 1 | 2 << 32));
    }

    #[test]
    fn discards_past_the_end_and_around_the_top_are_refused() {
        assert_eq!(discard_range(90, 10, 100), Some((90 * 512, 5120)));
        assert_eq!(discard_range(100, 0, 100), Some((51_200, 0)));
        for (sector, count) in [(90, 11), (101, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            assert_eq!(discard_range(sector, count, 100), None, "{sector} {count}");
        }
    }

    #[test]
    fn both_layouts_say_the_same() {
        let seg = [BlkifRequestSegment { gref: 9, first_sect: 1, last_sect: 2, pad: 0 }; MAX_SEGMENTS];
        let narrow = BlkifRequest32 {
            operation: 1,
            nr_segments: 2,
            handle: 0,
            id: [0x89AB_CDEF, 0x0123_4567],
            sector_number: [6, 1],
            seg,
        };
        let parsed = Request::parse(narrow.as_bytes(), &Limits { abi: Abi::X86_32, ..LIMITS }).unwrap();
        assert_eq!((parsed.id, parsed.sector), (0x0123_4567_89AB_CDEF, 0x1_0000_0006));
        assert_eq!(parsed.count(), 2);
    }

    #[test]
    fn ranges_past_the_end_and_around_the_top_are_refused() {
        let page = [Segment::parse(&BlkifRequestSegment { gref: 1, first_sect: 0, last_sect: 7, pad: 0 }).unwrap(); 2];
        let page = data_len(&page);
        assert_eq!(byte_range(84, page, 100), Some((84 * 512, 8192)));
        for sector in [85, 100, u64::MAX, u64::MAX - 15, i64::MAX as u64, u64::MAX / 512] {
            assert_eq!(byte_range(sector, page, 100), None, "{sector}");
        }
        assert_eq!(byte_range(u64::MAX / 256, page, u64::MAX), None, "the byte offset must fit as well");
    }
}

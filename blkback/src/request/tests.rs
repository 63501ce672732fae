use super::*;
use grant::ring::WIDE_WORDS;
use zerocopy::IntoBytes;

const LIMITS: Limits =
    Limits { abi: Abi::X86_64, max_indirect: 256, read_only: false, flush: true, barrier: false, discard: None };

/// A request as its slot holds it: zeros up to the slot's end.
fn slot(request: &[u8]) -> [u8; 112] {
    let mut bytes = [0; 112];
    bytes[..request.len()].copy_from_slice(request);
    bytes
}

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
                request.seg[odd] = BlkifRequestSegment { gref: u32::MAX, first_sect: first, last_sect: last, pad: 9 };
                let words: [u64; WIDE_WORDS] = zerocopy::transmute!(request);
                let long = Request::parse(request.as_bytes(), &limits);
                let parsed = Plain::parse(|at| words[at], &limits);
                let one = parsed.filter(|plain| plain.count == 1).map(|plain| plain.operation);
                assert_eq!(Plain::of_one(words[0], &limits), one);
                let short = parsed.and_then(|plain| {
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
    assert_eq!(Request::parse(&slot(inner.as_bytes()), &limits).unwrap_err().status, BLKIF_RSP_ERROR);
}

#[test]
fn indirect_counts_and_inner_operations_are_checked() {
    let parse = |indirect_op, nr_segments| {
        let inner = BlkifRequestIndirect64 { operation: 6, indirect_op, nr_segments, id: 3, ..Default::default() };
        Request::parse(&slot(inner.as_bytes()), &LIMITS)
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
        slot(discard.as_bytes())
    };
    let mut limits =
        Limits { discard: Some(Discard { granularity: 4096, alignment: 512, secure: false, device: true }), ..LIMITS };
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
    let parsed = Request::parse(&slot(narrow.as_bytes()), &limits).unwrap();
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

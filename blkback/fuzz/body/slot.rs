//! One slot, and a page of segments: our parser and the header's validator must agree.

use blkback::config::Discard;
use blkback::proto::{Abi, BlkifRequestSegment};
use blkback::request::{Limits, Operation, Request, Segment, Segments, byte_range, data_len, discard_range};
use zerocopy::FromBytes;

use super::Input;
use super::validator::{Judged, Offered, Verdict, Work, judge};
use super::wire::{self, BARRIER, DISCARD, ERROR, FLUSH, READ, WRITE};

/// A page of segments that may not be read.
const LOST: u32 = 7;

pub fn slot(input: &[u8]) {
    let mut input = Input(input);
    let (flags, sizes) = (input.byte(), input.byte());
    let abi = if flags & 1 == 0 { Abi::X86_64 } else { Abi::X86_32 };
    let granularity = 1u64 << (sizes >> 2 & 3);
    let offered = Offered {
        abi,
        sectors: if flags & 2 == 0 { 1000 } else { u64::MAX / 512 },
        max_indirect: [0, 11, 32, 256][usize::from(sizes & 3)],
        read_only: flags & 4 != 0,
        barrier: flags & 8 != 0 && flags & 4 == 0,
        discard: (flags & 16 != 0).then_some(granularity),
    };
    let discard = offered.discard.map(|sectors| Discard {
        granularity: sectors as u32 * 512,
        alignment: 0,
        secure: flags & 32 != 0,
        device: false,
    });
    let limits = Limits {
        abi,
        max_indirect: offered.max_indirect,
        read_only: offered.read_only,
        flush: !offered.read_only,
        barrier: offered.barrier,
        discard,
    };
    let slot = input.bytes(abi.slot_size());
    let page = input.bytes(grant::PAGE_SIZE);
    let expected = judge(&offered, &slot, |gref| (gref != LOST).then(|| page.clone()));
    assert_eq!(parsed(&slot, &page, &limits, offered.sectors), expected);
}

/// The way of a request through our parser, in the validator's words.
fn parsed(slot: &[u8], page: &[u8], limits: &Limits, sectors: u64) -> Judged {
    let request = match Request::parse(slot, limits) {
        Ok(request) => request,
        Err(rejected) => {
            let (id, operation) = (rejected.id, rejected.response_op);
            return Judged { id, operation, verdict: Verdict::Refuse(rejected.status) };
        }
    };
    let work = work(&request, page, sectors);
    let verdict = work.map_or(Verdict::Refuse(ERROR), Verdict::Execute);
    Judged { id: request.id, operation: request.response_op, verdict }
}

fn work(request: &Request, page: &[u8], sectors: u64) -> Option<Work> {
    let segments: Vec<Segment> = match request.segments {
        Segments::Direct(segments, count) => segments[..usize::from(count)].to_vec(),
        Segments::Indirect(count, _) => {
            if request.indirect_pages().iter().any(|gref| gref.0 == LOST) {
                return None;
            }
            let raw = page.chunks_exact(size_of::<BlkifRequestSegment>()).take(usize::from(count));
            let parse = |raw| Segment::parse(&BlkifRequestSegment::read_from_bytes(raw).expect("its size"));
            raw.map(parse).collect::<Option<_>>()?
        }
    };
    let operation = match request.operation {
        Operation::Read => READ,
        Operation::Write => WRITE,
        Operation::Flush => FLUSH,
        Operation::Barrier => BARRIER,
        Operation::Discard { sectors: count, .. } => {
            let (at, len) = discard_range(request.sector, count, sectors)?;
            return Some(Work { operation: DISCARD, sector: at / 512, sectors: len / 512, segments: Vec::new() });
        }
    };
    let (at, len) = byte_range(request.sector, data_len(&segments), sectors)?;
    let segments = segments.iter().map(|segment| {
        let first = (segment.span.offset() / 512) as u8;
        let last = first + (segment.span.len() / 512) as u8 - 1;
        wire::Segment { gref: segment.gref.0, first, last }
    });
    let segments = segments.collect();
    Some(Work { operation, sector: at / 512, sectors: u64::from(len) / 512, segments })
}

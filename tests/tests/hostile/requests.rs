//! What may stand in a request, and what comes back.

use blkback::config::Discard;
use blkback::proto::{
    Abi, BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BlkifRequest64,
};
use frontend::blkfront::Encoder;
use frontend::hostile::{Index, write_segments};
use grant::{Access, GrantAccess, GrantRef, PAGE_SIZE};
use tests::world::{Shape, rw};

use crate::{Case, content, indirect, long, request, segment, shapes, statuses};

const CANARY: u8 = 0xA5;

/// XSA-513, CVE-2026-79605. All 65,536 pairs are gone through by the parser's own test and by the model; here those at
/// the edges meet pages whose neighbours are watched.
#[test]
fn xsa_513_sectors_beyond_a_page_touch_nothing() {
    for shape in shapes() {
        let mut case = Case::new();
        let (mut file, before) = case.image(1 << 20);
        let mut disk = case.disk(&file, shape);
        let data = case.pages(3);
        let pages = data.memory.pages();
        let edges = [0, 1, 6, 7, 8, 9, 15, 127, 128, 254, 255];
        for first in edges {
            for last in edges {
                pages.write(0, &[CANARY; 3 * PAGE_SIZE]);
                let valid = first <= last && last <= 7;
                let segments = [segment(data.refs[1], first, last)];
                let status = statuses(&mut disk, &[request(BLKIF_OP_READ, 1, 8, &segments)]);
                assert_eq!(status, [if valid { 0 } else { BLKIF_RSP_ERROR }], "{first} {last} {shape:?}");
                let mut after = [0; 3 * PAGE_SIZE];
                pages.read(0, &mut after);
                let (from, to) = if valid { (usize::from(first) * 512, usize::from(last) * 512 + 512) } else { (0, 0) };
                let touched = PAGE_SIZE + from..PAGE_SIZE + to;
                assert!(after[touched.clone()] == before[PAGE_SIZE..PAGE_SIZE + to - from], "{first} {last}");
                let kept = |range: std::ops::Range<usize>| after[range].iter().all(|byte| *byte == CANARY);
                assert!(kept(0..touched.start) && kept(touched.end..3 * PAGE_SIZE), "{first} {last} {shape:?}");
                if !valid {
                    let write = request(BLKIF_OP_WRITE, 1, 8, &segments);
                    assert_eq!(statuses(&mut disk, &[write]), [BLKIF_RSP_ERROR]);
                }
            }
        }
        assert!(content(&mut file) == before);
        case.over(disk);
        case.end([data]);
    }
}

/// XSA-513, CVE-2026-79606: eleven segments fit a slot, whatever the byte beside them says.
#[test]
fn xsa_513_of_all_segment_counts_only_those_that_fit_are_served() {
    let mut case = Case::new();
    let (mut file, before) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(1);
    for count in 0..=u8::MAX {
        for operation in [BLKIF_OP_READ, BLKIF_OP_WRITE] {
            let mut slot = request(operation, 1, 0, &[segment(data.refs[0], 0, 0); 11]);
            slot.nr_segments = count;
            let valid = (1..=11).contains(&count) && operation == BLKIF_OP_READ;
            if valid || !(1..=11).contains(&count) {
                assert_eq!(statuses(&mut disk, &[slot]), [if valid { 0 } else { BLKIF_RSP_ERROR }], "{count}");
            }
        }
    }
    assert!(content(&mut file) == before);
    case.over(disk);
    case.end([data]);
}

#[test]
fn t04_indirect_requests_that_make_no_sense_leave_nothing_mapped() {
    for shape in shapes() {
        let mut case = Case::new();
        let (mut file, before) = case.image(2 << 20);
        let mut disk = case.disk(&file, shape);
        let (data, list) = (case.pages(1), case.pages(2));
        let good = [segment(data.refs[0], 0, 0); 256];
        write_segments(&list.memory.pages(), 0, &good);
        let list_ref = list.refs[0];
        let mut cases = Vec::new();
        for count in [0, 257, 512, 513, 4096, u16::MAX] {
            cases.push(indirect(BLKIF_OP_WRITE, 0, 0, count, list_ref));
        }
        for inner in (2..=u8::MAX).filter(|inner| inner.is_power_of_two() || *inner < 8) {
            cases.push(indirect(inner, 0, 0, 12, list_ref));
        }
        for bad in [GrantRef(0), GrantRef(u32::MAX), GrantRef(list_ref.0 + 4000)] {
            cases.push(indirect(BLKIF_OP_WRITE, 0, 0, 12, bad));
        }
        // One segment of 256 that is none.
        for (at, wrong) in [(0, segment(data.refs[0], 3, 2)), (255, segment(data.refs[0], 0, 8))] {
            write_segments(&list.memory.pages(), 512, &good);
            write_segments(&list.memory.pages(), 512 + at, &[wrong]);
            let slot = indirect(BLKIF_OP_WRITE, 0, 0, 256, list.refs[1]);
            assert_eq!(statuses(&mut disk, &[slot]), [BLKIF_RSP_ERROR], "{at}");
        }
        for (id, slot) in cases.iter_mut().enumerate() {
            // The id stands where it does in a direct request.
            slot.id = id as u64;
        }
        for chunk in cases.chunks(32) {
            for (slot, status) in chunk.iter().zip(statuses(&mut disk, chunk)) {
                assert_eq!(status, BLKIF_RSP_ERROR, "inner {} {shape:?}", slot.nr_segments);
            }
        }
        assert!(content(&mut file) == before);
        let read = indirect(BLKIF_OP_READ, 3, 0, 256, list_ref);
        assert_eq!(statuses(&mut disk, &[read]), [0], "one that makes sense");
        if !shape.persistent {
            assert_eq!(case.world.active_grants(), 1, "the ring and nothing else");
        }
        case.over(disk);
        case.end([data, list]);
    }
}

#[test]
fn t05_ranges_that_leave_the_disk_change_nothing() {
    let discard = Some(Discard { granularity: 4096, alignment: 0, secure: false, device: false });
    let mut case = Case::new();
    let (mut file, before) = case.image(1 << 20);
    let sectors = before.len() as u64 / 512;
    let mut disk = case.disk(&file, Shape { discard, barrier: true, ..Shape::default() });
    let data = case.pages(11);
    let encoder = Encoder { abi: Abi::X86_64, handle: 0 };
    for sector in [
        sectors - 87,
        sectors - 1,
        sectors,
        sectors + 1,
        1 << 32,
        i64::MAX as u64 / 512,
        i64::MAX as u64,
        u64::MAX / 512,
        u64::MAX / 512 - 87,
        u64::MAX - 88,
        u64::MAX - 1,
        u64::MAX,
    ] {
        for operation in [BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER] {
            let slot = rw(operation, 1, sector, &data.refs);
            assert_eq!(statuses(&mut disk, &[slot]), [BLKIF_RSP_ERROR], "{operation} at {sector}");
        }
        for count in [88, u64::MAX - sector, u64::MAX, u64::MAX - sector + 1, 1 << 55] {
            if sector.checked_add(count).is_some_and(|end| end <= sectors) || count == 0 {
                continue;
            }
            let mut bytes = [0; size_of::<BlkifRequest64>()];
            let encoded = encoder.discard(1, sector, count, false);
            bytes[..encoded.bytes().len()].copy_from_slice(encoded.bytes());
            let slot = zerocopy::FromBytes::read_from_bytes(&bytes).unwrap();
            assert_eq!(statuses(&mut disk, &[slot]), [BLKIF_RSP_ERROR], "discard of {count} at {sector}");
        }
    }
    assert!(content(&mut file) == before);
    case.over(disk);
    case.end([data]);
}

/// XSA-180 as well: the log is not the guest's to fill. A million with `WINDSOR_LONG`.
#[test]
fn t06_xsa_180_operations_that_are_none_are_counted_and_not_written_about() {
    let mut case = Case::new();
    let (mut file, before) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(1);
    let offered = [BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT];
    let unknown: Vec<u8> = (0..=u8::MAX).filter(|operation| !offered.contains(operation)).collect();
    let mut operations = unknown.iter().cycle();
    let rounds = long(1_000_000) / 32;
    for _ in 0..rounds {
        let slots: Vec<_> = (0..32).map(|id| rw(*operations.next().unwrap(), id, 0, &data.refs)).collect();
        disk.put(&slots);
        for response in disk.responses(32) {
            assert_eq!(response.status, BLKIF_RSP_EOPNOTSUPP);
            assert_eq!(response.operation, slots[response.id as usize].operation);
        }
    }
    assert_eq!(disk.settled_stats().rejected, rounds as u64 * 32);
    assert!(unknown.contains(&BLKIF_OP_DISCARD) && unknown.contains(&BLKIF_OP_WRITE_BARRIER));
    assert!(content(&mut file) == before);
    case.over(disk);
    case.end([data]);
}

/// XSA-142: nobody but the backend keeps a disk read-only.
#[test]
fn t07_xsa_142_a_read_only_disk_is_not_written_in_any_way() {
    let discard = Some(Discard { granularity: 512, alignment: 0, secure: true, device: false });
    let mut case = Case::new();
    let (mut file, before) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape { read_only: true, discard, barrier: true, ..Shape::default() });
    let (data, list) = (case.pages(1), case.pages(1));
    write_segments(&list.memory.pages(), 0, &[segment(data.refs[0], 0, 7); 12]);
    for operation in (0..=u8::MAX).filter(|operation| *operation != BLKIF_OP_READ) {
        let slot = rw(operation, 1, 0, &data.refs);
        // An empty flush writes nothing: the parser decides.
        let status = statuses(&mut disk, &[slot]);
        assert!(status[0] != 0, "operation {operation}");
    }
    let encoder = Encoder { abi: Abi::X86_64, handle: 0 };
    for secure in [false, true] {
        let mut bytes = [0; size_of::<BlkifRequest64>()];
        let encoded = encoder.discard(1, 0, 8, secure);
        bytes[..encoded.bytes().len()].copy_from_slice(encoded.bytes());
        let slot: BlkifRequest64 = zerocopy::FromBytes::read_from_bytes(&bytes).unwrap();
        assert!(statuses(&mut disk, &[slot])[0] != 0);
    }
    assert_eq!(statuses(&mut disk, &[indirect(BLKIF_OP_WRITE, 1, 0, 12, list.refs[0])]), [BLKIF_RSP_ERROR]);
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &data.refs)]), [0]);
    assert!(content(&mut file) == before);
    case.over(disk);
    case.end([data, list]);
}

/// XSA-216: what is not a field of a response is zero, in both layouts, and nothing behind it is written.
#[test]
fn t11_xsa_216_responses_carry_nothing_but_their_fields() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let mut case = Case::new();
        let (file, _) = case.image(1 << 20);
        let mut disk = case.disk(&file, Shape { abi, ..Shape::default() });
        let data = case.pages(1);
        let encoder = Encoder { abi, handle: 0xFFFF };
        let good = [segment(data.refs[0], 0, 7); 11];
        let slots = [
            encoder.direct(BLKIF_OP_READ, u64::MAX, 0, &good),
            encoder.direct(BLKIF_OP_READ, u64::MAX, u64::MAX, &good),
            encoder.direct(0xFF, u64::MAX, 0, &good),
            encoder.direct(BLKIF_OP_FLUSH_DISKCACHE, u64::MAX, u64::MAX, &[]),
            encoder.indirect(0xFF, u64::MAX, 0, u16::MAX, [u32::MAX; 8]),
        ];
        for encoded in slots {
            let at = disk.index(Index::ReqProd);
            let mut put = vec![0xFF; abi.slot_size()];
            put[..encoded.bytes().len()].copy_from_slice(encoded.bytes());
            disk.queue.put_bytes([put.as_slice()]);
            disk.notify();
            crate::eventually("an answer", || disk.index(Index::RspProd) == at.wrapping_add(1));
            let slot = disk.slot(at);
            let len = if abi == Abi::X86_64 { 16 } else { 12 };
            assert_eq!(slot[..8], [0xFF; 8], "the id");
            assert_eq!(slot[9], 0);
            assert!(slot[12..len].iter().all(|byte| *byte == 0));
            assert_eq!(slot[len..], put[len..], "behind the response the slot is as it was");
        }
        case.over(disk);
        case.end([data]);
    }
}

/// XSA-403: of a page that a guest shares for one sector nothing else is read or written.
#[test]
fn t11_xsa_403_bytes_outside_of_a_segment_stay_as_they_are() {
    for shape in shapes() {
        let mut case = Case::new();
        let (mut file, mut expected) = case.image(1 << 20);
        let mut disk = case.disk(&file, shape);
        let data = case.pages(2);
        let pages = data.memory.pages();
        for (first, last) in [(0, 0), (3, 3), (7, 7), (2, 5)] {
            let (from, to) = (usize::from(first) * 512, usize::from(last) * 512 + 512);
            pages.write(0, &[CANARY; 2 * PAGE_SIZE]);
            let segments = [segment(data.refs[0], first, last)];
            assert_eq!(statuses(&mut disk, &[request(BLKIF_OP_READ, 1, 5, &segments)]), [0]);
            let mut page = [0; 2 * PAGE_SIZE];
            pages.read(0, &mut page);
            assert!(page[from..to] == expected[5 * 512..5 * 512 + to - from], "{shape:?}");
            assert!(page[..from].iter().chain(&page[to..]).all(|byte| *byte == CANARY), "{shape:?}");
            // And of what lies beside it nothing gets to the disk.
            pages.write(from, &vec![7; to - from]);
            assert_eq!(statuses(&mut disk, &[request(BLKIF_OP_WRITE, 1, 9, &segments)]), [0]);
            expected[9 * 512..9 * 512 + to - from].fill(7);
            assert!(content(&mut file) == expected, "{shape:?}");
        }
        case.over(disk);
        case.end([data]);
    }
}

/// The same class towards the guest: pages that pass through the backend's own memory must not bring what another
/// request left there.
#[test]
fn t11_xsa_403_a_failed_read_brings_nothing_of_other_requests() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    // The volume is shorter than the disk: what is read beyond it does not come.
    let shape = Shape { zero_copy: false, sectors: Some(4096), ..Shape::default() };
    let mut disk = case.disk(&file, shape);
    let data = case.pages(2);
    let pages = data.memory.pages();
    for _ in 0..50 {
        pages.write(0, &[0x5E; PAGE_SIZE]);
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE, 1, 0, &data.refs[..1])]), [0], "leaves something behind");
        pages.write(PAGE_SIZE, &[CANARY; PAGE_SIZE]);
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 2048, &data.refs[1..])]), [BLKIF_RSP_ERROR]);
        let mut page = [0; PAGE_SIZE];
        pages.read(PAGE_SIZE, &mut page);
        assert_eq!(page, [CANARY; PAGE_SIZE]);
    }
    case.over(disk);
    case.end([data]);
}

/// A grant that only lets us read is no page for a read's data.
#[test]
fn t08_a_page_that_may_only_be_read_is_not_written() {
    for shape in shapes() {
        let mut case = Case::new();
        let (mut file, before) = case.image(1 << 20);
        let mut disk = case.disk(&file, shape);
        let data = case.memory.grant(case.service, 1, Access::ReadOnly).unwrap();
        data.memory.pages().write(0, &before[..PAGE_SIZE]);
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 8, &data.refs)]), [BLKIF_RSP_ERROR], "{shape:?}");
        let mut page = vec![0; PAGE_SIZE];
        data.memory.pages().read(0, &mut page);
        assert!(page == before[..PAGE_SIZE]);
        // Its content may be written to the disk.
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE, 1, 0, &data.refs)]), [0], "{shape:?}");
        assert!(content(&mut file) == before);
        case.over(disk);
        case.end([data]);
    }
}

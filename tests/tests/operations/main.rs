//! Barriers, discards, failing volumes and media with sectors of 4096 bytes, against a guest that speaks the ring by
//! hand.

mod block_device;
mod budget;
mod crowd;
mod memory;
mod neighbours;
mod online;
#[path = "../rig/mod.rs"]
mod rig;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use blkback::config::{Discard, FaultParams, OnError};
use blkback::device::Report;
use blkback::proto::{
    BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY, BlkifRequest64, BlkifRequestDiscard64, BlkifRequestSegment,
};
use grant::{Access, GrantAccess, Granted};
use tests::world::{Disk, Shape, World, rw, wait_report};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = 4096;

/// A file of random bytes.
fn image(bytes: usize) -> (File, Vec<u8>) {
    let mut file = tempfile::tempfile_in(".").unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let content: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    (file, content)
}

fn content(file: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

fn flush(id: u64) -> BlkifRequest64 {
    BlkifRequest64 { operation: BLKIF_OP_FLUSH_DISKCACHE, id, sector_number: u64::MAX, ..Default::default() }
}

fn discard(id: u64, sector_number: u64, nr_sectors: u64) -> BlkifRequest64 {
    let discard = BlkifRequestDiscard64 {
        operation: BLKIF_OP_DISCARD,
        flag: 1,
        id,
        sector_number,
        nr_sectors,
        ..Default::default()
    };
    let mut bytes = [0; size_of::<BlkifRequest64>()];
    bytes[..32].copy_from_slice(discard.as_bytes());
    BlkifRequest64::read_from_bytes(&bytes).unwrap()
}

/// One page, sectors `first..=last`.
fn odd(operation: u8, id: u64, sector: u64, data: &Granted, page: usize, first: u8, last: u8) -> BlkifRequest64 {
    let mut slot = rw(operation, id, sector, &data.refs[page..=page]);
    slot.seg[0] = BlkifRequestSegment { gref: data.refs[page].0, first_sect: first, last_sect: last, pad: 0 };
    slot
}

fn statuses(disk: &mut Disk, slots: &[BlkifRequest64]) -> Vec<i16> {
    disk.put(slots);
    let mut responses = disk.responses(slots.len());
    responses.sort_by_key(|response| response.id);
    responses.iter().map(|response| response.status).collect()
}

const FILE: Discard = Discard { granularity: 512, alignment: 0, secure: false, device: false };

#[test]
fn a_discard_makes_a_hole_and_touches_nothing_else() {
    let mut world = World::new();
    let (mut file, mut expected) = image(4 << 20);
    let blocks = file.metadata().unwrap().blocks();
    let mut disk = Disk::connect(&mut world, &file, Shape { discard: Some(FILE), ..Shape::default() });
    let last = expected.len() as u64 / 512;
    let slots = [
        discard(0, 2048, 4096),
        // Less than a block of the file: read as zeros all the same.
        discard(1, 3, 2),
        discard(2, last, 0),
        discard(3, last - 1, 2),
        discard(4, u64::MAX, 1),
        discard(5, 1, u64::MAX),
        discard(6, i64::MAX as u64 / 512, 8),
    ];
    let (good, bad) = (BLKIF_RSP_OKAY, BLKIF_RSP_ERROR);
    assert_eq!(statuses(&mut disk, &slots), [good, good, good, bad, bad, bad, bad]);
    expected[2048 * 512..6144 * 512].fill(0);
    expected[3 * 512..5 * 512].fill(0);
    assert!(content(&mut file) == expected);
    assert!(file.metadata().unwrap().blocks() <= blocks - 4000, "the space is given back");
    let stats = disk.stats();
    assert_eq!((stats.discards, stats.discard_bytes, stats.rejected), (3, 4098 * 512, 4));
    disk.close();
}

#[test]
fn a_discard_that_was_not_offered_says_so() {
    let mut world = World::new();
    let (mut file, expected) = image(1 << 20);
    let mut disk = Disk::connect(&mut world, &file, Shape::default());
    assert_eq!(statuses(&mut disk, &[discard(0, 0, 8)]), [blkback::proto::BLKIF_RSP_EOPNOTSUPP]);
    assert!(content(&mut file) == expected);
    disk.close();
}

/// Barriers among writes to the same block: whatever was sent before a barrier is under it, whatever came later is on
/// top.
#[test]
fn a_barrier_stands_between_what_came_before_and_after() {
    for zero_copy in [true, false] {
        let mut world = World::new();
        let (mut file, _) = image(1 << 20);
        let fault = Some(FaultParams { delay_ms: 3, ..FaultParams::default() });
        let mut disk = Disk::connect(&mut world, &file, Shape { barrier: true, fault, zero_copy, ..Shape::default() });
        let data = world.memory.grant(world.service.domid, 30, Access::ReadWrite).unwrap();
        for page in 0..30 {
            data.memory.pages().write(page * PAGE, &[page as u8 + 1; PAGE]);
        }
        // Page n is written to block 0 by request n; every fifth is a barrier, so the last barrier and what follows
        // it, which goes elsewhere, decide.
        let mut slots = Vec::new();
        for n in 0..30u64 {
            let barrier = n % 5 == 4;
            let operation = if barrier { BLKIF_OP_WRITE_BARRIER } else { BLKIF_OP_WRITE };
            let sector = if n >= 25 && !barrier { (n - 24) * 8 } else { 0 };
            slots.push(rw(operation, n, sector, &data.refs[n as usize..=n as usize]));
        }
        disk.put(&slots);
        let responses = disk.responses(slots.len());
        assert!(responses.iter().all(|response| response.status == BLKIF_RSP_OKAY));
        let order: Vec<u64> = responses.iter().map(|response| response.id).collect();
        for (at, id) in order.iter().enumerate().filter(|(_, id)| *id % 5 == 4) {
            let (before, after) = (&order[..at], &order[at + 1..]);
            assert!(before.iter().all(|other| other < id) && after.iter().all(|other| other > id), "{id}: {order:?}");
        }
        let content = content(&mut file);
        assert_eq!(content[..PAGE], [30; PAGE], "the last barrier's data is on top");
        for n in 25..29 {
            assert_eq!(content[(n - 24) * PAGE], n as u8 + 1);
        }
        let stats = disk.settled_stats();
        assert_eq!((stats.barriers, stats.writes), (6, 24));
        // An empty barrier is a flush.
        let empty = BlkifRequest64 { operation: BLKIF_OP_WRITE_BARRIER, id: 99, ..Default::default() };
        assert_eq!(statuses(&mut disk, &[empty]), [BLKIF_RSP_OKAY]);
        disk.close();
        assert_eq!(world.active_grants(), 0);
    }
}

/// A volume that takes data and fails flushes: a pipe. What a barrier finds unwritten must be written before its data.
#[test]
fn a_barrier_writes_nothing_before_earlier_writes_are_durable() {
    let mut world = World::new();
    let (read_end, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let shape = Shape { barrier: true, sectors: Some(2048), ..Shape::default() };
    let mut disk = Disk::connect(&mut world, &File::from(write_end), shape);
    let data = world.memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    let mut bytes = [0; 8192];
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE, 0, 0, &data.refs)]), [BLKIF_RSP_OKAY]);
    assert_eq!(rustix::io::read(&read_end, &mut bytes), Ok(PAGE));
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE_BARRIER, 1, 0, &data.refs)]), [BLKIF_RSP_ERROR]);
    assert_eq!(rustix::io::read(&read_end, &mut bytes), Err(rustix::io::Errno::AGAIN));
    assert_eq!(wait_report(&mut disk.worker), Report::FlushFailed { devid: 51712 });
    disk.close();
}

#[test]
fn a_failed_flush_stays_failed_until_somebody_says_otherwise() {
    let mut world = World::new();
    let (file, _) = image(1 << 20);
    let fault = Some(FaultParams { fail_flush: true, ..FaultParams::default() });
    let mut disk = Disk::connect(&mut world, &file, Shape { fault, ..Shape::default() });
    assert_eq!(statuses(&mut disk, &[flush(0)]), [BLKIF_RSP_ERROR]);
    assert_eq!(wait_report(&mut disk.worker), Report::FlushFailed { devid: 51712 });
    disk.close();

    // Known from before: no flush reaches the volume, which is well again, until the operator says so.
    let mut disk = Disk::connect(&mut world, &file, Shape { flush_failed: true, barrier: true, ..Shape::default() });
    let barrier = BlkifRequest64 { operation: BLKIF_OP_WRITE_BARRIER, id: 2, ..Default::default() };
    assert_eq!(statuses(&mut disk, &[flush(0), flush(1), barrier]), [BLKIF_RSP_ERROR; 3]);
    let data = world.memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 3, 0, &data.refs)]), [BLKIF_RSP_OKAY]);
    disk.worker.resume(51712);
    // The word travels beside the ring: flushes may fail until it is there.
    while statuses(&mut disk, &[flush(4)]) != [BLKIF_RSP_OKAY] {
        std::thread::yield_now();
    }
    disk.close();
}

/// The file behind the disk is shorter than the disk, which makes reads and writes there fail until it has grown.
#[test]
fn a_held_request_waits_until_the_volume_is_well_and_loses_nothing() {
    for (zero_copy, by_hand) in [(true, false), (false, true)] {
        let mut world = World::new();
        let (mut file, expected) = image(1 << 20);
        let shape = Shape { on_error: OnError::Hold, zero_copy, barrier: true, ..Shape::default() };
        let mut disk = Disk::connect(&mut world, &file, shape);
        let data = world.memory.grant(world.service.domid, 4, Access::ReadWrite).unwrap();
        file.set_len(512 << 10).unwrap();
        disk.put(&[rw(BLKIF_OP_READ, 0, 1032, &data.refs[..1]), rw(BLKIF_OP_READ, 1, 0, &data.refs[1..2])]);
        let responses = disk.responses(1);
        assert_eq!((responses[0].id, responses[0].status), (1, BLKIF_RSP_OKAY), "the rest goes on");
        let Report::Holding { reason, .. } = wait_report(&mut disk.worker) else { panic!("not held") };
        assert!(reason.contains("Input/output error"), "{reason}");
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&expected).unwrap();
        if by_hand {
            disk.worker.resume(51712);
        }
        let responses = disk.responses(1);
        assert_eq!((responses[0].id, responses[0].status), (0, BLKIF_RSP_OKAY));
        let mut page = vec![0; PAGE];
        data.memory.pages().read(0, &mut page);
        assert!(page == expected[1032 * 512..][..PAGE]);
        assert_eq!(wait_report(&mut disk.worker), Report::Resumed { devid: 51712 });
        disk.close();
        world.memory.end(data).unwrap();
    }
}

#[test]
fn a_disk_that_is_given_up_answers_what_it_held() {
    let mut world = World::new();
    let (file, _) = image(1 << 20);
    let fault = Some(FaultParams { fail: Some(0), ..FaultParams::default() });
    let mut disk = Disk::connect(&mut world, &file, Shape { on_error: OnError::Hold, fault, ..Shape::default() });
    let data = world.memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    disk.put(&[rw(BLKIF_OP_WRITE, 5, 0, &data.refs)]);
    assert!(matches!(wait_report(&mut disk.worker), Report::Holding { .. }));
    disk.close();
    let responses = disk.responses(1);
    assert_eq!((responses[0].id, responses[0].status), (5, BLKIF_RSP_ERROR));
    assert_eq!(world.active_grants(), 0);
}

/// Odd requests on a medium of 4096 bytes: direct I/O of whole sectors is all that reaches the file.
#[test]
fn sectors_of_512_bytes_on_a_medium_of_4096() {
    for zero_copy in [true, false] {
        for persistent in [true, false] {
            let mut world = World::new();
            let (mut file, mut expected) = image(1 << 20);
            let shape = Shape { unit: 4096, zero_copy, persistent, ..Shape::default() };
            let mut disk = Disk::connect(&mut world, &file, shape);
            let data = world.memory.grant(world.service.domid, 8, Access::ReadWrite).unwrap();
            let mut random = fastrand::Rng::with_seed(5);
            for round in 0..150u64 {
                // Writes that touch the same few sectors of the medium, all at once.
                let mut slots = Vec::new();
                let mut used = [false; 64];
                for page in 0..8usize {
                    let (first, last) = (random.u8(0..8), random.u8(0..8));
                    let (first, last) = (first.min(last), first.max(last));
                    let count = usize::from(last - first) + 1;
                    let sector = random.usize(0..64 - count);
                    if used[sector..sector + count].iter().any(|used| *used) {
                        continue;
                    }
                    used[sector..sector + count].fill(true);
                    let bytes: Vec<u8> = (0..count * 512).map(|_| random.u8(..)).collect();
                    data.memory.pages().write(page * PAGE + usize::from(first) * 512, &bytes);
                    expected[sector * 512..][..count * 512].copy_from_slice(&bytes);
                    slots.push(odd(BLKIF_OP_WRITE, page as u64, sector as u64, &data, page, first, last));
                }
                assert!(statuses(&mut disk, &slots).iter().all(|status| *status == 0), "round {round}");
            }
            assert!(content(&mut file) == expected, "zero copy {zero_copy}, persistent {persistent}");
            for round in 0..100u64 {
                let (first, last) = (random.u8(0..4), random.u8(4..8));
                let count = usize::from(last - first) + 1;
                let sector = random.usize(0..2048 - count);
                data.memory.pages().write(0, &[0xEE; PAGE]);
                let slot = odd(BLKIF_OP_READ, round, sector as u64, &data, 0, first, last);
                assert_eq!(statuses(&mut disk, &[slot]), [BLKIF_RSP_OKAY]);
                let mut page = vec![0; PAGE];
                data.memory.pages().read(0, &mut page);
                let (from, to) = (usize::from(first) * 512, usize::from(last + 1) * 512);
                assert!(page[from..to] == expected[sector * 512..][..count * 512]);
                assert!(page[..from].iter().chain(&page[to..]).all(|byte| *byte == 0xEE), "nothing beside the span");
            }
            disk.close();
            assert_eq!(world.active_grants(), 0);
        }
    }
}

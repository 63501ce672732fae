//! Volumes, kernels and descriptors that fail: what the guest sees, and who else notices.

use std::fs::File;
use std::time::Duration;

use blkback::config::{FaultParams, OnError};
use blkback::proto::{BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_ERROR};
use frontend::hostile::write_segments;
use grant::PAGE_SIZE;
use tests::world::{Lane, Shape, rw, start_worker};

use crate::{Case, content, indirect, is_served, request, segment, statuses};

fn fault(params: FaultParams) -> Shape {
    Shape { fault: Some(params), ..Shape::default() }
}

#[test]
fn t37_an_error_is_that_of_the_requests_it_happened_to() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, fault(FaultParams { fail: Some(100 * 512), ..FaultParams::default() }));
    let data = case.pages(11);
    for sector in 0..200 {
        let slot = rw(BLKIF_OP_READ, 1, sector, &data.refs[..3]);
        let touched = (sector..sector + 24).contains(&100);
        assert_eq!(statuses(&mut disk, &[slot]), [if touched { BLKIF_RSP_ERROR } else { 0 }], "{sector}");
    }
    // One piece of many: the last sector of the largest request.
    let list = case.pages(1);
    write_segments(&list.memory.pages(), 0, &[segment(data.refs[0], 0, 0); 101]);
    assert_eq!(statuses(&mut disk, &[indirect(BLKIF_OP_READ, 1, 0, 101, list.refs[0])]), [BLKIF_RSP_ERROR]);
    assert_eq!(statuses(&mut disk, &[indirect(BLKIF_OP_READ, 1, 0, 100, list.refs[0])]), [0]);
    case.over(disk);
    case.end([data, list]);
}

#[test]
fn t37_a_flush_that_failed_fails_from_then_on() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, fault(FaultParams { fail_flush: true, ..FaultParams::default() }));
    let data = case.pages(1);
    let flush = request(BLKIF_OP_FLUSH_DISKCACHE, 1, 0, &[]);
    for _ in 0..200 {
        assert_eq!(statuses(&mut disk, &[flush]), [BLKIF_RSP_ERROR]);
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE, 2, 0, &data.refs)]), [0]);
    }
    case.over(disk);
    case.end([data]);
}

/// A volume without space: `/dev/full` says ENOSPC to every write.
#[test]
fn t38_no_space_is_an_error_or_a_pause_as_the_volume_says() {
    let full = || File::options().read(true).write(true).open("/dev/full").unwrap();
    for on_error in [OnError::Report, OnError::Hold] {
        let mut case = Case::new();
        let full = full();
        case.descriptors += 1;
        let mut disk = case.disk(&full, Shape { sectors: Some(2048), on_error, ..Shape::default() });
        let data = case.pages(1);
        let write = rw(BLKIF_OP_WRITE, 1, 0, &data.refs);
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &data.refs)]), [0]);
        if on_error == OnError::Report {
            for _ in 0..1000 {
                assert_eq!(statuses(&mut disk, &[write]), [BLKIF_RSP_ERROR]);
            }
        } else {
            disk.put(&[write; 31]);
            crate::eventually("all are held", || disk.stats().held >= 31);
            // A pause for those that fail and for nobody else.
            let responses = {
                disk.put(&[rw(BLKIF_OP_READ, 7, 0, &data.refs)]);
                disk.responses(1)
            };
            assert_eq!((responses[0].id, responses[0].status), (7, 0));
            case.witness.is_served();
            disk.worker.disconnect(51712);
            assert!(disk.responses(31).iter().all(|response| response.status == BLKIF_RSP_ERROR));
            let mut report = tests::world::wait_report(&mut disk.worker);
            while !matches!(report, blkback::device::Report::Closed { .. }) {
                report = tests::world::wait_report(&mut disk.worker);
            }
            case.forget(disk);
            case.settled();
            case.end([data]);
            continue;
        }
        case.over(disk);
        case.end([data]);
    }
}

#[test]
fn t39_completions_in_pieces_are_put_together_and_what_never_comes_is_an_error() {
    for zero_copy in [true, false] {
        let mut case = Case::new();
        let (mut file, mut expected) = case.image(1 << 20);
        let shorten = Some(512);
        let shape =
            Shape { zero_copy, sectors: Some(4096), ..fault(FaultParams { shorten, ..FaultParams::default() }) };
        let mut disk = case.disk(&file, shape);
        let data = case.pages(11);
        let pages = data.memory.pages();
        let mut random = fastrand::Rng::with_seed(39);
        for round in 0..100u64 {
            let sector = random.u64(..2048 - 88);
            let at = sector as usize * 512;
            if round % 2 == 0 {
                let bytes: Vec<u8> = (0..11 * PAGE_SIZE).map(|_| random.u8(..)).collect();
                pages.write(0, &bytes);
                assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE, 1, sector, &data.refs)]), [0]);
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
            } else {
                assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, sector, &data.refs)]), [0]);
                let mut bytes = vec![0; 11 * PAGE_SIZE];
                pages.read(0, &mut bytes);
                assert!(bytes == expected[at..at + bytes.len()]);
            }
        }
        assert!(content(&mut file) == expected);
        // The volume has become shorter than its disk: half of it comes, and half is no success.
        for sector in [2048 - 40, 2047, 2048, 4000] {
            assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, sector, &data.refs)]), [BLKIF_RSP_ERROR], "{sector}");
        }
        case.over(disk);
        case.end([data]);
    }
}

/// The same for requests that take the short way, whose one transfer nobody remembers: half of it, nothing of it, and a
/// whole one beside them.
#[test]
fn t39_a_request_of_one_page_that_comes_short_is_an_error_alone() {
    for zero_copy in [true, false] {
        let mut case = Case::new();
        let (file, expected) = case.image(1 << 20);
        let mut disk = case.disk(&file, Shape { zero_copy, sectors: Some(4096), ..Shape::default() });
        let data = case.pages(4);
        // The pages are mapped from here on.
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 0, 0, &data.refs)]), [0]);
        let pages = data.memory.pages();
        for round in 0..50 {
            pages.zero(0, PAGE_SIZE);
            let read = |id: u64, sector: u64| rw(BLKIF_OP_READ, id, sector, &data.refs[id as usize..][..1]);
            let sector = 8 * round;
            disk.put(&[read(0, sector), read(1, 2048 - 4), read(2, 2048), read(3, 2040)]);
            let mut responses = disk.responses(4);
            responses.sort_by_key(|response| response.id);
            let said: Vec<i16> = responses.iter().map(|response| response.status).collect();
            assert_eq!(said, [0, BLKIF_RSP_ERROR, BLKIF_RSP_ERROR, 0], "round {round}");
            let mut bytes = vec![0; PAGE_SIZE];
            pages.read(0, &mut bytes);
            assert!(bytes == expected[sector as usize * 512..][..PAGE_SIZE]);
        }
        case.over(disk);
        case.end([data]);
    }
}

/// A volume that hangs keeps those waiting that asked it for something: not the guest's other disk on the same
/// thread, and nobody else.
#[test]
fn t41_a_volume_that_hangs_stops_no_other_disk() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let delay_ms = if std::env::var_os("WINDSOR_LONG").is_some() { 120_000 } else { 3_000 };
    let mut disk = case.disk(&file, fault(FaultParams { delay_ms, ..FaultParams::default() }));
    let guest = (case.guest, case.memory.clone());
    let volume = &case.image(1 << 20).0;
    let other = Lane::connect(&case.world, &mut disk.worker, guest, 51728, volume, Shape::default(), |grants| grants);
    let mut other = other.unwrap();
    let data = case.pages(2);
    disk.put(&[rw(BLKIF_OP_READ, 1, 0, &data.refs[..1]); 32]);
    crate::eventually("all are taken", || disk.stats().batches > 0);
    let mut pages = data.memory.pages();
    for round in 0..1000 {
        is_served(&mut other, &mut pages, &data.refs, round);
    }
    case.witness.is_served();
    assert_eq!(disk.stats().reads, 0, "it hangs");
    // The other one can go meanwhile, and the first goes when its I/O has ended.
    disk.worker.disconnect(51728);
    assert_eq!(tests::world::wait_report(&mut disk.worker), blkback::device::Report::Closed { devid: 51728 });
    assert_eq!(disk.stats().reads, 0, "it hangs still");
    other.queue.grants.end(other.queue.ring_grant).unwrap();
    drop(other.queue.events);
    let patience = Duration::from_millis(delay_ms + 20_000);
    let deadline = std::time::Instant::now() + patience;
    while disk.stats().reads < 32 {
        assert!(std::time::Instant::now() < deadline, "never ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    case.over(disk);
    case.end([data]);
}

/// Rings, ports and volumes that are none: the disk is refused whole, and the worker goes on with its others.
#[test]
fn t44_what_cannot_be_connected_leaves_nothing_behind() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(2);
    let base = (case.world.active_grants(), case.open_ports(), crate::descriptors());
    for attempt in 0..30 {
        let guest = (case.guest, case.memory.clone());
        let plan = std::sync::Arc::new(crate::tamper::Plan::default());
        let of = std::sync::Arc::clone(&plan);
        if attempt % 2 == 0 {
            plan.map_errno.store([12, 24, 28, 14][attempt / 2 % 4], std::sync::atomic::Ordering::Relaxed);
        }
        let volume = if attempt % 2 == 0 { &file } else { &File::open("/").unwrap() };
        let shape = Shape { sectors: Some(2048), ..Shape::default() };
        let lane = Lane::connect(&case.world, &mut disk.worker, guest, 51728, volume, shape, move |inner| {
            Box::new(crate::tamper::Tamper(inner, of))
        });
        match lane {
            Err(_) => assert_eq!(attempt % 2, 0),
            Ok(mut lane) => {
                // A directory is a volume that fails each request.
                assert_eq!(statuses(&mut lane, &[rw(BLKIF_OP_READ, 1, 0, &data.refs[..1])]), [BLKIF_RSP_ERROR]);
                disk.worker.disconnect(51728);
                tests::world::wait_report(&mut disk.worker);
            }
        }
        let mut pages = data.memory.pages();
        is_served(&mut disk, &mut pages, &data.refs, attempt as u64);
    }
    crate::eventually("ports are back", || case.open_ports() == base.1);
    crate::eventually("descriptors are back", || crate::descriptors() <= base.2);
    case.over(disk);
    case.end([data]);
}

/// No descriptor left in a worker: disks that are there go on, new ones are refused.
#[test]
fn t44_a_port_that_is_not_for_us_refuses_the_disk() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let events = case.world.ports(case.guest);
    // A worker that binds with the wrong domain's channels: every port is somebody else's.
    let (mut worker, fence) = start_worker(case.guest, Box::new(events));
    let guest = (case.guest, case.memory.clone());
    let refused = Lane::connect(&case.world, &mut worker, guest, 51712, &file, Shape::default(), |grants| grants);
    let reason = refused.err().expect("refused");
    assert!(reason.contains("event channel"), "{reason}");
    assert_eq!(case.world.active_grants(), 0);
    drop((worker, fence));
    case.settled();
}

//! The block backend's data paths, against a guest that speaks the ring by hand.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use blkback::config::{FaultParams, Transient};
use blkback::proto::{BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BlkifRequest64, BlkifRequestSegment};
use grant::{Access, GrantAccess, GrantRef};
use tests::world::{Disk, Shape, World, rw};
use zerocopy::IntoBytes;

const PAGE: usize = 4096;

fn image(bytes: usize) -> (File, Vec<u8>) {
    let mut file = tempfile::tempfile_in(".").unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let content: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
    file.write_all(&content).unwrap();
    (file, content)
}

fn content(file: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

fn shapes() -> Vec<Shape> {
    let base = Shape::default();
    vec![
        base,
        Shape { fixed: false, ..base },
        Shape { ring_order: 4, ..base },
        Shape { zero_copy: false, ..base },
        Shape { zero_copy: false, fixed: false, ..base },
        Shape { persistent: false, ..base },
        Shape { persistent: false, fixed: false, ring_order: 2, ..base },
        Shape { persistent: false, transient: Transient::Map, ..base },
        Shape { persistent: false, transient: Transient::Auto, ring_order: 1, ..base },
        // Fewer persistent grants than the test uses: eviction and the mixture of mapped and copied pages.
        Shape { max_persistent: 8, ..base },
        Shape { max_persistent: 8, zero_copy: false, ..base },
        Shape { fault: Some(FaultParams { shorten: Some(1536), ..FaultParams::default() }), ..base },
        Shape { fault: Some(FaultParams { delay_ms: 2, ..FaultParams::default() }), zero_copy: false, ..base },
    ]
}

#[test]
fn what_is_written_is_read_back_on_every_path() {
    for shape in shapes() {
        let mut world = World::new();
        let (mut file, mut expected) = image(4 << 20);
        let mut disk = Disk::connect(&mut world, &file, shape);
        let data = world.memory.grant(world.service.domid, 64, Access::ReadWrite).unwrap();
        let pages = data.memory.pages();
        let mut random = fastrand::Rng::with_seed(3);
        for round in 0..40u64 {
            // Six requests of up to ten scattered pages each, reads and writes apart from each other on the disk.
            let mut grefs: Vec<usize> = (0..60).collect();
            random.shuffle(&mut grefs);
            let mut slots = Vec::new();
            let mut checks = Vec::new();
            for (request, chosen) in grefs.chunks(10).enumerate() {
                let chosen = &chosen[..random.usize(1..=10)];
                let at = request * (600 << 10) + random.usize(0..1100) * 512;
                let refs: Vec<GrantRef> = chosen.iter().map(|page| data.refs[*page]).collect();
                let write = random.bool();
                let operation = if write { BLKIF_OP_WRITE } else { BLKIF_OP_READ };
                slots.push(rw(operation, round * 10 + request as u64, at as u64 / 512, &refs));
                for (n, page) in chosen.iter().enumerate() {
                    let place = at + n * PAGE;
                    if write {
                        let bytes: Vec<u8> = (0..PAGE).map(|_| random.u8(..)).collect();
                        pages.write(page * PAGE, &bytes);
                        expected[place..place + PAGE].copy_from_slice(&bytes);
                    } else {
                        checks.push((*page, place));
                    }
                }
            }
            disk.put(&slots);
            let responses = disk.responses(slots.len());
            let mut ids: Vec<u64> = responses.iter().map(|response| response.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, slots.iter().map(|slot| slot.id).collect::<Vec<_>>(), "each id once");
            assert!(responses.iter().all(|r| r.status == 0 && r.pad == 0 && r.pad2 == 0), "{shape:?} {responses:?}");
            for (page, place) in checks {
                let mut bytes = vec![0; PAGE];
                pages.read(page * PAGE, &mut bytes);
                assert!(bytes == expected[place..place + PAGE], "{shape:?} round {round}");
            }
        }
        disk.put(&[BlkifRequest64 {
            operation: BLKIF_OP_FLUSH_DISKCACHE,
            id: 1,
            sector_number: u64::MAX,
            ..Default::default()
        }]);
        assert_eq!(disk.responses(1)[0].status, 0);
        assert!(content(&mut file) == expected, "{shape:?}");
        let stats = disk.stats();
        assert_eq!(stats.errors + stats.rejected, 0);
        disk.close();
        assert_eq!(world.active_grants(), 0, "{shape:?}: everything is unmapped");
        world.memory.end(data).unwrap();
    }
}

#[test]
fn indirect_requests_of_256_segments_arrive_whole() {
    for shape in shapes() {
        let mut world = World::new();
        let (_, expected) = image(2 << 20);
        let mut file = tempfile::tempfile_in(".").unwrap();
        file.write_all(&expected).unwrap();
        let mut disk = Disk::connect(&mut world, &file, shape);
        let data = world.memory.grant(world.service.domid, 256, Access::ReadWrite).unwrap();
        let list = world.memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
        for count in [1usize, 12, 256] {
            for (n, gref) in data.refs[..count].iter().enumerate() {
                // Odd sectors in the first page: a run that is not whole pages.
                let first_sect = if n == 0 { 3 } else { 0 };
                let segment = BlkifRequestSegment { gref: gref.0, first_sect, last_sect: 7, pad: 0 };
                list.memory.pages().write(n * 8, segment.as_bytes());
            }
            let mut request = blkback::proto::BlkifRequestIndirect64 {
                operation: 6,
                indirect_op: BLKIF_OP_READ,
                nr_segments: count as u16,
                id: 5,
                sector_number: 3,
                ..Default::default()
            };
            request.indirect_grefs[0] = list.refs[0].0;
            let mut bytes = [0; 112];
            bytes[..64].copy_from_slice(request.as_bytes());
            disk.put(&[zerocopy::FromBytes::read_from_bytes(&bytes).unwrap()]);
            let response = disk.responses(1)[0];
            assert_eq!((response.id, response.operation, response.status), (5, BLKIF_OP_READ, 0), "{shape:?} {count}");
            let mut got = vec![0; count * PAGE];
            data.memory.pages().read(0, &mut got);
            assert!(got[1536..] == expected[1536..count * PAGE], "{shape:?} {count}");
        }
        disk.close();
        assert_eq!(world.active_grants(), 0);
    }
}

#[test]
fn steady_persistent_traffic_maps_nothing_and_answers_in_batches() {
    let mut world = World::new();
    let (file, _) = image(4 << 20);
    let mut disk = Disk::connect(&mut world, &file, Shape::default());
    assert!(disk.path.starts_with("zero copy"), "{}", disk.path);
    let data = world.memory.grant(world.service.domid, 32, Access::ReadWrite).unwrap();
    let batch: Vec<_> = (0..32).map(|n| rw(BLKIF_OP_READ, n, n * 8, &data.refs[n as usize..][..1])).collect();
    disk.put(&batch);
    disk.responses(32);
    let before = disk.stats();
    for _ in 0..100 {
        disk.put(&batch);
        disk.responses(32);
    }
    let after = disk.stats();
    assert_eq!(after.reads - before.reads, 3200);
    assert_eq!((after.map_calls, after.unmap_calls), (before.map_calls, before.unmap_calls));
    assert_eq!((after.pages_copied, after.copy_calls), (0, 0));
    assert!(after.notified_out - before.notified_out <= after.publishes - before.publishes);
}

#[test]
fn bad_grants_fail_their_request_alone() {
    for shape in [
        Shape::default(),
        Shape { zero_copy: false, ..Shape::default() },
        Shape { persistent: false, ..Shape::default() },
    ] {
        let mut world = World::new();
        let (mut file, expected) = image(1 << 20);
        let mut disk = Disk::connect(&mut world, &file, shape);
        let data = world.memory.grant(world.service.domid, 4, Access::ReadWrite).unwrap();
        let bad = [GrantRef(data.refs[0].0 + 4000), GrantRef(u32::MAX), GrantRef(0)];
        let mut slots = Vec::new();
        for (n, gref) in bad.iter().enumerate() {
            slots.push(rw(BLKIF_OP_WRITE, n as u64, 0, &[data.refs[0], *gref]));
            slots.push(rw(BLKIF_OP_READ, 10 + n as u64, 0, &[*gref, data.refs[1]]));
        }
        slots.push(rw(BLKIF_OP_READ, 20, 8, &[data.refs[2], data.refs[2], data.refs[3]]));
        for _ in 0..3 {
            disk.put(&slots);
            for response in disk.responses(slots.len()) {
                assert_eq!(response.status == 0, response.id == 20, "{shape:?} {response:?}");
            }
        }
        assert!(content(&mut file) == expected, "nothing of a refused write reaches the disk");
        disk.close();
        assert_eq!(world.active_grants(), 0);
    }
}

#[test]
fn an_impossible_index_breaks_the_device_and_nothing_is_taken() {
    let mut world = World::new();
    let (file, _) = image(1 << 20);
    let mut disk = Disk::connect(&mut world, &file, Shape::default());
    disk.ring_grant.memory.pages().store_release(0, 33);
    disk.notify();
    let report = tests::world::wait_report(&mut disk.worker);
    assert!(matches!(report, blkback::device::Report::Broken { devid: 51712, .. }), "{report:?}");
    assert_eq!(disk.stats().reads, 0);
    disk.close();
    assert_eq!(world.active_grants(), 0);
}

#[test]
fn closing_waits_for_slow_io_and_the_fence_hangs_up_after_the_worker() {
    let mut world = World::new();
    let (file, _) = image(1 << 20);
    let fault = Some(FaultParams { delay_ms: 300, ..FaultParams::default() });
    let mut disk = Disk::connect(&mut world, &file, Shape { fault, ..Shape::default() });
    let data = world.memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    disk.put(&[rw(BLKIF_OP_READ, 1, 0, &data.refs)]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let start = std::time::Instant::now();
    disk.close();
    assert!(start.elapsed().as_millis() > 200, "the I/O in flight was waited for");
    assert_eq!(disk.responses(1)[0].status, 0, "and answered");
    let Disk { worker, fence, .. } = disk;
    let mut fds = [rustix::event::PollFd::new(&fence, rustix::event::PollFlags::IN)];
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&none)).unwrap(), 0, "the ring is alive, so is the fence");
    drop(worker);
    let second = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&second)).unwrap(), 1);
    assert!(fds[0].revents().contains(rustix::event::PollFlags::HUP));
}

/// Without persistent grants a stock frontend gives its disk up over a page that is still mapped when its response is
/// there.
#[test]
fn pages_mapped_for_one_request_are_given_back_before_its_response() {
    let mut world = World::new();
    let (file, _) = image(1 << 20);
    let shape = Shape { persistent: false, transient: Transient::Map, ..Shape::default() };
    let mut disk = Disk::connect(&mut world, &file, shape);
    let ring = world.active_grants();
    for round in 0..200u64 {
        let data = world.memory.grant(world.service.domid, 11, Access::ReadWrite).unwrap();
        let operation = if round % 2 == 0 { BLKIF_OP_READ } else { BLKIF_OP_WRITE };
        disk.put(&[rw(operation, round, round, &data.refs)]);
        assert_eq!(disk.responses(1)[0].status, 0);
        assert_eq!(world.active_grants(), ring);
        world.memory.end(data).unwrap();
    }
    // A page that cannot be mapped is an error of its request alone.
    let slot = rw(BLKIF_OP_READ, 999, 0, &[GrantRef(60_000)]);
    disk.put(&[slot]);
    assert_eq!(disk.responses(1)[0].status, -1);
    let stats = disk.settled_stats();
    assert_eq!((stats.map_calls, stats.unmap_calls), (202, 200), "the ring, and each request");
    disk.close();
    assert_eq!(world.active_grants(), 0);
}

//! What one disk of a worker's thread may not do to another one, nor one request to others.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blkback::config::{FaultParams, OnError};
use blkback::device::{Report, ThreadParts, Worker};
use blkback::disk::{self, Disk as Medium, DiskLimits, Ended, Io, Job};
use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_OKAY};
use grant::{Access, GrantAccess};
use tests::world::{Disk, Lane, Shape, World, rw, start_worker, wait_report};

use crate::{PAGE, content, image};

/// All of the thread's arena is full of requests that are held; another disk goes on, and may be taken away.
#[test]
fn a_disk_that_holds_all_of_the_arena_stops_no_other_disk() {
    for persistent in [false, true] {
        let world = World::new();
        let guest = || (world.guest.domid, world.memory.clone());
        let (sick, (mut file, expected)) = (image(1 << 20).0, image(1 << 20));
        let events = Box::new(world.ports(world.service.domid));
        let (mut worker, _fence) = start_worker(world.guest.domid, events);
        let shape = Shape { zero_copy: false, persistent, ring_order: 4, ..Shape::default() };
        let fault = Some(FaultParams { fail: Some(0), ..FaultParams::default() });
        let holding = Shape { on_error: OnError::Hold, fault, ..shape };
        let mut held = Lane::connect(&world, &mut worker, guest(), 51712, &sick, holding, |grants| grants).unwrap();
        let mut lane = Lane::connect(&world, &mut worker, guest(), 51728, &file, shape, |grants| grants).unwrap();
        let mut memory = world.memory.clone();
        let data = memory.grant(world.service.domid, 11, Access::ReadWrite).unwrap();
        let slots: Vec<_> = (0..held.ring.entries()).map(|id| rw(BLKIF_OP_READ, id.into(), 0, &data.refs)).collect();
        held.put(&slots);
        assert!(matches!(wait_report(&mut worker), Report::Holding { devid: 51712, .. }));
        while held.settled_stats().held < 1024 / 11 {}
        for round in 0..3u64 {
            let read = |id| rw(BLKIF_OP_READ, id, id * 8, &data.refs);
            lane.put(&[read(round), read(round + 1), read(round + 2)]);
            assert!(lane.responses(3).iter().all(|response| response.status == BLKIF_RSP_OKAY));
            let mut page = vec![0; PAGE];
            data.memory.pages().read(PAGE, &mut page);
            let last = (round as usize..round as usize + 3).any(|at| page == expected[(at + 1) * PAGE..][..PAGE]);
            assert!(last, "round {round}");
        }
        data.memory.pages().write(0, &[0x5A; PAGE]);
        lane.put(&[rw(BLKIF_OP_WRITE, 9, 80, &data.refs[..1])]);
        assert_eq!(lane.responses(1)[0].status, BLKIF_RSP_OKAY);
        assert!(content(&mut file)[80 * 512..][..PAGE] == [0x5A; PAGE]);
        for devid in [51728, 51712] {
            worker.disconnect(devid);
            while wait_report(&mut worker) != (Report::Closed { devid }) {}
        }
        assert_eq!(world.active_grants(), 0);
    }
}

/// A disk of a worker's own, over whatever `wrap` makes of it.
fn with_medium(
    world: &World,
    file: &File,
    shape: Shape,
    wrap: impl Fn(Box<dyn Medium>) -> Box<dyn Medium> + Send + Sync + 'static,
) -> Disk {
    let (fence, write_end) = rustix::pipe::pipe().unwrap();
    let events = Box::new(world.ports(world.service.domid));
    let open: disk::Open = Arc::new(move |params, file, eraser| Some(wrap(disk::open(params, file, eraser)?)));
    let threads = vec![ThreadParts { events, fence: write_end }];
    let mut worker = Worker::start_with(world.guest.domid, threads, open).unwrap();
    let guest = (world.guest.domid, world.memory.clone());
    let lane = Lane::connect(world, &mut worker, guest, 51712, file, shape, |grants| grants).unwrap();
    Disk { worker, fence, lane }
}

/// A disk that takes its time with sector 0.
struct Slow(Box<dyn Medium>);

impl Medium for Slow {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        match job.at {
            0 => io.timeout(job, Duration::from_secs(2)),
            _ => self.0.start(job, io),
        }
    }

    fn step(&mut self, job: &mut Job, ended: Ended, io: &mut Io<'_>) {
        match job.at {
            0 => io.finish(ended),
            _ => self.0.step(job, ended, io),
        }
    }

    fn limits(&self) -> DiskLimits {
        self.0.limits()
    }
}

/// Nothing can be unmapped while something older is under way; a guest that always names new pages meanwhile has no
/// more of them mapped for it.
#[test]
fn grants_do_not_pile_up_behind_a_slow_request() {
    let world = World::new();
    let (file, _) = image(1 << 20);
    let shape = Shape { max_persistent: 22, ..Shape::default() };
    let mut disk = with_medium(&world, &file, shape, |disk| Box::new(Slow(disk)));
    let mut memory = world.memory.clone();
    let data = memory.grant(world.service.domid, 11 * 300, Access::ReadWrite).unwrap();
    disk.put(&[rw(BLKIF_OP_READ, 999, 0, &data.refs[..1])]);
    let mut most = 0;
    for (id, refs) in data.refs.chunks(11).enumerate() {
        disk.put(&[rw(BLKIF_OP_READ, id as u64, 8, refs)]);
        let response = disk.responses(1)[0];
        if response.id == 999 {
            break;
        }
        assert_eq!(response.status, BLKIF_RSP_OKAY);
        most = most.max(world.active_grants());
    }
    assert!(most > 22 && most <= 22 + 1 + 16 * 11, "{most} pages mapped");
    disk.close();
    assert_eq!(world.active_grants(), 0);
}

/// A disk that answers on the spot: odd pages always fail, others the first time. Counts how often it was asked.
struct Fickle(Box<dyn Medium>, Vec<u64>, Arc<AtomicUsize>);

impl Medium for Fickle {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        self.2.fetch_add(1, Ordering::SeqCst);
        let page = job.at / PAGE as u64;
        let known = self.1.contains(&page);
        self.1.push(page);
        io.finish(if page % 2 == 1 || !known { Err(5) } else { Ok(()) });
    }

    fn step(&mut self, _: &mut Job, ended: Ended, io: &mut Io<'_>) {
        io.finish(ended);
    }

    fn limits(&self) -> DiskLimits {
        self.0.limits()
    }
}

#[test]
fn requests_that_fail_for_good_are_not_tried_with_every_one_that_does_not() {
    const COUNT: u64 = 31;
    let world = World::new();
    let (file, _) = image(1 << 20);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mut disk = with_medium(&world, &file, Shape { on_error: OnError::Hold, ..Shape::default() }, move |disk| {
        Box::new(Fickle(disk, Vec::new(), Arc::clone(&count)))
    });
    let mut memory = world.memory.clone();
    let data = memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    let slots: Vec<_> = (0..COUNT).map(|id| rw(BLKIF_OP_READ, id, id * 8, &data.refs)).collect();
    disk.put(&slots);
    let well = disk.responses(COUNT as usize / 2 + 1);
    assert!(well.iter().all(|response| response.id % 2 == 0 && response.status == BLKIF_RSP_OKAY));
    // All of them once, one as a probe, then the others again, and what the next seconds may bring.
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked <= COUNT as usize * 2 + 5, "asked {asked} times");
    let holding = |report: Report| matches!(report, Report::Holding { .. });
    assert!(holding(wait_report(&mut disk.worker)));
    assert_eq!(wait_report(&mut disk.worker), Report::Resumed { devid: 51712 });
    assert!(holding(wait_report(&mut disk.worker)));
    disk.worker.disconnect(51712);
    assert_eq!(wait_report(&mut disk.worker), Report::Closed { devid: 51712 });
}

/// Nothing but the tick has happened, and nothing is left that would bring another one.
#[test]
fn a_probe_that_succeeds_on_the_spot_is_answered() {
    let world = World::new();
    let (file, _) = image(1 << 20);
    let mut disk = with_medium(&world, &file, Shape { on_error: OnError::Hold, ..Shape::default() }, |disk| {
        Box::new(Fickle(disk, Vec::new(), Arc::default()))
    });
    let mut memory = world.memory.clone();
    let data = memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    disk.put(&[rw(BLKIF_OP_READ, 5, 0, &data.refs)]);
    assert_eq!(disk.responses(1)[0].status, BLKIF_RSP_OKAY);
    disk.close();
}

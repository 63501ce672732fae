//! Events without work.

use std::time::{Duration, Instant};

use blkback::proto::BLKIF_OP_READ;
use tests::world::{Lane, Shape, rw};

use crate::{Case, is_served, long, statuses};

/// XSA-332: events at a high rate and nothing in the ring. Nobody is woken for each of them: after a few in vain a port
/// stays masked for a while, and the guest that sends them is the only one to wait.
#[test]
fn t19_xsa_332_events_without_work_wake_nobody_for_long() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    // A second disk of the same guest, on the same thread.
    let guest = (case.guest, case.memory.clone());
    let volume = case.image(1 << 20).0;
    let other = Lane::connect(&case.world, &mut disk.worker, guest, 51728, &volume, Shape::default(), |grants| grants);
    let mut other = other.unwrap();
    let data = case.pages(2);
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &data.refs[..1])]), [0]);
    let before = disk.settled_stats();
    let begun = Instant::now();
    let (mut sent, mut round) = (0u64, 0);
    while begun.elapsed() < Duration::from_millis(long(10_000) as u64) {
        (0..1000).for_each(|_| disk.notify());
        sent += 1000;
        round += 1;
        is_served(&mut other, &mut data.memory.pages(), &data.refs, round);
        case.witness.is_served();
    }
    let woken = disk.stats().notified_in - before.notified_in;
    let pauses = begun.elapsed().as_millis() as u64 / 100;
    assert!(
        woken <= 2 * pauses + 32,
        "{sent} events in {} ms woke the thread {woken} times",
        begun.elapsed().as_millis()
    );
    // Work ends the pause at its end at the latest, and what follows is as quick as ever.
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &data.refs[..1])]), [0]);
    let before = disk.settled_stats();
    for _ in 0..100 {
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &data.refs[..1])]), [0]);
    }
    assert_eq!(disk.settled_stats().reads, before.reads + 100);
    disk.worker.disconnect(51728);
    tests::world::wait_report(&mut disk.worker);
    other.queue.grants.end(other.queue.ring_grant).unwrap();
    drop(other.queue.events);
    case.over(disk);
    case.end([data]);
}

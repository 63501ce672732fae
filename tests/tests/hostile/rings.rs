//! Indexes, slots and ids.

use blkback::config::FaultParams;
use blkback::device::Report;
use blkback::proto::{BLKIF_OP_READ, BlkifRequest64};
use frontend::hostile::Index;
use grant::heap::Heap;
use grant::ring::BackRing;
use grant::{Access, DomId, GrantAccess, Grants};
use tests::world::{Shape, rw, wait_report};

use crate::{Case, is_served, long, statuses};

fn slow(delay_ms: u64) -> Shape {
    Shape { fault: Some(FaultParams { delay_ms, ..FaultParams::default() }), ..Shape::default() }
}

#[test]
fn t01_an_index_that_cannot_be_ends_the_disk_and_nothing_is_taken() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    for first_index in [0, u32::MAX - 3, 1 << 31] {
        for ahead in [33, 34, 1000, 1 << 31, u32::MAX, u32::MAX - 31] {
            let mut disk = case.disk(&file, Shape { first_index, ..Shape::default() });
            disk.set_index(Index::ReqProd, first_index.wrapping_add(ahead));
            disk.notify();
            let report = wait_report(&mut disk.worker);
            assert!(matches!(report, Report::Broken { devid: 51712, .. }), "{first_index} {ahead}: {report:?}");
            // For good: an index that could be is not believed any more, and nobody is woken by it.
            let before = disk.settled_stats();
            disk.set_index(Index::ReqProd, first_index.wrapping_add(1));
            (0..1000).for_each(|_| disk.notify());
            let after = disk.settled_stats();
            assert_eq!((after.batches, after.reads, after.rejected), (0, 0, 0), "{first_index} {ahead}");
            assert!(after.notified_in - before.notified_in <= 1, "a broken disk stays awake");
            case.over(disk);
        }
    }
}

#[test]
fn t01_an_index_that_goes_back_ends_the_disk_and_what_was_taken_is_answered() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let data = case.pages(4);
    for back in 1..=4 {
        let mut disk = case.disk(&file, slow(50));
        let slots: Vec<_> = (0..4).map(|n| rw(BLKIF_OP_READ, n, 0, &data.refs[n as usize..][..1])).collect();
        disk.put(&slots);
        crate::eventually("all are taken", || disk.index(Index::ReqEvent) == 5);
        disk.set_index(Index::ReqProd, 4 - back);
        disk.notify();
        assert!(matches!(wait_report(&mut disk.worker), Report::Broken { .. }));
        assert!(disk.responses(4).iter().all(|response| response.status == 0));
        case.over(disk);
    }
    case.end([data]);
}

/// A million indexes against what the header says of them: at most a ring of requests is outstanding, and what was
/// taken stays taken.
#[test]
fn t01_a_million_random_indexes() {
    const ENTRIES: u32 = 32;
    let heap = Heap::new(8);
    let granted = heap.access().grant(DomId(3), 1, Access::ReadWrite).unwrap();
    let mut grants = heap.grants(DomId(3));
    let memory = grants.map(&granted.refs, Access::ReadWrite).unwrap();
    let mut random = fastrand::Rng::with_seed(155);
    for _ in 0..long(1000) {
        let start = random.u32(..);
        let pages = granted.memory.pages();
        (0..16).step_by(4).for_each(|at| pages.store_release(at, start));
        let mut ring = BackRing::attach(memory.pages(), 112).unwrap();
        let taken = random.u32(0..=ENTRIES);
        pages.store_release(0, start.wrapping_add(taken));
        (0..taken).for_each(|_| ring.take(&mut [0; 112]));
        for _ in 0..1000 {
            let index = match random.u8(..4) {
                0 => random.u32(..),
                1 => start.wrapping_add(random.u32(0..=2 * ENTRIES)),
                2 => start.wrapping_sub(random.u32(0..=ENTRIES)),
                _ => start.wrapping_add(taken + random.u32(0..=2)),
            };
            pages.store_release(0, index);
            let outstanding = u64::from(index.wrapping_sub(start));
            let possible = (u64::from(taken)..=u64::from(ENTRIES)).contains(&outstanding);
            let found = ring.unconsumed();
            assert_eq!(found.is_ok(), possible, "start {start} taken {taken} index {index}");
            assert!(found.is_err() || found == Ok((outstanding - u64::from(taken)) as u32));
        }
    }
}

/// XSA-155 seen from the frontend: a driver uses the id of a response as an index into its own tables.
#[test]
fn xsa_155_ids_come_from_the_private_copy_and_each_is_answered_once() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, slow(500));
    let data = case.pages(1);
    for round in 0..2 {
        let ids: Vec<u64> = (0..32).map(|n| (round << 32) | (n * 7919)).collect();
        let first = disk.index(Index::ReqProd);
        disk.put(&ids.iter().map(|id| rw(BLKIF_OP_READ, *id, 0, &data.refs)).collect::<Vec<_>>());
        crate::eventually("all are taken", || disk.index(Index::ReqEvent) == first.wrapping_add(33));
        // The whole slot changes while its request is under way.
        (0..32).for_each(|n| disk.set_slot(first.wrapping_add(n), 0, &[0xEE; 112]));
        let mut answered: Vec<u64> = disk.responses(32).iter().map(|response| response.id).collect();
        answered.sort_unstable();
        assert_eq!(answered, ids);
    }
    case.over(disk);
    case.end([data]);
}

#[test]
fn t12_ids_that_are_all_the_same_are_answered_once_for_each_request() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, slow(5));
    let data = case.pages(1);
    for id in [0, 7, u64::MAX] {
        // Also again while those before are under way: half a ring at a time.
        disk.put(&[rw(BLKIF_OP_READ, id, 0, &data.refs); 16]);
        let mut owed = 16;
        for _ in 0..4 {
            disk.put(&[rw(BLKIF_OP_READ, id, 0, &data.refs); 16]);
            owed += 16;
            let responses = disk.responses(owed - 16);
            assert!(responses.iter().all(|response| (response.id, response.status) == (id, 0)));
            owed -= responses.len();
        }
        assert_eq!(disk.responses(owed).len(), owed);
        assert!(!disk.ring.final_check().unwrap(), "one answer too many");
    }
    case.over(disk);
    case.end([data]);
}

/// Responses that nobody takes: the backend owes a ring of them and no more.
#[test]
fn t12_responses_that_are_never_taken_stop_nothing() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(2);
    let read = rw(BLKIF_OP_READ, 9, 0, &data.refs[..1]);
    for round in 1..=50 {
        for slot in 0..32 {
            disk.set_slot(slot, 0, zerocopy::IntoBytes::as_bytes(&read));
        }
        disk.set_index(Index::ReqProd, round * 32);
        disk.notify();
        crate::eventually("a ring is answered", || disk.index(Index::RspProd) == round * 32);
    }
    assert_eq!(disk.settled_stats().reads, 50 * 32);
    case.over(disk);
    case.end([data]);
}

/// What the backend has written for itself into the ring is the guest's to spoil, and only the guest is hurt.
#[test]
fn t12_indexes_of_the_backend_s_are_never_read_back() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(2);
    for value in [u32::MAX, 0, 1 << 31, 12345] {
        disk.set_index(Index::RspProd, value);
        disk.set_index(Index::ReqEvent, value);
        let before = disk.settled_stats().reads;
        let first = disk.index(Index::ReqProd);
        disk.ring.put(zerocopy::IntoBytes::as_bytes(&rw(BLKIF_OP_READ, 3, 0, &data.refs[..1])));
        disk.ring.push();
        disk.notify();
        crate::eventually("the answer", || disk.index(Index::RspProd) == first.wrapping_add(1));
        assert_eq!(disk.responses(1)[0].id, 3);
        assert_eq!(disk.settled_stats().reads, before + 1);
    }
    let mut pages = data.memory.pages();
    is_served(&mut disk, &mut pages, &data.refs, 77);
    case.over(disk);
    case.end([data]);
}

/// A guest that posts without a word while the backend sleeps is found with its next word; there is no watchdog, and
/// nobody else waits for it.
#[test]
fn t20_requests_without_a_notification_are_found_with_the_next_one() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(1);
    assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 0, 0, &data.refs)]), [0]);
    disk.settled_stats();
    let slots: Vec<BlkifRequest64> = (1..=20).map(|id| rw(BLKIF_OP_READ, id, 0, &data.refs)).collect();
    disk.queue.put_bytes(slots.iter().map(zerocopy::IntoBytes::as_bytes));
    for _ in 0..10 {
        case.witness.is_served();
    }
    assert_eq!(disk.settled_stats().reads, 1, "the backend sleeps: it asked to be told, and was not");
    disk.notify();
    assert_eq!(disk.responses(20).len(), 20);
    case.over(disk);
    case.end([data]);
}

/// XSA-391: a backend must not storm its guest. It tells when the guest asked to be told, and at most once a batch.
#[test]
fn xsa_391_a_guest_is_told_when_it_asked_and_at_most_once_a_batch() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(1);
    let batch = [rw(BLKIF_OP_READ, 1, 0, &data.refs); 32];
    for _ in 0..50 {
        disk.put(&batch);
        disk.responses(32);
    }
    let stats = disk.settled_stats();
    assert!(stats.notified_out <= stats.publishes && stats.publishes <= stats.reads, "{stats:?}");
    // Never asked.
    for round in 1..=50 {
        disk.set_index(Index::RspEvent, disk.index(Index::RspProd).wrapping_add(1 << 20));
        disk.queue.put_bytes(batch.iter().map(zerocopy::IntoBytes::as_bytes));
        disk.notify();
        let rsp_prod = (50 + round) * 32;
        crate::eventually("a ring is answered", || disk.index(Index::RspProd) == rsp_prod);
        while disk.ring.unconsumed().unwrap() > 0 {
            disk.ring.take(&mut [0; 16]);
        }
    }
    assert_eq!(disk.settled_stats().notified_out, stats.notified_out);
    case.over(disk);
    case.end([data]);
}

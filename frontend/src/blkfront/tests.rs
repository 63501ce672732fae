//! A queue against a backend that does what the test says.

use std::time::{Duration, Instant};

use blkback::proto::{
    Abi, BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_EOPNOTSUPP,
};
use grant::heap::Heap;
use grant::{Access, GrantAccess};

use super::backend::{BACK, Backend};
use super::negotiate::RingKeys;
use super::slot::Widths;
use super::wiring::Wiring;
use super::*;

struct Pair {
    heap: Heap,
    gate: Gate,
    queue: Queue,
    backend: Backend,
    done: Vec<Completion>,
}

const DISK: usize = 8 << 20;

fn pair_on(heap: Heap, options: &Options) -> Pair {
    let wiring = Wiring::new(
        Box::new(heap.access()),
        Box::new(heap.ports(super::backend::FRONT).unwrap()),
        BACK,
        options,
        options.ring_order,
    )
    .unwrap();
    let RingKeys { refs, port } = wiring.keys();
    let backend = Backend::new(&heap, options.abi, &refs, port, DISK);
    let gate = Gate::default();
    let widths = Widths {
        encoder: Encoder { abi: options.abi, handle: 51712u32 as u16 },
        persistent: options.persistent,
        max_indirect: usize::from(options.max_indirect),
        first_sect: options.first_sect,
    };
    let queue = Queue::new(wiring, widths, gate.clone()).map_err(|refused| refused.1).unwrap();
    Pair { heap, gate, queue, backend, done: Vec::new() }
}

fn pair(options: &Options) -> Pair {
    pair_on(Heap::new(4096), options)
}

fn request(tag: u64, op: Op, sector: u64, buffer: Vec<u8>) -> Request {
    Request { tag, op, sector, buffer }
}

impl Pair {
    /// Runs until everything submitted has ended.
    fn run(&mut self) -> Vec<Completion> {
        for _ in 0..10_000 {
            self.queue.kick();
            self.backend.turn();
            self.queue.reap(&mut self.done);
            if self.queue.in_flight() == 0 {
                return std::mem::take(&mut self.done);
            }
        }
        panic!("still {} under way", self.queue.in_flight());
    }

    fn one(&mut self, op: Op, sector: u64, buffer: Vec<u8>) -> Completion {
        self.queue.submit(request(1, op, sector, buffer)).unwrap();
        let mut done = self.run();
        assert_eq!(done.len(), 1);
        done.remove(0)
    }
}

fn widths() -> Vec<Options> {
    let mut all = Vec::new();
    for abi in [Abi::X86_64, Abi::X86_32] {
        for persistent in [true, false] {
            for (ring_order, max_indirect) in [(0, 0), (0, 32), (2, 0), (4, 256)] {
                for (first_index, first_sect) in [(0, 0), (u32::MAX - 5, 3)] {
                    all.push(Options {
                        ring_order,
                        persistent,
                        max_indirect,
                        abi,
                        first_index,
                        first_sect,
                        ..Options::default()
                    });
                }
            }
        }
    }
    all
}

#[test]
fn every_width_carries_the_same_bytes() {
    for options in widths() {
        let mut pair = pair(&options);
        assert_eq!(pair.queue.depth(), 32 << options.ring_order);
        for (sector, len) in [(0, 512), (7, 4096), (9, 44 << 10), (100, 48 << 10), (2, 1_100_288)] {
            let data: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
            let wrote = pair.one(Op::Write, sector, data.clone());
            assert_eq!(wrote.status, Status::Okay, "{options:?}");
            let at = sector as usize * 512;
            assert!(pair.backend.disk[at..at + len] == data, "{options:?}: {len} bytes written");
            let read = pair.one(Op::Read, sector, vec![0; len]);
            assert!(read.status == Status::Okay && read.buffer == data, "{options:?}: {len} bytes read");
        }
        let indirect = pair.backend.seen.iter().filter(|seen| seen.indirect).count() as u64;
        assert_eq!(indirect > 0, options.max_indirect > 11);
        assert_eq!(indirect, pair.queue.counts().indirect);
        assert_eq!(pair.backend.seen.len() as u64, pair.queue.counts().requests);
        assert!(pair.backend.seen.iter().all(|seen| seen.handle == 51712u32 as u16));
        let Pair { queue, backend, .. } = pair;
        drop(backend);
        assert!(queue.close().is_empty());
    }
}

#[test]
fn a_request_is_cut_where_the_segments_end() {
    let mut pair = pair(&Options { max_indirect: 0, ..Options::default() });
    pair.one(Op::Read, 8, vec![0; 100 << 10]);
    let parts: Vec<_> = pair.backend.seen.iter().map(|seen| (seen.sector, seen.segments.len())).collect();
    assert_eq!(parts, [(8, 11), (96, 11), (184, 3)]);
}

#[test]
fn persistent_pages_are_used_again_last_one_first() {
    let mut pair = pair(&Options::default());
    let granted = pair.queue.counts().pages_granted;
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..50 {
        pair.one(Op::Write, 0, vec![1; 8192]);
        used.extend(pair.backend.seen.drain(..).flat_map(|seen| seen.segments).map(|it| it.gref));
    }
    assert_eq!(used.len(), 2);
    assert_eq!(pair.queue.counts().pages_granted, granted);
}

#[test]
fn without_persistence_a_grant_lasts_for_one_request_and_says_what_it_is_for() {
    let mut pair = pair(&Options { persistent: false, ..Options::default() });
    pair.queue.submit(request(1, Op::Write, 0, vec![1; 4096])).unwrap();
    pair.queue.kick();
    let taken = pair.backend.take();
    let gref = grant::GrantRef(taken[0].segments[0].gref);
    let mut grants = pair.heap.grants(BACK);
    assert!(grant::Grants::map(&mut grants, &[gref], Access::ReadWrite).is_err());
    drop(grant::Grants::map(&mut grants, &[gref], Access::ReadOnly).unwrap());
    pair.backend.serve(&taken[0]);
    pair.backend.publish();
    pair.queue.reap(&mut pair.done);
    assert_eq!(pair.done[0].status, Status::Okay);
    assert!(grant::Grants::map(&mut grants, &[gref], Access::ReadOnly).is_err());
}

#[test]
fn a_backend_that_keeps_a_grant_it_was_lent_loses_the_disk() {
    let mut pair = pair(&Options { persistent: false, ..Options::default() });
    pair.backend.hoard = true;
    let done = pair.one(Op::Write, 0, vec![1; 4096]);
    assert_eq!(done.status, Status::Error);
    assert!(pair.gate.is_failed());
    assert!(pair.gate.reason().unwrap().contains("still maps"));
    assert_eq!(pair.queue.counts().refusals, 1);
    let refused = pair.queue.submit(request(2, Op::Flush, 0, Vec::new())).unwrap_err();
    assert_eq!(refused.reason, Refusal::Closed);
    let left = pair.queue.close();
    // The page it keeps, and the ring, which this backend has not let go either.
    assert_eq!(left.len(), 2);
    drop(pair.backend);
    let mut access = pair.heap.access();
    assert!(left.into_iter().all(|granted| access.end(granted).is_ok()));
}

#[test]
fn flush_and_discard_carry_no_data() {
    for abi in [Abi::X86_64, Abi::X86_32] {
        let mut pair = pair(&Options { abi, ..Options::default() });
        pair.queue.submit(request(5, Op::Flush, 0, Vec::new())).unwrap();
        pair.queue.submit(request(6, Op::Discard { sectors: 1 << 33, secure: true }, 1 << 34, Vec::new())).unwrap();
        pair.queue.kick();
        let taken = pair.backend.take();
        assert_eq!(taken[0].operation, BLKIF_OP_FLUSH_DISKCACHE);
        assert!(taken[0].segments.is_empty());
        assert_eq!(
            (taken[1].operation, taken[1].sector, taken[1].discard),
            (BLKIF_OP_DISCARD, 1 << 34, (1 << 33, true))
        );
        pair.backend.answer(taken[1].id, BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP);
        pair.backend.answer(taken[0].id, BLKIF_OP_FLUSH_DISKCACHE, 0);
        pair.backend.publish();
        pair.queue.reap(&mut pair.done);
        let ends: Vec<_> = pair.done.iter().map(|it| (it.tag, it.status)).collect();
        assert_eq!(ends, [(6, Status::Unsupported), (5, Status::Okay)]);
    }
}

#[test]
fn malformed_requests_are_not_taken() {
    let mut queue = pair(&Options::default()).queue;
    for (op, len) in [
        (Op::Read, 0),
        (Op::Write, 511),
        (Op::Write, 513),
        (Op::Flush, 512),
        (Op::Flush, 1),
        (Op::Discard { sectors: 1, secure: false }, 512),
    ] {
        let refused = queue.submit(request(1, op, 0, vec![0; len])).unwrap_err();
        assert_eq!((refused.reason, refused.request.buffer.len()), (Refusal::Malformed, len));
    }
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_full_queue_says_so_and_goes_on_later() {
    let mut pair = pair(&Options::default());
    for tag in 0..32 {
        pair.queue.submit(request(tag, Op::Read, tag, vec![0; 512])).unwrap();
    }
    let refused = pair.queue.submit(request(32, Op::Read, 32, vec![0; 512])).unwrap_err();
    assert_eq!(refused.reason, Refusal::Full);
    let done = pair.run();
    assert_eq!(done.len(), 32);
    assert!(done.iter().all(|it| it.buffer == [it.tag as u8; 512]));
    pair.queue.submit(refused.request).unwrap();
    assert_eq!(pair.run().len(), 1);
}

#[test]
fn few_pages_are_enough_for_many_large_requests() {
    for persistent in [true, false] {
        // A ring, the pool's reserve, and not much more.
        let heap = Heap::new(100);
        let mut pair = pair_on(heap, &Options { persistent, ..Options::default() });
        for tag in 0..20 {
            pair.queue.submit(request(tag, Op::Read, 8 * tag, vec![0; 256 << 10])).unwrap();
        }
        assert!(pair.run().iter().all(|it| it.status == Status::Okay));
    }
}

#[test]
fn a_batch_costs_one_notification() {
    let mut pair = pair(&Options::default());
    pair.backend.ring.final_check().unwrap();
    for tag in 0..32 {
        pair.queue.submit(request(tag, Op::Read, 0, vec![0; 4096])).unwrap();
    }
    pair.queue.kick();
    pair.queue.kick();
    assert_eq!(pair.queue.counts().notifications_sent, 1);
    // The backend is awake: nobody asks to be told.
    pair.backend.take();
    pair.queue.reap(&mut pair.done);
    assert_eq!(pair.queue.counts().notifications_sent, 1);
}

#[test]
fn waiting_ends_with_an_event_a_wake_or_in_time() {
    let mut pair = pair(&Options::default());
    pair.queue.wait(Some(Duration::from_millis(50))).unwrap();
    let start = Instant::now();
    pair.queue.wait(Some(Duration::from_millis(50))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(50));
    pair.queue.waker().wake();
    pair.queue.wait(Some(Duration::from_secs(60))).unwrap();
    pair.queue.submit(request(1, Op::Read, 0, vec![0; 512])).unwrap();
    pair.queue.kick();
    let before = pair.queue.counts().notifications_received;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            pair.backend.turn();
        });
        while pair.queue.reap(&mut pair.done) == 0 {
            pair.queue.wait(Some(Duration::from_secs(60))).unwrap();
        }
    });
    assert_eq!(pair.queue.counts().notifications_received, before + 1);
}

#[test]
fn hostile_responses_end_the_device_and_every_request() {
    type Act = fn(&mut Backend, u64);
    let wrong: [(&str, Act); 5] = [
        ("not under way", |backend, _| backend.answer(31, BLKIF_OP_READ, 0)),
        ("not under way", |backend, _| backend.answer(u64::MAX, BLKIF_OP_READ, 0)),
        ("not under way", |backend, id| {
            backend.answer(id, BLKIF_OP_READ, 0);
            backend.answer(id, BLKIF_OP_READ, 0);
        }),
        ("answered as", |backend, id| backend.answer(id, BLKIF_OP_WRITE, 0)),
        ("out of range", |backend, id| {
            for _ in 0..40 {
                backend.answer(id, BLKIF_OP_READ, 0);
            }
        }),
    ];
    for (reason, act) in wrong {
        for persistent in [true, false] {
            let mut pair = pair(&Options { persistent, ..Options::default() });
            for tag in 0..4 {
                pair.queue.submit(request(tag, Op::Read, 0, vec![0; 512])).unwrap();
            }
            pair.queue.kick();
            let first = pair.backend.take()[0].id;
            act(&mut pair.backend, first);
            pair.backend.publish();
            pair.queue.reap(&mut pair.done);
            pair.queue.reap(&mut pair.done);
            assert!(pair.gate.reason().unwrap().contains(reason), "{:?}", pair.gate.reason());
            assert_eq!((pair.done.len(), pair.queue.in_flight()), (4, 0));
            drop(pair.backend);
            assert!(pair.queue.close().is_empty());
        }
    }
}

#[test]
fn an_unknown_status_is_an_error() {
    let mut pair = pair(&Options::default());
    for (tag, status) in [-1, -3, 1, i16::MIN].into_iter().enumerate() {
        pair.queue.submit(request(tag as u64, Op::Read, 0, vec![7; 512])).unwrap();
        pair.queue.kick();
        let id = pair.backend.take()[0].id;
        pair.backend.answer(id, BLKIF_OP_READ, status);
        pair.backend.publish();
        pair.queue.reap(&mut pair.done);
    }
    assert!(pair.done.iter().all(|it| it.status == Status::Error && it.buffer == [7; 512]));
    assert!(pair.gate.is_open());
}

#[test]
fn draining_answers_what_the_backend_has_and_refuses_the_rest() {
    let mut pair = pair(&Options { max_indirect: 0, ..Options::default() });
    pair.queue.submit(request(1, Op::Read, 0, vec![0; 512])).unwrap();
    // More parts than slots: some of it the backend never sees.
    pair.queue.submit(request(2, Op::Write, 0, vec![0; 4 << 20])).unwrap();
    pair.queue.kick();
    pair.gate.drain();
    assert_eq!(pair.queue.submit(request(3, Op::Read, 0, vec![0; 512])).unwrap_err().reason, Refusal::Closed);
    pair.queue.reap(&mut pair.done);
    assert_eq!(pair.queue.in_flight(), 2);
    let ends: Vec<_> = pair.run().iter().map(|it| (it.tag, it.status)).collect();
    assert_eq!(ends, [(1, Status::Okay), (2, Status::Error)]);
}

#[test]
fn a_failed_device_gives_every_buffer_back() {
    let mut pair = pair(&Options::default());
    for tag in 0..3 {
        pair.queue.submit(request(tag, Op::Read, 0, vec![0; 1 << 20])).unwrap();
    }
    pair.queue.kick();
    pair.gate.fail("the backend has gone".to_owned());
    pair.queue.wait(None).unwrap();
    pair.queue.reap(&mut pair.done);
    assert_eq!(pair.done.len(), 3);
    assert!(pair.done.iter().all(|it| it.status == Status::Error && it.buffer.len() == 1 << 20));
}

#[test]
fn raw_slots_go_out_as_they_are() {
    let mut pair = pair(&Options::default());
    let encoder = Encoder { abi: Abi::X86_64, handle: 0 };
    assert!(pair.queue.put_raw(encoder.direct(77, 99, 5, &[]).bytes()));
    pair.queue.kick();
    let taken = pair.backend.take();
    assert_eq!((taken[0].operation, taken[0].id), (77, 99));
    pair.backend.answer(99, 77, -2);
    pair.backend.publish();
    let response = pair.queue.take_raw().unwrap().unwrap();
    assert_eq!(response, Response { id: 99, operation: 77, status: -2 });
    assert_eq!(pair.queue.take_raw().unwrap(), None);
}

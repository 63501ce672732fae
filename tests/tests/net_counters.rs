//! What a packet from one guest to another costs, counted in lock-step: a batch is put, carried, answered and taken before
//! the next. By our own counters, and by a counting allocator.

use std::alloc::System;

use netback::stats::Stats;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tests::flow::{Receiver, Sender, Shape, flow};
use tests::network::Network;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Batches that are counted, after some that are not.
const ROUNDS: u64 = 200;

/// Carries one batch; how many packets came out of it.
fn batch(sender: &mut Sender, receiver: &mut Receiver, packets: usize, pieces: usize) {
    sender.arm();
    receiver.arm();
    assert_eq!(sender.put(packets), packets);
    let mut come = 0;
    while sender.out() > 0 || come < packets * pieces {
        come += receiver.take().0;
        sender.reap();
        std::thread::yield_now();
    }
    assert_eq!(come, packets * pieces);
}

/// What was counted in between, of the sender's queue and the receiver's.
fn run(shape: Shape, packets: usize, pieces: usize) -> ([Stats; 2], [Stats; 2], usize) {
    let mut network = Network::new();
    let (mut sender, mut receiver) = flow(&mut network, shape);
    for _ in 0..20 {
        batch(&mut sender, &mut receiver, packets, pieces);
    }
    let before = [sender.card.stats(), receiver.card.stats()];
    let region = Region::new(ALLOCATOR);
    for _ in 0..ROUNDS {
        batch(&mut sender, &mut receiver, packets, pieces);
    }
    let allocations = region.change().allocations;
    // The last batch is put on the account after it was answered.
    while sender.card.stats().batches < before[0].batches + ROUNDS {
        std::thread::yield_now();
    }
    ([sender.card.stats(), receiver.card.stats()], before, allocations)
}

/// One test: what others allocate meanwhile would count.
#[test]
fn a_packet_costs_no_allocation_and_a_batch_two_copies_and_two_events() {
    let plain = Shape { len: 60, segment: 0, plain: false };
    for (shape, packets, pieces, most_calls) in [
        (plain, 32, 1, 2),
        (plain, 64, 1, 2),
        (Shape { len: 1514, ..plain }, 64, 1, 2),
        (Shape { len: 65_226, segment: 1448, ..plain }, 14, 1, 2),
        // Cut in software: fetched whole, and what was made of it placed.
        (Shape { len: 5846, segment: 1448, plain: true }, 16, 4, 3),
    ] {
        let ([sent, received], [sent_before, received_before], allocations) = run(shape, packets, pieces);
        assert_eq!(allocations, 0, "{shape:?}");
        let count = ROUNDS * packets as u64;
        assert_eq!(sent.sent_packets - sent_before.sent_packets, count, "{shape:?}");
        assert_eq!(received.received_packets - received_before.received_packets, count * pieces as u64, "{shape:?}");
        assert_eq!(sent.batches - sent_before.batches, ROUNDS, "a batch is one turn: {shape:?}");
        assert_eq!(sent.notified_out - sent_before.notified_out, ROUNDS, "one event to who sent: {shape:?}");
        assert_eq!(received.notified_out - received_before.notified_out, ROUNDS, "one to who got it: {shape:?}");
        let (copies, calls) =
            (sent.segments_copied - sent_before.segments_copied, sent.copy_calls - sent_before.copy_calls);
        assert_eq!(calls, ROUNDS * most_calls, "{shape:?}");
        assert!(copies >= calls * 16, "{copies} copies in {calls} calls: {shape:?}");
        assert_eq!(received.queued + received.dropped_no_room, 0, "{shape:?}");
    }
}

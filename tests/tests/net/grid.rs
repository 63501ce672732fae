//! Packets of every shape that a ring can hold, small and large, and what they may not be.

use std::time::{Duration, Instant};

use frontend::netfront::{Frame, Options};
use grant::{Access, PAGE_SIZE};
use netback::device::Report;
use netback::proto::*;
use tests::network::{Card, Network};

use crate::frames::{Tcp, is_right, plain};

fn request(gref: u32, offset: u16, flags: u16, id: u16, size: u16) -> [u8; 12] {
    zerocopy::transmute!(NetifTxRequest { gref, offset, flags, id, size })
}

/// The slots of a packet whose fragments have these lengths, all of the same frame that lies in `pages`.
fn fragments(pages: &[u32], lens: &[usize], total: usize) -> Vec<[u8; 12]> {
    let mut at = 0;
    let mut slots = Vec::new();
    for (number, &len) in lens.iter().enumerate() {
        let more = if number + 1 < lens.len() { NETTXF_MORE_DATA } else { 0 };
        let size = if number == 0 { total } else { len } as u16;
        slots.push(request(pages[at / PAGE_SIZE], (at % PAGE_SIZE) as u16, more, number as u16, size));
        at += len;
    }
    slots
}

#[test]
fn t21_xsa_432_every_count_of_slots_with_every_size_arrives_or_is_an_error() {
    let mut network = Network::new();
    let mut to = network.vif(&Card { mtu: 65_521, ..Card::default() });
    let mut hostile = network.hostile(&Card { mtu: 65_521, ..Card::default() }).unwrap();
    let good = hostile.pages(20, Access::ReadOnly);
    let pages: Vec<u32> = good.refs.iter().map(|gref| gref.0).collect();
    let frame = plain(hostile.mac, to.mac, 20 * PAGE_SIZE);
    good.memory.pages().write(0, &frame);
    let mut error = 0;
    for count in 1..=20usize {
        for total in [0, 1, 13, 14, 15, 60, 127, 128, 129, 160, 255, 1514, 4095, 4096] {
            // All but the last have one byte, or as much as there is: a packet that is copied whole although it has more
            // slots than others that are not.
            let small = total / count.max(1);
            let mut lens = vec![small; count];
            lens[count - 1] = total - small * (count - 1);
            let slots = fragments(&pages, &lens, total);
            hostile.transmit(&slots);
            let answers = hostile.answers(count);
            let fine = total >= 14 && count <= MOST_SLOTS;
            let status = if fine { NETIF_RSP_OKAY } else { NETIF_RSP_ERROR };
            assert!(answers.iter().all(|it| it.status == status), "{count} slots, {total} bytes: {answers:?}");
            match fine {
                true => assert_eq!(to.receive().bytes, frame[..total], "{count} slots, {total} bytes"),
                false => error += 1,
            }
        }
    }
    // A page in every slot: the largest there is.
    for count in 2..=16usize {
        let total = (count * PAGE_SIZE).min(MAX_TX_SIZE);
        let lens: Vec<usize> = (0..count).map(|at| PAGE_SIZE.min(total - at * PAGE_SIZE)).collect();
        hostile.transmit(&fragments(&pages, &lens, total));
        assert!(hostile.answers(count).iter().all(|it| it.status == NETIF_RSP_OKAY));
        assert_eq!(to.receive().bytes, frame[..total]);
    }
    // The first says less than the others have.
    hostile.transmit(&[request(pages[0], 0, NETTXF_MORE_DATA, 1, 100), request(pages[1], 0, 0, 2, 101)]);
    assert!(hostile.answers(2).iter().all(|it| it.status == NETIF_RSP_ERROR));
    assert_eq!(hostile.stats().sent_errors, error + 1);
    assert!(to.receive_within(Duration::ZERO).is_none());
}

/// Fragments of a packet that is taken: 18 that everybody must take, and the first one.
const MOST_SLOTS: usize = NR_SLOTS_MIN + 1;

#[test]
fn t22_xsa_423_headers_of_a_byte_for_each_slot_are_whole_for_whoever_looks_at_them() {
    let mut network = Network::new();
    let takes_all = network.vif(&Card::default());
    let options = Options { checksum_ipv4: false, ..Options::default() };
    let takes_none = network.vif(&Card { options, ..Card::default() });
    let mut sender = network.vif(&Card::default());
    for (mut to, worked) in [(takes_all, false), (takes_none, true)] {
        let tcp = Tcp { v6: false, payload: 600 };
        let bytes = tcp.frame(sender.mac, to.mac);
        for crumbs in 1..MOST_SLOTS {
            let mut cuts = vec![1; crumbs];
            cuts.push(bytes.len() - crumbs);
            let frame = Frame::new(bytes.clone()).with(tcp.offload(0)).cut(cuts);
            assert!(sender.queues[0].send(&frame));
            sender.queues[0].kick();
            sender.answered(0);
            let received = to.receive();
            match worked {
                true => assert!(is_right(&received.bytes), "{crumbs} crumbs"),
                false => assert_eq!(received.bytes, bytes, "{crumbs} crumbs"),
            }
        }
        assert_eq!(to.stats().checksums, if worked { MOST_SLOTS as u64 - 1 } else { 0 });
    }
    assert_eq!(sender.queues[0].counts().send_errors, 0);
}

#[test]
fn t23_segments_of_no_kind_and_extra_information_without_end_break_their_card_in_bounded_work() {
    for (says, slots) in [
        ("segments of type 3", vec![extra(EXTRA_TYPE_GSO, 0, [0, 5, 3, 0, 0, 0])]),
        ("segments of type 0", vec![extra(EXTRA_TYPE_GSO, 0, [0, 5, 0, 0, 0, 0])]),
        ("segments of no bytes", vec![extra(EXTRA_TYPE_GSO, 0, [0, 0, 1, 0, 0, 0])]),
        ("extra information of type 6", vec![extra(6, 0, [0; 6])]),
        ("extra information of type 255", vec![extra(255, 1, [0xFF; 6])]),
        // The whole ring, and every one says that another follows.
        ("goes on after the last slot", vec![extra(EXTRA_TYPE_HASH, EXTRA_FLAG_MORE, [0; 6]); 255]),
    ] {
        let mut network = Network::new();
        let mut hostile = network.hostile(&Card::default()).unwrap();
        let mut ring = vec![request(8, 0, NETTXF_EXTRA_INFO, 0, 100)];
        ring.extend(slots);
        hostile.transmit(&ring);
        match network.report() {
            Report::Broken { reason, .. } => assert!(reason.contains(says), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(hostile.stats().copy_calls, 0, "nothing of it was looked at");
    }
    // Long, with an end: it is a packet like others.
    let mut network = Network::new();
    let mut to = network.vif(&Card::default());
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let page = hostile.pages(1, Access::ReadOnly);
    let frame = plain(hostile.mac, to.mac, 100);
    page.memory.pages().write(0, &frame);
    let mut ring = vec![request(page.refs[0].0, 0, NETTXF_EXTRA_INFO, 0, 100)];
    ring.extend(vec![extra(EXTRA_TYPE_HASH, EXTRA_FLAG_MORE, [0; 6]); 200]);
    ring.push(extra(EXTRA_TYPE_HASH, 0, [0; 6]));
    hostile.transmit(&ring);
    let answers = hostile.answers(202);
    assert_eq!(answers[0].status, NETIF_RSP_OKAY);
    assert!(answers[1..].iter().all(|it| it.status == NETIF_RSP_NULL));
    assert_eq!(to.receive().bytes, frame);
}

fn extra(kind: u8, flags: u8, body: [u8; 6]) -> [u8; 12] {
    let mut slot = [0xEE; 12];
    slot[0] = kind;
    slot[1] = flags;
    slot[2..8].copy_from_slice(&body);
    slot
}

#[test]
fn t19_xsa_332_events_without_work_wake_nobody_for_long_and_stop_nobody() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let page = hostile.pages(1, Access::ReadOnly);
    let frame = plain(hostile.mac, b.mac, 100);
    page.memory.pages().write(0, &frame);
    let before = hostile.stats().notified_in;
    let (begun, mut sent) = (Instant::now(), 0u64);
    let time = if std::env::var_os("WINDSOR_LONG").is_some() { 10_000 } else { 1000 };
    while begun.elapsed() < Duration::from_millis(time) {
        (0..1000).for_each(|_| hostile.queue.notify().unwrap());
        sent += 1000;
        let bytes = plain(a.mac, b.mac, 300);
        assert!(a.queues[0].send(&Frame::new(bytes.clone())));
        a.queues[0].kick();
        assert_eq!(b.receive().bytes, bytes);
        a.answered(0);
    }
    let woken = hostile.stats().notified_in - before;
    let took = begun.elapsed();
    let pauses = took.as_millis() as u64 / 100;
    assert!(woken <= 2 * pauses + 32, "{sent} events in {took:?} woke the thread {woken} times");
    // It is still served, at the end of the pause at the latest.
    hostile.transmit(&[request(page.refs[0].0, 0, 0, 1, 100)]);
    hostile.answers(1);
    assert_eq!(b.receive().bytes, frame);
}

#[test]
fn t21_xsa_90_a_card_that_breaks_in_the_middle_of_traffic_takes_nobody_with_it() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    for round in 0..20u16 {
        let mut hostile = network.hostile(&Card::default()).unwrap();
        let page = hostile.pages(1, Access::ReadOnly);
        page.memory.pages().write(0, &plain(hostile.mac, b.mac, 200));
        let bytes = plain(a.mac, b.mac, 300 + usize::from(round));
        for _ in 0..50 {
            assert!(a.queues[0].send(&Frame::new(bytes.clone())));
        }
        let mut ring = vec![request(page.refs[0].0, 0, 0, 7, 200); usize::from(round)];
        ring.push(request(page.refs[0].0, 4000, 0, 7, 200));
        hostile.queue.tx.put(ring.iter().map(|slot| &slot[..]));
        a.queues[0].kick();
        hostile.queue.notify().unwrap();
        match network.report() {
            Report::Broken { vif, .. } => assert_eq!(vif, hostile.name),
            other => panic!("{other:?}"),
        }
        a.answered(0);
        let mut got = 0;
        while got < 50 {
            got += usize::from(b.receive().bytes == bytes);
        }
        network.worker.disconnect(hostile.name);
        assert_eq!(network.report(), Report::Closed { vif: hostile.name });
        assert_eq!(network.active_grants(hostile.name.guest), 0);
    }
}

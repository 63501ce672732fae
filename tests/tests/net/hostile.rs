//! Guests that mean harm: what they do ends their own card at worst, and the others go on.

use frontend::hostile::Index;
use frontend::netfront::Frame;
use grant::{Access, PAGE_SIZE};
use netback::device::Report;
use netback::proto::*;
use tests::network::{Card, Hostile, Network, Vif};

use crate::frames::plain;

fn request(gref: u32, offset: u16, flags: u16, id: u16, size: u16) -> [u8; 12] {
    zerocopy::transmute!(NetifTxRequest { gref, offset, flags, id, size })
}

/// Two fair guests, who still reach each other.
struct Fair {
    a: Vif,
    b: Vif,
}

impl Fair {
    fn new(network: &mut Network) -> Fair {
        Fair { a: network.vif(&Card::default()), b: network.vif(&Card::default()) }
    }

    fn go_on(&mut self) {
        let bytes = plain(self.a.mac, self.b.mac, 5000 / 4);
        assert!(self.a.queues[0].send(&Frame::new(bytes.clone())));
        self.a.queues[0].kick();
        assert_eq!(self.b.receive().bytes, bytes);
        self.a.answered(0);
    }
}

/// The card is given up, for a reason that says this, and the others are not.
fn breaks(says: &str, act: impl FnOnce(&mut Hostile)) {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    act(&mut hostile);
    match network.report() {
        Report::Broken { vif, reason } if vif == hostile.name => assert!(reason.contains(says), "{reason}"),
        other => panic!("{other:?}"),
    }
    fair.go_on();
    let guest = hostile.name.guest;
    network.worker.disconnect(hostile.name);
    assert_eq!(network.report(), Report::Closed { vif: hostile.name });
    assert_eq!(network.active_grants(guest), 0);
    // It may come back.
    drop(hostile);
    fair.go_on();
}

#[test]
fn t01_xsa_39_an_index_out_of_range_ends_the_card() {
    for ahead in [257, u32::MAX, 0x8000_0000, 300] {
        breaks("index out of range", |hostile| {
            hostile.queue.tx.set_index(Index::ReqProd, ahead);
            hostile.queue.notify().unwrap();
        });
    }
}

#[test]
fn t01_an_index_of_the_receive_ring_out_of_range_ends_the_card_when_somebody_writes_to_it() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let hostile = network.hostile(&Card::default()).unwrap();
    hostile.queue.rx.set_index(Index::ReqProd, 1000);
    assert!(fair.a.queues[0].send(&Frame::new(plain(fair.a.mac, hostile.mac, 100))));
    fair.a.queues[0].kick();
    match network.report() {
        Report::Broken { vif, reason } if vif == hostile.name => {
            assert!(reason.contains("receive queue 0"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    fair.a.answered(0);
    fair.go_on();
}

#[test]
fn t21_t23_xsa_39_packets_that_cannot_be_followed_end_the_card() {
    let more = NETTXF_MORE_DATA;
    breaks("goes on after the last slot", |hostile| hostile.transmit(&[request(8, 0, more, 0, 100)]));
    breaks("fragment of 97 bytes at 4000", |hostile| hostile.transmit(&[request(8, 4000, 0, 0, 97)]));
    breaks("extra information of type 0", |hostile| {
        hostile.transmit(&[request(8, 0, NETTXF_EXTRA_INFO, 0, 100), [0; 12]]);
    });
    breaks("segments of no bytes", |hostile| {
        let mut gso = [0; 12];
        gso[0] = EXTRA_TYPE_GSO;
        hostile.transmit(&[request(8, 0, NETTXF_EXTRA_INFO, 0, 100), gso]);
    });
    breaks("more than 20 fragments", |hostile| {
        let slots: Vec<[u8; 12]> = (0..30).map(|id| request(8, 0, more, id, if id == 0 { 4000 } else { 1 })).collect();
        hostile.transmit(&slots);
    });
}

#[test]
fn t08_xsa_362_pages_that_are_not_there_are_an_error_of_their_packet_only() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let good = hostile.pages(2, Access::ReadOnly);
    let frame = plain(hostile.mac, fair.b.mac, 4096 + 100);
    good.memory.pages().write(0, &frame);
    let [first, second] = [good.refs[0].0, good.refs[1].0];
    let more = NETTXF_MORE_DATA;
    hostile.transmit(&[
        // The first bytes cannot be had.
        request(60_000, 0, 0, 1, 100),
        // The rest cannot.
        request(first, 0, more, 2, 1200),
        request(60_000, 0, 0, 3, 200),
        // All of it is there.
        request(first, 0, 0, 4, 1000),
        // A reference of nobody's, beyond any table.
        request(u32::MAX, 0, 0, 5, 1000),
    ]);
    let answers: Vec<(u16, i16)> = hostile.answers(5).iter().map(|it| (it.id, it.status)).collect();
    let error = NETIF_RSP_ERROR;
    assert_eq!(answers, [(1, error), (2, error), (3, error), (4, NETIF_RSP_OKAY), (5, error)]);
    assert_eq!(fair.b.receive().bytes, frame[..1000]);
    assert_eq!(fair.b.stats().received_errors, 1, "it was on its way when the page was not there");
    let _ = second;
    fair.go_on();
}

#[test]
fn t08_a_receiver_whose_pages_are_not_there_loses_its_packets_and_nobody_else_does() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let readonly = hostile.pages(1, Access::ReadOnly);
    let slots: Vec<[u8; 8]> = [60_000, readonly.refs[0].0, u32::MAX]
        .into_iter()
        .enumerate()
        .map(|(id, gref)| zerocopy::transmute!(NetifRxRequest { id: id as u16, pad: 0xFFFF, gref }))
        .collect();
    hostile.queue.rx.put(slots.iter().map(|slot| &slot[..]));
    for _ in 0..3 {
        assert!(fair.a.queues[0].send(&Frame::new(plain(fair.a.mac, hostile.mac, 100))));
    }
    fair.a.queues[0].kick();
    fair.a.answered(0);
    assert_eq!(hostile.queue.rx.index(Index::RspProd), 3);
    for slot in 0..3 {
        let bytes: [u8; 8] = hostile.queue.rx.slot(slot).try_into().unwrap();
        let response: NetifRxResponse = zerocopy::transmute!(bytes);
        assert_eq!((response.id, response.status), (slot as u16, NETIF_RSP_ERROR));
    }
    assert_eq!(hostile.stats().received_errors, 3);
    fair.go_on();
}

#[test]
fn t11_xsa_216_nothing_but_the_packet_is_written_to_a_page_and_nothing_of_ours_to_a_slot() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let pages = hostile.pages(1, Access::ReadWrite);
    pages.memory.pages().write(0, &[0x5A; PAGE_SIZE]);
    let slot: [u8; 8] = zerocopy::transmute!(NetifRxRequest { id: 7, pad: 0, gref: pages.refs[0].0 });
    hostile.queue.rx.put([&slot[..]]);
    let bytes = plain(fair.a.mac, hostile.mac, 100);
    assert!(fair.a.queues[0].send(&Frame::new(bytes.clone())));
    fair.a.queues[0].kick();
    fair.a.answered(0);
    let mut page = [0; PAGE_SIZE];
    pages.memory.pages().read(0, &mut page);
    assert_eq!((&page[..100], &page[100..]), (&bytes[..], &[0x5A; PAGE_SIZE - 100][..]));
    let response: NetifRxResponse = zerocopy::transmute!(<[u8; 8]>::try_from(hostile.queue.rx.slot(0)).unwrap());
    assert_eq!(response, NetifRxResponse { id: 7, offset: 0, flags: 0, status: 100 });
}

#[test]
fn t12_every_id_is_answered_once_and_in_the_order_of_the_ring() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let good = hostile.pages(1, Access::ReadOnly);
    good.memory.pages().write(0, &plain(hostile.mac, fair.b.mac, 100));
    let gref = good.refs[0].0;
    // Ids that no driver has, twice the same, and packets that fail in between.
    let ids = [0xFFFF, 7, 7, 300, 0, 0xFFFF];
    let slots: Vec<[u8; 12]> = ids
        .iter()
        .enumerate()
        .map(|(at, &id)| request(if at % 2 == 0 { gref } else { 60_000 }, 0, 0, id, 100))
        .collect();
    hostile.transmit(&slots);
    let answers: Vec<u16> = hostile.answers(ids.len()).iter().map(|it| it.id).collect();
    assert_eq!(answers, ids);
    for _ in 0..3 {
        fair.b.receive();
    }
}

#[test]
fn t22_xsa_423_448_headers_in_crumbs_and_empty_fragments_arrive_or_are_dropped_whole() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let good = hostile.pages(1, Access::ReadOnly);
    let frame = plain(hostile.mac, fair.b.mac, 600);
    good.memory.pages().write(0, &frame);
    let gref = good.refs[0].0;
    let more = NETTXF_MORE_DATA;
    let mut ring = 0;
    for crumbs in 1..19u16 {
        for empty in [false, true] {
            // The first slot has one byte, then crumbs of one byte or none, then the rest.
            let each = u16::from(!empty);
            let first = 600 - (crumbs - 1) * each;
            let mut slots = vec![request(gref, 0, if crumbs > 1 { more } else { 0 }, 0, 600)];
            for id in 1..crumbs {
                let last = id + 1 == crumbs;
                slots.push(request(gref, first + (id - 1) * each, if last { 0 } else { more }, id, each));
            }
            ring += slots.len();
            hostile.transmit(&slots);
            let answers = hostile.answers(slots.len());
            assert!(answers.iter().all(|it| it.status == NETIF_RSP_OKAY), "{crumbs} crumbs");
            assert_eq!(fair.b.receive().bytes, frame, "{crumbs} crumbs, empty {empty}");
        }
    }
    assert!(ring > 256, "the ring has gone round");
    fair.go_on();
}

#[test]
fn t02_xsa_155_a_ring_that_changes_under_us_is_read_once() {
    let mut network = Network::new();
    let mut fair = Fair::new(&mut network);
    let mut hostile = network.hostile(&Card::default()).unwrap();
    let good = hostile.pages(1, Access::ReadOnly);
    good.memory.pages().write(0, &plain(hostile.mac, fair.b.mac, 200));
    let gref = good.refs[0].0;
    let rounds = if std::env::var_os("WINDSOR_LONG").is_some() { 200_000 } else { 20_000 };
    // A thread rewrites the slots all the time, between what is fair and what would reach beyond the page.
    let pages = hostile.queue.tx.memory.memory.pages();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flipper = {
        let stop = std::sync::Arc::clone(&stop);
        std::thread::spawn(move || {
            let sizes = [200u16, 60_000, 13, 0xFFFF];
            let mut at = 0usize;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let slot = grant::ring::SLOTS_AT + at % 256 * 12;
                pages.write(slot + 10, &sizes[at / 256 % 2 * 2].to_le_bytes());
                at += 1;
            }
        })
    };
    let mut answered = 0;
    for _ in 0..rounds / 100 {
        let slots = vec![request(gref, 0, 0, 1, 200); 100];
        hostile.transmit(&slots);
        answered += hostile.answers(100).len();
        while fair.b.receive_within(std::time::Duration::ZERO).is_some() {}
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flipper.join().unwrap();
    assert_eq!(answered, rounds);
    let stats = hostile.stats();
    assert_eq!(stats.sent_packets + stats.sent_errors, rounds as u64);
    fair.go_on();
}

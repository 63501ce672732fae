//! Cards that cannot go on, or may not yet: nobody's processor is spent on waiting for them.

use std::time::Duration;

use frontend::hostile::Index;
use frontend::netfront::{Frame, Options};
use grant::Access;
use netback::config::Rate;
use netback::device::Report;
use netback::packet::Mac;
use netback::proto::NetifTxRequest;
use tests::network::{Card, Network};

use crate::frames::plain;

/// Nearly nothing: one packet, then a debt of hours.
const CRAWL: Option<Rate> = Some(Rate { bytes: 1, interval_us: 60_000_000, packets: None });
/// What waits for longer is old.
const STALE: Duration = Duration::from_secs(1);

/// The thread of the network sleeps. One that spins shows all of the time, less what others on this machine take from
/// it; one that sleeps shows nothing.
fn sleeps(network: &Network) {
    let before = network.processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let spent = network.processor_time() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?} of 500 ms");
}

#[test]
fn t01_xsa_39_a_card_that_broke_its_ring_while_something_waited_for_it_costs_no_time() {
    let mut network = Network::new();
    let mut fair = network.vif(&Card::default());
    let mut hostile = network.hostile(&Card::default()).unwrap();
    // It posts no buffers.
    assert!(fair.queues[0].send(&Frame::new(plain(fair.mac, hostile.mac, 100))));
    fair.queues[0].kick();
    fair.answered(0);
    assert_eq!(hostile.stats().queued, 1);
    hostile.queue.tx.set_index(Index::ReqProd, 300);
    hostile.queue.notify().unwrap();
    assert!(matches!(network.report(), Report::Broken { vif, .. } if vif == hostile.name));
    std::thread::sleep(STALE);
    // Somebody wakes the thread.
    assert!(fair.queues[0].send(&Frame::new(plain(fair.mac, Mac([2; 6]), 100))));
    fair.queues[0].kick();
    fair.answered(0);
    sleeps(&network);
}

#[test]
fn t01_xsa_39_a_card_that_broke_its_other_ring_while_its_rate_was_used_up_costs_no_time() {
    let mut network = Network::new();
    let mut fair = network.vif(&Card::default());
    let rate = Some(Rate { bytes: 10_000, interval_us: 100_000, packets: None });
    let mut hostile = network.hostile(&Card { rate, ..Card::default() }).unwrap();
    let page = hostile.pages(1, Access::ReadOnly);
    page.memory.pages().write(0, &plain(hostile.mac, fair.mac, 1000));
    let slot: [u8; 12] =
        zerocopy::transmute!(NetifTxRequest { gref: page.refs[0].0, offset: 0, flags: 0, id: 0, size: 1000 });
    hostile.transmit(&[slot; 100]);
    hostile.answers(10);
    hostile.queue.rx.set_index(Index::ReqProd, 1000);
    assert!(fair.queues[0].send(&Frame::new(plain(fair.mac, hostile.mac, 100))));
    fair.queues[0].kick();
    assert!(matches!(network.report(), Report::Broken { vif, .. } if vif == hostile.name));
    std::thread::sleep(Duration::from_millis(200));
    sleeps(&network);
}

#[test]
fn t25_what_waits_for_the_rate_of_its_receiver_costs_no_time() {
    let mut network = Network::new();
    let options = Options { buffers: 64, ..Options::default() };
    let (mut a, mut b) =
        (network.vif(&Card::default()), network.vif(&Card { rate: CRAWL, options, ..Card::default() }));
    for _ in 0..3 {
        assert!(a.queues[0].send(&Frame::new(plain(a.mac, b.mac, 1000))));
    }
    a.queues[0].kick();
    a.answered(0);
    b.receive();
    // Two wait: one until the debt of the first is paid.
    std::thread::sleep(STALE);
    sleeps(&network);
    // And they were not lost for it.
    network.worker.rate(b.name, None);
    b.receive();
    b.receive();
}

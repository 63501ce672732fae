//! Guests that take nothing, take little, or may not take more.

use std::time::{Duration, Instant};

use frontend::netfront::{Frame, Options};
use netback::config::Rate;
use netback::device::Report;
use tests::network::{Card, Network};

use crate::frames::plain;

/// Sends until `count` packets were taken by the backend.
fn flood(from: &mut tests::network::Vif, to: netback::packet::Mac, count: usize, len: usize) {
    let frame = Frame::new(plain(from.mac, to, len));
    let mut sent = 0;
    while sent < count {
        while sent < count && from.queues[0].send(&frame) {
            sent += 1;
        }
        from.queues[0].kick();
        from.answered(0);
    }
}

#[test]
fn t25_xsa_392_xsa_424_a_guest_that_posts_no_buffers_costs_a_bounded_queue_and_nobody_else() {
    let mut network = Network::new();
    let card = Card { options: Options { buffers: 8, ..Options::default() }, ..Card::default() };
    let (mut a, mut b, mut c) = (network.vif(&Card::default()), network.vif(&card), network.vif(&Card::default()));
    let count = if std::env::var_os("WINDSOR_LONG").is_some() { 1_000_000 } else { 20_000 };
    flood(&mut a, b.mac, count, 1000);
    let stats = b.stats();
    assert_eq!(stats.received_packets, 8, "its buffers, and no more");
    assert_eq!(stats.queued, count as u64 - 8);
    assert!(stats.dropped_no_room >= count as u64 - 8 - 512, "512 KiB wait at most: {stats:?}");
    // Others are served meanwhile, from the same sender.
    flood(&mut a, c.mac, 1, 1000);
    assert_eq!(c.receive().bytes.len(), 1000);
    // And it recovers as soon as it takes something.
    let begun = Instant::now();
    let mut got = 0;
    while b.queues[0].receive_only().unwrap().is_some() {
        got += 1;
    }
    assert_eq!(got, 8);
    b.queues[0].repost();
    flood(&mut a, b.mac, 1, 77);
    while b.receive().bytes.len() != 77 {}
    assert!(begun.elapsed() < Duration::from_secs(5));
    network.close(a);
    network.close(b);
    network.close(c);
}

#[test]
fn t25_xsa_392_a_guest_that_takes_again_is_served_by_its_own_event_and_new_flows_come_first() {
    let mut network = Network::new();
    let card = Card { options: Options { buffers: 8, ..Options::default() }, ..Card::default() };
    let (mut a, mut b, mut c) = (network.vif(&Card::default()), network.vif(&card), network.vif(&Card::default()));
    flood(&mut a, b.mac, 600, 1000);
    flood(&mut c, b.mac, 1, 77);
    assert_eq!(b.stats().queued, 600 - 8 + 1);
    // Longer than a queue may be long (RFC 8289: 100 ms), and nobody else has anything to do.
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..8 {
        assert_eq!(b.queues[0].receive_only().unwrap().map(|packet| packet.bytes.len()), Some(1000));
    }
    assert_eq!(b.stats().received_packets, 8);
    let begun = Instant::now();
    b.queues[0].repost();
    let mut lens = Vec::new();
    while lens.len() < 8 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{lens:?}");
        lens.extend(b.queues[0].receive_only().unwrap().map(|packet| packet.bytes.len()));
    }
    println!("8 packets {:?} after their buffers", begun.elapsed());
    assert_eq!(b.stats().received_packets, 16, "as many as there are buffers");
    assert!(lens[..3].contains(&77), "the other flow does not wait for the one that stands: {lens:?}");
}

#[test]
fn what_does_not_fit_behind_another_headroom_is_dropped_and_the_rest_is_put_behind_it() {
    let mut network = Network::new();
    let options = Options { buffers: 4, ..Options::default() };
    let single = Options { scatter_gather: false, gso_tcpv4: false, gso_tcpv6: false, ..options };
    let mut a = network.vif(&Card { mtu: 9000, ..Card::default() });
    for (options, arrives) in [(single, false), (options, true)] {
        let mut b = network.vif(&Card { options, mtu: 9000, ..Card::default() });
        flood(&mut a, b.mac, 4, 100);
        // A page holds it, and does not with the headroom.
        flood(&mut a, b.mac, 1, 4000);
        assert_eq!(b.stats().queued, 1);
        network.worker.headroom(b.name, 256);
        assert_eq!(network.report(), Report::Reconfigured { vif: b.name, headroom: 256 });
        assert_eq!(b.stats().dropped_unfit, u64::from(!arrives));
        for _ in 0..4 {
            assert_eq!(b.receive().bytes.len(), 100);
        }
        if arrives {
            assert_eq!(b.receive().bytes, plain(a.mac, b.mac, 4000));
        }
        flood(&mut a, b.mac, 1, 77);
        let last = b.receive();
        assert_eq!(last.bytes, plain(a.mac, b.mac, 77));
        network.close(b);
    }
}

#[test]
fn what_waits_arrives_in_order_when_there_is_room() {
    let mut network = Network::new();
    let card = Card { options: Options { buffers: 4, ..Options::default() }, ..Card::default() };
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&card));
    for number in 0..60 {
        assert!(a.queues[0].send(&Frame::new(plain(a.mac, b.mac, 100 + number))));
    }
    a.queues[0].kick();
    a.answered(0);
    for number in 0..60 {
        assert_eq!(b.receive().bytes.len(), 100 + number);
    }
    assert_eq!(b.stats().queued, 56);
}

#[test]
fn a_frontend_that_does_not_tell_of_buffers_is_looked_after() {
    let mut network = Network::new();
    let options = Options { buffers: 4, rx_notify: false, ..Options::default() };
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card { options, ..Card::default() }));
    for number in 0..12 {
        assert!(a.queues[0].send(&Frame::new(plain(a.mac, b.mac, 100 + number))));
    }
    a.queues[0].kick();
    a.answered(0);
    for number in 0..12 {
        assert_eq!(b.receive().bytes.len(), 100 + number);
    }
}

#[test]
fn a_packet_that_never_fits_is_dropped_in_the_end() {
    let mut network = Network::new();
    let options = Options { buffers: 4, ..Options::default() };
    let card = Card { options, mtu: 65_521, ..Card::default() };
    let (mut a, mut b) = (network.vif(&card), network.vif(&card));
    a.mac = b.mac;
    let mut sender = network.vif(&Card { mtu: 65_521, ..Card::default() });
    assert!(sender.queues[0].send(&Frame::new(plain(sender.mac, b.mac, 30_000))));
    sender.queues[0].kick();
    sender.answered(0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while b.stats().dropped_no_room == 0 {
        assert!(Instant::now() < deadline);
        b.queues[0].wait(Duration::from_millis(20)).unwrap();
    }
    assert!(sender.queues[0].send(&Frame::new(plain(sender.mac, b.mac, 60))));
    sender.queues[0].kick();
    assert_eq!(b.receive().bytes.len(), 60);
}

#[test]
fn a_rate_holds_for_all_queues_together_and_in_both_directions() {
    // 2 MB/s, and packets of 1000 bytes: 2000 of them in a second. Twice that is sent.
    let rate = Some(Rate { bytes: 100_000, interval_us: 50_000, packets: None });
    for limits_sender in [true, false] {
        let mut network = Network::new();
        let limited = Card { rate, options: Options { queues: 2, ..Options::default() }, ..Card::default() };
        let free = Card { options: Options { queues: 2, ..Options::default() }, ..Card::default() };
        let (sender, receiver) = if limits_sender { (&limited, &free) } else { (&free, &limited) };
        let (mut a, mut b) = (network.vif(sender), network.vif(receiver));
        let begun = Instant::now();
        let (mut sent, mut got) = (0, 0);
        while got < 1000 {
            for queue in 0..2 {
                let frame = Frame::new(plain(a.mac, b.mac, 1000));
                while sent - got < 200 && a.queues[queue].send(&frame) {
                    sent += 1;
                }
                a.queues[queue].kick();
                a.queues[queue].unanswered().unwrap();
            }
            while b.receive_within(Duration::from_millis(1)).is_some() {
                got += 1;
            }
        }
        let took = begun.elapsed();
        // A million bytes, less what the bucket held: half a second at least. How much longer is the machine's business.
        assert!(took > Duration::from_millis(430), "{took:?}");
        let limited = if limits_sender { a.stats().limited } else { b.stats().queued };
        assert!(limited > 0);
    }
}

#[test]
fn a_rate_can_be_changed_and_taken_away() {
    let mut network = Network::new();
    // Nothing passes but the first packet, which leaves a debt: one byte in a minute.
    let rate = Some(Rate { bytes: 1, interval_us: 60_000_000, packets: None });
    let card = Card { mtu: 9000, ..Card::default() };
    let (mut a, mut b) = (network.vif(&Card { rate, ..card.clone() }), network.vif(&card));
    for _ in 0..10 {
        assert!(a.queues[0].send(&Frame::new(plain(a.mac, b.mac, 2000))));
    }
    a.queues[0].kick();
    b.receive();
    assert!(b.receive_within(Duration::from_millis(200)).is_none());
    network.worker.rate(a.name, None);
    for _ in 0..9 {
        b.receive();
    }
    a.answered(0);
}

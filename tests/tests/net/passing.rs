//! What goes in comes out: sizes, fragments, work left to do, and work done.

use frontend::netfront::{Frame, Options};
use netback::packet::{Checksum, Mac, Offload};
use tests::network::{Card, Network};

use crate::frames::{Tcp, is_right, plain};

#[test]
fn every_size_goes_from_one_guest_to_another_as_it_is() {
    let mut network = Network::new();
    let card = Card { mtu: 65_521, ..Card::default() };
    let (mut a, mut b) = (network.vif(&card), network.vif(&card));
    for len in (14..9100).step_by(61).chain([4095, 4096, 4097, 8192, 8193, 65_534, 65_535]) {
        let bytes = plain(a.mac, b.mac, len);
        assert!(a.queues[0].send(&Frame::new(bytes.clone())));
        a.queues[0].kick();
        let received = b.receive();
        assert_eq!((received.bytes.len(), received.slots), (len, len.div_ceil(4096)));
        assert_eq!(received.bytes, bytes);
        a.answered(0);
    }
    let (sent, received) = (a.stats(), b.stats());
    assert_eq!((sent.sent_packets, sent.sent_errors), (received.received_packets, 0));
    assert_eq!(a.queues[0].counts().send_errors, 0);
    network.close(a);
    network.close(b);
}

#[test]
fn however_it_is_cut_it_arrives_whole() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let bytes = plain(a.mac, b.mac, 1500);
    let one_by_one: Vec<usize> = std::iter::repeat_n(1, 17).chain([1500 - 17]).collect();
    for cuts in [vec![14, 1486], vec![1, 1, 1498], vec![60, 0, 1440], vec![0, 1500], vec![127, 1, 1, 1371], one_by_one]
    {
        for offset in [0, 1, 2596] {
            let mut frame = Frame::new(bytes.clone()).cut(cuts.clone());
            frame.offset = offset;
            assert!(a.queues[0].send(&frame));
            a.queues[0].kick();
            assert_eq!(b.receive().bytes, bytes, "{cuts:?} at {offset}");
            a.answered(0);
        }
    }
    assert_eq!(a.stats().sent_errors, 0);
}

#[test]
fn segments_and_checksums_are_kept_for_those_who_take_them_and_done_for_others() {
    for v6 in [false, true] {
        for take in 0..8 {
            let mut network = Network::new();
            let (sums, segments, scatter) = (take & 1 != 0, take & 2 != 0, take & 4 != 0);
            let options = Options {
                checksum_ipv4: sums,
                checksum_ipv6: sums,
                gso_tcpv4: segments,
                gso_tcpv6: segments,
                scatter_gather: scatter,
                ..Options::default()
            };
            let mut a = network.vif(&Card::default());
            let mut b = network.vif(&Card { options, ..Card::default() });
            // One packet with its checksum left to do.
            let tcp = Tcp { v6, payload: 1000 };
            let bytes = tcp.frame(a.mac, b.mac);
            assert!(a.queues[0].send(&Frame::new(bytes.clone()).with(tcp.offload(0))));
            a.queues[0].kick();
            let received = b.receive();
            if sums {
                assert_eq!((received.offload, &received.bytes), (tcp.offload(0), &bytes));
            } else {
                assert_eq!(received.offload, Offload::default());
                assert!(is_right(&received.bytes));
            }
            // One to be cut.
            let tcp = Tcp { v6, payload: 20_001 };
            let bytes = tcp.frame(a.mac, b.mac);
            let offload = tcp.offload(1400);
            assert!(a.queues[0].send(&Frame::new(bytes.clone()).with(offload)));
            a.queues[0].kick();
            if sums && segments && scatter {
                let received = b.receive();
                assert_eq!((received.offload, received.bytes), (offload, bytes));
            } else {
                let mut payload: Vec<u8> = Vec::new();
                while payload.len() < tcp.payload {
                    let received = b.receive();
                    assert_eq!(received.offload.gso, None);
                    assert!(is_right(&received.bytes), "v6 {v6}, {options:?}");
                    assert!(received.bytes.len() <= 1400 + tcp.headers());
                    payload.extend(&received.bytes[tcp.headers()..]);
                }
                assert_eq!(payload, bytes[tcp.headers()..]);
                assert_eq!(b.stats().segmented, 1);
            }
            a.answered(0);
            assert_eq!(b.queues[0].counts().receive_errors, 0);
        }
    }
}

#[test]
fn a_frame_for_all_reaches_all_and_an_unknown_one_nobody() {
    let mut network = Network::new();
    let mut vifs: Vec<_> = (0..5).map(|_| network.vif(&Card::default())).collect();
    let sender = vifs[0].mac;
    let (all, unknown) = (plain(sender, Mac::BROADCAST, 5000 / 4), plain(sender, Mac([2; 6]), 100));
    assert!(vifs[0].queues[0].send(&Frame::new(unknown)));
    assert!(vifs[0].queues[0].send(&Frame::new(all.clone())));
    vifs[0].queues[0].kick();
    for vif in &mut vifs[1..] {
        assert_eq!(vif.receive().bytes, all);
    }
    vifs[0].answered(0);
    assert_eq!(vifs[0].stats().dropped_nobody, 1);
    assert_eq!(vifs[0].stats().received_packets, 0, "not to itself");
}

#[test]
fn data_that_was_validated_is_said_to_be() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let offload = Offload { checksum: Checksum::Valid, gso: None };
    assert!(a.queues[0].send(&Frame::new(plain(a.mac, b.mac, 60)).with(offload)));
    a.queues[0].kick();
    assert_eq!(b.receive().offload, offload);
}

#[test]
fn a_ring_with_four_buffers_is_enough_for_small_packets_and_indexes_wrap() {
    let mut network = Network::new();
    let options = Options { buffers: 4, first_index: u32::MAX - 10, split_event_channels: false, ..Options::default() };
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card { options, ..Card::default() }));
    for round in 0..200 {
        let bytes = plain(a.mac, b.mac, 60 + round);
        assert!(a.queues[0].send(&Frame::new(bytes.clone())));
        a.queues[0].kick();
        assert_eq!(b.receive().bytes, bytes);
        a.answered(0);
        assert!(b.queues[0].send(&Frame::new(plain(b.mac, a.mac, 60))));
        b.queues[0].kick();
        assert_eq!(a.receive().bytes.len(), 60);
        b.answered(0);
    }
}

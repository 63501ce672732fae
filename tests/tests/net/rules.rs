//! What a guest may send and is given: addresses, VLANs, groups, sizes.

use std::time::Duration;

use frontend::netfront::{Frame, Options};
use netback::config::Allow;
use netback::packet::Mac;
use tests::network::{Card, Network, Vif};

use crate::frames::{Tcp, plain};

fn send(from: &mut Vif, bytes: Vec<u8>) {
    assert!(from.queues[0].send(&Frame::new(bytes)));
    from.queues[0].kick();
    from.answered(0);
}

/// Nothing has come, as far as can be told: what was sent is answered, so it was given or dropped.
fn nothing(vif: &mut Vif) {
    assert_eq!(vif.receive_within(Duration::ZERO).map(|received| received.bytes.len()), None);
}

#[test]
fn a_spoofed_frame_is_dropped_before_its_payload_is_copied() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let spoofed = plain(Mac([2; 6]), b.mac, 1500);
    send(&mut a, spoofed.clone());
    nothing(&mut b);
    assert_eq!((a.stats().dropped_policy, a.queues[0].counts().send_drops), (1, 1));
    // The first bytes and nothing else.
    assert_eq!(a.stats().segments_copied, 1);
    let allow = Allow { any_source: true, ..Allow::default() };
    let mut bridge = network.vif(&Card { allow, ..Card::default() });
    send(&mut bridge, spoofed.clone());
    assert_eq!(b.receive().bytes, spoofed);
    // It is learnt where that address is.
    let answer = plain(b.mac, Mac([2; 6]), 60);
    send(&mut b, answer.clone());
    assert_eq!(bridge.receive().bytes, answer);
}

#[test]
fn a_card_with_addresses_speaks_from_them_only() {
    let mut network = Network::new();
    let of = |address: &str| Card { addresses: vec![address.parse().unwrap()], ..Card::default() };
    let (mut right, mut wrong) = (network.vif(&of("10.0.0.1")), network.vif(&of("10.0.0.9")));
    let mut b = network.vif(&Card::default());
    let tcp = Tcp { v6: false, payload: 100 };
    let frame = tcp.frame(wrong.mac, b.mac);
    send(&mut wrong, frame);
    nothing(&mut b);
    let frame = tcp.frame(right.mac, b.mac);
    send(&mut right, frame);
    assert_eq!(b.receive().bytes.len(), 154);
    assert_eq!((wrong.stats().dropped_policy, right.stats().dropped_policy), (1, 0));
}

#[test]
fn vlans_do_not_hear_each_other_and_a_trunk_hears_all() {
    let mut network = Network::new();
    let of = |vlan| Card { vlan, ..Card::default() };
    let (mut seven, mut seven2, mut eight) =
        (network.vif(&of(Some(7))), network.vif(&of(Some(7))), network.vif(&of(Some(8))));
    let mut trunk = network.vif(&of(None));
    let frame = plain(seven.mac, Mac::BROADCAST, 300);
    send(&mut seven, frame.clone());
    assert_eq!(seven2.receive().bytes, frame);
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x81, 0, 0, 7]);
    tagged.extend(&frame[12..]);
    assert_eq!(trunk.receive().bytes, tagged);
    nothing(&mut eight);
    // Back, with a tag, which is taken away.
    let mut back = seven.mac.0.to_vec();
    back.extend(trunk.mac.0);
    back.extend([0x81, 0, 0, 7]);
    back.extend(&plain(trunk.mac, seven.mac, 1400)[12..]);
    send(&mut trunk, back);
    let received = seven.receive().bytes;
    assert_eq!(received, plain(trunk.mac, seven.mac, 1400));
    // A guest of a VLAN may not choose another one.
    let mut hop = Mac::BROADCAST.0.to_vec();
    hop.extend(seven.mac.0);
    hop.extend([0x81, 0, 0, 8, 0x88, 0xB5]);
    hop.resize(100, 0);
    send(&mut seven, hop);
    nothing(&mut eight);
    assert_eq!(seven.stats().dropped_policy, 1);
}

#[test]
fn groups_are_for_those_who_ask() {
    let mut network = Network::new();
    let asking = Card { options: Options { multicast_control: true, ..Options::default() }, ..Card::default() };
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&asking));
    let group = Mac([0x33, 0x33, 0, 0, 0, 0xFB]);
    let frame = plain(a.mac, group, 100);
    send(&mut a, frame.clone());
    nothing(&mut b);
    assert_eq!(b.stats().dropped_group, 1);
    assert!(b.queues[0].send(&Frame::group(true, group)));
    b.queues[0].kick();
    b.answered(0);
    send(&mut a, frame.clone());
    assert_eq!(b.receive().bytes, frame);
    assert!(b.queues[0].send(&Frame::group(false, group)));
    assert!(b.queues[0].send(&Frame::group(true, a.mac)), "no group: an error");
    b.queues[0].kick();
    b.answered(0);
    assert_eq!(b.queues[0].counts().send_errors, 1);
    send(&mut a, frame.clone());
    nothing(&mut b);
    // Live.
    network.worker.multicast(b.name, false);
    let all = plain(a.mac, Mac::BROADCAST, 60);
    send(&mut a, all);
    b.receive();
    send(&mut a, frame.clone());
    assert_eq!(b.receive().bytes, frame);
}

#[test]
fn a_frame_is_no_longer_than_its_receiver_takes() {
    let mut network = Network::new();
    let (mut jumbo, mut usual) = (network.vif(&Card { mtu: 9000, ..Card::default() }), network.vif(&Card::default()));
    let frame = plain(jumbo.mac, usual.mac, 9014);
    send(&mut jumbo, frame);
    nothing(&mut usual);
    assert_eq!(usual.stats().dropped_unfit, 1);
    let frame = plain(jumbo.mac, usual.mac, 1518);
    send(&mut jumbo, frame);
    assert_eq!(usual.receive().bytes.len(), 1518);
}

#[test]
fn t21_a_tag_makes_no_packet_larger_than_packets_are() {
    let mut network = Network::new();
    let card = Card { mtu: 65_521, ..Card::default() };
    let mut seven = network.vif(&Card { vlan: Some(7), ..card.clone() });
    let mut trunk = network.vif(&card);
    let frame = plain(seven.mac, trunk.mac, 65_535);
    send(&mut seven, frame);
    nothing(&mut trunk);
    assert_eq!(trunk.stats().dropped_unfit, 1);
    // What can be cut is cut.
    let tcp = Tcp { v6: false, payload: 65_535 - 54 };
    let frame = Frame::new(tcp.frame(seven.mac, trunk.mac)).with(tcp.offload(9000));
    assert!(seven.queues[0].send(&frame));
    seven.queues[0].kick();
    seven.answered(0);
    let mut payload = 0;
    while payload < tcp.payload {
        let received = trunk.receive();
        assert!(received.offload.gso.is_none() && received.bytes.len() <= 9000 + 54 + 4);
        payload += received.bytes.len() - 54 - 4;
    }
    assert_eq!((payload, trunk.queues[0].counts().receive_errors), (tcp.payload, 0));
}

#[test]
fn an_address_is_had_once() {
    let mut network = Network::new();
    let mac = Some(Mac([0, 0x16, 0x3E, 7, 7, 7]));
    let first = network.vif(&Card { mac, ..Card::default() });
    let refused = network.try_vif(&Card { mac, ..Card::default() }).err().expect("refused");
    assert!(refused.contains("another card of the network has the address 00:16:3e:07:07:07"), "{refused}");
    assert_eq!(network.active_grants(first.name.guest + 1), 0, "nothing of it is left");
    network.close(first);
    let again = network.vif(&Card { mac, ..Card::default() });
    network.close(again);
}

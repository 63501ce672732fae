//! The control ring: which packets come by which queue, with which hash; and what a guest may not do with it.

use std::time::Duration;

use frontend::netfront::{Frame, Options};
use netback::device::Report;
use netback::packet::Mac;
use netback::proto::*;
use tests::network::{Card, Network, Vif};

use crate::frames::{Tcp, plain};

const PATIENCE: Duration = Duration::from_secs(20);

fn card(queues: u16) -> Card {
    Card { control: true, options: Options { queues, ..Options::default() }, ..Card::default() }
}

/// Asks for something that succeeds.
#[track_caller]
fn ask(vif: &mut Vif, kind: u16, data: [u32; 3]) -> u32 {
    let (status, answer) = vif.control.as_mut().unwrap().ask(kind, data, PATIENCE).unwrap();
    assert_eq!(status, CTRL_STATUS_SUCCESS, "{kind} {data:?}");
    answer
}

/// Hashes of everything, with some key.
fn hashes(vif: &mut Vif) {
    ask(vif, CTRL_TYPE_SET_HASH_ALGORITHM, [CTRL_HASH_ALGORITHM_TOEPLITZ, 0, 0]);
    let all = ask(vif, CTRL_TYPE_GET_HASH_FLAGS, [0; 3]);
    assert_eq!(all, 15);
    let page = vif
        .control
        .as_mut()
        .unwrap()
        .write(&(0..40u8).map(|at| at.wrapping_mul(37).wrapping_add(11)).collect::<Vec<u8>>());
    ask(vif, CTRL_TYPE_SET_HASH_KEY, [page, 40, 0]);
    ask(vif, CTRL_TYPE_SET_HASH_FLAGS, [all, 0, 0]);
}

fn mapping(vif: &mut Vif, entries: &[u32], offset: u32) {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    let page = vif.control.as_mut().unwrap().write(&bytes);
    ask(vif, CTRL_TYPE_SET_HASH_MAPPING, [page, entries.len() as u32, offset]);
}

/// A TCP packet from a port.
fn from_port(from: &Vif, to: &Vif, v6: bool, port: u16) -> Frame {
    let tcp = Tcp { v6, payload: 100 };
    let mut bytes = tcp.frame(from.mac, to.mac);
    let at = tcp.headers() - 20;
    bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
    Frame::new(bytes).with(tcp.offload(0))
}

/// Sends one packet; by which queue it came, and its hash.
fn send(from: &mut Vif, to: &mut Vif, frame: &Frame) -> (usize, Option<netback::packet::Hash>) {
    assert!(from.queues[0].send(frame));
    from.queues[0].kick();
    from.answered(0);
    for (at, queue) in to.queues.iter_mut().enumerate() {
        if let Some(received) = queue.receive().unwrap() {
            assert_eq!(received.bytes.len(), frame.bytes.len());
            return (at, received.hash);
        }
    }
    panic!("nothing has come");
}

#[test]
fn packets_come_by_the_queue_that_the_guest_maps_their_hash_to() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&card(4)));
    let frame = from_port(&a, &b, false, 1);
    assert_eq!(send(&mut a, &mut b, &frame).1, None, "nobody has asked");
    hashes(&mut b);
    assert_eq!(ask(&mut b, CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]), 128);
    let mut seen = [0; 4];
    for v6 in [false, true] {
        for port in 1..100 {
            let frame = from_port(&a, &b, v6, port);
            let (queue, hash) = send(&mut a, &mut b, &frame);
            let hash = hash.unwrap();
            let kind = if v6 { CTRL_HASH_TYPE_IPV6_TCP } else { CTRL_HASH_TYPE_IPV4_TCP };
            assert_eq!((hash.algorithm, hash.kind, queue), (1, kind, hash.value as usize % 4));
            seen[queue] += 1;
        }
    }
    assert!(seen.iter().all(|&count| count > 10), "{seen:?}");
    // A table of its own.
    ask(&mut b, CTRL_TYPE_SET_HASH_MAPPING_SIZE, [64, 0, 0]);
    assert_eq!(send(&mut a, &mut b, &frame).0, 0, "it is empty");
    let table: Vec<u32> = (0..64).map(|at| at * 7 / 3 % 4).collect();
    mapping(&mut b, &table[..40], 0);
    mapping(&mut b, &table[40..], 40);
    for port in 1..100 {
        let frame = from_port(&a, &b, false, port);
        let (queue, hash) = send(&mut a, &mut b, &frame);
        assert_eq!(queue, table[hash.unwrap().value as usize % 64] as usize);
    }
    // What has no hash comes without one, by the queue of a hash of 0.
    let other = Frame::new(plain(a.mac, b.mac, 200));
    assert_eq!(send(&mut a, &mut b, &other), (table[0] as usize, None));
    ask(&mut b, CTRL_TYPE_SET_HASH_ALGORITHM, [CTRL_HASH_ALGORITHM_NONE, 0, 0]);
    assert_eq!(send(&mut a, &mut b, &frame).1, None);
    let guest = b.name.guest;
    network.close(b);
    assert_eq!(network.active_grants(guest), 0);
}

#[test]
fn a_mapping_that_changes_under_traffic_is_the_old_one_or_the_new_one() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&card(2)));
    hashes(&mut b);
    ask(&mut b, CTRL_TYPE_SET_HASH_MAPPING_SIZE, [128, 0, 0]);
    for round in 0..50 {
        // All of it says the same queue: a packet by the other one would be of no table that ever was.
        let queue = round % 2;
        for port in 0..20 {
            let frame = from_port(&a, &b, false, port);
            assert!(a.queues[0].send(&frame));
        }
        a.queues[0].kick();
        mapping(&mut b, &[queue; 128], 0);
        a.answered(0);
        while b.receive_within(Duration::ZERO).is_some() {}
        for port in 0..20 {
            let frame = from_port(&a, &b, false, port);
            assert_eq!(send(&mut a, &mut b, &frame).0, queue as usize);
        }
    }
    assert_eq!(b.queues.iter().map(|queue| queue.counts().received).sum::<u64>(), 50 * 40);
}

#[test]
fn a_hash_goes_with_segments_and_with_what_waited_unless_it_was_given_up_meanwhile() {
    let mut network = Network::new();
    let mut few = card(1);
    few.options = Options { gso_tcpv4: false, checksum_ipv4: false, buffers: 6, ..few.options };
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&few));
    hashes(&mut b);
    let tcp = Tcp { v6: false, payload: 6000 };
    let frame = Frame::new(tcp.frame(a.mac, b.mac)).with(tcp.offload(1000));
    assert!(a.queues[0].send(&frame));
    a.queues[0].kick();
    a.answered(0);
    // Two buffers for each: its bytes and its hash. Three have room.
    let first: Vec<_> = (0..2).map(|_| b.receive()).collect();
    assert!(first.iter().all(|received| received.slots == 2 && received.hash.is_some()));
    ask(&mut b, CTRL_TYPE_SET_HASH_FLAGS, [0; 3]);
    let rest: Vec<_> = (0..4).map(|_| b.receive()).collect();
    let last = rest.last().unwrap();
    assert_eq!((last.slots, last.hash), (1, None), "it had waited, and nobody wants its hash any more");
    assert!(first.iter().chain(&rest).all(|received| received.bytes.len() == 1054));
}

#[test]
fn t24_xsa_270_what_is_out_of_bounds_is_refused_and_nothing_else_happens() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&card(2)));
    hashes(&mut b);
    ask(&mut b, CTRL_TYPE_SET_HASH_MAPPING_SIZE, [8, 0, 0]);
    mapping(&mut b, &[1; 8], 0);
    let control = b.control.as_mut().unwrap();
    let page = control.write(&[0; 4096]);
    let (invalid, unknown) = (CTRL_STATUS_INVALID_PARAMETER, CTRL_STATUS_NOT_SUPPORTED);
    for (kind, data, status) in [
        (CTRL_TYPE_SET_HASH_MAPPING, [page, 9, 0], invalid),
        (CTRL_TYPE_SET_HASH_MAPPING, [page, u32::MAX, 1], invalid),
        (CTRL_TYPE_SET_HASH_MAPPING, [page, 1, u32::MAX], invalid),
        (CTRL_TYPE_SET_HASH_MAPPING, [60_000, 8, 0], invalid),
        (CTRL_TYPE_SET_HASH_MAPPING, [u32::MAX, 8, 0], invalid),
        (CTRL_TYPE_SET_HASH_MAPPING_SIZE, [u32::MAX, 0, 0], invalid),
        (CTRL_TYPE_SET_HASH_KEY, [page, 4096, 0], CTRL_STATUS_BUFFER_OVERFLOW),
        (CTRL_TYPE_SET_HASH_KEY, [60_000, 40, 0], invalid),
        (CTRL_TYPE_SET_HASH_ALGORITHM, [7, 0, 0], invalid),
        (CTRL_TYPE_SET_HASH_FLAGS, [u32::MAX, 0, 0], invalid),
        (8, [0; 3], unknown),
        (9, [0, page, 512], unknown),
        (0xFFFF, [u32::MAX; 3], unknown),
    ] {
        assert_eq!(control.ask(kind, data, PATIENCE).unwrap(), (status, 0), "{kind} {data:?}");
    }
    let frame = from_port(&a, &b, false, 5);
    let (queue, hash) = send(&mut a, &mut b, &frame);
    assert_eq!(queue, 1, "the mapping is what it was");
    assert_ne!(hash.unwrap().value, 0, "so is the key");
}

#[test]
fn t01_an_index_of_the_control_ring_out_of_range_ends_its_card_and_takes_nothing() {
    for ahead in [129, 0x8000_0000, u32::MAX] {
        let mut network = Network::new();
        let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
        let mut hostile = network.vif(&card(2));
        let control = hostile.control.as_mut().unwrap();
        control.memory.memory.pages().store_release(0, ahead);
        control.notify().unwrap();
        match network.report() {
            Report::Broken { vif, reason } if vif == hostile.name => {
                assert!(reason.contains("control ring: ring index out of range"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(control.memory.memory.pages().load_acquire(8), 0, "no answer was published");
        send(&mut a, &mut b, &Frame::new(plain(Mac([0, 0x16, 0x3E, 0, 0, 1]), Mac([0, 0x16, 0x3E, 0, 0, 2]), 300)));
        let guest = hostile.name.guest;
        network.close(hostile);
        assert_eq!(network.active_grants(guest), 0);
    }
}

#[test]
fn t24_a_full_control_ring_is_answered_while_others_are_served() {
    let mut network = Network::new();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let mut hostile = network.vif(&card(1));
    let control = hostile.control.as_mut().unwrap();
    let page = control.write(&[0; 40]);
    for round in 0..if std::env::var_os("WINDSOR_LONG").is_some() { 1000 } else { 20 } {
        let ids: Vec<u16> = (0..128).map(|_| control.send(CTRL_TYPE_SET_HASH_KEY, [page, 40, 0]).unwrap()).collect();
        send(&mut a, &mut b, &Frame::new(plain(Mac([0, 0x16, 0x3E, 0, 0, 1]), Mac([0, 0x16, 0x3E, 0, 0, 2]), 300)));
        let answers: Vec<u16> = (0..128).map(|_| control.answer(PATIENCE).unwrap().id).collect();
        assert_eq!(answers, ids, "round {round}");
    }
}

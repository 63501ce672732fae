use proptest::prelude::*;

use super::*;
use crate::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::proto::*;

/// The key of the published vectors ("Verifying the RSS Hash Calculation", NDIS).
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

fn request(kind: u16, data: [u32; 3]) -> NetifCtrlRequest {
    NetifCtrlRequest { id: 77, kind, data }
}

/// A guest with one page, grant 9.
fn ask(steering: &mut Steering, kind: u16, data: [u32; 3], page: &[u8]) -> (u32, u32) {
    let response = steering.request(&request(kind, data), &mut |gref, to| {
        to.copy_from_slice(&page[..to.len()]);
        gref == GrantRef(9)
    });
    assert_eq!((response.id, response.kind), (77, kind));
    (response.status, response.data)
}

fn on(flags: u32, queues: u16) -> Steering {
    let mut steering = Steering::new(queues);
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_ALGORITHM, [1, 0, 0], &[]), (0, 0));
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_KEY, [9, 40, 0], &KEY), (0, 0));
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_FLAGS, [flags, 0, 0], &[]), (0, 0));
    steering
}

fn tcp(source: &[u8], destination: &[u8], ports: [u16; 2], pieces: u16) -> Headers {
    let mut frame = vec![2; 12];
    if source.len() == 4 {
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0, 0, 0, 0, 0]);
        frame.extend(pieces.to_be_bytes());
        frame.extend([64, 6, 0, 0]);
    } else {
        frame.extend(ETHERTYPE_IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0, 0, 0, 6, 64]);
    }
    frame.extend(source);
    frame.extend(destination);
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
    Headers::parse(&frame).unwrap()
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

#[test]
fn the_published_vectors_come_out() {
    for (source, destination, ports, addresses, with_ports) in [
        ([66, 9, 149, 187], [161, 142, 100, 80], [2794, 1766], 0x323e_8fc2, 0x51cc_c178),
        ([199, 92, 111, 2], [65, 69, 140, 83], [14230, 4739], 0xd718_262a, 0xc626_b0ea),
        ([24, 19, 198, 95], [12, 22, 207, 184], [12898, 38024], 0xd2d0_a5de, 0x5c2b_394a),
        ([38, 27, 205, 30], [209, 142, 163, 6], [48228, 2217], 0x8298_9176, 0xafc7_327f),
        ([153, 39, 163, 191], [202, 188, 127, 2], [44251, 1303], 0x5d18_09c5, 0x10e8_28a2),
    ] {
        let headers = tcp(&source, &destination, ports, 0);
        for (flags, kind, value) in [
            (1, CTRL_HASH_TYPE_IPV4, addresses),
            (2, CTRL_HASH_TYPE_IPV4_TCP, with_ports),
            (15, CTRL_HASH_TYPE_IPV4_TCP, with_ports),
        ] {
            let hash = on(flags, 4).steer(&headers).unwrap();
            assert_eq!(hash, (value as usize % 4, Some(Hash { algorithm: 1, kind, value })));
        }
        // A fragment has no ports that count.
        let first = tcp(&source, &destination, ports, 0x2000);
        assert_eq!(on(15, 4).steer(&first).unwrap().1.map(|hash| hash.value), Some(addresses));
        assert_eq!(on(12, 4).steer(&headers), Some((0, None)), "only IPv6 was asked for");
    }
    let (source, destination) = (v6("3ffe:2501:200:1fff::7"), v6("3ffe:2501:200:3::1"));
    let headers = tcp(&source, &destination, [2794, 1766], 0);
    for (flags, kind, value) in [(4, CTRL_HASH_TYPE_IPV6, 0x2cc1_8cd5), (12, CTRL_HASH_TYPE_IPV6_TCP, 0x4020_7d3d)] {
        let hash = Hash { algorithm: 1, kind, value };
        assert_eq!(on(flags, 3).steer(&headers), Some((value as usize % 3, Some(hash))));
    }
    assert_eq!(on(0, 4).steer(&headers), None, "nothing is asked for");
    assert_eq!(Steering::new(4).steer(&headers), None);
}

#[test]
fn a_key_is_set_whole_and_cleared() {
    let headers = tcp(&[66, 9, 149, 187], &[161, 142, 100, 80], [2794, 1766], 0);
    let value = |steering: &Steering| steering.steer(&headers).unwrap().1.unwrap().value;
    let mut steering = on(1, 4);
    let before = steering.clone();
    for (data, status) in [
        ([9, 41, 0], CTRL_STATUS_BUFFER_OVERFLOW),
        ([9, u32::MAX, 0], CTRL_STATUS_BUFFER_OVERFLOW),
        ([8, 40, 0], CTRL_STATUS_INVALID_PARAMETER),
    ] {
        assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_KEY, data, &[0; 4096]), (status, 0));
        assert_eq!(steering, before);
    }
    // Twelve bytes are all that eight bytes of input meet.
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_KEY, [9, 12, 0], &KEY), (0, 0));
    assert_eq!(value(&steering), 0x323e_8fc2);
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_KEY, [0, 0, 0], &[]), (0, 0), "no page is needed for no bytes");
    assert_eq!(value(&steering), 0);
}

#[test]
fn t24_xsa_270_a_mapping_is_inside_its_table_and_names_queues_that_are_there() {
    let mut steering = on(1, 4);
    assert_eq!(ask(&mut steering, CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3], &[]), (0, 128));
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING_SIZE, [129, 0, 0], &[]).0, CTRL_STATUS_INVALID_PARAMETER);
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING, [9, 1, 0], &[0; 4]).0, 2, "there is no table yet");
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING_SIZE, [8, 0, 0], &[]), (0, 0));
    let page: Vec<u8> = (0..8u32).flat_map(|at| (at % 4).to_le_bytes()).collect();
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING, [9, 8, 0], &page), (0, 0));
    let before = steering.clone();
    let mut wrong = page.clone();
    wrong[28] = 4;
    for (data, page) in [
        ([9, 8, 1], &page),
        ([9, u32::MAX, 2], &page),
        ([9, 2, u32::MAX], &page),
        ([9, 0x8000_0000, 0x8000_0000], &page),
        ([9, 0x4000_0001, 0], &page),
        ([9, 0, 9], &page),
        ([8, 8, 0], &page),
        ([9, 8, 0], &wrong),
    ] {
        let answer = ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING, data, page);
        assert_eq!(answer, (CTRL_STATUS_INVALID_PARAMETER, 0), "{data:?}");
        assert_eq!(steering, before, "{data:?}: all or nothing");
    }
    let headers = tcp(&[66, 9, 149, 187], &[161, 142, 100, 80], [1, 2], 0);
    assert_eq!(steering.steer(&headers).unwrap().0, 0x323e_8fc2 % 8, "each entry is itself, modulo four");
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING, [9, 1, 2], &[3, 0, 0, 0]), (0, 0));
    assert_eq!(steering.steer(&headers).unwrap().0, 3, "entry 2 of 8, and no other");
    // A new size is a new table.
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_MAPPING_SIZE, [8, 0, 0], &[]), (0, 0));
    assert_eq!(steering.steer(&headers).unwrap().0, 0);
}

#[test]
fn t24_unknown_algorithms_hashes_and_requests_have_an_answer() {
    let mut steering = Steering::new(2);
    for (kind, data, status) in [
        (CTRL_TYPE_SET_HASH_ALGORITHM, [2, 0, 0], CTRL_STATUS_INVALID_PARAMETER),
        (CTRL_TYPE_SET_HASH_ALGORITHM, [u32::MAX, 0, 0], CTRL_STATUS_INVALID_PARAMETER),
        (CTRL_TYPE_GET_HASH_FLAGS, [0; 3], CTRL_STATUS_NOT_SUPPORTED),
        (CTRL_TYPE_SET_HASH_FLAGS, [1, 0, 0], CTRL_STATUS_INVALID_PARAMETER),
        (0, [0; 3], CTRL_STATUS_NOT_SUPPORTED),
        (8, [0; 3], CTRL_STATUS_NOT_SUPPORTED),
        (9, [0, 9, 512], CTRL_STATUS_NOT_SUPPORTED),
        (0xFFFF, [u32::MAX; 3], CTRL_STATUS_NOT_SUPPORTED),
    ] {
        assert_eq!(ask(&mut steering, kind, data, &[0; 4096]), (status, 0), "{kind} {data:?}");
        assert_eq!(steering, Steering::new(2));
    }
    let mut steering = on(15, 2);
    assert_eq!(ask(&mut steering, CTRL_TYPE_GET_HASH_FLAGS, [0; 3], &[]), (0, 15));
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_FLAGS, [16, 0, 0], &[]).0, CTRL_STATUS_INVALID_PARAMETER);
    assert_eq!(ask(&mut steering, CTRL_TYPE_SET_HASH_ALGORITHM, [0; 3], &[]), (0, 0));
    assert!(!steering.is_on());
}

proptest! {
    #[test]
    fn no_request_steers_a_packet_to_a_queue_that_is_not_there(
        queues in 1u16..=16, requests in prop::collection::vec((0u16..9, [0u32..140, 0u32..140, 0u32..140], any::<u8>()), 0..40),
        source: [u8; 4], ports: [u16; 2],
    ) {
        let mut steering = on(15, queues);
        for (kind, data, byte) in requests {
            steering.request(&request(kind, data), &mut |_, to| {
                for (at, to) in to.iter_mut().enumerate() {
                    *to = if at % 4 == 0 { byte.wrapping_add(at as u8) % 17 } else { 0 };
                }
                true
            });
            if let Some((queue, _)) = steering.steer(&tcp(&source, &[10, 0, 0, 2], ports, 0)) {
                prop_assert!(queue < usize::from(queues));
            }
        }
    }
}

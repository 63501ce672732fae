//! A frame of any bytes, with any work left to do: what is seen in its first bytes does not change when more of it is
//! seen, what is cut is all there, and every checksum that is made is right.

use std::net::{IpAddr, Ipv4Addr};

use netback::config::{Allow, VifParams};
use netback::headers::{Headers, Network, Transport};
use netback::offload::{MOST_SEGMENTS, Segments, VNET_HEADER, complete_checksum, is_fit, to_vnet};
use netback::packet::{Checksum, Gso, GsoKind, HEADERS, Mac, Offload};
use netback::policy::Policy;

use super::{Input, ones_sum};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub fn frame(input: &[u8]) {
    let mut input = Input(input);
    let (shape, [low, high]) = (input.byte(), [input.byte(), input.byte()]);
    // More of the same behind it: what is cut is longer than what is fuzzed.
    let filler = usize::from(input.byte()) * 16;
    let mut bytes = input.bytes(input.0.len());
    bytes.resize(bytes.len() + filler, 0x5A);
    let Some(whole) = Headers::parse(&bytes) else {
        assert!(bytes.len() < 14);
        return;
    };
    let first = &bytes[..bytes.len().min(HEADERS)];
    let seen = Headers::parse(first).expect("it is as long");
    agree(&seen, &whole);
    judge(&seen, first, shape);
    let kind = if shape & 1 == 0 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let size = u16::from_le_bytes([low, high]);
    let gso = (size > 0).then_some(Gso { kind, size });
    let offload = Offload { checksum: Checksum::Blank, gso };
    let fits = is_fit(&offload, &seen, first, bytes.len());
    let mut described = first.to_vec();
    let vnet = to_vnet(&offload, &mut described, bytes.len());
    if fits {
        // What fits can be worked on by whoever gets it.
        let vnet = vnet.expect("it fits");
        let at = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset);
        assert!(vnet.flags == 1 && at + 2 <= described.len() && VNET_HEADER == 10);
        described[at..at + 2].copy_from_slice(&first[at..at + 2]);
        assert_eq!(described, first, "nothing but the sum has changed");
    }
    match gso {
        Some(gso) => cut(&bytes, &whole, gso, fits),
        None => {
            let mut done = bytes.clone();
            let worked = complete_checksum(&mut done);
            assert!(!fits || worked.is_ok());
            if worked.is_ok() {
                assert_right(&done, &whole, ip_end(&done, &whole));
            }
        }
    }
}

/// What was seen in the first bytes is what is there.
fn agree(seen: &Headers, whole: &Headers) {
    assert_eq!((seen.destination, seen.source, seen.vlan), (whole.destination, whole.source, whole.vlan));
    assert_eq!((seen.ethertype, seen.network_at), (whole.ethertype, whole.network_at));
    match (&seen.network, &whole.network) {
        (Network::Unclear, _) => {}
        (Network::Ip(a), Network::Ip(b)) => {
            assert_eq!((a.source, a.destination, a.fragment), (b.source, b.destination, b.fragment));
            assert!(a.transport == b.transport || a.transport == Transport::Unclear, "{a:?} {b:?}");
        }
        (Network::Ip6(a), Network::Ip6(b)) => {
            assert_eq!((a.source, a.destination), (b.source, b.destination));
            assert!(a.transport == b.transport || a.transport == Transport::Unclear, "{a:?} {b:?}");
        }
        (a, b) => assert_eq!(a, b),
    }
}

/// Whatever a guest sends, what its policy lets pass is from it.
fn judge(headers: &Headers, first: &[u8], shape: u8) {
    let address = Ipv4Addr::new(10, 0, 0, 1);
    let mut params = VifParams {
        mac: Mac(MAC),
        addresses: if shape & 2 == 0 { vec![IpAddr::V4(address)] } else { Vec::new() },
        vlan: (shape & 4 == 0).then_some(7),
        mtu: 1500,
        rate: None,
        allow: Allow::default(),
    };
    if Policy::new(&params).check(headers, first).is_ok() {
        assert_eq!(headers.source.0, MAC);
        assert!(headers.vlan.is_none() || params.vlan.is_none());
        match &headers.network {
            Network::Ip(ip) if shape & 2 == 0 => {
                assert!(ip.source == address.octets() || ip.source == [0; 4], "{ip:?}");
            }
            Network::Ip6(_) | Network::Other => assert!(shape & 2 != 0 || headers.ethertype == 0x86DD),
            Network::Arp(arp) => assert_eq!(arp.sender_mac.0, MAC),
            _ => {}
        }
        if let Some((_, Transport::Udp(ports))) = headers.transport() {
            assert!(ports.source != if headers.is_v6() { 547 } else { 67 }, "a DHCP server");
        }
    }
    params.allow.any_source = true;
    let _ = Policy::new(&params).check(headers, first);
}

/// The end of a packet by its own word.
fn ip_end(frame: &[u8], headers: &Headers) -> usize {
    let at = headers.network_at;
    let word = |at: usize| usize::from(frame[at]) << 8 | usize::from(frame[at + 1]);
    if headers.is_v6() { at + 40 + word(at + 4) } else { at + word(at + 2) }
}

/// The transport checksum of a frame is right, by the slow sum.
fn assert_right(frame: &[u8], headers: &Headers, end: usize) {
    let (start, transport) = headers.transport().expect("it has a checksum");
    let addresses = headers.network_at + if headers.is_v6() { 8 } else { 12 };
    let count = if headers.is_v6() { 32 } else { 8 };
    let protocol = if matches!(transport, Transport::Tcp { .. }) { 6 } else { 17 };
    let len = (end - start) as u32;
    let mut sum = ones_sum(&frame[addresses..addresses + count], protocol);
    sum += (len & 0xFFFF) + (len >> 16);
    assert_eq!(ones_sum(&frame[start..end], sum) % 0xFFFF, 0, "a wrong checksum");
}

/// Every byte is in one segment, in its place, and every segment is right.
fn cut(frame: &[u8], headers: &Headers, gso: Gso, fits: bool) {
    let segments = Segments::new(frame, gso);
    let Ok(mut segments) = segments else {
        let few = frame.len() / usize::from(gso.size) < MOST_SEGMENTS;
        assert!(!fits || !few, "it fits, and cannot be cut");
        return;
    };
    let Some((tcp, Transport::Tcp { header, .. })) = headers.transport() else { panic!("no TCP") };
    let start = tcp + header;
    let sequence = |bytes: &[u8]| u32::from_be_bytes([bytes[tcp + 4], bytes[tcp + 5], bytes[tcp + 6], bytes[tcp + 7]]);
    let (mut out, mut at, mut count) = (Vec::new(), start, 0);
    while let Some(len) = segments.next_into(&mut out) {
        assert_eq!(out.len(), len);
        let payload = &out[start..];
        assert!(!payload.is_empty() && payload.len() <= gso.size.into());
        assert_eq!(payload, &frame[at..at + payload.len()]);
        assert_eq!(sequence(&out), sequence(frame).wrapping_add((at - start) as u32));
        let end = ip_end(&out, headers);
        assert_eq!(end, len, "it says another length");
        assert_right(&out, headers, end);
        if !headers.is_v6() {
            let ip = &out[headers.network_at..headers.network_at + usize::from(out[headers.network_at] & 15) * 4];
            assert_eq!(ones_sum(ip, 0) % 0xFFFF, 0, "a wrong checksum of the header");
        }
        at += payload.len();
        count += 1;
    }
    assert_eq!(at, frame.len());
    assert!(count <= MOST_SEGMENTS);
}

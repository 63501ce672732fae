use super::*;
use crate::config::Allow;
use crate::headers::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

const MAC: Mac = Mac([0x00, 0x16, 0x3E, 1, 2, 3]);
const OTHER: Mac = Mac([0x00, 0x16, 0x3E, 9, 9, 9]);
const V4: [u8; 4] = [10, 0, 0, 5];

fn params() -> VifParams {
    VifParams { mac: MAC, addresses: Vec::new(), vlan: None, mtu: 1500, rate: None, allow: Allow::default() }
}

fn restricted() -> VifParams {
    let addresses = vec![IpAddr::from(V4), "2001:db8::5".parse().unwrap()];
    VifParams { addresses, ..params() }
}

fn ethernet(source: Mac, ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1];
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(rest);
    frame
}

fn v4(source: [u8; 4], destination: [u8; 4], protocol: u8, pieces: u16, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 0];
    ip.extend(pieces.to_be_bytes());
    ip.extend([64, protocol, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    ip.extend(payload);
    ethernet(MAC, ETHERTYPE_IPV4, &ip)
}

fn v6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 255]);
    ip.extend(source.parse::<Ipv6Addr>().unwrap().octets());
    ip.extend("ff02::1".parse::<Ipv6Addr>().unwrap().octets());
    ip.extend(payload);
    ethernet(MAC, ETHERTYPE_IPV6, &ip)
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut udp = source.to_be_bytes().to_vec();
    udp.extend(destination.to_be_bytes());
    udp.extend([0, 8, 0, 0]);
    udp
}

fn arp(operation: u8, mac: Mac, ip: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(mac.0);
    packet.extend(ip);
    packet.extend([0; 10]);
    packet
}

/// Neighbour discovery about `target`, with an option that names a link address.
fn discovery(kind: u8, target: &str, option: u8, mac: Mac) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    packet.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend([option, 1]);
    packet.extend(mac.0);
    packet
}

#[track_caller]
fn judged(params: &VifParams, frame: &[u8], expected: Result<(), Denied>) {
    let headers = Headers::parse(frame).unwrap();
    assert_eq!(Policy::new(params).check(&headers, frame), expected, "{headers:?}");
}

#[test]
fn a_guest_has_its_own_address_on_the_link() {
    let frame = |source| ethernet(source, 0x1234, &[0; 46]);
    judged(&params(), &frame(MAC), Ok(()));
    judged(&params(), &frame(OTHER), Err(Denied::SpoofedMac));
    let any = VifParams { allow: Allow { any_source: true, ..Allow::default() }, ..params() };
    judged(&any, &frame(OTHER), Ok(()));
    judged(&any, &frame(Mac([3, 0, 0, 0, 0, 1])), Err(Denied::SpoofedMac));
    judged(&restricted(), &frame(MAC), Err(Denied::Protocol));
}

#[test]
fn arp_says_what_the_guest_is() {
    let frame = |operation, mac, ip| ethernet(MAC, ETHERTYPE_ARP, &arp(operation, mac, ip));
    judged(&params(), &frame(2, MAC, [10, 0, 0, 99]), Ok(()));
    judged(&params(), &frame(2, OTHER, V4), Err(Denied::SpoofedNeighbour));
    judged(&restricted(), &frame(2, MAC, V4), Ok(()));
    judged(&restricted(), &frame(2, MAC, [10, 0, 0, 1]), Err(Denied::SpoofedNeighbour));
    judged(&restricted(), &frame(1, MAC, [0; 4]), Ok(()));
    judged(&restricted(), &frame(2, MAC, [0; 4]), Err(Denied::SpoofedNeighbour));
    judged(&params(), &ethernet(MAC, ETHERTYPE_ARP, &[0; 10]), Err(Denied::Unclear));
}

#[test]
fn addresses_are_its_own_and_asking_for_one_is_allowed() {
    let to = [10, 0, 0, 1];
    judged(&params(), &v4([1, 2, 3, 4], to, 17, 0, &udp(5, 6)), Ok(()));
    judged(&restricted(), &v4(V4, to, 17, 0, &udp(5, 6)), Ok(()));
    judged(&restricted(), &v4([1, 2, 3, 4], to, 17, 0, &udp(5, 6)), Err(Denied::SpoofedIp));
    judged(&restricted(), &v4([0; 4], [255; 4], 17, 0, &udp(68, 67)), Ok(()));
    judged(&restricted(), &v4([0; 4], to, 17, 0, &udp(68, 67)), Err(Denied::SpoofedIp));
    judged(&restricted(), &v4([0; 4], [255; 4], 17, 0, &udp(67, 68)), Err(Denied::SpoofedIp));
    judged(&restricted(), &v6("2001:db8::5", 6, &[0x50; 20]), Ok(()));
    judged(&restricted(), &v6("2001:db8::6", 6, &[0x50; 20]), Err(Denied::SpoofedIp));
    judged(&restricted(), &v6("fe80::216:3eff:fe01:203", 58, &discovery(133, "::", 1, MAC)), Ok(()));
    judged(&restricted(), &v6("::", 58, &discovery(NEIGHBOUR_SOLICITATION, "2001:db8::5", 14, MAC)), Ok(()));
    judged(&restricted(), &v6("::", 6, &[0x50; 20]), Err(Denied::SpoofedIp));
    let v4_only = VifParams { addresses: vec![IpAddr::from(V4)], ..params() };
    judged(&v4_only, &v6("fe80::216:3eff:fe01:203", 6, &[0x50; 20]), Err(Denied::SpoofedIp));
}

#[test]
fn a_guest_answers_for_itself_only() {
    let from = "2001:db8::5";
    let answer = |target, mac| v6(from, 58, &discovery(NEIGHBOUR_ADVERTISEMENT, target, 2, mac));
    judged(&restricted(), &answer(from, MAC), Ok(()));
    judged(&restricted(), &answer("2001:db8::1", MAC), Err(Denied::SpoofedNeighbour));
    judged(&restricted(), &answer(from, OTHER), Err(Denied::SpoofedNeighbour));
    judged(&params(), &answer("2001:db8::1", MAC), Ok(()));
    judged(&params(), &answer("2001:db8::1", OTHER), Err(Denied::SpoofedNeighbour));
    // An option without end, and one that goes beyond what was copied.
    let mut endless = answer(from, MAC);
    endless[14 + 40 + 25] = 0;
    judged(&params(), &endless, Err(Denied::Unclear));
    judged(&params(), &answer(from, MAC)[..14 + 40 + 28], Err(Denied::Unclear));
}

#[test]
fn routers_and_servers_are_named_in_the_configuration() {
    let advertisement = v6("fe80::1", 58, &[ROUTER_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0]);
    let hidden = {
        let mut options = vec![58, 0, 1, 4, 0, 0, 0, 0];
        options.extend([ROUTER_ADVERTISEMENT, 0, 0, 0]);
        v6("fe80::1", 60, &options)
    };
    // The first of several; those that come after it say nothing that counts.
    let first_fragment = v6("fe80::1", 44, &[58, 0, 0, 1, 0, 0, 0, 0, 134, 0, 0, 0]);
    let later_fragment = v6("fe80::1", 44, &[58, 0, 0, 9, 0, 0, 0, 0, 134, 0, 0, 0]);
    judged(&params(), &later_fragment, Ok(()));
    let redirect = v4(V4, [10, 0, 0, 1], 1, 0, &[5, 1, 0, 0, 0, 0, 0, 0]);
    let server = v4(V4, [255; 4], 17, 0, &udp(67, 68));
    let server6 = v6("fe80::1", 17, &udp(547, 546));
    let tiny = v4(V4, [255; 4], 17, 0x2000, &udp(67, 68)[..4]);
    for (frame, why) in [
        (&advertisement, Denied::Router),
        (&hidden, Denied::Router),
        (&first_fragment, Denied::Router),
        (&redirect, Denied::Router),
        (&server, Denied::DhcpServer),
        (&server6, Denied::DhcpServer),
        (&tiny, Denied::Unclear),
    ] {
        judged(&params(), frame, Err(why));
    }
    let allow = Allow { any_source: true, router: true, dhcp_server: true };
    let router = VifParams { allow, ..params() };
    for frame in [advertisement, hidden, first_fragment, redirect, server, server6, tiny] {
        judged(&router, &frame, Ok(()));
    }
}

#[test]
fn a_chain_that_cannot_be_followed_is_refused() {
    let far = v6("fe80::1", 60, &[58, 200, 0, 0, 0, 0, 0, 0]);
    judged(&params(), &far, Err(Denied::Unclear));
    let endless: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(9);
    judged(&params(), &v6("fe80::1", 60, &endless), Err(Denied::Unclear));
}

#[test]
fn tags_belong_to_guests_that_are_in_no_vlan() {
    let tagged = |inner: &[u8]| {
        let mut frame = inner[..12].to_vec();
        frame.extend([0x81, 0, 0, 7]);
        frame.extend(&inner[12..]);
        frame
    };
    let inner = v4(V4, [10, 0, 0, 1], 17, 0, &udp(5, 6));
    judged(&params(), &tagged(&inner), Ok(()));
    judged(&restricted(), &tagged(&v4([9; 4], [10, 0, 0, 1], 17, 0, &udp(5, 6))), Err(Denied::SpoofedIp));
    judged(&VifParams { vlan: Some(7), ..params() }, &tagged(&inner), Err(Denied::Tag));
    judged(&params(), &tagged(&tagged(&inner)), Err(Denied::Tag));
}

#[test]
fn no_cut_of_a_frame_is_judged_more_kindly_than_the_whole() {
    let spoofed = [
        v6("2001:db8::5", 58, &discovery(NEIGHBOUR_ADVERTISEMENT, "2001:db8::1", 2, MAC)),
        v6("2001:db8::5", 58, &discovery(NEIGHBOUR_ADVERTISEMENT, "2001:db8::5", 2, OTHER)),
        v6("fe80::1", 58, &[ROUTER_ADVERTISEMENT, 0, 0, 0]),
        v4(V4, [255; 4], 17, 0, &udp(67, 68)),
        ethernet(MAC, ETHERTYPE_ARP, &arp(2, OTHER, V4)),
    ];
    let policy = Policy::new(&restricted());
    for frame in spoofed {
        for end in 14..=frame.len() {
            let headers = Headers::parse(&frame[..end]).unwrap();
            assert!(policy.check(&headers, &frame[..end]).is_err(), "{end} bytes of {headers:?}");
        }
    }
}

//! What the first bytes of a frame say. A total function: whatever a guest sends has an answer, and what could not be
//! seen is told apart from what is not there, so that a policy can refuse what it cannot judge.

use crate::packet::{ETHERNET_HEADER, Mac, VLAN_TAG};

/// `ETH_P_IP` (if_ether.h).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// `ETH_P_ARP`.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// `ETH_P_8021Q`.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// `ETH_P_8021AD`: a second tag outside of the first.
pub const ETHERTYPE_QINQ: u16 = 0x88A8;
/// `ETH_P_IPV6`.
pub const ETHERTYPE_IPV6: u16 = 0x86DD;

/// `IPPROTO_ICMP` (RFC 792).
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP` (RFC 9293).
pub const TCP: u8 = 6;
/// `IPPROTO_UDP` (RFC 768).
pub const UDP: u8 = 17;
/// `IPPROTO_ICMPV6` (RFC 4443).
pub const ICMPV6: u8 = 58;
/// Extension headers of IPv6 that only lead to the next one (RFC 8200): hop-by-hop options, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// The fragment header.
const FRAGMENT: u8 = 44;
/// Most extension headers that are followed.
const MOST_EXTENSIONS: usize = 8;

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// The number of its 802.1Q tag; 0 for one that says a priority only.
    pub vlan: Option<u16>,
    /// What follows: an EtherType, after the tag.
    pub ethertype: u16,
    /// Where the network header begins.
    pub network_at: usize,
    /// What it is.
    pub network: Network,
}

/// The network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp(Arp),
    /// IPv4 (RFC 791).
    Ip(Ip<[u8; 4]>),
    /// IPv6 (RFC 8200).
    Ip6(Ip<[u8; 16]>),
    /// Another protocol.
    Other,
    /// It says that it is one of the above, and it is not, or could not be seen.
    Unclear,
}

/// What an ARP packet claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Who says it.
    pub sender_mac: Mac,
    /// And its address; zeros in a probe (RFC 5227).
    pub sender_ip: [u8; 4],
}

/// An IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// From whom.
    pub source: A,
    /// To whom.
    pub destination: A,
    /// A part of a larger packet, the first or another.
    pub fragment: bool,
    /// What is inside.
    pub protocol: u8,
    /// Where it begins, in the frame.
    pub transport_at: usize,
    /// What it is.
    pub transport: Transport,
}

/// The transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with a header of this many bytes.
    Tcp {
        /// 20..=60.
        header: usize,
        /// Its ports.
        ports: Ports,
    },
    /// UDP.
    Udp(Ports),
    /// ICMP or ICMPv6.
    Icmp {
        /// Its type.
        kind: u8,
    },
    /// Another protocol.
    Other,
    /// There is none: a fragment that is not the first.
    Absent,
    /// It could not be seen, or is not what it says.
    Unclear,
}

/// Ports of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// From which.
    pub source: u16,
    /// To which.
    pub destination: u16,
}

/// `N` bytes at `at`, if they are all there.
fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    bytes(frame, at).map(u16::from_be_bytes)
}

impl Headers {
    /// Looks at `first`, the first bytes of a frame, or all of it. None when not even an Ethernet header is there.
    pub fn parse(first: &[u8]) -> Option<Headers> {
        let (destination, source) = (Mac(bytes(first, 0)?), Mac(bytes(first, 6)?));
        let mut ethertype = word(first, 12)?;
        let (mut vlan, mut network_at) = (None, ETHERNET_HEADER);
        if ethertype == ETHERTYPE_VLAN
            && let (Some(tag), Some(inner)) = (word(first, 14), word(first, 16))
        {
            (vlan, ethertype, network_at) = (Some(tag & 0xFFF), inner, ETHERNET_HEADER + VLAN_TAG);
        }
        let network = match ethertype {
            ETHERTYPE_ARP => arp(first, network_at).map_or(Network::Unclear, Network::Arp),
            ETHERTYPE_IPV4 => ipv4(first, network_at).map_or(Network::Unclear, Network::Ip),
            ETHERTYPE_IPV6 => ipv6(first, network_at).map_or(Network::Unclear, Network::Ip6),
            ETHERTYPE_VLAN if vlan.is_none() => Network::Unclear,
            _ => Network::Other,
        };
        Some(Headers { destination, source, vlan, ethertype, network_at, network })
    }

    /// It carries IPv6.
    pub fn is_v6(&self) -> bool {
        self.ethertype == ETHERTYPE_IPV6
    }

    /// What packets of a flow have in common: addresses, protocol and ports.
    pub fn flow(&self) -> (Mac, Mac, [u8; 16], [u8; 16], u8, Option<Ports>) {
        let ports = match self.transport() {
            Some((_, Transport::Tcp { ports, .. } | Transport::Udp(ports))) => Some(ports),
            _ => None,
        };
        let wide = |address: [u8; 4]| std::array::from_fn(|at| address.get(at).copied().unwrap_or_default());
        let (source, destination, protocol) = match &self.network {
            Network::Ip(ip) => (wide(ip.source), wide(ip.destination), ip.protocol),
            Network::Ip6(ip) => (ip.source, ip.destination, ip.protocol),
            _ => Default::default(),
        };
        (self.source, self.destination, source, destination, protocol, ports)
    }

    /// Where the transport header begins, and which it is.
    pub fn transport(&self) -> Option<(usize, Transport)> {
        match &self.network {
            Network::Ip(ip) => Some((ip.transport_at, ip.transport)),
            Network::Ip6(ip) => Some((ip.transport_at, ip.transport)),
            _ => None,
        }
    }
}

fn arp(frame: &[u8], at: usize) -> Option<Arp> {
    // Ethernet and IPv4, with addresses of six and four bytes: nothing else is spoken.
    if bytes(frame, at)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let (sender_mac, sender_ip) = (Mac(bytes(frame, at + 8)?), bytes(frame, at + 14)?);
    // The target's addresses are there too.
    bytes::<10>(frame, at + 18)?;
    Some(Arp { operation: word(frame, at + 6)?, sender_mac, sender_ip })
}

fn ipv4(frame: &[u8], at: usize) -> Option<Ip<[u8; 4]>> {
    let header: [u8; 20] = bytes(frame, at)?;
    let len = usize::from(header[0] & 0xF) * 4;
    if header[0] >> 4 != 4 || len < 20 || frame.len() < at + len {
        return None;
    }
    let (source, destination) = (bytes(frame, at + 12)?, bytes(frame, at + 16)?);
    let pieces = u16::from_be_bytes([header[6], header[7]]);
    let (offset, more, protocol, transport_at) = (pieces & 0x1FFF, pieces & 0x2000 != 0, header[9], at + len);
    let transport = if offset == 0 { transport(frame, transport_at, protocol) } else { Transport::Absent };
    Some(Ip { source, destination, fragment: offset != 0 || more, protocol, transport_at, transport })
}

fn ipv6(frame: &[u8], at: usize) -> Option<Ip<[u8; 16]>> {
    let header: [u8; 40] = bytes(frame, at)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (source, destination) = (bytes(frame, at + 8)?, bytes(frame, at + 24)?);
    let mut ip = Ip {
        source,
        destination,
        fragment: false,
        protocol: header[6],
        transport_at: at + 40,
        transport: Transport::Unclear,
    };
    for _ in 0..MOST_EXTENSIONS {
        let at = ip.transport_at;
        if EXTENSIONS.contains(&ip.protocol) {
            let Some([next, len]) = bytes(frame, at) else { return Some(ip) };
            (ip.protocol, ip.transport_at) = (next, at + (usize::from(len) + 1) * 8);
        } else if ip.protocol == FRAGMENT {
            let Some([next, _, high, low]) = bytes::<4>(frame, at) else { return Some(ip) };
            (ip.protocol, ip.transport_at, ip.fragment) = (next, at + 8, true);
            if u16::from_be_bytes([high, low]) & !7 != 0 {
                ip.transport = Transport::Absent;
                return Some(ip);
            }
        } else {
            ip.transport = transport(frame, at, ip.protocol);
            return Some(ip);
        }
    }
    Some(ip)
}

fn transport(frame: &[u8], at: usize, protocol: u8) -> Transport {
    let ports = || Some(Ports { source: word(frame, at)?, destination: word(frame, at + 2)? });
    let found = match protocol {
        TCP => ports().zip(bytes::<20>(frame, at)).and_then(|(ports, tcp)| {
            let header = usize::from(tcp[12] >> 4) * 4;
            (header >= 20).then_some(Transport::Tcp { header, ports })
        }),
        UDP => ports().zip(bytes::<8>(frame, at)).map(|(ports, _)| Transport::Udp(ports)),
        ICMP | ICMPV6 => bytes::<4>(frame, at).map(|icmp| Transport::Icmp { kind: icmp[0] }),
        _ => Some(Transport::Other),
    };
    found.unwrap_or(Transport::Unclear)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An Ethernet header before `rest`.
    fn frame(ethertype: u16, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(rest);
        frame
    }

    fn v4(protocol: u8, pieces: u16, payload: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0];
        ip.extend(pieces.to_be_bytes());
        ip.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.extend(payload);
        frame(ETHERTYPE_IPV4, &ip)
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        ip.extend([0xFE; 16]);
        ip.extend([0xFD; 16]);
        ip.extend(payload);
        frame(ETHERTYPE_IPV6, &ip)
    }

    #[test]
    fn a_tag_is_looked_behind_and_a_cut_one_is_unclear() {
        let inner = v4(UDP, 0, &[0, 68, 0, 67, 0, 8, 0, 0]);
        let mut tagged = inner[..12].to_vec();
        tagged.extend([0x81, 0, 0x60, 7]);
        tagged.extend(&inner[12..]);
        let headers = Headers::parse(&tagged).unwrap();
        assert_eq!((headers.vlan, headers.ethertype, headers.network_at), (Some(7), ETHERTYPE_IPV4, 18));
        let ports = Ports { source: 68, destination: 67 };
        assert_eq!(headers.transport(), Some((38, Transport::Udp(ports))));
        assert_eq!(Headers::parse(&tagged[..16]).unwrap().network, Network::Unclear);
        assert_eq!(Headers::parse(&tagged[..13]), None);
    }

    #[test]
    fn arp_says_who() {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9];
        packet.extend([0; 10]);
        let Network::Arp(arp) = Headers::parse(&frame(ETHERTYPE_ARP, &packet)).unwrap().network else { panic!() };
        assert_eq!((arp.operation, arp.sender_mac, arp.sender_ip), (2, Mac([2, 0, 0, 0, 0, 9]), [10, 0, 0, 9]));
        assert_eq!(Headers::parse(&frame(ETHERTYPE_ARP, &packet[..27])).unwrap().network, Network::Unclear);
        packet[5] = 16;
        assert_eq!(Headers::parse(&frame(ETHERTYPE_ARP, &packet)).unwrap().network, Network::Unclear);
    }

    #[test]
    fn fragments_and_what_hides_in_them() {
        let of = |frame: &[u8]| match Headers::parse(frame).unwrap().network {
            Network::Ip(ip) => (ip.fragment, ip.transport),
            Network::Ip6(ip) => (ip.fragment, ip.transport),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(&v4(ICMP, 0, &[5, 0, 0, 0])), (false, Transport::Icmp { kind: 5 }));
        assert_eq!(of(&v4(ICMP, 0x2000, &[5, 0, 0, 0])), (true, Transport::Icmp { kind: 5 }));
        assert_eq!(of(&v4(ICMP, 3, &[5, 0, 0, 0])), (true, Transport::Absent));
        assert_eq!(of(&v4(UDP, 0, &[0, 67, 0, 68])), (false, Transport::Unclear), "a tiny first fragment");
        let mut hidden = vec![FRAGMENT, 0, 0, 0, 0, 0, 0, 0];
        hidden.extend([ICMPV6, 0, 0, 1, 0, 0, 0, 0]);
        hidden.extend([134, 0, 0, 0]);
        assert_eq!(of(&v6(60, &hidden)), (true, Transport::Icmp { kind: 134 }));
        hidden[11] = 9;
        assert_eq!(of(&v6(60, &hidden)), (true, Transport::Absent));
        assert_eq!(of(&v6(60, &[ICMPV6, 200])), (false, Transport::Unclear), "beyond what was copied");
        let endless: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
        assert_eq!(of(&v6(60, &endless)), (false, Transport::Unclear));
    }

    proptest! {
        #[test]
        fn every_cut_of_anything_has_an_answer(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..5) {
            let types = [ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP, ETHERTYPE_VLAN, 0x1234];
            if bytes.len() > 16 {
                bytes[12..14].copy_from_slice(&types[kind].to_be_bytes());
                bytes[14] = if kind == 0 { 0x45 } else { 0x60 };
            }
            for end in 0..bytes.len() {
                let headers = Headers::parse(&bytes[..end]);
                prop_assert_eq!(headers.is_some(), end >= 14);
            }
        }
    }
}

//! What a guest may send: judged from a frame's first bytes, before anything else of it is copied.
//!
//! A rule that would have to see something that could not be seen refuses: fragments too small to judge and chains of
//! extension headers too long to follow are how such rules are usually evaded (RFC 6980, RFC 7113).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::VifParams;
use crate::headers::{Arp, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Headers, ICMP, ICMPV6, Ip, Network, TCP, Transport, UDP};
use crate::packet::Mac;

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Its source address is not the card's.
    SpoofedMac,
    /// It claims an IP address that is not the card's.
    SpoofedIp,
    /// It answers for somebody else: ARP or neighbour discovery.
    SpoofedNeighbour,
    /// It plays a router: an advertisement or a redirect.
    Router,
    /// It plays a DHCP server.
    DhcpServer,
    /// It has a tag and may not have one.
    Tag,
    /// A protocol that says nothing of addresses, where addresses are restricted.
    Protocol,
    /// A rule applies and could not be judged.
    Unclear,
}

/// What one card may send.
#[derive(Clone, Debug)]
pub struct Policy {
    mac: Mac,
    any_source: bool,
    router: bool,
    dhcp_server: bool,
    tags: bool,
    /// What it may use as source; none restricted when empty.
    v4: Vec<[u8; 4]>,
    v6: Vec<[u8; 16]>,
    restricted: bool,
}

/// `ND_ROUTER_ADVERT` (RFC 4861).
const ROUTER_ADVERTISEMENT: u8 = 134;
/// `ND_NEIGHBOR_SOLICIT`.
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// `ND_NEIGHBOR_ADVERT`.
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// `ND_REDIRECT`.
const REDIRECT: u8 = 137;
/// `ICMP_REDIRECT` (RFC 792).
const REDIRECT_V4: u8 = 5;
/// The option of neighbour discovery that says a sender's address on the link, and a target's.
const LINK_ADDRESS_OPTIONS: [u8; 2] = [1, 2];

impl Policy {
    /// The rules for a card.
    pub fn new(params: &VifParams) -> Policy {
        let v4 = params.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        });
        let mut v6: Vec<[u8; 16]> = params
            .addresses
            .iter()
            .filter_map(|address| match address {
                IpAddr::V6(address) => Some(address.octets()),
                IpAddr::V4(_) => None,
            })
            .collect();
        if !v6.is_empty() {
            // Without it a host cannot speak to its neighbours (RFC 4291, 2.5.6 and appendix A).
            v6.push(link_local(params.mac));
        }
        Policy {
            mac: params.mac,
            any_source: params.allow.any_source,
            router: params.allow.router,
            dhcp_server: params.allow.dhcp_server,
            tags: params.vlan.is_none(),
            v4: v4.collect(),
            v6,
            restricted: !params.addresses.is_empty() && !params.allow.any_source,
        }
    }

    /// May the guest send this? `first` are the bytes that `headers` were read from.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, headers: &Headers, first: &[u8]) -> Result<(), Denied> {
        if headers.source.is_group() || !self.any_source && headers.source != self.mac {
            return Err(Denied::SpoofedMac);
        }
        if headers.vlan.is_some() && !self.tags {
            return Err(Denied::Tag);
        }
        match &headers.network {
            Network::Arp(arp) => self.arp(headers, arp),
            Network::Ip(ip) => self.ipv4(ip),
            Network::Ip6(ip) => self.ipv6(headers, ip, first),
            Network::Unclear => Err(Denied::Unclear),
            Network::Other if matches!(headers.ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) && !self.any_source => {
                Err(Denied::Tag)
            }
            Network::Other if self.restricted => Err(Denied::Protocol),
            Network::Other => Ok(()),
        }
    }

    fn arp(&self, headers: &Headers, arp: &Arp) -> Result<(), Denied> {
        if self.any_source {
            return Ok(());
        }
        if arp.sender_mac != headers.source {
            return Err(Denied::SpoofedNeighbour);
        }
        // A probe has no sender yet (RFC 5227), but it is never an answer.
        let probe = arp.sender_ip == [0; 4] && arp.operation == 1;
        if self.restricted && !probe && !self.v4.contains(&arp.sender_ip) {
            return Err(Denied::SpoofedNeighbour);
        }
        Ok(())
    }

    fn ipv4(&self, ip: &Ip<[u8; 4]>) -> Result<(), Denied> {
        if self.restricted && !self.v4.contains(&ip.source) && !is_dhcp_client(ip) {
            return Err(Denied::SpoofedIp);
        }
        match ip.transport {
            Transport::Udp(ports) if ports.source == 67 && !self.dhcp_server => Err(Denied::DhcpServer),
            Transport::Icmp { kind: REDIRECT_V4 } if ip.protocol == ICMP && !self.router => Err(Denied::Router),
            Transport::Unclear if ip.protocol == UDP && self.dhcp_server => Ok(()),
            Transport::Unclear if ip.protocol == ICMP && self.router => Ok(()),
            // Later fragments could write over the ports that were looked at: offset 1 is no fragment of a fair host (RFC 3128).
            Transport::Unclear if [UDP, ICMP].contains(&ip.protocol) => Err(Denied::Unclear),
            _ => Ok(()),
        }
    }

    fn ipv6(&self, headers: &Headers, ip: &Ip<[u8; 16]>, first: &[u8]) -> Result<(), Denied> {
        let discovery = ip.protocol == ICMPV6;
        let unspecified = ip.source == [0; 16];
        if self.restricted && !unspecified && !self.v6.contains(&ip.source) {
            return Err(Denied::SpoofedIp);
        }
        if self.restricted && unspecified && !discovery {
            return Err(Denied::SpoofedIp);
        }
        match ip.transport {
            Transport::Icmp { kind } if discovery => self.icmpv6(headers, ip, kind, first),
            Transport::Udp(ports) if ports.source == 547 && !self.dhcp_server => Err(Denied::DhcpServer),
            // What it is was in the first fragment, and judged there (RFC 7113); hosts take nothing that overlaps it (RFC 5722).
            Transport::Absent => Ok(()),
            Transport::Unclear if ip.protocol == TCP => Ok(()),
            Transport::Unclear if ip.protocol == UDP && self.dhcp_server => Ok(()),
            Transport::Unclear if self.any_source && self.router && self.dhcp_server => Ok(()),
            Transport::Unclear => Err(Denied::Unclear),
            _ => Ok(()),
        }
    }

    fn icmpv6(&self, headers: &Headers, ip: &Ip<[u8; 16]>, kind: u8, first: &[u8]) -> Result<(), Denied> {
        match kind {
            ROUTER_ADVERTISEMENT | REDIRECT if !self.router => Err(Denied::Router),
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT if !self.any_source => {
                // Nobody fragments neighbour discovery (RFC 6980).
                if ip.fragment {
                    return Err(Denied::Unclear);
                }
                let target = first.get(ip.transport_at + 8..ip.transport_at + 24).ok_or(Denied::Unclear)?;
                let ours = || self.v6.iter().any(|address| address == target);
                if kind == NEIGHBOUR_ADVERTISEMENT && self.restricted && !ours() {
                    return Err(Denied::SpoofedNeighbour);
                }
                self.link_addresses(headers, first, ip.transport_at + 24)
            }
            _ => Ok(()),
        }
    }

    /// Every address on the link that the options of a neighbour discovery packet name is the sender's own.
    fn link_addresses(&self, headers: &Headers, first: &[u8], options_at: usize) -> Result<(), Denied> {
        let end = payload_end(headers, first).ok_or(Denied::Unclear)?;
        let mut at = options_at;
        while at < end {
            let (Some(&kind), Some(&len)) = (first.get(at), first.get(at + 1)) else { return Err(Denied::Unclear) };
            if len == 0 {
                return Err(Denied::Unclear);
            }
            if LINK_ADDRESS_OPTIONS.contains(&kind) {
                let address = first.get(at + 2..at + 8).ok_or(Denied::Unclear)?;
                if address != headers.source.0 {
                    return Err(Denied::SpoofedNeighbour);
                }
            }
            at += usize::from(len) * 8;
        }
        Ok(())
    }
}

/// Where an IPv6 packet says that it ends.
fn payload_end(headers: &Headers, first: &[u8]) -> Option<usize> {
    let at = headers.network_at;
    let len = first.get(at + 4..at + 6)?;
    Some(at + 40 + usize::from(u16::from_be_bytes([len[0], len[1]])))
}

/// A guest that asks for its address has none.
fn is_dhcp_client(ip: &Ip<[u8; 4]>) -> bool {
    let asks = matches!(ip.transport, Transport::Udp(ports) if ports.source == 68 && ports.destination == 67);
    asks && Ipv4Addr::from(ip.source).is_unspecified() && Ipv4Addr::from(ip.destination).is_broadcast()
}

/// The address that a host makes of its card's (RFC 4291, appendix A).
fn link_local(mac: Mac) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    Ipv6Addr::new(0xFE80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xFF, 0xFE00 | d, e << 8 | f).octets()
}

#[cfg(test)]
mod tests;

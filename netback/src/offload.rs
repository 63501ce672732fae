//! Work on a frame that its sender left to somebody else, done in software: checksums and segments; and the same work
//! described for the kernel (`struct virtio_net_hdr`, linux/virtio_net.h).
//!
//! Nothing that stands in a checksum field is believed: the whole sum is worked out anew.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::headers::{Headers, Network, TCP, Transport, UDP};
use crate::packet::{Checksum, Gso, GsoKind, Offload};

/// `struct virtio_net_hdr`, as a TAP with `IFF_VNET_HDR` has before each frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the sum begins.
    pub csum_start: u16,
    /// Where it is put, from there.
    pub csum_offset: u16,
}

/// Bytes of a [`VnetHeader`].
pub const VNET_HEADER: usize = size_of::<VnetHeader>();

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Flags of a TCP header (RFC 9293, RFC 3168).
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Most segments of one packet: with 64 KiB, segments of 64 bytes. A sender that wants smaller ones (Linux's own least
/// is 48 with all options, `TCP_MIN_SND_MSS`) is not one that anybody waits for, and each segment costs us a header and a
/// sum, whatever it carries.
pub const MOST_SEGMENTS: usize = 1024;

/// The work cannot be done on this frame: it is not what its sender says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame that is not what its sender left to do with it")]
pub struct Unfit;

/// Where a transport checksum is worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Where the transport header begins.
    start: usize,
    /// Where the checksum stands, from there.
    offset: usize,
    /// Where the transport ends.
    end: usize,
    udp: bool,
}

/// Sums up 16-bit words, without the final folding.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    sum
}

/// Folds a sum into 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// The end of the IP packet, by its own word; a frame may be padded.
fn ip_end(headers: &Headers, first: &[u8], len: usize) -> Option<usize> {
    let at = headers.network_at;
    let field = |offset: usize| {
        let bytes = first.get(at + offset..at + offset + 2)?;
        Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    };
    let end = match headers.network {
        Network::Ip(_) => at + field(2)?,
        Network::Ip6(_) => at + 40 + field(4)?,
        _ => return None,
    };
    (end <= len).then_some(end)
}

/// Where the checksum of a TCP or UDP packet stands. With segments left to cut, an IP header may say any length.
fn place(headers: &Headers, first: &[u8], len: usize, gso: bool) -> Option<Place> {
    let (start, transport) = headers.transport()?;
    let end = if gso { len } else { ip_end(headers, first, len)? };
    let (offset, udp, least) = match transport {
        Transport::Tcp { header, .. } => (16, false, header),
        Transport::Udp(_) => (6, true, 8),
        _ => return None,
    };
    (start + least <= end).then_some(Place { start, offset, end, udp })
}

/// The sum of the pseudo header of a transport packet of `len` bytes.
fn pseudo(headers: &Headers, len: usize, udp: bool) -> u64 {
    let addresses = match &headers.network {
        Network::Ip(ip) => sum(&ip.source) + sum(&ip.destination),
        Network::Ip6(ip) => sum(&ip.source) + sum(&ip.destination),
        _ => 0,
    };
    addresses + u64::from(if udp { UDP } else { TCP }) + len as u64
}

/// Is the frame, of `len` bytes that begin with `first`, what its sender's work can be done on? Whoever gets it may take
/// the sender's word for it, so nothing else is passed on (XSA-423's lesson; Linux's backend drops it too).
pub fn is_fit(offload: &Offload, headers: &Headers, first: &[u8], len: usize) -> bool {
    if offload.checksum != Checksum::Blank {
        return offload.gso.is_none();
    }
    let Some(place) = place(headers, first, len, offload.gso.is_some()).filter(|_| !is_fragment(headers)) else {
        return false;
    };
    offload.gso.is_none_or(|gso| tcp_header(headers, gso).is_ok_and(|header| place.start + header < len))
}

/// Works out the transport checksum of a whole frame.
///
/// # Errors
/// [`Unfit`] for anything but TCP and UDP in one piece.
pub fn complete_checksum(frame: &mut [u8]) -> Result<(), Unfit> {
    let headers = Headers::parse(frame).ok_or(Unfit)?;
    if is_fragment(&headers) {
        return Err(Unfit);
    }
    let place = place(&headers, frame, frame.len(), false).ok_or(Unfit)?;
    write_checksum(frame, &headers, place);
    Ok(())
}

fn is_fragment(headers: &Headers) -> bool {
    match &headers.network {
        Network::Ip(ip) => ip.fragment,
        Network::Ip6(ip) => ip.fragment,
        _ => false,
    }
}

fn write_checksum(frame: &mut [u8], headers: &Headers, place: Place) {
    let field = place.start + place.offset;
    frame[field..field + 2].fill(0);
    let whole = sum(&frame[place.start..place.end]) + pseudo(headers, place.end - place.start, place.udp);
    let mut checksum = !fold(whole);
    if place.udp && checksum == 0 {
        // Zero means that there is none (RFC 768).
        checksum = 0xFFFF;
    }
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Describes a frame for a TAP, and puts the sum of its pseudo header where the kernel wants it.
/// `first` are its first bytes, `len` all of them.
///
/// # Errors
/// [`Unfit`] when the work cannot be described.
pub fn to_vnet(offload: &Offload, first: &mut [u8], len: usize) -> Result<VnetHeader, Unfit> {
    if offload.checksum != Checksum::Blank {
        return Ok(VnetHeader::default());
    }
    let headers = Headers::parse(first).ok_or(Unfit)?;
    let place = place(&headers, first, len, offload.gso.is_some()).ok_or(Unfit)?;
    let mut vnet = VnetHeader {
        flags: F_NEEDS_CSUM,
        csum_start: u16::try_from(place.start).map_err(|_| Unfit)?,
        csum_offset: place.offset as u16,
        ..VnetHeader::default()
    };
    if let Some(gso) = offload.gso {
        let header = tcp_header(&headers, gso)?;
        let flags = *first.get(place.start + 13).ok_or(Unfit)?;
        let ecn = if flags & CWR != 0 { GSO_ECN } else { 0 };
        vnet.gso_type = ecn | if gso.kind == GsoKind::TcpV4 { GSO_TCPV4 } else { GSO_TCPV6 };
        vnet.gso_size = gso.size;
        vnet.hdr_len = u16::try_from(place.start + header).map_err(|_| Unfit)?;
    }
    let field = first.get_mut(place.start + place.offset..place.start + place.offset + 2).ok_or(Unfit)?;
    field.copy_from_slice(&fold(pseudo(&headers, place.end - place.start, place.udp)).to_be_bytes());
    Ok(vnet)
}

/// Bytes of the TCP header of a packet that is to be cut, whose kind is what its sender says.
fn tcp_header(headers: &Headers, gso: Gso) -> Result<usize, Unfit> {
    let fits = match headers.network {
        Network::Ip(ip) => gso.kind == GsoKind::TcpV4 && !ip.fragment,
        Network::Ip6(ip) => gso.kind == GsoKind::TcpV6 && !ip.fragment,
        _ => false,
    };
    match headers.transport() {
        Some((_, Transport::Tcp { header, .. })) if fits => Ok(header),
        _ => Err(Unfit),
    }
}

/// What the kernel left to do with a frame from a TAP.
///
/// # Errors
/// [`Unfit`] for work that has no name on a Xen ring.
pub fn from_vnet(vnet: &VnetHeader) -> Result<Offload, Unfit> {
    let checksum = match vnet.flags {
        flags if flags & F_NEEDS_CSUM != 0 => Checksum::Blank,
        flags if flags & F_DATA_VALID != 0 => Checksum::Valid,
        _ => Checksum::Whole,
    };
    let kind = match vnet.gso_type & !GSO_ECN {
        GSO_NONE => return Ok(Offload { checksum, gso: None }),
        GSO_TCPV4 => GsoKind::TcpV4,
        GSO_TCPV6 => GsoKind::TcpV6,
        _ => return Err(Unfit),
    };
    if vnet.gso_size == 0 {
        return Err(Unfit);
    }
    Ok(Offload { checksum: Checksum::Blank, gso: Some(Gso { kind, size: vnet.gso_size }) })
}

/// Cuts a packet into segments, each a frame of its own with whole checksums.
pub struct Segments<'a> {
    frame: &'a [u8],
    headers: Headers,
    /// Bytes of all headers.
    header: usize,
    tcp: usize,
    end: usize,
    size: usize,
    /// Payload bytes that are done.
    done: usize,
    number: u16,
}

impl<'a> Segments<'a> {
    /// Prepares to cut `frame`.
    ///
    /// # Errors
    /// [`Unfit`] when it is not a TCP packet of that kind, or would be more than [`MOST_SEGMENTS`].
    pub fn new(frame: &'a [u8], gso: Gso) -> Result<Segments<'a>, Unfit> {
        let headers = Headers::parse(frame).ok_or(Unfit)?;
        let tcp_bytes = tcp_header(&headers, gso)?;
        let (tcp, _) = headers.transport().ok_or(Unfit)?;
        let header = tcp + tcp_bytes;
        // The whole frame is payload: a length field of an IP header cannot hold more than 64 KiB, and says nothing here.
        if header >= frame.len() {
            return Err(Unfit);
        }
        let size = usize::from(gso.size);
        if size == 0 || (frame.len() - header).div_ceil(size) > MOST_SEGMENTS {
            return Err(Unfit);
        }
        Ok(Segments { frame, headers, header, tcp, end: frame.len(), size, done: 0, number: 0 })
    }

    /// Writes the next segment to `out`, from its beginning; its length, or none after the last.
    ///
    /// # Panics
    /// When `out` has not `header + size` bytes, at most 65,535 and a header.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        let payload = self.end - self.header;
        if self.done >= payload {
            return None;
        }
        let now = self.size.min(payload - self.done);
        let last = self.done + now == payload;
        let from = self.header + self.done;
        out.clear();
        out.extend_from_slice(&self.frame[..self.header]);
        out.extend_from_slice(&self.frame[from..from + now]);
        self.network(out);
        let tcp = &mut out[self.tcp..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(self.done as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            tcp[13] &= !(FIN | PSH);
        }
        if self.done > 0 {
            tcp[13] &= !CWR;
        }
        let place = Place { start: self.tcp, offset: 16, end: out.len(), udp: false };
        write_checksum(out, &self.headers, place);
        self.done += now;
        self.number = self.number.wrapping_add(1);
        Some(out.len())
    }

    /// The network header of a segment: its length, and for IPv4 its number and its own checksum.
    fn network(&self, out: &mut [u8]) {
        let at = self.headers.network_at;
        let len = out.len() - at;
        match self.headers.network {
            Network::Ip(_) => {
                let header = usize::from(out[at] & 0xF) * 4;
                let number = u16::from_be_bytes([out[at + 4], out[at + 5]]).wrapping_add(self.number);
                out[at + 2..at + 4].copy_from_slice(&(len as u16).to_be_bytes());
                out[at + 4..at + 6].copy_from_slice(&number.to_be_bytes());
                out[at + 10..at + 12].fill(0);
                let checksum = !fold(sum(&out[at..at + header]));
                out[at + 10..at + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            _ => out[at + 4..at + 6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests;

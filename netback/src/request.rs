//! From slots of a transmit ring to packets. Pure: a slot is copied once, and the copy is all that is looked at.
//!
//! What Linux's backend calls fatal is fatal here, and what it drops is dropped, so that a frontend that works there
//! works here (net.md A2): a packet is its first slot, whose `size` is that of the whole packet, extra-info slots, then
//! the other fragments. Every slot gets an answer in the order of the ring.

use std::ops::Range;

use grant::GrantRef;
use grant::PAGE_SIZE;
use zerocopy::FromBytes;

use crate::packet::{Checksum, ETHERNET_HEADER, Gso, GsoKind, Mac, Offload};
use crate::proto::{self, NR_SLOTS_MIN, NetifExtraInfo, NetifTxRequest};

/// Most fragments of a packet that is taken: one more than every backend must take, as Linux does.
pub const MAX_FRAGMENTS: usize = NR_SLOTS_MIN + 1;
/// Fragments after the first from which on a frontend is not to be believed any more (Linux's `fatal_skb_slots`).
const FATAL_FRAGMENTS: usize = 20;
/// `XEN_NETIF_EXTRA_TYPE_MAX` of Linux's header, which has one type (XDP, 5) more than Xen's.
const EXTRA_TYPES: Range<u8> = 1..6;

/// Bytes of the guest's that belong to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The page.
    pub gref: GrantRef,
    /// First byte in it.
    pub offset: u16,
    /// How many, never 0: empty fragments are legal in the ring and left out here (XSA-448).
    pub len: u16,
}

/// What is wrong with a packet; the frontend is told with an error, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// More fragments than a backend must take.
    TooManyFragments,
    /// The fragments are larger than the packet.
    Sizes,
    /// Less than an Ethernet header.
    Short,
}

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be sent on.
    Frame,
    /// To join or leave a multicast group; there is no data.
    Multicast {
        /// Join.
        add: bool,
        /// The group.
        group: Mac,
    },
    /// To be answered with an error.
    Malformed(Malformed),
}

/// One packet of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it asks for.
    pub kind: Kind,
    /// Bytes; at least an Ethernet header's for a frame.
    pub len: u32,
    /// Its fragments, in [`Batch::fragments`].
    pub fragments: Range<u32>,
    /// Its slots, in [`Batch::slots`].
    pub slots: Range<u32>,
    /// The work that is left to us.
    pub offload: Offload,
}

/// How a slot is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// With this id and the status of its packet.
    Data(u16),
    /// With `NETIF_RSP_NULL`.
    Extra,
}

/// The frontend cannot be followed any more: the card is broken until it reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Broken {
    #[error("a packet goes on after the last slot of the ring")]
    CutOff,
    #[error("extra information of type {0}")]
    ExtraType(u8),
    #[error("segments of no bytes")]
    GsoSize,
    #[error("segments of type {0}")]
    GsoType(u8),
    #[error("a fragment of {len} bytes at {offset} of a page")]
    CrossesPage { offset: u16, len: u16 },
    #[error("a packet of more than {FATAL_FRAGMENTS} fragments")]
    TooManyFragments,
}

/// The packets of one turn. Its memory is made once.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of the ring.
    pub packets: Vec<Packet>,
    /// Of all packets.
    pub fragments: Vec<Fragment>,
    /// Of all packets, in the order of the ring.
    pub slots: Vec<Slot>,
}

impl Batch {
    /// A batch for a ring of `entries` slots: it never needs more.
    pub fn new(entries: usize) -> Batch {
        let (packets, fragments) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
        Batch { packets, fragments, slots: Vec::with_capacity(entries) }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.fragments.clear();
        self.slots.clear();
    }

    /// The fragments of a packet.
    pub fn fragments_of(&self, packet: &Packet) -> &[Fragment] {
        &self.fragments[packet.fragments.start as usize..packet.fragments.end as usize]
    }

    /// Takes one whole packet from `next`, which gives the next slot or nothing when the frontend has put no more.
    /// False when there was none.
    ///
    /// # Errors
    /// [`Broken`]: nothing of this packet is in the batch then.
    #[inline]
    pub fn take(&mut self, mut next: impl FnMut() -> Option<[u8; 12]>) -> Result<bool, Broken> {
        let Some(first) = next() else { return Ok(false) };
        let marks = (self.fragments.len(), self.slots.len());
        match self.assemble(&request(&first), &mut next) {
            Ok((kind, len, offload)) => {
                if kind != Kind::Frame {
                    self.fragments.truncate(marks.0);
                }
                let fragments = marks.0 as u32..self.fragments.len() as u32;
                let slots = marks.1 as u32..self.slots.len() as u32;
                self.packets.push(Packet { kind, len, fragments, slots, offload });
                Ok(true)
            }
            Err(broken) => {
                self.fragments.truncate(marks.0);
                self.slots.truncate(marks.1);
                Err(broken)
            }
        }
    }

    fn assemble(
        &mut self,
        first: &NetifTxRequest,
        next: &mut impl FnMut() -> Option<[u8; 12]>,
    ) -> Result<(Kind, u32, Offload), Broken> {
        self.slots.push(Slot::Data(first.id));
        let mut gso = None;
        if first.flags & proto::NETTXF_EXTRA_INFO != 0 {
            let (segments, multicast) = self.extras(next)?;
            if let Some(kind) = multicast {
                return Ok((kind, 0, Offload::default()));
            }
            gso = segments;
        }
        let own = self.fragments.len();
        self.fragments.push(Fragment { gref: GrantRef(first.gref), offset: first.offset, len: first.size });
        let kind = self.rest(first, own, next)?;
        let checksum = match first.flags {
            // There is no other way to give each segment its own (net.md A2).
            _ if gso.is_some() => Checksum::Blank,
            flags if flags & proto::NETTXF_CSUM_BLANK != 0 => Checksum::Blank,
            flags if flags & proto::NETTXF_DATA_VALIDATED != 0 => Checksum::Valid,
            _ => Checksum::Whole,
        };
        Ok((kind, u32::from(first.size), Offload { checksum, gso }))
    }

    /// The extra-info slots of a packet.
    fn extras(&mut self, next: &mut impl FnMut() -> Option<[u8; 12]>) -> Result<(Option<Gso>, Option<Kind>), Broken> {
        let (mut gso, mut multicast) = (None, None);
        loop {
            let slot = next().ok_or(Broken::CutOff)?;
            self.slots.push(Slot::Extra);
            // The structure is shorter than a slot.
            let extra =
                NetifExtraInfo::read_from_prefix(&slot).map_or_else(|_| NetifExtraInfo::default(), |(it, _)| it);
            if !EXTRA_TYPES.contains(&extra.kind) {
                return Err(Broken::ExtraType(extra.kind));
            }
            match extra.kind {
                proto::EXTRA_TYPE_GSO => gso = Some(segments(extra.body)?),
                proto::EXTRA_TYPE_MCAST_ADD | proto::EXTRA_TYPE_MCAST_DEL => {
                    let add = extra.kind == proto::EXTRA_TYPE_MCAST_ADD;
                    multicast = Some(Kind::Multicast { add, group: Mac(extra.body) });
                }
                // What a guest thinks of its packet's hash is of no use here.
                _ => {}
            }
            if extra.flags & proto::EXTRA_FLAG_MORE == 0 {
                return Ok((gso, multicast));
            }
        }
    }

    /// The fragments after the first, which gets what they leave of the packet's size.
    fn rest(
        &mut self,
        first: &NetifTxRequest,
        own: usize,
        next: &mut impl FnMut() -> Option<[u8; 12]>,
    ) -> Result<Kind, Broken> {
        let (mut left, mut others, mut wrong) = (first.size, 0, None);
        let mut more = first.flags & proto::NETTXF_MORE_DATA != 0;
        while more {
            let slot = request(&next().ok_or(Broken::CutOff)?);
            if others >= FATAL_FRAGMENTS {
                return Err(Broken::TooManyFragments);
            }
            others += 1;
            self.slots.push(Slot::Data(slot.id));
            inside_page(slot.offset, slot.size)?;
            match left.checked_sub(slot.size) {
                Some(rest) => left = rest,
                // Some frontends send frames of 64 KiB and more so: no reason to give up on them.
                None => wrong = wrong.or(Some(Malformed::Sizes)),
            }
            if slot.size > 0 {
                self.fragments.push(Fragment { gref: GrantRef(slot.gref), offset: slot.offset, len: slot.size });
            }
            more = slot.flags & proto::NETTXF_MORE_DATA != 0;
        }
        if others >= MAX_FRAGMENTS {
            wrong = wrong.or(Some(Malformed::TooManyFragments));
        }
        if wrong.is_none() {
            inside_page(first.offset, left)?;
            self.fragments[own].len = left;
            if left == 0 {
                self.fragments.remove(own);
            }
            if usize::from(first.size) < ETHERNET_HEADER {
                wrong = Some(Malformed::Short);
            }
        }
        Ok(wrong.map_or(Kind::Frame, Kind::Malformed))
    }
}

fn request(slot: &[u8; 12]) -> NetifTxRequest {
    zerocopy::transmute!(*slot)
}

fn inside_page(offset: u16, len: u16) -> Result<(), Broken> {
    let end = usize::from(offset) + usize::from(len);
    if end <= PAGE_SIZE { Ok(()) } else { Err(Broken::CrossesPage { offset, len }) }
}

/// The body of `XEN_NETIF_EXTRA_TYPE_GSO`: size (2 bytes), type, padding, features (2 bytes).
fn segments(body: [u8; 6]) -> Result<Gso, Broken> {
    let size = u16::from_le_bytes([body[0], body[1]]);
    let kind = match body[2] {
        _ if size == 0 => return Err(Broken::GsoSize),
        proto::GSO_TYPE_TCPV4 => GsoKind::TcpV4,
        proto::GSO_TYPE_TCPV6 => GsoKind::TcpV6,
        other => return Err(Broken::GsoType(other)),
    };
    Ok(Gso { kind, size })
}

#[cfg(test)]
mod tests;

//! Where a packet goes in a receive ring. One iterator says which slots it takes and what stands in each: whoever counts
//! and whoever writes cannot disagree (net.md A3; Linux's own count forgets the XDP slot).

use grant::PAGE_SIZE;

use crate::packet::{Checksum, GsoKind, Hash, Offload};
use crate::proto::{self, NetifExtraInfo};

/// A packet as a receiver is to get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Bytes, never 0.
    pub len: u32,
    /// The work that is left to the receiver.
    pub offload: Offload,
    /// The hash, for a receiver that has asked for one.
    pub hash: Option<Hash>,
    /// Bytes to leave free in front of it, at most [`MAX_HEADROOM`].
    pub headroom: u16,
}

/// Most bytes that can be left free and still hold an Ethernet header in the same page.
pub const MAX_HEADROOM: u16 = (PAGE_SIZE - crate::packet::ETHERNET_HEADER) as u16;

/// What stands in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Bytes of the packet: `len` at `offset` of the page, with these `NETRXF_*`.
    Data {
        /// First byte in the page.
        offset: u16,
        /// Bytes.
        len: u16,
        /// `NETRXF_*`.
        flags: u16,
    },
    /// Extra information in the place of a response; the page stays unused.
    Extra(NetifExtraInfo),
}

/// The slots of a packet, in the order of the ring.
#[derive(Clone, Debug)]
pub struct Slots {
    left: u32,
    headroom: u16,
    first: bool,
    flags: u16,
    extras: [Option<NetifExtraInfo>; 3],
}

impl Outgoing {
    /// Its slots.
    #[inline]
    pub fn slots(&self) -> Slots {
        let headroom = self.headroom.min(MAX_HEADROOM);
        let gso = self.offload.gso.map(|gso| {
            let kind = match gso.kind {
                GsoKind::TcpV4 => proto::GSO_TYPE_TCPV4,
                GsoKind::TcpV6 => proto::GSO_TYPE_TCPV6,
            };
            let [low, high] = gso.size.to_le_bytes();
            NetifExtraInfo { kind: proto::EXTRA_TYPE_GSO, flags: 0, body: [low, high, kind, 0, 0, 0] }
        });
        let xdp = (headroom > 0).then(|| {
            let [low, high] = headroom.to_le_bytes();
            NetifExtraInfo { kind: proto::EXTRA_TYPE_XDP, flags: 0, body: [low, high, 0, 0, 0, 0] }
        });
        let hash = self.hash.map(|hash| {
            let [a, b, c, d] = hash.value.to_le_bytes();
            NetifExtraInfo { kind: proto::EXTRA_TYPE_HASH, flags: 0, body: [hash.kind, hash.algorithm, a, b, c, d] }
        });
        let flags = match self.offload.checksum {
            Checksum::Whole => 0,
            Checksum::Valid => proto::NETRXF_DATA_VALIDATED,
            Checksum::Blank => proto::NETRXF_CSUM_BLANK | proto::NETRXF_DATA_VALIDATED,
        };
        Slots { left: self.len, headroom, first: true, flags, extras: [gso, xdp, hash] }
    }

    /// How many there are.
    #[inline]
    pub fn count(&self) -> u32 {
        self.slots().count() as u32
    }
}

impl Iterator for Slots {
    type Item = Slot;

    #[inline]
    fn next(&mut self) -> Option<Slot> {
        if !self.first
            && let Some(at) = self.extras.iter().position(Option::is_some)
        {
            let extra = self.extras[at].take()?;
            let more = self.extras.iter().any(Option::is_some);
            return Some(Slot::Extra(NetifExtraInfo { flags: if more { proto::EXTRA_FLAG_MORE } else { 0 }, ..extra }));
        }
        if self.left == 0 {
            return None;
        }
        let offset = if self.first { self.headroom } else { 0 };
        let len = self.left.min(PAGE_SIZE as u32 - u32::from(offset));
        self.left -= len;
        let mut flags = 0;
        if self.first {
            self.first = false;
            flags = self.flags;
            if self.extras.iter().any(Option::is_some) {
                flags |= proto::NETRXF_EXTRA_INFO;
            }
        }
        if self.left > 0 {
            flags |= proto::NETRXF_MORE_DATA;
        }
        Some(Slot::Data { offset, len: len as u16, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Gso;
    use crate::proto::*;

    fn plain(len: u32) -> Outgoing {
        Outgoing { len, offload: Offload::default(), hash: None, headroom: 0 }
    }

    #[test]
    fn pages_are_filled_and_only_the_last_says_no_more() {
        let slots: Vec<Slot> = plain(9000).slots().collect();
        let data = |len, flags| Slot::Data { offset: 0, len, flags };
        assert_eq!(slots, [data(4096, NETRXF_MORE_DATA), data(4096, NETRXF_MORE_DATA), data(808, 0)]);
        assert_eq!(plain(4096).count(), 1);
        assert_eq!(plain(4097).count(), 2);
        assert_eq!(plain(65535).count(), 16);
    }

    #[test]
    fn extras_follow_the_first_slot_and_are_chained() {
        let offload = Offload { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV6, size: 1428 }) };
        let hash = Some(Hash { algorithm: 1, kind: 3, value: 0x0403_0201 });
        let slots: Vec<Slot> = Outgoing { len: 5000, offload, hash, headroom: 256 }.slots().collect();
        let flags = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED | NETRXF_EXTRA_INFO | NETRXF_MORE_DATA;
        let extra = |kind, flags, body| Slot::Extra(NetifExtraInfo { kind, flags, body });
        assert_eq!(
            slots,
            [
                Slot::Data { offset: 256, len: 3840, flags },
                extra(EXTRA_TYPE_GSO, EXTRA_FLAG_MORE, [0x94, 5, GSO_TYPE_TCPV6, 0, 0, 0]),
                extra(EXTRA_TYPE_XDP, EXTRA_FLAG_MORE, [0, 1, 0, 0, 0, 0]),
                extra(EXTRA_TYPE_HASH, 0, [3, 1, 1, 2, 3, 4]),
                Slot::Data { offset: 0, len: 1160, flags: 0 },
            ]
        );
    }

    #[test]
    fn a_single_slot_with_an_extra_has_no_more_data() {
        let offload = Offload { checksum: Checksum::Valid, gso: None };
        let slots: Vec<Slot> = Outgoing { len: 60, offload, hash: None, headroom: 16 }.slots().collect();
        let flags = NETRXF_DATA_VALIDATED | NETRXF_EXTRA_INFO;
        assert_eq!(slots[0], Slot::Data { offset: 16, len: 60, flags });
        assert_eq!(slots.len(), 2);
    }

    /// Goes through the slots of a packet: they are all of it, and what stands in each is what its place calls for.
    fn check(packet: &Outgoing) {
        let extras = usize::from(packet.offload.gso.is_some())
            + usize::from(packet.headroom > 0)
            + usize::from(packet.hash.is_some());
        let (mut slots, mut sum) = (0, 0);
        for (at, slot) in packet.slots().enumerate() {
            slots += 1;
            let fine = match slot {
                Slot::Data { offset, len, flags } => {
                    sum += u32::from(len);
                    // A page that is not the last is full.
                    let full = offset + len == PAGE_SIZE as u16;
                    len > 0
                        && offset == if at == 0 { packet.headroom.min(MAX_HEADROOM) } else { 0 }
                        && offset + len <= PAGE_SIZE as u16
                        && (full || sum == packet.len)
                        && (flags & NETRXF_MORE_DATA != 0) == (sum < packet.len)
                        && (flags & NETRXF_EXTRA_INFO != 0) == (at == 0 && extras > 0)
                        && (at == 0 || at > extras)
                }
                Slot::Extra(extra) => {
                    (1..=extras).contains(&at) && (extra.flags & EXTRA_FLAG_MORE != 0) == (at < extras)
                }
            };
            assert!(fine, "slot {at} of {packet:?}: {slot:?}");
        }
        assert_eq!((slots, sum), (packet.count(), packet.len), "{packet:?}");
    }

    /// Segments of none and of both kinds, with and without a hash.
    fn variants() -> impl Iterator<Item = (Option<Gso>, Option<Hash>)> {
        let kinds = [None, Some(GsoKind::TcpV4), Some(GsoKind::TcpV6)];
        let gso = kinds.map(|kind| kind.map(|kind| Gso { kind, size: 1448 }));
        let hash = [None, Some(Hash { algorithm: 1, kind: 0, value: 7 })];
        gso.into_iter().flat_map(move |gso| hash.map(|hash| (gso, hash)))
    }

    /// Every length with every kind of extra information, so that no border is missed.
    #[test]
    fn every_length_is_counted_as_it_is_written() {
        for (gso, hash) in variants() {
            let offload = Offload { checksum: Checksum::Whole, gso };
            for headroom in [0, 256, 0x7FFF] {
                for len in 14..=65535 {
                    check(&Outgoing { len, offload, hash, headroom });
                }
            }
        }
    }

    /// ... and every headroom, with lengths about the borders of pages.
    #[test]
    fn every_headroom_is_counted_as_it_is_written() {
        for (gso, hash) in [variants().next(), variants().last()].into_iter().flatten() {
            let offload = Offload { checksum: Checksum::Whole, gso };
            for headroom in 0..=0x7FFF {
                let first = PAGE_SIZE as u32 - u32::from(headroom.min(MAX_HEADROOM));
                for pages in [0, 1, 15] {
                    for len in first + pages * 4096 - 1..=first + pages * 4096 + 1 {
                        if (14..=65535).contains(&len) {
                            check(&Outgoing { len, offload, hash, headroom });
                        }
                    }
                }
            }
        }
    }
}

//! A transmit ring of any slots: our packets are those of netif.h, "Guest transmit", judged as Linux's backend does.

use netback::packet::{Checksum, GsoKind};
use netback::request::{Batch, Kind, Slot};

/// What a packet is, by the header.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// Grant, offset and length of each fragment that has bytes; and the work left: a checksum, a kind and size of segments.
    Frame(u16, Vec<(u32, u16, u16)>, (bool, bool), Option<(u8, u16)>),
    /// Joins or leaves a group.
    Group(bool, [u8; 6]),
    /// Is answered with an error.
    Error,
}

/// A packet, and how its slots are answered: with an id, or as one that carried extra information.
type Packet = (Judged, Vec<Option<u16>>);

pub fn transmit(input: &[u8]) {
    // A ring has no more.
    let slots: Vec<[u8; 12]> = input.as_chunks::<12>().0.iter().take(256).copied().collect();
    let (expected, expect_broken) = judge(&slots);
    let mut batch = Batch::new(256);
    let mut next = slots.iter().copied();
    let broken = loop {
        match batch.take(|| next.next()) {
            Ok(true) => {}
            Ok(false) => break false,
            Err(_) => break true,
        }
    };
    assert_eq!(broken, expect_broken);
    let found: Vec<Packet> = batch.packets.iter().map(|packet| said(&batch, packet)).collect();
    assert_eq!(found, expected);
    assert_eq!(batch.slots.len(), expected.iter().map(|(_, slots)| slots.len()).sum::<usize>());
}

/// What we make of a packet, in the same words.
fn said(batch: &Batch, packet: &netback::request::Packet) -> Packet {
    let slots = &batch.slots[packet.slots.start as usize..packet.slots.end as usize];
    let slots = slots.iter().map(|slot| match slot {
        Slot::Data(id) => Some(*id),
        Slot::Extra => None,
    });
    let fragments = batch.fragments_of(packet);
    let judged = match packet.kind {
        Kind::Frame => {
            let parts: Vec<_> = fragments.iter().map(|part| (part.gref.0, part.offset, part.len)).collect();
            assert_eq!(parts.iter().map(|part| u32::from(part.2)).sum::<u32>(), packet.len);
            assert!(packet.len >= 14 && parts.len() <= 19);
            assert!(parts.iter().all(|&(_, offset, len)| len > 0 && u32::from(offset) + u32::from(len) <= 4096));
            let checksum = packet.offload.checksum;
            let gso = packet.offload.gso.map(|gso| (if gso.kind == GsoKind::TcpV4 { 1 } else { 2 }, gso.size));
            assert!(gso.is_none_or(|(_, size)| size > 0 && checksum == Checksum::Blank));
            Judged::Frame(packet.len as u16, parts, (checksum == Checksum::Blank, checksum == Checksum::Valid), gso)
        }
        Kind::Multicast { add, group } => Judged::Group(add, group.0),
        Kind::Malformed(_) => Judged::Error,
    };
    assert!(matches!(judged, Judged::Frame(..)) || fragments.is_empty());
    (judged, slots.collect())
}

struct Request {
    gref: u32,
    offset: u16,
    flags: u16,
    id: u16,
    size: u16,
}

fn request(slot: &[u8; 12]) -> Request {
    let word = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
    let gref = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
    Request { gref, offset: word(4), flags: word(6), id: word(8), size: word(10) }
}

/// The packets before the ring ends or breaks, and whether it breaks.
fn judge(ring: &[[u8; 12]]) -> (Vec<Packet>, bool) {
    let (mut packets, mut at) = (Vec::new(), 0);
    while at < ring.len() {
        match packet(&ring[at..]) {
            Some(packet) => {
                at += packet.1.len();
                packets.push(packet);
            }
            None => return (packets, true),
        }
    }
    (packets, false)
}

/// The packet at the beginning; none when the frontend has broken the protocol.
fn packet(ring: &[[u8; 12]]) -> Option<Packet> {
    const BLANK: u16 = 1;
    const VALIDATED: u16 = 2;
    const MORE: u16 = 4;
    const EXTRA: u16 = 8;
    let first = request(&ring[0]);
    let mut answers = vec![Some(first.id)];
    let (mut gso, mut group) = (None, None);
    let mut goes_on = first.flags & EXTRA != 0;
    while goes_on {
        let slot = ring.get(answers.len())?;
        answers.push(None);
        match slot[0] {
            1 => {
                let size = u16::from_le_bytes([slot[2], slot[3]]);
                if size == 0 || !(1..=2).contains(&slot[4]) {
                    return None;
                }
                gso = Some((slot[4], size));
            }
            kind @ 2..=3 => group = Some((kind == 2, [slot[2], slot[3], slot[4], slot[5], slot[6], slot[7]])),
            4 | 5 => {}
            _ => return None,
        }
        goes_on = slot[1] & 1 != 0;
    }
    // It rides on a request of no meaning.
    if let Some((add, group)) = group {
        return Some((Judged::Group(add, group), answers));
    }
    let mut others = Vec::new();
    let mut more = first.flags & MORE != 0;
    while more {
        let slot = request(ring.get(answers.len())?);
        // "fatal_skb_slots", and a fragment that leaves its page.
        if others.len() == 20 || u32::from(slot.offset) + u32::from(slot.size) > 4096 {
            return None;
        }
        answers.push(Some(slot.id));
        more = slot.flags & MORE != 0;
        others.push(slot);
    }
    let sum: u32 = others.iter().map(|slot| u32::from(slot.size)).sum();
    let Some(own) = u32::from(first.size).checked_sub(sum).filter(|_| others.len() < 19) else {
        return Some((Judged::Error, answers));
    };
    if u32::from(first.offset) + own > 4096 {
        return None;
    }
    if first.size < 14 {
        return Some((Judged::Error, answers));
    }
    let mut parts = vec![(first.gref, first.offset, own as u16)];
    parts.extend(others.iter().map(|slot| (slot.gref, slot.offset, slot.size)));
    parts.retain(|part| part.2 > 0);
    let blank = first.flags & BLANK != 0 || gso.is_some();
    let valid = !blank && first.flags & VALIDATED != 0;
    Some((Judged::Frame(first.size, parts, (blank, valid), gso), answers))
}

//! The transmit ring: packets to the backend. A page belongs to a slot's id, and is free when the id was answered.

use grant::ring::FrontRing;
use grant::{GrantRef, Granted, PAGE_SIZE};
use netback::packet::{Checksum, GsoKind};
use netback::proto::{self, NetifExtraInfo, NetifTxRequest, NetifTxResponse};
use zerocopy::IntoBytes;

use super::frame::Frame;
use super::queue::{Counts, Fault};

/// One packet's slots.
pub(super) struct Transmit {
    ring: FrontRing,
    ring_memory: Granted,
    pages: Granted,
    free: Vec<u16>,
    /// Ids that the backend has.
    out: Vec<bool>,
    unpushed: bool,
}

impl Transmit {
    pub(super) fn new(ring_memory: Granted, pages: Granted, first_index: u32) -> Transmit {
        let ring = FrontRing::new_at(ring_memory.memory.pages(), size_of::<NetifTxRequest>(), first_index);
        let count = pages.refs.len();
        Transmit {
            ring,
            ring_memory,
            free: (0..count as u16).rev().collect(),
            out: vec![false; count],
            pages,
            unpushed: false,
        }
    }

    pub(super) fn ring_ref(&self) -> u32 {
        self.ring_memory.refs[0].0
    }

    /// Puts all slots of a packet; false when there is no room for it.
    pub(super) fn send(&mut self, frame: &Frame) -> bool {
        let extra = extra(frame);
        let fragments = if frame.group.is_some() { vec![0] } else { frame.fragments() };
        let slots = fragments.len() + usize::from(extra.is_some());
        if (self.ring.free() as usize) < slots || self.free.len() < fragments.len() {
            return false;
        }
        let mut at = 0;
        for (number, &len) in fragments.iter().enumerate() {
            let id = self.free.pop().unwrap_or_default();
            self.out[usize::from(id)] = true;
            let offset = frame.offset;
            self.pages.memory.pages().write(usize::from(id) * PAGE_SIZE + offset, &frame.bytes[at..at + len]);
            at += len;
            let more = if number + 1 < fragments.len() { proto::NETTXF_MORE_DATA } else { 0 };
            let (flags, size) = match number {
                0 => (first_flags(frame, extra.is_some()) | more, frame.bytes.len()),
                _ => (more, len),
            };
            let GrantRef(gref) = self.pages.refs[usize::from(id)];
            let request = NetifTxRequest { gref, offset: offset as u16, flags, id, size: size as u16 };
            self.ring.put(request.as_bytes());
            if let Some(extra) = extra.filter(|_| number == 0) {
                self.ring.put(extra.as_bytes());
            }
        }
        self.unpushed = true;
        true
    }

    /// Makes it visible; true when the backend wants to be told.
    pub(super) fn push(&mut self) -> bool {
        std::mem::take(&mut self.unpushed) && self.ring.push()
    }

    /// Takes all answers.
    pub(super) fn reap(&mut self, counts: &mut Counts) -> Result<(), Fault> {
        let waiting = self.ring.unconsumed().map_err(|broken| Fault(broken.to_string()))?;
        for _ in 0..waiting {
            let mut bytes = [0; size_of::<NetifTxResponse>()];
            self.ring.take(&mut bytes);
            let response: NetifTxResponse = zerocopy::transmute!(bytes);
            if response.status == proto::NETIF_RSP_NULL {
                continue;
            }
            match self.out.get_mut(usize::from(response.id)) {
                Some(out) if *out => *out = false,
                _ => return Err(Fault(format!("an answer to id {}, which is not sent", response.id))),
            }
            self.free.push(response.id);
            counts.send_errors += u64::from(response.status == proto::NETIF_RSP_ERROR);
            counts.send_drops += u64::from(response.status == proto::NETIF_RSP_DROPPED);
        }
        Ok(())
    }

    /// Slots of data that the backend has.
    pub(super) fn in_flight(&self) -> usize {
        self.out.len() - self.free.len()
    }

    pub(super) fn final_check(&mut self) -> Result<bool, grant::ring::RingBroken> {
        self.ring.final_check()
    }

    pub(super) fn into_granted(self) -> [Granted; 2] {
        drop(self.ring);
        [self.ring_memory, self.pages]
    }
}

fn first_flags(frame: &Frame, extra: bool) -> u16 {
    let checksum = match frame.offload.checksum {
        Checksum::Whole => 0,
        Checksum::Valid => proto::NETTXF_DATA_VALIDATED,
        Checksum::Blank => proto::NETTXF_CSUM_BLANK | proto::NETTXF_DATA_VALIDATED,
    };
    checksum | if extra { proto::NETTXF_EXTRA_INFO } else { 0 }
}

fn extra(frame: &Frame) -> Option<NetifExtraInfo> {
    if let Some((add, group)) = frame.group {
        let kind = if add { proto::EXTRA_TYPE_MCAST_ADD } else { proto::EXTRA_TYPE_MCAST_DEL };
        return Some(NetifExtraInfo { kind, flags: 0, body: group.0 });
    }
    let gso = frame.offload.gso?;
    let kind = if gso.kind == GsoKind::TcpV4 { proto::GSO_TYPE_TCPV4 } else { proto::GSO_TYPE_TCPV6 };
    let [low, high] = gso.size.to_le_bytes();
    Some(NetifExtraInfo { kind: proto::EXTRA_TYPE_GSO, flags: 0, body: [low, high, kind, 0, 0, 0] })
}

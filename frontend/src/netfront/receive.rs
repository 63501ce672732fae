//! The receive ring: packets from the backend, with the checks that Linux's frontend makes. A response stands in the slot
//! of its request, whatever its id says.

use grant::ring::FrontRing;
use grant::{GrantRef, Granted, PAGE_SIZE};
use netback::packet::{Checksum, Gso, GsoKind, Hash, Offload};
use netback::proto::{self, NetifExtraInfo, NetifRxRequest, NetifRxResponse};
use zerocopy::{FromBytes, IntoBytes};

use super::frame::Received;
use super::queue::{Counts, Fault};

/// Most slots of data in a packet that Linux takes (`XEN_NETIF_NR_SLOTS_MIN`, and one for a short first).
const MOST_SLOTS: usize = 19;

pub(super) struct Receive {
    ring: FrontRing,
    ring_memory: Granted,
    pages: Granted,
    /// The page behind each slot of the ring.
    posted: Vec<u16>,
    free: Vec<u16>,
    put: u32,
    taken: u32,
}

impl Receive {
    pub(super) fn new(ring_memory: Granted, pages: Granted, first_index: u32) -> Receive {
        let ring = FrontRing::new_at(ring_memory.memory.pages(), size_of::<NetifRxRequest>(), first_index);
        let count = pages.refs.len() as u16;
        let posted = vec![0; ring.entries() as usize];
        let (put, taken) = (first_index, first_index);
        Receive { ring, ring_memory, pages, posted, free: (0..count).rev().collect(), put, taken }
    }

    pub(super) fn ring_ref(&self) -> u32 {
        self.ring_memory.refs[0].0
    }

    /// Posts every free page; true when the backend wants to be told.
    pub(super) fn post(&mut self) -> bool {
        while self.ring.free() > 0
            && let Some(page) = self.free.pop()
        {
            let slot = self.put as usize % self.posted.len();
            self.posted[slot] = page;
            let GrantRef(gref) = self.pages.refs[usize::from(page)];
            self.ring.put(NetifRxRequest { id: slot as u16, pad: 0, gref }.as_bytes());
            self.put = self.put.wrapping_add(1);
        }
        self.ring.push()
    }

    fn take(&mut self) -> ([u8; 8], u16) {
        let mut bytes = [0; size_of::<NetifRxResponse>()];
        self.ring.take(&mut bytes);
        let page = self.posted[self.taken as usize % self.posted.len()];
        self.taken = self.taken.wrapping_add(1);
        self.free.push(page);
        (bytes, page)
    }

    /// The next packet that is whole and no error.
    pub(super) fn receive(&mut self, counts: &mut Counts) -> Result<Option<Received>, Fault> {
        loop {
            let mut waiting = self.ring.unconsumed().map_err(|broken| Fault(broken.to_string()))?;
            if waiting == 0 {
                return Ok(None);
            }
            match self.packet(&mut waiting)? {
                Some(received) => {
                    counts.received += 1;
                    return Ok(Some(received));
                }
                None => counts.receive_errors += 1,
            }
        }
    }

    /// One packet; none when the backend says that it failed.
    fn packet(&mut self, waiting: &mut u32) -> Result<Option<Received>, Fault> {
        let fault = |what: &str| Err(Fault(what.into()));
        let mut received = Received { bytes: Vec::new(), offload: Offload::default(), hash: None, slots: 0 };
        let (mut failed, mut data, mut first) = (false, 0, true);
        loop {
            *waiting = match waiting.checked_sub(1) {
                Some(left) => left,
                None => return fault("a packet goes on after the last response"),
            };
            let (bytes, page) = self.take();
            let response: NetifRxResponse = zerocopy::transmute!(bytes);
            received.slots += 1;
            data += 1;
            if data > MOST_SLOTS {
                return fault("a packet of more slots than a frontend takes");
            }
            match usize::try_from(response.status) {
                Ok(len) if usize::from(response.offset) + len <= PAGE_SIZE => {
                    let from = received.bytes.len();
                    received.bytes.resize(from + len, 0);
                    let at = usize::from(page) * PAGE_SIZE + usize::from(response.offset);
                    self.pages.memory.pages().read(at, &mut received.bytes[from..]);
                }
                Ok(_) => return fault("data beyond a page"),
                Err(_) => failed = true,
            }
            if std::mem::take(&mut first) {
                received.offload.checksum = match response.flags {
                    flags if flags & proto::NETRXF_CSUM_BLANK != 0 => Checksum::Blank,
                    flags if flags & proto::NETRXF_DATA_VALIDATED != 0 => Checksum::Valid,
                    _ => Checksum::Whole,
                };
                if response.flags & proto::NETRXF_EXTRA_INFO != 0 {
                    self.extras(waiting, &mut received)?;
                }
            } else if response.flags & !proto::NETRXF_MORE_DATA != 0 {
                return fault("flags on a slot that is not the first");
            }
            if response.flags & proto::NETRXF_MORE_DATA == 0 {
                return Ok((!failed).then_some(received));
            }
        }
    }

    fn extras(&mut self, waiting: &mut u32, received: &mut Received) -> Result<(), Fault> {
        loop {
            let cut = || Fault("extra information goes on after the last response".into());
            *waiting = waiting.checked_sub(1).ok_or_else(cut)?;
            let (bytes, _) = self.take();
            received.slots += 1;
            let extra = NetifExtraInfo::read_from_bytes(&bytes).unwrap_or_default();
            let body = extra.body;
            match extra.kind {
                proto::EXTRA_TYPE_GSO => {
                    let kind = match body[2] {
                        proto::GSO_TYPE_TCPV4 => GsoKind::TcpV4,
                        proto::GSO_TYPE_TCPV6 => GsoKind::TcpV6,
                        other => return Err(Fault(format!("segments of type {other}"))),
                    };
                    let size = u16::from_le_bytes([body[0], body[1]]);
                    received.offload.gso = Some(Gso { kind, size });
                }
                proto::EXTRA_TYPE_HASH => {
                    let value = u32::from_le_bytes([body[2], body[3], body[4], body[5]]);
                    received.hash = Some(Hash { algorithm: body[1], kind: body[0], value });
                }
                proto::EXTRA_TYPE_XDP => {}
                other => return Err(Fault(format!("extra information of type {other}"))),
            }
            if extra.flags & proto::EXTRA_FLAG_MORE == 0 {
                return Ok(());
            }
        }
    }

    pub(super) fn final_check(&mut self) -> Result<bool, grant::ring::RingBroken> {
        self.ring.final_check()
    }

    pub(super) fn into_granted(self) -> [Granted; 2] {
        drop(self.ring);
        [self.ring_memory, self.pages]
    }
}

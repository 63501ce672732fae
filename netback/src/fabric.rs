//! The network: its cards, its uplink, and the memory of one turn.
//!
//! A turn takes a batch of packets from one place and is done with all of them before it ends:
//!
//! ```text
//!   first bytes of every packet   one grant copy, to our memory
//!   look at them                  headers, policy, switch: who gets it
//!   as it is, to one with room    placed at once: from the sender's page to the receiver's
//!   anything else                 fetched whole: one grant copy for all of them, then worked on (`work`)
//!   everything that was placed    one grant copy to the receivers' pages, then answers, one publish and
//!                                 at most one event for each of them
//! ```
//! So nothing of a sender's is ever held, and its answers are in the order of its ring.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use grant::exchange::{Exchange, Movement, PeerId, Place};
use grant::reactor::{Core, Outbox};
use grant::{GrantCounts, GrantStatus, Pages};

use crate::config::VifName;
use crate::device::Report;
use crate::frame::{FrameId, Frames, in_page};
use crate::headers::Headers;
use crate::packet::{ETHERNET_HEADER, HEADERS, Offload, VLAN_TAG};
use crate::proto::MAX_TX_SIZE;
use crate::receive::{Piece, Placed};
use crate::request::{Batch, Fragment};
use crate::slots::Outgoing;
use crate::station::FromThread;
use crate::stats::Counter;
use crate::switch::{PortId, Switch, Tag};
use crate::uplink::Outbound;
use crate::vif::{Lane, Vif, VifQueue};
use crate::work::{Stage, Work};

/// Everything that the queues of a thread share.
pub struct Fabric {
    /// The way to the guests' pages.
    pub exchange: Box<dyn Exchange>,
    /// The thread's own memory, see [`crate::frame`].
    pub local: Pages,
    /// The cards; a card's place is its port.
    pub vifs: Vec<Option<Vif>>,
    /// Who is where.
    pub switch: Switch,
    /// Memory for whole frames.
    pub frames: Frames,
    /// What is on its way out by the uplink.
    pub outbound: Option<Outbound>,
    /// Copies from guests to our memory.
    pub inward: Vec<Movement>,
    /// Copies to guests.
    pub outward: Vec<Movement>,
    /// Packets to be worked on, in order.
    pub works: Vec<Work>,
    /// Receivers with something placed: card and queue.
    pub dirty: Vec<(usize, usize)>,
    /// Receivers for which something waits since this turn.
    pub waiting: Vec<(usize, usize)>,
    /// Frames to be given back at the end of the turn.
    pub held: Vec<FrameId>,
    /// To control.
    pub outbox: Outbox<FromThread>,
    /// Scratch: the packets of a turn, and how each is answered.
    pub batch: Batch,
    /// See `batch`.
    pub statuses: Vec<i16>,
    /// The copies that each packet of the turn was placed with, in `outward`.
    pub direct: Vec<Range<usize>>,
    /// Scratch: where a packet is.
    pub pieces: Vec<Piece>,
    /// Scratch: a frame that is worked on, and a part of it.
    pub scratch: Vec<u8>,
    /// See `scratch`.
    pub segment: Vec<u8>,
    /// Room for what was worked out.
    pub stage: Stage,
    /// What the exchange has counted, as far as it was put on somebody's account.
    pub counted: GrantCounts,
    flows: RandomState,
    targets: Vec<(PortId, Tag)>,
}

/// Where a packet is.
#[derive(Clone, Debug)]
pub enum Body {
    /// Its first bytes in our memory, the rest in a guest's pages.
    Guest {
        /// Whose.
        peer: PeerId,
        /// All its fragments, those of the first bytes too.
        fragments: Range<usize>,
    },
    /// All of it in our memory.
    Ours,
}

/// A frame that was copied to our memory for those who work on it.
pub struct Fetched {
    /// Where there is room for it.
    pub frame: FrameId,
    /// Where in there it begins.
    pub head: usize,
    /// The copies that filled it.
    pub movements: Range<usize>,
}

/// A packet that was looked at.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Which of its turn it is.
    pub number: usize,
    /// Where it came in.
    pub from: PortId,
    /// What packets of its flow have in common.
    pub flow: usize,
    /// Its first bytes, in our memory.
    pub head: usize,
    /// Room for a tag, in our memory.
    pub tag: usize,
    /// Bytes.
    pub len: u32,
    /// The work that is left.
    pub offload: Offload,
    /// Where the rest is.
    pub body: Body,
    /// It is IPv6.
    pub v6: bool,
}

impl Fabric {
    /// A network of nobody.
    pub fn new(exchange: Box<dyn Exchange>, local: Pages, outbox: Outbox<FromThread>) -> Fabric {
        Fabric {
            exchange,
            local,
            vifs: Vec::new(),
            switch: Switch::default(),
            frames: Frames::default(),
            outbound: None,
            inward: Vec::with_capacity(1024),
            outward: Vec::with_capacity(4096),
            works: Vec::with_capacity(1024),
            dirty: Vec::with_capacity(64),
            waiting: Vec::with_capacity(64),
            held: Vec::with_capacity(crate::frame::FRAMES),
            outbox,
            batch: Batch::new(256),
            statuses: Vec::with_capacity(256),
            direct: Vec::with_capacity(256),
            pieces: Vec::with_capacity(32),
            scratch: Vec::with_capacity(MAX_TX_SIZE + VLAN_TAG),
            segment: Vec::with_capacity(MAX_TX_SIZE + VLAN_TAG),
            stage: Stage::default(),
            counted: GrantCounts::default(),
            flows: RandomState::new(),
            targets: Vec::with_capacity(64),
        }
    }

    /// A card's queue.
    #[inline]
    pub fn queue(&mut self, vif: usize, queue: usize) -> Option<&mut VifQueue> {
        self.vifs.get_mut(vif)?.as_mut()?.queues.get_mut(queue)?.as_mut()
    }

    /// Counts for a card.
    #[inline]
    pub fn count(&mut self, vif: usize, queue: usize, counter: Counter, n: u64) {
        if let Some(queue) = self.queue(vif, queue) {
            queue.count(counter, n);
        }
    }

    /// A number that packets of a flow have in common, and that nobody outside can foresee.
    pub fn flow(&self, headers: &Headers) -> usize {
        self.flows.hash_one(headers.flow()) as usize
    }

    /// Says where a packet goes, and places it with those who can have it as it is. The others get work.
    pub fn route(&mut self, packet: &Packet, headers: &Headers, fragments: &[Fragment], core: &Core) -> bool {
        let mut targets = std::mem::take(&mut self.targets);
        targets.clear();
        let (destination, source) = (headers.destination, headers.source);
        self.switch.forward(packet.from, destination, source, headers.vlan, core.now, &mut targets);
        if let Some((_, Tag::Insert(number))) = targets.iter().find(|(_, tag)| matches!(tag, Tag::Insert(_))) {
            let [high, low] = number.to_be_bytes();
            self.local.write(packet.tag, &[0x81, 0, high, low]);
        }
        let (first, mut fetched) = (self.works.len(), None);
        for &(port, tag) in &targets {
            let vif = self.vifs.get(port.index()).and_then(Option::as_ref);
            let lane = vif.map(|vif| vif.lane(packet.flow, headers)).unwrap_or_default();
            if self.give(packet, headers, (port, tag, lane), fragments, core) {
                continue;
            }
            // The frame is fetched once, whoever gets it.
            if fetched.is_none() {
                fetched = self.fetch(packet, fragments);
            }
            match &fetched {
                Some(_) => self.works.push(Work::new(packet, port, tag, lane)),
                None => self.lost(port, packet.flow, Counter::DroppedMemory),
            }
        }
        let anybody = !targets.is_empty();
        self.targets = targets;
        if let Some(fetched) = fetched {
            match self.works.get_mut(first) {
                Some(work) => work.fetched = Some(fetched),
                None => self.frames.give(fetched.frame),
            }
        }
        anybody
    }

    /// Places a packet with a card, or drops it; false when it has to be worked on.
    fn give(
        &mut self,
        packet: &Packet,
        headers: &Headers,
        (port, tag, lane): (PortId, Tag, Lane),
        fragments: &[Fragment],
        core: &Core,
    ) -> bool {
        let Some(vif) = self.vifs.get_mut(port.index()).and_then(Option::as_mut) else { return false };
        let (number, len) = (lane.queue, tagged_len(packet.len, tag));
        let (takes, holds) = (vif.takes(&packet.offload, packet.v6, len), vif.holds(len));
        let unwanted = !vif.groups.wants(headers.destination);
        let too_long = packet.offload.gso.is_none() && len > u32::from(vif.params.mtu) + FRAMING;
        let ready = vif.receiving.as_mut().is_none_or(|bucket| bucket.is_ready(core.now));
        let (headroom, closed) = (vif.features.xdp_headroom, vif.closed);
        let Some(queue) = vif.queues.get_mut(number).and_then(Option::as_mut).filter(|_| !closed) else { return true };
        let refused = match () {
            () if unwanted => Some(Counter::DroppedGroup),
            () if too_long || !holds && packet.offload.gso.is_none() => Some(Counter::DroppedUnfit),
            () => None,
        };
        if let Some(counter) = refused {
            queue.count(counter, 1);
            return true;
        }
        if !takes || !ready || queue.behind || !queue.backlog.is_empty() {
            queue.behind = true;
            self.dirty(port.index(), number);
            return false;
        }
        packet.pieces(tag, fragments, &mut self.pieces);
        let outgoing = Outgoing { len, offload: packet.offload, hash: lane.hash, headroom };
        match queue.rx.place(&outgoing, &self.pieces, &mut self.outward) {
            Ok(Placed::Yes) => {
                if let Some(bucket) = &mut vif.receiving {
                    bucket.take(len as usize);
                }
                self.dirty(port.index(), number);
                true
            }
            Ok(Placed::NoSlots) => {
                queue.behind = true;
                self.dirty(port.index(), number);
                false
            }
            Err(broken) => {
                self.broken(port.index(), format!("receive queue {number}: {broken}"));
                true
            }
        }
    }

    /// Has a whole frame copied to our memory.
    fn fetch(&mut self, packet: &Packet, fragments: &[Fragment]) -> Option<Fetched> {
        let frame = self.frames.take()?;
        let first = self.inward.len();
        packet.pieces(Tag::AsIs, fragments, &mut self.pieces);
        let head = frame.at() + in_page(&self.pieces);
        let mut at = head;
        for piece in &self.pieces {
            if let Place::Peer { .. } = piece.at {
                let (to, len) = (Place::Ours(at), piece.len as u16);
                self.inward.push(Movement { from: piece.at, to, len, status: GrantStatus::GENERAL_ERROR });
            } else if let Place::Ours(from) = piece.at {
                self.local.copy_from(at, &self.local, from, piece.len as usize);
            }
            at += piece.len as usize;
        }
        Some(Fetched { frame, head, movements: first..self.inward.len() })
    }

    /// Notes that a receiver has something placed.
    pub fn dirty(&mut self, vif: usize, queue: usize) {
        if !self.dirty.contains(&(vif, queue)) {
            self.dirty.push((vif, queue));
        }
    }

    /// A packet for somebody was lost.
    pub fn lost(&mut self, port: PortId, flow: usize, counter: Counter) {
        match self.vifs.get_mut(port.index()).and_then(Option::as_mut) {
            Some(vif) => {
                let number = vif.queue_for(flow);
                self.count(port.index(), number, counter, 1);
            }
            None => {
                if let Some(outbound) = &mut self.outbound {
                    outbound.dropped += 1;
                }
            }
        }
    }

    /// Makes the copies from guests. What failed says so itself.
    pub fn copy_inward(&mut self) {
        copy(self.exchange.as_mut(), &self.local, &mut self.inward);
    }

    /// Makes the copies to guests and answers all who got something.
    pub fn deliver(&mut self, core: &mut Core) {
        self.copy_outward();
        self.answer(core);
    }

    /// Makes the copies to guests. What failed says so itself.
    pub fn copy_outward(&mut self) {
        copy(self.exchange.as_mut(), &self.local, &mut self.outward);
    }

    /// Answers all who got something, and gives the memory of the turn back.
    pub fn answer(&mut self, core: &mut Core) {
        let dirty = std::mem::take(&mut self.dirty);
        for &(vif, number) in &dirty {
            let Some(queue) = self.vifs[vif].as_mut().and_then(|vif| vif.queues[number].as_mut()) else { continue };
            queue.behind = false;
            if !queue.backlog.is_empty() && !self.waiting.contains(&(vif, number)) {
                self.waiting.push((vif, number));
            }
            if !queue.rx.is_dirty() {
                continue;
            }
            let answered = queue.rx.answer(&self.outward, core);
            queue.count(Counter::ReceivedPackets, answered.packets);
            queue.count(Counter::ReceivedBytes, answered.bytes);
            queue.count(Counter::ReceivedErrors, answered.errors);
            queue.count(Counter::NotifiedOut, u64::from(answered.notified));
        }
        self.dirty = dirty;
        self.dirty.clear();
        self.outward.clear();
        self.inward.clear();
        for frame in self.held.drain(..) {
            self.frames.give(frame);
        }
    }

    /// A card's frontend broke the protocol.
    pub fn broken(&mut self, vif: usize, reason: String) {
        if let Some(vif) = self.vifs.get_mut(vif).and_then(Option::as_mut)
            && !std::mem::replace(&mut vif.closed, true)
        {
            self.outbox.send(FromThread(Report::Broken { vif: vif.name, reason }));
        }
    }

    /// The place of a card.
    pub fn find(&self, name: VifName) -> Option<usize> {
        self.vifs.iter().position(|vif| vif.as_ref().is_some_and(|vif| vif.name == name))
    }
}

/// Bytes of a frame that are not payload in the sense of an MTU: its header and a tag.
const FRAMING: u32 = (ETHERNET_HEADER + VLAN_TAG) as u32;
/// Bytes of the two addresses: where a tag is put.
const ADDRESSES: u32 = 12;

/// Bytes of a frame after its tag was changed.
pub fn tagged_len(len: u32, tag: Tag) -> u32 {
    match tag {
        Tag::AsIs => len,
        Tag::Strip => len - VLAN_TAG as u32,
        Tag::Insert(_) => len + VLAN_TAG as u32,
    }
}

impl Packet {
    /// All of it, in order, with its tag changed.
    pub fn pieces(&self, tag: Tag, fragments: &[Fragment], pieces: &mut Vec<Piece>) {
        pieces.clear();
        let seen = match &self.body {
            Body::Ours => self.len,
            Body::Guest { .. } => self.len.min(HEADERS as u32),
        };
        let (at, len) = match tag {
            Tag::AsIs => (0, 0),
            Tag::Strip => (ADDRESSES, VLAN_TAG as u32),
            Tag::Insert(_) => (ADDRESSES, 0),
        };
        let ours = |at: usize, len: u32| Piece { at: Place::Ours(at), len };
        if at > 0 {
            pieces.push(ours(self.head, at));
        }
        if let Tag::Insert(_) = tag {
            pieces.push(ours(self.tag, VLAN_TAG as u32));
        }
        pieces.push(ours(self.head + (at + len) as usize, seen - at - len));
        let Body::Guest { peer, fragments: range } = &self.body else { return };
        let mut skip = seen;
        for fragment in fragments.get(range.clone()).unwrap_or_default() {
            let len = u32::from(fragment.len);
            let over = skip.min(len);
            skip -= over;
            if over < len {
                let at = Place::Peer { peer: *peer, gref: fragment.gref, offset: fragment.offset + over as u16 };
                pieces.push(Piece { at, len: len - over });
            }
        }
    }
}

/// Makes copies in as few calls as there are. When a call fails, everything in it has failed.
fn copy(exchange: &mut dyn Exchange, local: &Pages, movements: &mut [Movement]) {
    if movements.is_empty() {
        return;
    }
    if let Err(error) = exchange.copy(local, movements) {
        tracing::debug!(%error, "a grant copy failed");
        for movement in movements {
            movement.status = GrantStatus::GENERAL_ERROR;
        }
    }
}

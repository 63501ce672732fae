//! Packets that somebody has to work on: their receiver cannot take what their sender left to do, has no room now, or is
//! the uplink. They have been fetched whole, and are taken in the order in which they came.

use grant::exchange::Place;
use grant::reactor::Core;

use crate::fabric::{Body, Fabric, Fetched, Packet, tagged_len};
use crate::frame::FrameId;
use crate::offload::{self, Segments};
use crate::packet::{Checksum, Offload};
use crate::proto::MAX_TX_SIZE;
use crate::receive::{Piece, Placed};
use crate::slots::Outgoing;
use crate::stats::Counter;
use crate::switch::{PortId, Tag};
use crate::vif::Lane;

/// One packet for one receiver.
pub struct Work {
    packet: Packet,
    port: PortId,
    tag: Tag,
    lane: Lane,
    /// The first for a packet brings its frame.
    pub fetched: Option<Fetched>,
}

/// Room for what was worked out, in frames that are given back at the end of the turn.
#[derive(Default)]
pub struct Stage {
    /// Where the next byte goes, and where the room ends.
    at: usize,
    end: usize,
}

impl Work {
    /// The packet for this receiver.
    pub fn new(packet: &Packet, port: PortId, tag: Tag, lane: Lane) -> Work {
        Work { packet: packet.clone(), port, tag, lane, fetched: None }
    }
}

impl Fabric {
    /// Does all work of the turn. `failed` hears of packets whose pages could not be copied, by their `number`.
    pub fn work(&mut self, core: &mut Core, mut failed: impl FnMut(usize)) {
        let mut works = std::mem::take(&mut self.works);
        let (mut frame, mut at, mut fine): (Option<FrameId>, usize, bool) = (None, 0, false);
        for work in works.drain(..) {
            if let Some(fetched) = work.fetched {
                self.held.extend(frame.take());
                fine = self.inward[fetched.movements].iter().all(|movement| movement.status.is_okay());
                at = fetched.head;
                frame = Some(fetched.frame);
                if !fine {
                    failed(work.packet.number);
                }
            }
            if !fine {
                continue;
            }
            let packet = Packet { head: at, body: Body::Ours, ..work.packet };
            if work.port != PortId::UPLINK {
                self.give_worked(&packet, (work.port, work.tag, work.lane), core);
            } else if let Some(whole) = frame.take() {
                // The uplink is the last of a packet's receivers.
                self.send_up(&packet, work.tag, whole, core);
            }
        }
        self.held.extend(frame);
        self.works = works;
        self.stage = Stage::default();
    }

    /// Gives a card a packet that lies in our memory, as it is or worked on.
    fn give_worked(&mut self, packet: &Packet, (port, tag, lane): (PortId, Tag, Lane), core: &Core) {
        let Some(vif) = self.vifs.get(port.index()).and_then(Option::as_ref) else { return };
        let (vif_at, number) = (port.index(), lane.queue);
        let len = tagged_len(packet.len, tag);
        let mut scratch = std::mem::take(&mut self.scratch);
        packet.pieces(tag, &[], &mut self.pieces);
        scratch.clear();
        for piece in &self.pieces {
            if let Place::Ours(at) = piece.at {
                let from = scratch.len();
                scratch.resize(from + piece.len as usize, 0);
                self.local.read(at, &mut scratch[from..]);
            }
        }
        let whole = Offload { checksum: Checksum::Whole, gso: None };
        if vif.takes(&packet.offload, packet.v6, len) {
            self.put(vif_at, lane, packet, packet.offload, &scratch, core);
        } else if let Some(gso) = packet.offload.gso {
            let mut segment = std::mem::take(&mut self.segment);
            match Segments::new(&scratch, gso) {
                Ok(mut segments) => {
                    while let Some(_len) = segments.next_into(&mut segment) {
                        self.put(vif_at, lane, packet, whole, &segment, core);
                    }
                    self.count(vif_at, number, Counter::Segmented, 1);
                }
                Err(offload::Unfit) => self.count(vif_at, number, Counter::DroppedUnfit, 1),
            }
            self.segment = segment;
        } else if offload::complete_checksum(&mut scratch).is_ok() {
            self.count(vif_at, number, Counter::Checksums, 1);
            self.put(vif_at, lane, packet, whole, &scratch, core);
        } else {
            self.count(vif_at, number, Counter::DroppedUnfit, 1);
        }
        self.scratch = scratch;
    }

    /// Gives a card a frame that it can take: into its buffers when it has some and nobody waits, else to what waits.
    fn put(&mut self, vif: usize, lane: Lane, packet: &Packet, offload: Offload, frame: &[u8], core: &Core) {
        let Lane { queue: number, hash } = lane;
        let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut).filter(|card| !card.closed) else { return };
        let (holds, headroom) = (card.holds(frame.len() as u32), card.features.xdp_headroom);
        let ready = card.receiving.as_mut().is_none_or(|bucket| bucket.is_ready(core.now));
        let Some(queue) = card.queues.get_mut(number).and_then(Option::as_mut) else { return };
        if !holds {
            return queue.count(Counter::DroppedUnfit, 1);
        }
        let outgoing = Outgoing { len: frame.len() as u32, offload, hash, headroom };
        let room = queue.rx.posted();
        if ready && queue.backlog.is_empty() && room.is_ok_and(|room| room >= outgoing.count()) {
            let Some(at) = self.stage(frame) else { return self.count(vif, number, Counter::DroppedMemory, 1) };
            return self.place(vif, number, &outgoing, at);
        }
        let dropped = queue.backlog.push(packet.flow, offload, hash, frame, core.now);
        queue.count(Counter::DroppedNoRoom, dropped as u64);
        queue.count(Counter::Queued, 1);
        self.dirty(vif, number);
    }

    /// Asks those for whom something waits since this turn to tell when they have room, which may be now: they may have
    /// been asleep for long.
    pub fn ask(&mut self, core: &mut Core) {
        while let Some((vif, number)) = self.waiting.pop() {
            let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut) else { continue };
            let ready = card.receiving.as_mut().is_none_or(|bucket| bucket.is_ready(core.now));
            let headroom = card.features.xdp_headroom;
            let Some(queue) = card.queues.get_mut(number).and_then(Option::as_mut) else { continue };
            let wanted = queue.wanted(headroom, core.now).filter(|_| ready);
            if wanted.is_some_and(|wanted| queue.rx.wants(wanted).unwrap_or(true)) {
                self.drain(vif, number, core);
            }
        }
    }

    /// Gives a card what waits for it, as far as it has room. True when something went.
    pub fn drain(&mut self, vif: usize, number: usize, core: &mut Core) -> bool {
        let mut went = false;
        while let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut).filter(|card| !card.closed) {
            let ready = card.receiving.as_mut().is_none_or(|bucket| bucket.is_ready(core.now));
            let headroom = card.features.xdp_headroom;
            let Some(queue) = card.queues.get_mut(number).and_then(Option::as_mut) else { break };
            queue.looked = core.now;
            let Some(wanted) = queue.wanted(headroom, core.now) else { break };
            let room = match queue.rx.posted() {
                Ok(room) => room,
                Err(broken) => {
                    self.broken(vif, format!("receive queue {number}: {broken}"));
                    break;
                }
            };
            if !ready || room < wanted {
                let stale = queue.backlog.waits_since().is_some_and(|since| crate::vif::is_stale(since, core.now));
                if ready && stale {
                    let dropped = queue.backlog.clear();
                    queue.count(Counter::DroppedNoRoom, dropped as u64);
                }
                break;
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.clear();
            let Some(first) = queue.backlog.first(core.now, &mut 0) else { break };
            queue.backlog.read(|_, part| scratch.extend_from_slice(part));
            let staged = self.stage(&scratch);
            let len = scratch.len() as u32;
            self.scratch = scratch;
            // No memory now: what was placed so far is delivered, and gives it back.
            let Some(at) = staged else { break };
            if let Some(queue) = self.queue(vif, number) {
                queue.backlog.pop();
            }
            self.place(vif, number, &Outgoing { len, offload: first.offload, hash: first.hash, headroom }, at);
            went = true;
        }
        if went {
            self.stage = Stage::default();
            self.deliver(core);
        }
        went
    }

    /// Copies a frame to our memory, where it stays until the end of the turn.
    fn stage(&mut self, frame: &[u8]) -> Option<usize> {
        if self.stage.end - self.stage.at < frame.len() {
            let place = self.frames.take()?;
            self.stage = Stage { at: place.at(), end: place.at() + MAX_TX_SIZE + 1 };
            self.held.push(place);
        }
        let at = self.stage.at;
        self.local.write(at, frame);
        self.stage.at += frame.len();
        Some(at)
    }

    /// Places a frame that lies in our memory; there is room for it.
    fn place(&mut self, vif: usize, number: usize, outgoing: &Outgoing, at: usize) {
        let pieces = [Piece { at: Place::Ours(at), len: outgoing.len }];
        let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut) else { return };
        if let Some(bucket) = &mut card.receiving {
            bucket.take(outgoing.len as usize);
        }
        let Some(queue) = card.queues.get_mut(number).and_then(Option::as_mut) else { return };
        match queue.rx.place(outgoing, &pieces, &mut self.outward) {
            Ok(Placed::Yes) => self.dirty(vif, number),
            Ok(Placed::NoSlots) => queue.count(Counter::DroppedNoRoom, 1),
            Err(broken) => self.broken(vif, format!("receive queue {number}: {broken}")),
        }
    }
}

//! A turn of a card's transmit ring: see [`crate::fabric`] for its steps.

use grant::GrantStatus;
use grant::exchange::{Movement, Place};
use grant::reactor::{Core, Turn};
use zerocopy::IntoBytes;

use crate::fabric::{Body, Fabric, Packet};
use crate::frame::{HEADS, head_at, tag_at};
use crate::headers::Headers;
use crate::offload;
use crate::packet::HEADERS;
use crate::proto::{NETIF_RSP_DROPPED, NETIF_RSP_ERROR, NETIF_RSP_NULL, NETIF_RSP_OKAY, NetifTxResponse};
use crate::request::{Batch, Kind, Slot};
use crate::stats::Counter;
use crate::switch::PortId;

impl Fabric {
    /// Takes a batch from a card's ring and is done with all of it.
    pub fn transmit(&mut self, vif: usize, number: usize, core: &mut Core) -> Turn {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let turn = match self.take(vif, number, &mut batch, core) {
            Err(reason) => Turn::Broken(reason),
            Ok(()) if batch.packets.is_empty() => Turn::Idle,
            Ok(()) => {
                self.carry(vif, number, &batch, core);
                self.respond(vif, number, &batch, core);
                self.write_by_hand(core);
                Turn::Busy
            }
        };
        self.batch = batch;
        turn
    }

    /// Takes whole packets while the card may send.
    fn take(&mut self, vif: usize, number: usize, batch: &mut Batch, core: &Core) -> Result<(), String> {
        let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut).filter(|card| !card.closed) else {
            return Ok(());
        };
        let sending = &mut card.sending;
        let Some(queue) = card.queues.get_mut(number).and_then(Option::as_mut) else { return Ok(()) };
        queue.limited = None;
        let mut waiting = queue.tx.unconsumed().map_err(|broken| format!("transmit queue {number}: {broken}"))?;
        while batch.packets.len() < HEADS {
            if waiting > 0
                && let Some(bucket) = sending
                && !bucket.is_ready(core.now)
            {
                queue.limited = Some(bucket.ready_at());
                queue.count(Counter::Limited, 1);
                break;
            }
            let tx = &mut queue.tx;
            let next = || {
                waiting = waiting.checked_sub(1)?;
                let mut slot = [0; 12];
                tx.take(&mut slot);
                Some(slot)
            };
            if !batch.take(next).map_err(|broken| format!("transmit queue {number}: {broken}"))? {
                break;
            }
            if let (Some(bucket), Some(packet)) = (&mut *sending, batch.packets.last()) {
                bucket.take(packet.len as usize);
            }
        }
        Ok(())
    }

    /// Carries the packets of a batch to whom they are for, and notes the status of each.
    fn carry(&mut self, vif: usize, number: usize, batch: &Batch, core: &mut Core) {
        self.direct.clear();
        self.statuses.clear();
        self.statuses.resize(batch.packets.len(), NETIF_RSP_OKAY);
        self.fetch_heads(vif, batch);
        for (at, packet) in batch.packets.iter().enumerate() {
            let placed = self.outward.len();
            let status = match packet.kind {
                Kind::Frame if self.statuses[at] == NETIF_RSP_OKAY => self.judge(vif, number, at, packet, batch, core),
                Kind::Frame | Kind::Malformed(_) => NETIF_RSP_ERROR,
                Kind::Multicast { add, group } => self.multicast(vif, add, group),
            };
            self.statuses[at] = status;
            self.direct.push(placed..self.outward.len());
        }
        self.copy_inward();
        let mut statuses = std::mem::take(&mut self.statuses);
        self.work(core, |number| statuses[number] = NETIF_RSP_ERROR);
        self.copy_outward();
        for (status, direct) in statuses.iter_mut().zip(&self.direct) {
            // Whose page it was that could not be had is not known here: the receiver has its own answer.
            if self.outward[direct.clone()].iter().any(|movement| !movement.status.is_okay()) {
                *status = NETIF_RSP_ERROR;
            }
        }
        let errors = statuses.iter().filter(|&&status| status == NETIF_RSP_ERROR).count();
        self.statuses = statuses;
        self.answer(core);
        self.ask(core);
        self.count(vif, number, Counter::SentErrors, errors as u64);
        self.count_copies(vif, number);
    }

    /// Puts the grant copies since last time on a queue's account.
    fn count_copies(&mut self, vif: usize, number: usize) {
        let counts = self.exchange.counts();
        let before = std::mem::replace(&mut self.counted, counts);
        let copies = counts.copy_calls - before.copy_calls;
        if let Some(queue) = self.queue(vif, number) {
            queue.count(Counter::SystemCalls, copies);
            queue.count(Counter::CopyCalls, copies);
            queue.count(Counter::SegmentsCopied, counts.segments_copied - before.segments_copied);
        }
    }

    /// Brings the first bytes of all packets here, in one grant copy.
    fn fetch_heads(&mut self, vif: usize, batch: &Batch) {
        let Some(peer) = self.vifs[vif].as_ref().map(|card| card.peer) else { return };
        for (at, packet) in batch.packets.iter().enumerate() {
            let (mut to, mut left) = (head_at(at), (packet.len as usize).min(HEADERS));
            for fragment in batch.fragments_of(packet) {
                let len = left.min(usize::from(fragment.len));
                if len == 0 {
                    break;
                }
                let from = Place::Peer { peer, gref: fragment.gref, offset: fragment.offset };
                let status = GrantStatus::GENERAL_ERROR;
                self.inward.push(Movement { from, to: Place::Ours(to), len: len as u16, status });
                (to, left) = (to + len, left - len);
            }
        }
        self.copy_inward();
        for movement in &self.inward {
            if let (false, Place::Ours(at)) = (movement.status.is_okay(), movement.to) {
                self.statuses[crate::frame::head_of(at)] = NETIF_RSP_ERROR;
            }
        }
        self.inward.clear();
    }

    /// Looks at a packet, and says where it goes.
    fn judge(
        &mut self,
        vif: usize,
        number: usize,
        at: usize,
        packet: &crate::request::Packet,
        batch: &Batch,
        core: &Core,
    ) -> i16 {
        let mut first = [0; HEADERS];
        let first = &mut first[..(packet.len as usize).min(HEADERS)];
        self.local.read(head_at(at), first);
        let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut) else { return NETIF_RSP_ERROR };
        let (peer, policy) = (card.peer, &card.policy);
        let Some(headers) = Headers::parse(first) else { return NETIF_RSP_ERROR };
        let allowed = policy.check(&headers, first);
        self.count(vif, number, Counter::SentPackets, 1);
        self.count(vif, number, Counter::SentBytes, u64::from(packet.len));
        if allowed.is_err() {
            self.count(vif, number, Counter::DroppedPolicy, 1);
            return NETIF_RSP_DROPPED;
        }
        if !offload::is_fit(&packet.offload, &headers, first, packet.len as usize) {
            return NETIF_RSP_ERROR;
        }
        let fragments = packet.fragments.start as usize..packet.fragments.end as usize;
        let packet = Packet {
            number: at,
            from: PortId(vif as u16),
            flow: self.flow(&headers),
            head: head_at(at),
            tag: tag_at(at),
            len: packet.len,
            offload: packet.offload,
            body: Body::Guest { peer, fragments },
            v6: headers.is_v6(),
        };
        if !self.route(&packet, &headers, &batch.fragments, core) {
            self.count(vif, number, Counter::DroppedNobody, 1);
        }
        NETIF_RSP_OKAY
    }

    fn multicast(&mut self, vif: usize, add: bool, group: crate::packet::Mac) -> i16 {
        let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut) else { return NETIF_RSP_ERROR };
        if !add {
            card.groups.remove(group);
            return NETIF_RSP_OKAY;
        }
        if card.groups.add(group) { NETIF_RSP_OKAY } else { NETIF_RSP_ERROR }
    }

    /// Answers every slot of the batch in the order of the ring.
    fn respond(&mut self, vif: usize, number: usize, batch: &Batch, core: &mut Core) {
        let statuses = std::mem::take(&mut self.statuses);
        if let Some(queue) = self.queue(vif, number) {
            for (packet, &status) in batch.packets.iter().zip(&statuses) {
                for slot in &batch.slots[packet.slots.start as usize..packet.slots.end as usize] {
                    let response = match *slot {
                        Slot::Data(id) => NetifTxResponse { id, status },
                        Slot::Extra => NetifTxResponse { id: 0, status: NETIF_RSP_NULL },
                    };
                    queue.tx.respond(response.as_bytes());
                }
            }
            if queue.tx.publish() {
                core.notify(queue.tx_channel);
                queue.count(Counter::NotifiedOut, 1);
            }
            // The last of its counts: who sees it has the others.
            queue.count(Counter::Batches, 1);
        }
        self.statuses = statuses;
    }
}

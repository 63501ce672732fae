//! The receive ring of one queue: where a packet for the guest goes, and how its pages are answered.
//!
//! A packet is *placed*: its slots are taken and the copies that fill them noted down. When the copies of a whole turn
//! have been made in one call, the slots are *answered* in the order in which they were taken, published once, and the
//! guest is told at most once. netfront looks at the place of a response and not at its id (netif.h), so nothing may
//! come between.

use std::ops::Range;

use grant::exchange::{Movement, PeerId, Place};
use grant::reactor::{Channel, Core};
use grant::ring::{BackRing, RingBroken};
use grant::{GrantRef, GrantStatus};
use zerocopy::IntoBytes;

use crate::proto::{NETIF_RSP_ERROR, NetifRxRequest, NetifRxResponse};
use crate::slots::{Outgoing, Slot};

/// A stretch of a packet, wherever it is. It does not cross a page of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte.
    pub at: Place,
    /// Bytes, never 0.
    pub len: u32,
}

impl Piece {
    /// What is left of it after `len` bytes.
    fn skip(self, len: u32) -> Piece {
        let at = match self.at {
            Place::Ours(at) => Place::Ours(at + len as usize),
            Place::Peer { peer, gref, offset } => Place::Peer { peer, gref, offset: offset + len as u16 },
        };
        Piece { at, len: self.len - len }
    }
}

/// What became of a packet that was to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Its slots are taken.
    Yes,
    /// The guest has posted fewer slots than it takes.
    NoSlots,
}

/// A response that is to be written once its copies have been made.
struct Answer {
    id: u16,
    slot: Slot,
    movements: Range<u32>,
}

/// The receive half of a queue.
pub struct Receive {
    ring: BackRing,
    peer: PeerId,
    channel: Channel,
    answers: Vec<Answer>,
    /// Packets and bytes that are being placed.
    placed: (u64, u64),
}

/// What a round of answers came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Slots whose copy failed.
    pub errors: u64,
    /// The guest was told.
    pub notified: bool,
}

impl Receive {
    /// The half over an attached ring.
    pub fn new(ring: BackRing, peer: PeerId, channel: Channel) -> Receive {
        let answers = Vec::with_capacity(ring.entries() as usize);
        Receive { ring, peer, channel, answers, placed: (0, 0) }
    }

    /// Where the guest is told.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Buffers that the guest has posted and nobody has taken.
    ///
    /// # Errors
    /// See [`BackRing::unconsumed`].
    #[inline]
    pub fn posted(&self) -> Result<u32, RingBroken> {
        self.ring.unconsumed()
    }

    /// Asks to be told when `wanted` buffers are there; true when they are there already.
    ///
    /// # Errors
    /// See [`BackRing::unconsumed`].
    pub fn wants(&mut self, wanted: u32) -> Result<bool, RingBroken> {
        self.ring.final_check_for(wanted)
    }

    /// Takes the slots of a packet and notes the copies that fill them. `pieces` are all of it, in order.
    ///
    /// # Errors
    /// See [`BackRing::unconsumed`].
    pub fn place(
        &mut self,
        outgoing: &Outgoing,
        pieces: &[Piece],
        movements: &mut Vec<Movement>,
    ) -> Result<Placed, RingBroken> {
        if self.ring.unconsumed()? < outgoing.count() {
            return Ok(Placed::NoSlots);
        }
        let mut pieces = pieces.iter().copied();
        let mut piece = None;
        for slot in outgoing.slots() {
            let mut bytes = [0; size_of::<NetifRxRequest>()];
            self.ring.take(&mut bytes);
            let request: NetifRxRequest = zerocopy::transmute!(bytes);
            let first = movements.len() as u32;
            if let Slot::Data { offset, len, .. } = slot {
                let (mut at, mut left) = (offset, len);
                while left > 0 {
                    let Some(from) = piece.take().or_else(|| pieces.next()) else { break };
                    let now = from.len.min(u32::from(left)) as u16;
                    let to = Place::Peer { peer: self.peer, gref: GrantRef(request.gref), offset: at };
                    movements.push(Movement { from: from.at, to, len: now, status: GrantStatus::GENERAL_ERROR });
                    (at, left) = (at + now, left - now);
                    piece = Some(from.skip(u32::from(now))).filter(|rest| rest.len > 0);
                }
                debug_assert_eq!(left, 0, "the pieces are shorter than the packet");
            }
            self.answers.push(Answer { id: request.id, slot, movements: first..movements.len() as u32 });
        }
        self.placed.0 += 1;
        self.placed.1 += u64::from(outgoing.len);
        Ok(Placed::Yes)
    }

    /// True when something is placed and not answered.
    pub fn is_dirty(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Writes the responses of everything placed, now that `movements` have been made, and publishes them.
    pub fn answer(&mut self, movements: &[Movement], core: &mut Core) -> Answered {
        let (packets, bytes) = std::mem::take(&mut self.placed);
        let mut answered = Answered { packets, bytes, ..Answered::default() };
        for answer in self.answers.drain(..) {
            match answer.slot {
                Slot::Data { offset, len, flags } => {
                    let copies = &movements[answer.movements.start as usize..answer.movements.end as usize];
                    let fine = copies.iter().all(|movement| movement.status.is_okay());
                    answered.errors += u64::from(!fine);
                    let status = if fine { len as i16 } else { NETIF_RSP_ERROR };
                    let response = NetifRxResponse { id: answer.id, offset, flags, status };
                    self.ring.respond(response.as_bytes());
                }
                Slot::Extra(extra) => self.ring.respond(extra.as_bytes()),
            }
        }
        if self.ring.publish() {
            core.notify(self.channel);
            answered.notified = true;
        }
        answered
    }
}

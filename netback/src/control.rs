//! The control ring of a card (netif.h, "Control messages"): requests about hashes, few and far between.

use std::cell::RefCell;
use std::rc::Rc;

use grant::exchange::{Movement, Place};
use grant::reactor::{Channel, Core, Turn};
use grant::ring::BackRing;
use grant::uring::MemoryId;
use grant::{GrantStatus, SharedMemory};
use zerocopy::IntoBytes;

use crate::config::VifName;
use crate::fabric::Fabric;
use crate::frame;
use crate::proto::{NetifCtrlRequest, NetifCtrlResponse};

/// Bytes of a slot: a request is larger than its answer.
pub const SLOT: usize = size_of::<NetifCtrlRequest>();
/// Requests that are taken in a turn: each may need a grant copy of its own, and packets wait meanwhile.
const TURN: u32 = 8;

/// The control ring of a card.
pub struct Control {
    /// The ring.
    pub ring: BackRing,
    /// Where the guest is told.
    pub channel: Channel,
    /// Its page.
    pub memory: SharedMemory,
}

/// What the reactor turns.
pub struct ControlQueue {
    /// Everything.
    pub fabric: Rc<RefCell<Fabric>>,
    /// Which card.
    pub name: VifName,
    /// Its place.
    pub vif: usize,
    /// Its number on the thread.
    pub memory: MemoryId,
    /// It takes nothing more.
    pub draining: bool,
}

impl ControlQueue {
    /// Takes some requests and answers them.
    pub fn turn(&mut self, core: &mut Core) -> Turn {
        if self.draining {
            return Turn::Idle;
        }
        self.fabric.borrow_mut().control(self.vif, core)
    }

    /// Is there something that a turn could do now?
    pub fn has_work(&self) -> bool {
        !self.draining && self.look(|control| control.ring.unconsumed() != Ok(0))
    }

    /// Asks to be told and looks once more. A broken index is work: a turn says so.
    pub fn final_check(&mut self) -> bool {
        !self.draining && self.look(|control| control.ring.final_check().unwrap_or(true))
    }

    fn look(&self, look: impl FnOnce(&mut Control) -> bool) -> bool {
        let mut fabric = self.fabric.borrow_mut();
        let card = fabric.vifs.get_mut(self.vif).and_then(Option::as_mut).filter(|card| !card.closed);
        card.and_then(|card| card.control.as_mut()).is_some_and(look)
    }
}

impl Fabric {
    /// Answers some requests of a card, in their order.
    fn control(&mut self, vif: usize, core: &mut Core) -> Turn {
        let (exchange, local) = (self.exchange.as_mut(), &self.local);
        let Some(card) = self.vifs.get_mut(vif).and_then(Option::as_mut).filter(|card| !card.closed) else {
            return Turn::Idle;
        };
        let (peer, steering) = (card.peer, &mut card.steering);
        let Some(control) = card.control.as_mut() else { return Turn::Idle };
        let waiting = match control.ring.unconsumed() {
            Ok(0) => return Turn::Idle,
            Ok(waiting) => waiting.min(TURN),
            Err(broken) => return Turn::Broken(format!("control ring: {broken}")),
        };
        let before = steering.is_on();
        for _ in 0..waiting {
            let mut slot = [0; SLOT];
            control.ring.take(&mut slot);
            let request: NetifCtrlRequest = zerocopy::transmute!(slot);
            let response: NetifCtrlResponse = steering.request(&request, &mut |gref, to| {
                // Between turns nothing lies where the first bytes of packets do.
                let (from, at) = (Place::Peer { peer, gref, offset: 0 }, frame::head_at(0));
                let status = GrantStatus::GENERAL_ERROR;
                let mut movement = [Movement { from, to: Place::Ours(at), len: to.len() as u16, status }];
                let copied = exchange.copy(local, &mut movement).is_ok() && movement[0].status.is_okay();
                if copied {
                    local.read(at, to);
                }
                copied
            });
            control.ring.respond(response.as_bytes());
        }
        if control.ring.publish() {
            core.notify(control.channel);
        }
        if before && !steering.is_on() {
            // What waits is not to surprise a frontend that has just given hashes up.
            card.queues.iter_mut().flatten().for_each(|queue| queue.backlog.forget_hashes());
        }
        Turn::Busy
    }
}

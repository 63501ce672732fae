//! What the reactor turns: a queue of a card, its control ring, or the uplink. All of them share the [`Fabric`]; there is one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use grant::reactor::{Core, Queue, Turn};
use grant::uring::{Completion, MemoryId};

use crate::config::VifName;
use crate::control::ControlQueue;
use crate::fabric::Fabric;
use crate::stats::Counter;
use crate::uplink::Uplink;

/// One queue of a card.
pub struct CardQueue {
    /// Everything.
    pub fabric: Rc<RefCell<Fabric>>,
    /// Which card.
    pub name: VifName,
    /// Its place.
    pub vif: usize,
    /// The queue's number.
    pub number: usize,
    /// Its number on the thread.
    pub memory: MemoryId,
    /// It takes nothing more.
    pub draining: bool,
    /// When the reactor looked last.
    now: Instant,
}

/// One of the three.
pub enum Port {
    /// A queue of a card.
    Card(CardQueue),
    /// The control ring of a card.
    Control(ControlQueue),
    /// The uplink.
    Uplink(Box<Uplink>),
}

impl CardQueue {
    /// A queue of a card at a place.
    pub fn new(fabric: Rc<RefCell<Fabric>>, name: VifName, vif: usize, number: usize, memory: MemoryId) -> CardQueue {
        CardQueue { fabric, name, vif, number, memory, draining: false, now: Instant::now() }
    }

    fn turn(&mut self, core: &mut Core) -> Turn {
        if self.draining {
            return Turn::Idle;
        }
        self.now = core.now;
        let mut fabric = self.fabric.borrow_mut();
        let drained = fabric.drain(self.vif, self.number, core);
        match fabric.transmit(self.vif, self.number, core) {
            Turn::Idle if drained => Turn::Busy,
            turn => turn,
        }
    }

    /// Is there something that a turn could do now?
    fn has_work(&self) -> bool {
        let mut fabric = self.fabric.borrow_mut();
        let Some(card) = fabric.vifs.get_mut(self.vif).and_then(Option::as_mut).filter(|card| !card.closed) else {
            return false;
        };
        let headroom = card.features.xdp_headroom;
        let credit = card.receiving.as_mut().is_none_or(|bucket| bucket.is_ready(self.now));
        let Some(queue) = card.queues.get_mut(self.number).and_then(Option::as_mut) else { return false };
        let sends = queue.limited.is_none() && queue.tx.unconsumed() != Ok(0);
        sends
            || credit
                && queue
                    .wanted(headroom, self.now)
                    .is_some_and(|wanted| queue.rx.posted().is_ok_and(|room| room >= wanted))
    }

    fn final_check(&mut self) -> bool {
        let mut fabric = self.fabric.borrow_mut();
        let Some(card) = fabric.vifs.get_mut(self.vif).and_then(Option::as_mut).filter(|card| !card.closed) else {
            return false;
        };
        let headroom = card.features.xdp_headroom;
        let credit = card.receiving.as_mut().is_none_or(|bucket| bucket.is_ready(self.now));
        let Some(queue) = card.queues.get_mut(self.number).and_then(Option::as_mut) else { return false };
        // A guest that has used up its rate does not get to wake us (net.md A4). A broken index is work: a turn says so.
        let sends = queue.limited.is_none() && queue.tx.final_check().unwrap_or(true);
        let wanted = queue.wanted(headroom, self.now).filter(|_| credit);
        sends || wanted.is_some_and(|wanted| queue.rx.wants(wanted).unwrap_or(true))
    }

    fn account(&mut self, system_calls: u64) {
        self.fabric.borrow_mut().count(self.vif, self.number, Counter::SystemCalls, system_calls);
    }
}

impl Queue for Port {
    fn turn(&mut self, core: &mut Core) -> Turn {
        match self {
            Port::Card(queue) => queue.turn(core),
            Port::Control(queue) => queue.turn(core),
            Port::Uplink(uplink) => {
                if uplink.turn(core) {
                    Turn::Busy
                } else {
                    Turn::Idle
                }
            }
        }
    }

    fn complete(&mut self, completion: Completion, _: &mut Core) {
        if let Port::Uplink(uplink) = self {
            uplink.complete(&completion);
        }
    }

    fn settle(&mut self, core: &mut Core) {
        if let Port::Uplink(uplink) = self {
            uplink.settle(core);
        }
    }

    fn has_work(&self) -> bool {
        match self {
            Port::Card(queue) => !queue.draining && queue.has_work(),
            Port::Control(queue) => queue.has_work(),
            Port::Uplink(uplink) => uplink.has_work(),
        }
    }

    fn is_starved(&self) -> bool {
        false
    }

    fn final_check(&mut self) -> bool {
        match self {
            Port::Card(queue) => !queue.draining && queue.final_check(),
            Port::Control(queue) => queue.final_check(),
            Port::Uplink(uplink) => uplink.has_work(),
        }
    }

    fn is_drained(&self) -> bool {
        match self {
            Port::Card(queue) => queue.draining,
            Port::Control(queue) => queue.draining,
            Port::Uplink(uplink) => uplink.is_drained(),
        }
    }

    fn notified(&mut self) {
        if let Port::Card(queue) = self {
            queue.fabric.borrow_mut().count(queue.vif, queue.number, Counter::NotifiedIn, 1);
        }
    }

    fn account(&mut self, system_calls: u64) {
        if let Port::Card(queue) = self {
            queue.account(system_calls);
        }
    }

    fn tick(&mut self, _: &mut Core) {}

    fn wants_tick(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Port::Card(queue) if !queue.draining => {
                queue.fabric.borrow().vifs.get(queue.vif)?.as_ref()?.deadline(queue.number, queue.now)
            }
            _ => None,
        }
    }
}

//! What the loop serves: queues, and the control half that puts them there.

use std::time::Instant;

use super::{Core, Reactor};
use crate::uring::Completion;

/// What a queue says after a turn.
#[derive(Debug)]
pub enum Turn {
    /// Took nothing.
    Idle,
    /// Took something; there may be more.
    Busy,
    /// The peer broke the protocol: never turn this queue again, but let it drain.
    Broken(String),
}

/// One queue of a device.
pub trait Queue {
    /// What one queue of the thread does makes no work for another, but for what [`Queue::is_starved`] says: a queue
    /// that has settled and has no work need not be turned once more before the thread sleeps.
    const INDEPENDENT: bool = false;

    /// Takes at most one batch from the peer and pushes its operations; never waits.
    fn turn(&mut self, core: &mut Core) -> Turn;
    /// An operation of this queue has ended.
    fn complete(&mut self, completion: Completion, core: &mut Core);
    /// A transfer of [`Uring::wholes`](crate::uring::Uring::wholes) has ended. False when that is not all that is to be done about it, for
    /// [`Queue::came_short`], which follows.
    fn transferred(&mut self, _slot: u16, _result: i32) -> bool {
        false
    }
    /// Such a transfer has failed, or is to be continued.
    fn came_short(&mut self, _slot: u16, _result: i32, _core: &mut Core) {
        debug_assert!(false, "asked for by nobody");
    }
    /// Answers what has ended: one publish, at most one notify.
    fn settle(&mut self, core: &mut Core);
    /// Looks without side effects whether the peer has put something.
    fn has_work(&self) -> bool;
    /// True while it waits for memory of the thread's, which another queue may give back.
    fn is_starved(&self) -> bool;
    /// Asks to be told and looks once more; true when there is work after all.
    fn final_check(&mut self) -> bool;
    /// True when it was told to stop and nothing is in flight any more.
    fn is_drained(&self) -> bool;
    /// The peer has told us something.
    fn notified(&mut self);
    /// System calls of the thread to put on this queue's account.
    fn account(&mut self, system_calls: u64);
    /// Time has passed; called about ten times a second while [`Queue::wants_tick`].
    fn tick(&mut self, core: &mut Core);
    /// True while ticks are wanted.
    fn wants_tick(&self) -> bool;
    /// When it wants to be turned at the latest, whatever happens or not.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// What the thread's control half does.
pub trait Control<Q: Queue> {
    /// What arrives in the inbox.
    type Message;
    /// A message has arrived; false ends the thread.
    fn message(&mut self, reactor: &mut Reactor<Q>, message: Self::Message) -> bool;
    /// A queue was told to stop and is drained; it is out of the loop.
    fn drained(&mut self, core: &mut Core, queue: Q);
    /// A queue's peer broke the protocol.
    fn broken(&mut self, queue: &Q, reason: String);
}

//! One thread's loop over many queues: event channels, the ring's completions, the inbox, the final check before
//! sleeping, and bounded polling. Written once, for every kind of device.
//!
//! ```text
//!   wake: reap an event, a completion, a message
//!     -> turn (each awake queue takes at most one batch and pushes operations)
//!     -> submit once, reap, complete
//!     -> settle (each touched queue answers: one publish, at most one notify)
//!   nothing to do: poll a little if that has paid lately; final check; unmask; sleep
//! ```
//! One pass is enough from the event of a request to the next sleep, where the operation ends at once and the queue's
//! work makes none for others ([`Queue::INDEPENDENT`]).
//!
//! A queue never changes thread and is never locked; control speaks to it through the [`Inbox`].

mod channels;
mod clock;
mod core;
mod inbox;
mod polling;

use std::io;
use std::time::{Duration, Instant};

use channels::Channels;
pub use core::{Channel, Core, SourceId};
pub use inbox::{Inbox, Outbox, mailbox};
pub use polling::POLL;
use polling::Polling;
use rustix::event::{PollFd, PollFlags};

use crate::uring::{Completion, MemoryId, Operation, Owner, Uring};
use crate::{MAX_PENDING, Port};

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
    /// A transfer of [`Uring::wholes`] has ended. False when that is not all that is to be done about it, for
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

struct Entry<Q> {
    queue: Q,
    channels: Vec<Channel>,
    /// Its ring is looked at in every pass.
    awake: bool,
    /// One of its ports has reported and not been unmasked: all of them are looked after together.
    masked: bool,
    broken: bool,
    touched: bool,
    /// Events in a row that brought no work.
    idle_events: u8,
    /// Its ports stay masked until the next tick.
    paused: bool,
}

/// One thread's loop.
pub struct Reactor<Q: Queue> {
    /// Ring and event channels.
    pub core: Core,
    queues: Vec<Option<Entry<Q>>>,
    by_channel: Channels,
    ports: Vec<Port>,
    /// Ports to unmask.
    quiet: Vec<Channel>,
    /// Whole transfers that came short, between two halves of a look.
    short: Vec<(Owner, i32)>,
    polling: Polling,
    counted: u64,
    /// By [`Core::clock`].
    ticked: u64,
}

/// What a look at the ring's completions found.
#[derive(Clone, Copy, Default)]
struct Reaped {
    /// Something.
    any: bool,
    /// Messages, which may have changed anything.
    messages: bool,
}

/// The poll of the inbox; those of sources have their numbers.
const POLL_INBOX: u32 = 0;
const TICK: Duration = Duration::from_millis(100);
/// Events without work in a row after which a port is unmasked only once a tick (XSA-332): no driver that asks before
/// it tells gets there.
const IDLE_EVENTS: u8 = 8;

/// Looks at the rings between two at the clock while polling, which may be a system call.
const LOOKS: u32 = 16;

impl<Q: Queue> Reactor<Q> {
    /// A loop without queues.
    pub fn new(ring: Uring) -> Reactor<Q> {
        Reactor {
            core: Core::new(ring),
            queues: Vec::new(),
            by_channel: Channels::default(),
            ports: Vec::with_capacity(MAX_PENDING),
            quiet: Vec::new(),
            short: Vec::new(),
            polling: Polling::default(),
            counted: 0,
            ticked: 0,
        }
    }

    /// Takes a queue into the loop. Its operations belong to `memory`, its events come from `channels`.
    pub fn add(&mut self, memory: MemoryId, channels: Vec<Channel>, queue: Q) {
        let at = memory.index();
        if self.queues.len() <= at {
            self.queues.resize_with(at + 1, || None);
        }
        for &channel in &channels {
            self.by_channel.insert(channel, at);
        }
        self.quiet.reserve(self.by_channel.count);
        // Awake: whatever the peer put before we were there is found in the first pass.
        let (idle_events, paused) = (0, false);
        let entry =
            Entry { queue, channels, awake: true, masked: true, broken: false, touched: false, idle_events, paused };
        self.queues[at] = Some(entry);
    }

    /// How long the rings are looked at before the thread sleeps, where that pays; zero for never.
    pub fn poll_for(&mut self, budget: Duration) {
        self.polling = Polling::new(budget);
    }

    /// All queues.
    pub fn queues(&mut self) -> impl Iterator<Item = &mut Q> {
        self.queues.iter_mut().flatten().map(|entry| {
            // Control may have changed its mind about it: look at it in the next pass.
            entry.touched = true;
            &mut entry.queue
        })
    }

    /// Calls `act` with every queue.
    pub fn each(&mut self, mut act: impl FnMut(&mut Q, &mut Core)) {
        for entry in self.queues.iter_mut().flatten() {
            entry.touched = true;
            act(&mut entry.queue, &mut self.core);
        }
    }

    /// Runs until the control half ends it.
    pub fn run<C: Control<Q>>(&mut self, inbox: &Inbox<C::Message>, control: &mut C) {
        self.core.ring.poll(POLL_INBOX, inbox.fd());
        loop {
            self.core.look_at_the_clock();
            let Some(woken) = self.reap(inbox, control) else { return };
            let turned = self.turn(control);
            self.core.ring.submit_and_peek();
            let Some(ended) = self.reap(inbox, control) else { return };
            self.account();
            let again = self.settle(control) | self.tick();
            let (busy, messages) = (woken.any | turned | ended.any, woken.messages | ended.messages);
            if again || busy {
                self.polling.vain = false;
            }
            if again || messages || (busy && !Q::INDEPENDENT) {
                continue;
            }
            if self.poll() || self.final_check() {
                continue;
            }
            self.sleep(inbox);
        }
    }

    fn sleep<M>(&mut self, inbox: &Inbox<M>) {
        if self.core.is_leaving() || self.queues.iter().any(Option::is_some) {
            let patience = self.patience();
            self.core.ring.submit_and_wait(patience);
            if patience.is_some() {
                self.core.doubt_the_clock();
            }
            return;
        }
        // Nothing but a message concerns a thread without queues. It does not wait in io_uring_enter, which under
        // valgrind keeps every other thread from running: they are needed for a queue to get here, not while it works.
        self.core.ring.submit();
        if let Err(error) = rustix::event::poll(&mut [PollFd::from_borrowed_fd(inbox.fd(), PollFlags::IN)], None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "waiting for messages failed");
        }
    }

    fn turn<C: Control<Q>>(&mut self, control: &mut C) -> bool {
        let mut busy = false;
        for entry in self.queues.iter_mut().flatten().filter(|entry| entry.awake && !entry.broken) {
            match entry.queue.turn(&mut self.core) {
                Turn::Idle => {}
                Turn::Busy => {
                    busy = true;
                    entry.touched = true;
                    (entry.idle_events, entry.paused) = (0, false);
                }
                Turn::Broken(reason) => {
                    entry.broken = true;
                    entry.touched = true;
                    control.broken(&entry.queue, reason);
                }
            }
        }
        busy
    }

    /// Takes all completions; `None` when the thread ends.
    fn reap<C: Control<Q>>(&mut self, inbox: &Inbox<C::Message>, control: &mut C) -> Option<Reaped> {
        let mut reaped = Reaped::default();
        let (queues, short) = (&mut self.queues, &mut self.short);
        reaped.any = self.core.ring.take_ended(|memory, ended| {
            // A queue stays until nothing of it is in flight.
            let Some(Some(entry)) = queues.get_mut(memory.index()) else { return ended.for_each(drop) };
            entry.touched = true;
            for (slot, result) in ended {
                if !entry.queue.transferred(slot, result) {
                    short.push((Owner { memory, slot }, result));
                }
            }
        });
        while let Some((owner, result)) = self.short.pop() {
            if let Some(Some(entry)) = self.queues.get_mut(owner.memory.index()) {
                entry.queue.came_short(owner.slot, result, &mut self.core);
            }
        }
        while let Some(completion) = self.core.ring.reap() {
            match completion.operation {
                Operation::Poll(POLL_INBOX) => reaped.messages = true,
                Operation::Poll(source) => self.wake(source, completion.result),
                Operation::Unmask(source) => self.refused(source, completion.result),
                Operation::Cancel => {}
                _ => {
                    if let Some(Some(entry)) = self.queues.get_mut(completion.owner.memory.index()) {
                        entry.touched = true;
                        entry.queue.complete(completion, &mut self.core);
                    }
                }
            }
        }
        if reaped.messages {
            inbox.clear();
            while let Some(message) = inbox.next() {
                if !control.message(self, message) {
                    return None;
                }
            }
            self.core.ring.poll(POLL_INBOX, inbox.fd());
        }
        Some(reaped)
    }

    /// Whoever kept the thread busy pays for the pass, before anybody can see its answers.
    fn account(&mut self) {
        let now = self.core.system_calls();
        if let Some(entry) = self.queues.iter_mut().flatten().find(|entry| entry.touched || entry.awake) {
            entry.queue.account(now - self.counted);
        }
        self.counted = now;
    }

    /// Wakes the queues whose ports are pending: `result` is what waiting for the source came to.
    fn wake(&mut self, number: u32, result: i32) {
        self.ports.clear();
        // A source that was hung up on may have had something to say.
        let Some(source) = self.core.take_events(number, result, &mut self.ports) else { return };
        for &port in &self.ports {
            match self.by_channel.get(Channel { source, port }).and_then(|at| self.queues[at].as_mut()) {
                Some(entry) => {
                    (entry.awake, entry.masked) = (true, true);
                    entry.idle_events = entry.idle_events.saturating_add(1);
                    entry.queue.notified();
                }
                // A late event of a port that was given up.
                None => tracing::trace!(%port, "event for nobody"),
            }
        }
    }

    /// The ring could not unmask ports of a source: all that may have been among them are unmasked by a call.
    #[cold]
    fn refused(&mut self, number: u32, result: i32) {
        tracing::error!(error = %io::Error::from_raw_os_error(-result), "unmasking event channels failed");
        let quiet = self.queues.iter().flatten().filter(|entry| !entry.masked).flat_map(|entry| &entry.channels);
        let ports: Vec<Port> = quiet.filter(|channel| channel.source.0 == number).map(|channel| channel.port).collect();
        self.core.unmask_now(number, &ports);
    }

    /// Answers for every touched queue and lets go of drained ones. True when something is to be looked at again.
    fn settle<C: Control<Q>>(&mut self, control: &mut C) -> bool {
        let (mut again, mut settled) = (false, false);
        for slot in &mut self.queues {
            let Some(entry) = slot.as_mut().filter(|entry| entry.touched) else { continue };
            entry.touched = false;
            settled = true;
            entry.queue.settle(&mut self.core);
            entry.awake = true;
            again |= !entry.broken && entry.queue.has_work();
            if entry.queue.is_drained()
                && let Some(entry) = slot.take()
            {
                for &channel in &entry.channels {
                    self.by_channel.remove(channel);
                }
                control.drained(&mut self.core, entry.queue);
            }
        }
        if settled {
            for entry in self.queues.iter_mut().flatten().filter(|entry| entry.queue.is_starved()) {
                // What has just ended may have given back what it waits for.
                again |= !entry.awake;
                entry.awake = true;
            }
        }
        again
    }

    /// Looks at awake rings for a bounded time, if that has paid lately. True when there is work.
    fn poll(&mut self) -> bool {
        let Some(budget) = self.polling.budget() else { return false };
        let end = self.core.read_clock() + budget.as_nanos() as u64;
        let found = loop {
            if (0..LOOKS).any(|_| self.look()) {
                break true;
            }
            if self.core.read_clock() >= end {
                break false;
            }
        };
        self.polling.result(found);
        found
    }

    /// One look at the rings, and a breath when they have nothing. True when there is work.
    fn look(&mut self) -> bool {
        let found = self.core.ring.has_completions()
            || self.queues.iter().flatten().any(|entry| entry.awake && !entry.broken && entry.queue.has_work());
        if !found {
            std::hint::spin_loop();
        }
        found
    }

    /// Puts the awake queues to sleep. True when one has work after all.
    fn final_check(&mut self) -> bool {
        let mut work = false;
        self.quiet.clear();
        for entry in self.queues.iter_mut().flatten().filter(|entry| entry.awake) {
            if !entry.broken && entry.queue.final_check() {
                work = true;
                continue;
            }
            entry.awake = false;
            if entry.broken || !entry.masked {
                continue;
            }
            entry.paused = entry.idle_events >= IDLE_EVENTS;
            if !entry.paused {
                entry.masked = false;
                self.quiet.extend(&entry.channels);
            }
        }
        self.core.unmask(&self.quiet, &mut self.ports);
        work
    }

    /// How long to sleep at most.
    fn patience(&self) -> Option<Duration> {
        let mut patience = None;
        for entry in self.queues.iter().flatten() {
            let tick = (entry.paused || entry.queue.wants_tick()).then_some(TICK);
            let deadline = entry.queue.deadline().filter(|_| !entry.broken);
            let deadline = deadline.map(|at| at.saturating_duration_since(self.core.now));
            patience = [patience, tick, deadline].into_iter().flatten().min();
        }
        patience
    }

    /// True when a queue was called, or is to be: it may have something to answer.
    fn tick(&mut self) -> bool {
        let now = self.core.now;
        let mut called = false;
        for entry in self.queues.iter_mut().flatten() {
            if entry.queue.deadline().is_some_and(|at| at <= now) {
                (entry.awake, called) = (true, true);
            }
        }
        if self.core.clock() - self.ticked < TICK.as_nanos() as u64 {
            return called;
        }
        self.ticked = self.core.clock();
        for entry in self.queues.iter_mut().flatten().filter(|entry| entry.paused) {
            // One more event, and the ring is looked at before it is asked for.
            (entry.awake, entry.paused, entry.idle_events) = (true, false, IDLE_EVENTS - 1);
        }
        for entry in self.queues.iter_mut().flatten().filter(|entry| entry.queue.wants_tick()) {
            entry.queue.tick(&mut self.core);
            entry.touched = true;
            called = true;
        }
        called
    }
}

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
mod entry;
mod inbox;
mod polling;
mod queue;

use std::io;
use std::time::Duration;

use channels::Channels;
pub use core::{Channel, Core, SourceId};
use entry::{Entry, IDLE_EVENTS};
pub use inbox::{Inbox, Outbox, mailbox};
pub use polling::POLL;
use polling::Polling;
pub use queue::{Control, Queue, Turn};
use rustix::event::{PollFd, PollFlags};

use crate::uring::{MemoryId, Operation, Owner, Uring};
use crate::{MAX_PENDING, Port};

/// One thread's loop.
pub struct Reactor<Q: Queue> {
    /// Ring and event channels.
    pub core: Core,
    queues: Vec<Option<Entry<Q>>>,
    /// Those that a pass has anything to do with; of the others, however many there are, it costs nothing to have them.
    attended: Vec<usize>,
    by_channel: Channels,
    ports: Vec<Port>,
    /// Ports to unmask.
    quiet: Vec<Channel>,
    /// Whole transfers that came short, between two halves of a look.
    short: Vec<(Owner, i32)>,
    /// One of them may wait for memory.
    starved: bool,
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

/// Looks at the rings between two at the clock while polling, which may be a system call.
const LOOKS: u32 = 16;

impl<Q: Queue> Reactor<Q> {
    /// A loop without queues.
    pub fn new(ring: Uring) -> Reactor<Q> {
        Reactor {
            core: Core::new(ring),
            queues: Vec::new(),
            attended: Vec::new(),
            by_channel: Channels::default(),
            ports: Vec::with_capacity(MAX_PENDING),
            quiet: Vec::new(),
            short: Vec::new(),
            starved: false,
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
        self.queues[at] = Some(Entry::new(queue, channels));
        self.attended.reserve(self.queues.len());
        self.attended.push(at);
    }

    /// How long the rings are looked at before the thread sleeps, where that pays; zero for never.
    pub fn poll_for(&mut self, budget: Duration) {
        self.polling = Polling::new(budget);
    }

    /// All queues.
    pub fn queues(&mut self) -> impl Iterator<Item = &mut Q> {
        self.touch_all();
        self.queues.iter_mut().flatten().map(|entry| &mut entry.queue)
    }

    /// Calls `act` with every queue.
    pub fn each(&mut self, mut act: impl FnMut(&mut Q, &mut Core)) {
        self.touch_all();
        for entry in self.queues.iter_mut().flatten() {
            act(&mut entry.queue, &mut self.core);
        }
    }

    /// Control may have changed its mind about them: they are looked at in the next pass.
    fn touch_all(&mut self) {
        for (at, slot) in self.queues.iter_mut().enumerate() {
            let Some(entry) = slot else { continue };
            entry.touched = true;
            entry.attend(at, &mut self.attended);
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
            if self.poll() {
                continue;
            }
            if let Some(patience) = self.final_check() {
                self.sleep(inbox, patience);
            }
        }
    }

    /// Sleeps until something happens, or for this long at most.
    fn sleep<M>(&mut self, inbox: &Inbox<M>, patience: Option<Duration>) {
        if self.core.is_leaving() || self.queues.iter().any(Option::is_some) {
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
        for &at in &self.attended {
            let Some(entry) = self.queues[at].as_mut().filter(|entry| entry.awake && !entry.broken) else { continue };
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
        let (queues, short, attended) = (&mut self.queues, &mut self.short, &mut self.attended);
        reaped.any = self.core.ring.take_ended(|memory, ended| {
            // A queue stays until nothing of it is in flight.
            let Some(Some(entry)) = queues.get_mut(memory.index()) else { return ended.for_each(drop) };
            entry.touched = true;
            entry.attend(memory.index(), attended);
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
                    let at = completion.owner.memory.index();
                    if let Some(Some(entry)) = self.queues.get_mut(at) {
                        entry.touched = true;
                        entry.attend(at, &mut self.attended);
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
        let busy = |at: &&usize| self.queues[**at].as_ref().is_some_and(|entry| entry.touched || entry.awake);
        if let Some(&at) = self.attended.iter().find(busy)
            && let Some(entry) = &mut self.queues[at]
        {
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
            let at = self.by_channel.get(Channel { source, port });
            match at.and_then(|at| Some((at, self.queues[at].as_mut()?))) {
                Some((at, entry)) => {
                    entry.attend(at, &mut self.attended);
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
        let (mut again, mut settled, mut left) = (false, false, false);
        for &at in &self.attended {
            let slot = &mut self.queues[at];
            let Some(entry) = slot.as_mut().filter(|entry| entry.touched) else { continue };
            entry.touched = false;
            settled = true;
            entry.queue.settle(&mut self.core);
            entry.awake = true;
            self.starved |= entry.queue.is_starved();
            again |= !entry.broken && entry.queue.has_work();
            if entry.queue.is_drained()
                && let Some(entry) = slot.take()
            {
                left = true;
                for &channel in &entry.channels {
                    self.by_channel.remove(channel);
                }
                control.drained(&mut self.core, entry.queue);
            }
        }
        if left {
            self.attended.retain(|&at| self.queues[at].is_some());
        }
        if settled && std::mem::take(&mut self.starved) {
            for &at in &self.attended {
                let Some(entry) = self.queues[at].as_mut().filter(|entry| entry.queue.is_starved()) else { continue };
                // What has just ended may have given back what it waits for, after its turn if it was awake.
                (again, entry.awake, self.starved) = (true, true, true);
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
            || self
                .attended
                .iter()
                .any(|&at| self.queues[at].as_ref().is_some_and(|it| it.awake && !it.broken && it.queue.has_work()));
        if !found {
            std::hint::spin_loop();
        }
        found
    }

    /// Puts the awake queues to sleep: for how long at most the thread may do the same, or nothing when one has work after
    /// all. Those that sleep and wait for no time and no memory, and that no other makes work for, are attended to no more.
    fn final_check(&mut self) -> Option<Option<Duration>> {
        let (mut work, mut patience) = (false, None);
        self.quiet.clear();
        let mut next = 0;
        while let Some(&at) = self.attended.get(next) {
            let Some(entry) = &mut self.queues[at] else { unreachable!("those that left are not attended to") };
            work |= entry.awake && entry.lie_down(&mut self.quiet);
            let waits = entry.waits(self.core.now);
            patience = [patience, waits].into_iter().flatten().min();
            let idle = Q::INDEPENDENT && !entry.awake && waits.is_none() && !entry.queue.is_starved();
            // A single one costs less where it is.
            entry.attended = !idle || self.attended.len() == 1;
            if entry.attended {
                next += 1;
            } else {
                self.attended.swap_remove(next);
            }
        }
        self.core.unmask(&self.quiet, &mut self.ports);
        (!work).then_some(patience)
    }

    /// True when a queue was called, or is to be: it may have something to answer.
    fn tick(&mut self) -> bool {
        let now = self.core.now;
        let mut called = false;
        for &at in &self.attended {
            // Nothing here can panic: the whole loop is left out for queues that have no deadlines.
            let Some(Some(entry)) = self.queues.get_mut(at) else { continue };
            if entry.queue.deadline().is_some_and(|at| at <= now) {
                (entry.awake, called) = (true, true);
            }
        }
        if self.core.clock() - self.ticked < TICK.as_nanos() as u64 {
            return called;
        }
        self.ticked = self.core.clock();
        for &at in &self.attended {
            let Some(entry) = &mut self.queues[at] else { continue };
            if entry.paused {
                // One more event, and the ring is looked at before it is asked for.
                (entry.awake, entry.paused, entry.idle_events) = (true, false, IDLE_EVENTS - 1);
            }
            if entry.queue.wants_tick() {
                entry.queue.tick(&mut self.core);
                entry.touched = true;
                called = true;
            }
        }
        called
    }
}

#[cfg(test)]
mod tests;

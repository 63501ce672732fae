//! A queue in the loop, and what the loop knows of it.

use std::time::{Duration, Instant};

use super::{Channel, Queue, TICK};

/// Events without work in a row after which a port is unmasked only once a tick (XSA-332): no driver that asks before
/// it tells gets there.
pub(super) const IDLE_EVENTS: u8 = 8;

/// A queue.
pub(super) struct Entry<Q> {
    pub queue: Q,
    pub channels: Vec<Channel>,
    /// Its ring is looked at in every pass.
    pub awake: bool,
    /// One of its ports has reported and not been unmasked: all of them are looked after together.
    pub masked: bool,
    pub broken: bool,
    pub touched: bool,
    /// Its number stands in the reactor's `attended`.
    pub attended: bool,
    /// Events in a row that brought no work.
    pub idle_events: u8,
    /// Its ports stay masked until the next tick.
    pub paused: bool,
}

impl<Q: Queue> Entry<Q> {
    /// A new one is awake: whatever the peer put before we were there is found in the first pass.
    pub fn new(queue: Q, channels: Vec<Channel>) -> Entry<Q> {
        Entry {
            queue,
            channels,
            awake: true,
            masked: true,
            broken: false,
            touched: false,
            attended: true,
            idle_events: 0,
            paused: false,
        }
    }

    /// It is number `at`, and from now on among `attended`.
    #[inline]
    pub fn attend(&mut self, at: usize, attended: &mut Vec<usize>) {
        if !self.attended {
            self.attended = true;
            attended.push(at);
        }
    }

    /// Goes to sleep, and puts its channels that are to report again among `quiet`. True when it has work after all.
    #[inline]
    pub fn lie_down(&mut self, quiet: &mut Vec<Channel>) -> bool {
        if !self.broken && self.queue.final_check() {
            return true;
        }
        self.awake = false;
        if !self.broken && self.masked {
            self.paused = self.idle_events >= IDLE_EVENTS;
            if !self.paused {
                self.masked = false;
                quiet.extend(&self.channels);
            }
        }
        false
    }

    /// How long it sleeps at most.
    #[inline]
    pub fn waits(&self, now: Instant) -> Option<Duration> {
        let tick = (self.paused || self.queue.wants_tick()).then_some(TICK);
        let deadline = self.queue.deadline().filter(|_| !self.broken);
        let deadline = deadline.map(|at| at.saturating_duration_since(now));
        [tick, deadline].into_iter().flatten().min()
    }
}

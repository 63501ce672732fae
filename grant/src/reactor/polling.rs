//! Whether it pays to look at the rings for a little before the thread sleeps.

use std::time::Duration;

/// How long to look where nobody says otherwise: what a sleep and a wake-up on another CPU cost (measured: about 60 us).
/// Whoever looks that long before it sleeps never spends more than twice what the better of the two would have; with a third
/// of it a guest that sleeps is not back yet.
pub const POLL: Duration = Duration::from_micros(60);

/// Bounded polling that gives up when it does not pay: each miss in a row doubles how many sleeps pass unpolled.
#[derive(Debug)]
pub(super) struct Polling {
    budget: Duration,
    misses: u32,
    skip: u32,
    /// What was found last has come to nothing so far: the kernel may say for long that it has work to do which completes
    /// nothing, and each look at it is a system call. Sleeping does that work too.
    pub(super) vain: bool,
}

impl Default for Polling {
    fn default() -> Polling {
        Polling::new(POLL)
    }
}

impl Polling {
    /// For so long at a time; never for zero.
    pub(super) fn new(budget: Duration) -> Polling {
        Polling { budget, misses: 0, skip: 0, vain: false }
    }

    /// For how long to look now, if at all.
    pub(super) fn budget(&mut self) -> Option<Duration> {
        if self.budget.is_zero() || std::mem::take(&mut self.vain) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        Some(self.budget)
    }

    /// What came of it.
    pub(super) fn result(&mut self, found: bool) {
        self.vain = found;
        self.misses = if found { 0 } else { (self.misses + 1).min(10) };
        // The first misses cost nothing yet: a burst has gaps.
        self.skip = if self.misses > 2 { 1 << self.misses } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_gives_up_and_comes_back() {
        let mut polling = Polling::default();
        let mut polled = 0;
        for _ in 0..10_000 {
            if polling.budget().is_some() {
                polled += 1;
                polling.result(false);
            }
        }
        assert!(polled < 40, "{polled}");
        while polling.budget().is_none() {}
        polling.result(true);
        polling.vain = false;
        assert!(polling.budget().is_some());
    }

    /// The kernel's word that it has work was believed half a million times in a second, for nothing.
    #[test]
    fn what_polling_finds_in_vain_is_followed_by_a_sleep() {
        let mut polling = Polling::default();
        let mut polled = 0;
        for _ in 0..1000 {
            if polling.budget().is_some() {
                polled += 1;
                polling.result(true);
            }
        }
        assert_eq!(polled, 500, "every other time");
    }
}

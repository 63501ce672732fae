//! Coming back to a daemon that was started again.

use std::time::{Duration, Instant};

use super::Client;
use crate::error::Error;
use crate::wire::MessageType;

/// The first pause between two attempts, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// A daemon that is back gets so long to answer, however little of the time for its return is left.
const LEAST: Duration = Duration::from_secs(1);

/// Attempts to come back for one and the same reason: when they end, and how long the pauses have become.
#[derive(Debug)]
pub(super) struct Comeback {
    time: Duration,
    deadline: Option<Instant>,
    pause: Duration,
}

impl Comeback {
    /// The time runs from the first attempt.
    pub fn new(time: Duration) -> Comeback {
        Comeback { time, deadline: None, pause: Duration::ZERO }
    }

    /// Waits before all attempts but the first; false when the time is over.
    fn wait(&mut self) -> bool {
        let now = Instant::now();
        let Some(deadline) = self.deadline else {
            self.deadline = Some(now.checked_add(self.time).unwrap_or(now + Duration::from_secs(1 << 32)));
            self.pause = PAUSES.0;
            return !self.time.is_zero();
        };
        let left = deadline.saturating_duration_since(now);
        // Everybody comes back at once, but not in step.
        std::thread::sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0).min(left));
        self.pause = (self.pause * 2).min(PAUSES.1);
        !left.is_zero()
    }
}

impl Client {
    /// Connects again to a daemon that comes back in time, and registers all watches. `error` is what it is otherwise.
    pub(super) fn reconnect(&mut self, error: Error, comeback: &mut Comeback) -> Result<(), Error> {
        while !self.place.is_gone() && comeback.wait() {
            if self.come_back() {
                self.generation += 1;
                tracing::debug!(generation = self.generation, "connected to xenstored again");
                return Ok(());
            }
        }
        Err(error)
    }

    /// False when the daemon is not there, or gone again.
    fn come_back(&mut self) -> bool {
        let replaced = self.place.connect().and_then(|fd| self.link.replace(&fd));
        if replaced.is_err() {
            return false;
        }
        self.broken = false;
        // One that takes connections and drops them is not back yet. Everybody may ask this, of any daemon.
        let deadline = Instant::now().checked_add(self.patience.min(self.survives.max(LEAST)));
        let probe = self.exchange(MessageType::GetDomainPath, 0, "", &[b"0\0"], deadline);
        if !matches!(probe, Ok(_) | Err(Error::Xenstore { .. })) || !self.register_again(deadline) {
            self.give_up();
        }
        !self.broken
    }

    /// False when the daemon is gone again.
    fn register_again(&mut self, deadline: Option<Instant>) -> bool {
        self.lost.clear();
        for watch in self.events.watches.clone() {
            match self
                .try_watch(&watch, |client, parts| client.exchange(MessageType::Watch, 0, &watch.path, parts, deadline))
            {
                Ok(()) => {}
                // The watch stays in the list: the daemon after this one may take it.
                Err(error @ Error::Xenstore { .. }) => self.lost.push_back((watch, error)),
                Err(_) => return false,
            }
        }
        true
    }
}

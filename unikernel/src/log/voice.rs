//! How much somebody may have logged.

use std::time::{Duration, Instant};

/// How often somebody was written about lately, or wrote.
#[derive(Debug, Default)]
pub struct Voice {
    since: Option<Instant>,
    lines: u32,
}

/// Whether a line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speak {
    /// It may.
    Yes,
    /// It may, and none after it for a while.
    Last,
    /// It may not.
    No,
}

impl Voice {
    /// Lines a minute.
    pub const LINES: u32 = 30;

    /// Counts a line.
    pub fn may_speak(&mut self, now: Instant) -> Speak {
        if self.since.is_none_or(|since| now.duration_since(since) > Duration::from_secs(60)) {
            *self = Voice { since: Some(now), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines {
            lines if lines < Voice::LINES => Speak::Yes,
            Voice::LINES => Speak::Last,
            _ => Speak::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_lines_and_the_next_one_as_many() {
        let (mut voice, now) = (Voice::default(), Instant::now());
        for later in [0, 61] {
            let said: Vec<Speak> = (0..40).map(|_| voice.may_speak(now + Duration::from_secs(later))).collect();
            assert!(said[..29].iter().all(|speak| *speak == Speak::Yes) && said[29] == Speak::Last);
            assert!(said[30..].iter().all(|speak| *speak == Speak::No));
        }
    }
}

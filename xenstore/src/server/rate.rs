//! The write-rate limit of the C daemon: while any transaction is open, a domain writes at most a share of 200 nodes
//! per second, after a burst of 10. A storm of conflicting writes cannot keep dom0's transactions from committing
//! (XSA-206); without transactions there is nothing to protect, and no limit.
//!
//! What a domain does not use goes to a reserve, from which others that run short are helped.

use std::time::{Duration, Instant};

/// All amounts are thousandths of a write, so that whole milliseconds earn whole amounts.
const WRITE: i64 = 1000;
/// A domain saves at most this.
const BURST: i64 = 10 * WRITE;
/// The reserve holds at most this.
const RESERVE: i64 = 1000 * WRITE;
/// New domains may overdraw the reserve by this.
const OVERDRAFT: i64 = 5 * BURST;

/// What one domain has left; it is held back while that is negative.
#[derive(Clone, Copy, Debug)]
pub struct Credit {
    left: i64,
    at: Instant,
}

impl Credit {
    /// True when the domain has to wait.
    pub fn is_overdrawn(&self) -> bool {
        self.left < 0
    }
}

/// What all domains share.
#[derive(Debug)]
pub struct Rates {
    /// Earned per millisecond by all domains together; none for no limit at all.
    rate: Option<i64>,
    reserve: i64,
    domains: u32,
    /// Open transactions of everybody, dom0 included.
    pub transactions: usize,
}

/// Moves what there is above `floor` in one place to the other, up to `ceiling`.
fn give(from: &mut i64, floor: i64, to: &mut i64, ceiling: i64) {
    let amount = (*from - floor).min(ceiling - *to).max(0);
    *from -= amount;
    *to += amount;
}

impl Rates {
    /// Nobody is there. So many writes are earned per second, `usize::MAX` for as many as anybody likes.
    pub fn new(per_second: usize) -> Rates {
        // Fewer than one per second would be a standstill, more than a million are no limit.
        let limit = per_second.clamp(1, 1_000_000) as i64;
        let rate = (per_second < 1_000_000).then_some(limit * WRITE / 1000);
        Rates { rate, reserve: 0, domains: 0, transactions: 0 }
    }

    /// A domain has come.
    pub fn introduced(&mut self, now: Instant) -> Credit {
        self.domains += 1;
        let mut left = 0;
        give(&mut self.reserve, -OVERDRAFT, &mut left, BURST);
        Credit { left, at: now }
    }

    /// A domain has gone.
    pub fn released(&mut self, mut credit: Credit) {
        self.domains = self.domains.saturating_sub(1);
        give(&mut credit.left, 0, &mut self.reserve, RESERVE);
    }

    /// A domain has written, or committed. Its own transaction is not open any more.
    pub fn written(&mut self, credit: &mut Credit, now: Instant) {
        if self.transactions > 0 && self.rate.is_some() {
            self.earn(credit, now);
            credit.left -= WRITE;
        }
    }

    /// How long a domain has to wait until it may go on; `None` if it need not.
    pub fn wait(&mut self, credit: &mut Credit, now: Instant) -> Option<Duration> {
        if !credit.is_overdrawn() {
            return None;
        }
        self.earn(credit, now);
        let missing = u64::try_from(-credit.left).ok().filter(|missing| *missing > 0)?;
        let rate = u64::try_from(self.rate?).unwrap_or(1);
        Some(Duration::from_millis(missing * u64::from(self.domains.max(1)) / rate + 1))
    }

    fn earn(&mut self, credit: &mut Credit, now: Instant) {
        // More than a day earns no more than a day: the burst is full long before.
        let elapsed = now.saturating_duration_since(credit.at).as_millis().min(86_400_000) as i64;
        credit.at += Duration::from_millis(elapsed as u64);
        credit.left += elapsed * self.rate.unwrap_or(0) / i64::from(self.domains.max(1));
        if credit.left < 0 {
            give(&mut self.reserve, 0, &mut credit.left, 0);
        }
        let mut surplus = (credit.left - BURST).max(0);
        credit.left -= surplus;
        give(&mut surplus, 0, &mut self.reserve, RESERVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes_in(rates: &mut Rates, credit: &mut Credit, start: Instant, for_ms: u64) -> u32 {
        (0..for_ms).fold(0, |mut writes, ms| {
            let now = start + Duration::from_millis(ms);
            while rates.wait(credit, now).is_none() && writes < 100_000 {
                rates.written(credit, now);
                writes += 1;
            }
            writes
        })
    }

    #[test]
    fn two_hundred_a_second_are_shared_and_only_while_a_transaction_is_open() {
        let start = Instant::now();
        let mut rates = Rates { transactions: 1, ..Rates::new(200) };
        let mut storm = rates.introduced(start);
        let _idle = rates.introduced(start);
        let writes = writes_in(&mut rates, &mut storm, start, 10_000);
        assert!((1000..1030).contains(&writes), "{writes} in ten seconds, one of two domains");
        let wait = rates.wait(&mut storm, start + Duration::from_millis(9_999)).unwrap();
        assert!(wait.as_millis() <= 11, "{wait:?}");
        rates.transactions = 0;
        let later = start + Duration::from_secs(20);
        assert_eq!(writes_in(&mut rates, &mut storm, later, 1), 100_000, "nobody is in the way of anybody");
    }

    #[test]
    fn what_is_saved_is_bounded_and_helps_others() {
        let start = Instant::now();
        let mut rates = Rates { transactions: 1, ..Rates::new(200) };
        let (mut quiet, mut storm) = (rates.introduced(start), rates.introduced(start));
        let day = start + Duration::from_secs(86_400);
        rates.earn(&mut quiet, day);
        assert_eq!((quiet.left, rates.reserve), (BURST, RESERVE));
        rates.earn(&mut storm, day);
        let writes = writes_in(&mut rates, &mut storm, day, 1);
        assert!((1010..1013).contains(&writes), "{writes}: its own burst and the whole reserve");
        rates.released(storm);
        assert_eq!(rates.domains, 1);
    }
}

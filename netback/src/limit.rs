//! How much a card may send, and be given: a token bucket for each direction, shared by its queues.
//!
//! A packet passes while there is credit and may leave a debt, which is paid off before the next: so a packet larger
//! than an interval's bytes passes too (64 KiB with 10 kB every 20 ms), and in the long run the rate is exact.

use std::time::{Duration, Instant};

use crate::config::Rate;

/// Least credit that can be saved up, bytes: a packet of the usual size.
const LEAST_BURST: u64 = 1538;

/// Longer ones are as good as no rate, and would overflow the arithmetic.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

/// One direction of a card.
#[derive(Clone, Debug)]
pub struct Bucket {
    bytes: Credit,
    packets: Option<Credit>,
}

/// So much in each interval, saved up to a limit.
#[derive(Clone, Debug)]
struct Credit {
    per_interval: u64,
    interval: Duration,
    burst: u64,
    /// In units of `1 / interval in nanoseconds`, so that nothing is lost to rounding.
    level: i128,
    at: Instant,
}

impl Credit {
    fn new(per_interval: u64, interval: Duration, burst: u64, now: Instant) -> Credit {
        let interval = interval.clamp(Duration::from_micros(1), LONGEST_INTERVAL);
        let mut credit = Credit { per_interval: per_interval.max(1), interval, burst, level: 0, at: now };
        credit.level = credit.most();
        credit
    }

    fn unit(&self) -> i128 {
        self.interval.as_nanos() as i128
    }

    fn most(&self) -> i128 {
        i128::from(self.burst) * self.unit()
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let gained = (elapsed.as_nanos() as i128).saturating_mul(i128::from(self.per_interval));
        self.level = self.level.saturating_add(gained).min(self.most());
    }

    fn spend(&mut self, units: u64) {
        self.level = self.level.saturating_sub(i128::from(units) * self.unit());
    }

    /// When there is credit again.
    fn ready_at(&self) -> Instant {
        let missing = 1 - self.level;
        if missing <= 0 {
            return self.at;
        }
        let nanoseconds = missing / i128::from(self.per_interval) + 1;
        // Nobody waits for longer than a day: the rate may change.
        self.at + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).min(Duration::from_secs(86_400))
    }
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Bucket {
        let bytes = Credit::new(rate.bytes, Duration::from_micros(rate.interval_us), rate.bytes.max(LEAST_BURST), now);
        let packets =
            rate.packets.map(|packets| Credit::new(packets, Duration::from_secs(1), (packets / 20).max(1), now));
        Bucket { bytes, packets }
    }

    /// May a packet pass now?
    pub fn is_ready(&mut self, now: Instant) -> bool {
        self.bytes.refill(now);
        let packets = self.packets.as_mut().is_none_or(|packets| {
            packets.refill(now);
            packets.level > 0
        });
        packets && self.bytes.level > 0
    }

    /// One passes.
    pub fn take(&mut self, bytes: usize) {
        self.bytes.spend(bytes as u64);
        if let Some(packets) = &mut self.packets {
            packets.spend(1);
        }
    }

    /// When one may pass again, as far as is known now.
    pub fn ready_at(&self) -> Instant {
        let packets = self.packets.as_ref().map(Credit::ready_at);
        packets.map_or(self.bytes.ready_at(), |at| at.max(self.bytes.ready_at()))
    }
}

/// A rate that nobody can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rate {0:?} is not one: write it like 10MB/s, 100Mb/s, 100Mb/s@20ms, or 1Gb/s,50000p/s")]
pub struct NotARate(pub String);

/// What xl takes for an interval where nothing is said (xl-network-configuration(5)).
const DEFAULT_INTERVAL_US: u64 = 50_000;

impl Rate {
    /// Reads a rate as xl does (xl-network-configuration(5), "rate"): a number with an optional G, M or K (thousands),
    /// B for bytes or b for bits, "/s", and an optional interval after "@". Packets per second may follow a comma.
    ///
    /// # Errors
    /// [`NotARate`].
    pub fn from_text(text: &str) -> Result<Rate, NotARate> {
        parse(text).ok_or_else(|| NotARate(text.chars().take(64).collect()))
    }

    /// Reads a backend's `rate` node as libxl writes it: "bytes,microseconds". None is no limit.
    ///
    /// # Errors
    /// [`NotARate`].
    pub fn from_xenstore(text: &str) -> Result<Option<Rate>, NotARate> {
        let read = || {
            let (bytes, interval) = text.trim().split_once(',')?;
            let (bytes, interval_us) = (number(bytes)?, number(interval)?);
            let unlimited = bytes == 0 || interval_us == 0 || bytes == u64::from(u32::MAX);
            Some((!unlimited).then_some(Rate { bytes, interval_us, packets: None }))
        };
        read().ok_or_else(|| NotARate(text.chars().take(64).collect()))
    }

    /// As libxl writes it. Packets per second have no place there.
    pub fn to_xenstore(&self) -> String {
        format!("{},{}", self.bytes, self.interval_us)
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn parse(text: &str) -> Option<Rate> {
    let (text, packets) = match text.split_once(',') {
        Some((text, packets)) => (text, Some(scaled(packets.strip_suffix("p/s")?)?).filter(|&packets| packets > 0)),
        None => (text, None),
    };
    let (amount, interval_us) = match text.split_once('@') {
        Some((amount, interval)) => (amount, interval_of(interval)?),
        None => (text, DEFAULT_INTERVAL_US),
    };
    let amount = amount.strip_suffix("/s")?;
    let per_second = match amount.strip_suffix('B') {
        Some(bytes) => scaled(bytes)?,
        None => scaled(amount.strip_suffix('b')?)? / 8,
    };
    let bytes = u64::try_from(u128::from(per_second) * u128::from(interval_us) / 1_000_000).ok()?;
    (bytes > 0).then_some(Rate { bytes, interval_us, packets })
}

fn scaled(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'K' => (&text[..text.len() - 1], 1_000),
        _ => (text, 1),
    };
    if digits.is_empty() { None } else { number(digits)?.checked_mul(factor) }
}

/// Microseconds of an interval, at most a minute.
fn interval_of(text: &str) -> Option<u64> {
    let text = text.strip_suffix('s')?;
    let microseconds = match text.as_bytes().last()? {
        b'm' => number(&text[..text.len() - 1])?.checked_mul(1_000)?,
        b'u' => number(&text[..text.len() - 1])?,
        _ => number(text)?.checked_mul(1_000_000)?,
    };
    (1..=60_000_000).contains(&microseconds).then_some(microseconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(bytes: u64, interval_us: u64) -> Rate {
        Rate { bytes, interval_us, packets: None }
    }

    #[test]
    fn rates_are_read_as_xl_does() {
        for (text, expected) in [
            ("10MB/s", rate(500_000, 50_000)),
            ("100Mb/s", rate(625_000, 50_000)),
            ("100Mb/s@20ms", rate(250_000, 20_000)),
            ("1GB/s@10us", rate(10_000, 10)),
            ("8000b/s@1s", rate(1000, 1_000_000)),
            ("1Gb/s,50Kp/s", Rate { packets: Some(50_000), ..rate(6_250_000, 50_000) }),
        ] {
            assert_eq!(Rate::from_text(text), Ok(expected), "{text}");
        }
        let long = "9".repeat(200);
        for text in [
            "",
            "10",
            "10M/s",
            "10MB",
            "10 MB/s",
            "-1MB/s",
            "+1MB/s",
            "1TB/s",
            "0B/s",
            "1b/s@1us",
            "1MB/s@",
            "1MB/s@0s",
            "1MB/s@61s",
            "1MB/s,5",
            "GB/s",
            &long,
            "1MB/s@1ns",
        ] {
            let wrong = Rate::from_text(text).unwrap_err();
            assert!(wrong.to_string().len() < 200, "{wrong}");
        }
    }

    #[test]
    fn libxl_writes_bytes_and_microseconds() {
        assert_eq!(Rate::from_xenstore("500000,50000"), Ok(Some(rate(500_000, 50_000))));
        assert_eq!(rate(500_000, 50_000).to_xenstore(), "500000,50000");
        for text in ["0,50000", "4294967295,50000", "1000,0"] {
            assert_eq!(Rate::from_xenstore(text), Ok(None));
        }
        for text in ["", "1", "1,", ",", "a,1", "1,2,3", "99999999999999999999,1"] {
            assert!(Rate::from_xenstore(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_packet_larger_than_an_interval_passes_and_is_paid_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(10_000, 20_000), start);
        assert!(bucket.is_ready(start));
        bucket.take(65_535);
        assert!(!bucket.is_ready(start));
        let again = bucket.ready_at();
        // 55,536 bytes of debt and a byte of credit at 500 kB/s.
        let waited = again - start;
        assert!((Duration::from_millis(111)..Duration::from_millis(112)).contains(&waited), "{waited:?}");
        assert!(!bucket.is_ready(again - Duration::from_micros(10)) && bucket.is_ready(again));
    }

    #[test]
    fn packets_are_counted_too() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { packets: Some(1000), ..rate(1 << 40, 1000) }, start);
        let mut passed = 0;
        for millisecond in 0..=1000 {
            while bucket.is_ready(start + Duration::from_millis(millisecond)) {
                bucket.take(60);
                passed += 1;
            }
        }
        assert!((1000..=1051).contains(&passed), "{passed}");
    }

    proptest! {
        #[test]
        fn in_the_long_run_the_rate_is_exact(
            bytes in 1_000u64..10_000_000, interval_us in 1_000u64..100_000, len in 60usize..65_536,
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(rate(bytes, interval_us), start);
            let (mut now, mut passed) = (start, 0u64);
            let seconds = 10 + 10 * 65_536 / (bytes * 1_000_000 / interval_us).max(1);
            while now < start + Duration::from_secs(seconds) {
                // As eight queues would: whoever comes first.
                while bucket.is_ready(now) {
                    bucket.take(len);
                    passed += len as u64;
                }
                now = bucket.ready_at();
            }
            let expected = u128::from(bytes) * 1_000_000 / u128::from(interval_us) * u128::from(seconds);
            let burst = u128::from(bytes.max(LEAST_BURST)) + 65_536;
            let passed = u128::from(passed);
            prop_assert!(passed <= expected + expected / 50 + burst, "{passed} of {expected}");
            prop_assert!(passed + expected / 50 + burst >= expected, "{passed} of {expected}");
        }

        #[test]
        fn no_number_breaks_it(bytes: u64, interval_us: u64, packets: Option<u64>, lens in prop::collection::vec(any::<u32>(), 1..20)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(Rate { bytes, interval_us, packets }, start);
            for (at, len) in lens.into_iter().enumerate() {
                bucket.take(len as usize);
                bucket.is_ready(start + Duration::from_secs(1 << at));
                prop_assert!(bucket.ready_at() >= start);
            }
        }
    }
}

//! The thread's clock. A process reads the kernel's without a call where the kernel trusts the time stamp counter. In a
//! domain it seldom does, for Xen calls the counter stable for nobody unless it is its own clock source (`tsc` on its command
//! line), and then every look at the clock is a system call. There the counter itself is read between two looks.

/// Nanoseconds of the clock that never goes back; 584 years fit.
#[inline]
fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours; this clock exists, so it is filled in.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and whoever forbids it to a process (PR_SET_TSC) is this one.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Other processors' counters are theirs to add: one that stands still is never used.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

/// How many times as long as reading the counter a look at the clock takes where it is a system call, at least; through
/// the kernel's page for it (vDSO) it is two to five times. A counter that Xen emulates is as slow as a call.
const CALL: u64 = 8;
/// How long the counter is believed, nanoseconds: what a move to a processor with another counter may distort.
const TRUSTED: u64 = 10_000_000;
/// Times to find its speed from, nanoseconds.
const MEASURED: std::ops::Range<u64> = 5_000_000..1_000_000_000;

/// Nanoseconds, since when is nobody's business; never goes back.
pub(super) struct Clock {
    counter: Option<Counter>,
    last: u64,
}

impl Clock {
    pub(super) fn new() -> Clock {
        // The least of several: everything that comes between them makes them longer.
        let shortest = |act: fn()| {
            let once = |_| {
                let start = ticks();
                act();
                ticks().saturating_sub(start)
            };
            (0..16).map(once).min().unwrap_or(0)
        };
        let (nothing, look) = (shortest(|| {}), shortest(|| _ = std::hint::black_box(monotonic())));
        Clock { counter: (nothing > 0 && look > nothing * CALL).then(Counter::default), last: 0 }
    }

    #[inline]
    pub(super) fn read(&mut self) -> u64 {
        let now = match &mut self.counter {
            None => monotonic(),
            Some(counter) => match counter.read(ticks()) {
                Some(now) => now,
                None => self.look(),
            },
        };
        self.last = self.last.max(now);
        self.last
    }

    /// The next reading is the kernel's: a counter may have stood still while the processor slept.
    pub(super) fn doubt(&mut self) {
        if let Some(counter) = &mut self.counter {
            counter.doubted = true;
        }
    }

    /// At the kernel's clock, for what the counter is to say from here on.
    fn look(&mut self) -> u64 {
        let (before, now, after) = (ticks(), monotonic(), ticks());
        if let Some(counter) = &mut self.counter
            && !counter.set(before, now, after)
        {
            self.counter = None;
        }
        now
    }
}

/// A counter, as of the last look at the clock.
#[derive(Default)]
struct Counter {
    ticks: u64,
    nanos: u64,
    /// Nanoseconds per tick, in units of 2^-32; 0 while it is not known.
    speed: u64,
    /// Ticks for which it is believed.
    trusted: u64,
    /// ... but not before the next look at the clock.
    doubted: bool,
}

impl Counter {
    /// What time it is, if the last look at the clock is not too long ago.
    #[inline]
    fn read(&self, ticks: u64) -> Option<u64> {
        // Of a counter that is behind there are very many.
        let passed = ticks.wrapping_sub(self.ticks);
        (passed < self.trusted && !self.doubted).then(|| self.nanos + ((passed * self.speed) >> 32))
    }

    /// The clock says `nanos` between two readings. False when the counter does not run evenly: it is good for nothing.
    fn set(&mut self, before: u64, nanos: u64, after: u64) -> bool {
        self.doubted = false;
        let (passed, elapsed) = (before.wrapping_sub(self.ticks), nanos.saturating_sub(self.nanos));
        if self.speed == 0 && self.nanos > 0 && elapsed < MEASURED.start {
            return true;
        }
        let interrupted = after.wrapping_sub(before) > passed / 1024;
        let mut even = true;
        if self.nanos > 0 && MEASURED.contains(&elapsed) && (1..1 << 40).contains(&passed) && !interrupted {
            let speed = ((u128::from(elapsed) << 32) / u128::from(passed)) as u64;
            even = self.speed == 0 || speed.abs_diff(self.speed) < self.speed / 16;
            self.speed = speed;
            self.trusted = (u128::from(TRUSTED) * u128::from(passed) / u128::from(elapsed)) as u64;
        }
        // What has come between makes it late, and not early: early, it would stand still until it is right.
        (self.ticks, self.nanos) = (after, nanos);
        even
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three ticks for a nanosecond, looked at after 20 ms.
    fn counter() -> Counter {
        let mut counter = Counter::default();
        assert!(counter.set(1_000, 5_000, 1_030));
        assert_eq!(counter.read(1_100), None, "its speed is not known");
        assert!(counter.set(60_001_000, 20_005_000, 60_001_030));
        counter
    }

    #[test]
    fn a_counter_is_believed_for_ten_milliseconds() {
        let mut counter = counter();
        assert_eq!(counter.read(60_001_030), Some(20_005_000));
        let later = counter.read(60_001_030 + 3_000_000).expect("a millisecond later");
        assert!((21_004_990..=21_005_010).contains(&later), "{later}");
        assert!(counter.read(60_001_030 + 29_999_000).is_some());
        assert_eq!(counter.read(60_001_030 + 30_001_000), None);
        counter.doubted = true;
        assert_eq!(counter.read(60_001_030), None);
    }

    #[test]
    fn a_counter_that_is_behind_says_nothing() {
        assert_eq!(counter().read(60_001_029), None);
        assert_eq!(counter().read(0), None);
    }

    #[test]
    fn a_counter_that_runs_unevenly_is_given_up() {
        let mut uneven = counter();
        assert!(!uneven.set(60_001_000 + 45_000_000, 20_005_000 + 30_000_000, 60_001_030 + 45_000_000), "half as fast");
        let mut interrupted = counter();
        assert!(interrupted.set(60_001_000 + 45_000_000, 20_005_000 + 30_000_000, 60_001_000 + 90_000_000));
        assert_eq!(interrupted.speed, counter().speed, "nothing is learned when something came between");
    }

    #[test]
    fn the_clock_agrees_with_the_kernel_s_and_never_goes_back() {
        for counter in [None, Some(Counter::default())] {
            let mut clock = Clock { counter, last: 0 };
            let mut before = 0;
            let start = monotonic();
            // Until the counter has been read for a while, which takes longer where many things come between.
            let long = |clock: &Clock| clock.counter.as_ref().is_none_or(|counter| counter.speed > 0);
            while monotonic() - start < 50_000_000 || !long(&clock) {
                let (least, now, most) = (monotonic(), clock.read(), monotonic());
                assert!(now >= before);
                // A thousandth of what it is believed for, and whatever comes between.
                assert!(now + 100_000 >= least && now <= most + 100_000, "{least} {now} {most}");
                before = now;
            }
        }
    }
}

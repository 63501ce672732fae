//! Counters and latency histograms of a device in a memfd: the worker writes, the supervisor reads at leisure, and
//! nobody waits for anybody. One block per queue, written by that queue's thread only.
//!
//! A histogram has four buckets per power of two of nanoseconds: a percentile is at most 25 % too high.

use std::io;
use std::os::fd::OwnedFd;

use crate::pages::Records;
use crate::{PAGE_SIZE, Pages, memfd};

/// Counters in a block; what each means is the device crate's business.
pub const COUNTERS: usize = 64;
/// Buckets of a block's histogram.
pub const BUCKETS: usize = 256;
const BLOCK: usize = PAGE_SIZE;
const HISTOGRAM_AT: usize = COUNTERS * 8;

/// A device's counters.
pub struct Meter {
    pages: Pages,
    queues: usize,
}

/// One queue's counters, for its thread.
pub struct Block {
    words: Records<BLOCK>,
}

impl Meter {
    /// Makes the memfd for `queues` queues.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(queues: usize) -> io::Result<OwnedFd> {
        memfd::create(c"windsor-meter", queues.max(1) * BLOCK)
    }

    /// Maps it.
    ///
    /// # Errors
    /// What the kernel says, `EINVAL` for something else than a meter.
    pub fn open(fd: OwnedFd) -> io::Result<Meter> {
        let pages = memfd::map(fd)?.pages();
        let queues = pages.len() / BLOCK;
        Ok(Meter { pages, queues })
    }

    /// Queues it counts for.
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// One queue's block.
    pub fn block(&self, queue: usize) -> Option<Block> {
        let words = (queue < self.queues).then(|| Records::new(&self.pages, queue * BLOCK, 1)).flatten()?;
        Some(Block { words })
    }

    /// A counter, over all queues.
    pub fn sum(&self, counter: usize) -> u64 {
        (0..self.queues)
            .filter_map(|queue| self.block(queue))
            .fold(0, |sum, block| sum.wrapping_add(block.get(counter)))
    }

    /// The histogram, over all queues.
    pub fn histogram(&self) -> [u64; BUCKETS] {
        let mut sums = [0u64; BUCKETS];
        for block in (0..self.queues).filter_map(|queue| self.block(queue)) {
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = sum.wrapping_add(block.words.first().load(HISTOGRAM_AT + at * 8));
            }
        }
        sums
    }
}

impl Block {
    /// Adds to a counter.
    ///
    /// # Panics
    /// When there is no such counter.
    #[inline]
    pub fn add(&self, counter: usize, n: u64) {
        assert!(counter < COUNTERS);
        self.grow(counter * 8, n);
    }

    /// Sets a counter that is kept elsewhere.
    ///
    /// # Panics
    /// When there is no such counter.
    #[inline]
    pub fn set(&self, counter: usize, value: u64) {
        assert!(counter < COUNTERS);
        self.words.first().store(counter * 8, value);
    }

    /// A counter.
    ///
    /// # Panics
    /// When there is no such counter.
    pub fn get(&self, counter: usize) -> u64 {
        assert!(counter < COUNTERS);
        self.words.first().load(counter * 8)
    }

    /// Counts a latency that was met so many times. Seldom: what was taken together is counted together.
    #[cold]
    pub fn record(&self, nanoseconds: u64, times: u64) {
        self.grow(HISTOGRAM_AT + bucket(nanoseconds) * 8, times);
    }

    /// Nobody else writes here.
    #[inline]
    fn grow(&self, at: usize, n: u64) {
        let words = self.words.first();
        words.store(at, words.load(at).wrapping_add(n));
    }
}

/// The bucket of a latency: four per power of two.
#[inline]
fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < 4 {
        return nanoseconds as usize;
    }
    let power = nanoseconds.ilog2();
    let quarter = (nanoseconds >> (power - 2)) & 3;
    (((power - 1) * 4) as usize + quarter as usize).min(BUCKETS - 1)
}

/// The largest latency that falls into a bucket, in nanoseconds.
pub fn bucket_limit(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let (power, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    let width = 1u64 << (power - 2);
    (1u64 << power).saturating_add(width * (quarter + 1)) - 1
}

/// The latency that `share` (0.0..=1.0) of all counts lie at or below, in nanoseconds; 0 when nothing was counted.
pub fn percentile(histogram: &[u64; BUCKETS], share: f64) -> u64 {
    let total: u64 = histogram.iter().sum();
    let wanted = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    for (at, count) in histogram.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            return bucket_limit(at);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_it_says_and_is_narrow() {
        for nanoseconds in (0..100_000).chain([1 << 30, (1 << 40) + 12_345]) {
            let limit = bucket_limit(bucket(nanoseconds));
            assert!(limit >= nanoseconds && limit as f64 <= nanoseconds as f64 * 1.25 + 1.0, "{nanoseconds} {limit}");
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn counters_are_seen_through_another_mapping() {
        let fd = Meter::create(2).unwrap();
        let writer = Meter::open(fd.try_clone().unwrap()).unwrap();
        let reader = Meter::open(fd).unwrap();
        writer.block(0).unwrap().add(5, 2);
        writer.block(1).unwrap().add(5, 3);
        writer.block(1).unwrap().record(1000, 1);
        assert_eq!(reader.sum(5), 5);
        let p50 = percentile(&reader.histogram(), 0.5);
        assert!((1000..1250).contains(&p50), "{p50}");
        assert!(writer.block(2).is_none());
    }
}

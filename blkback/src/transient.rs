//! How the pages of a frontend without persistent grants are reached: by grant copy, many requests in a call, or by
//! mapping each request's pages for as long as it lasts. Which is cheaper depends on the machine and on the size of a
//! request, so it is measured.

use std::time::Duration;

use crate::config::Transient;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Through the arena.
    Copy,
    /// Straight from and to the guest's pages.
    Map,
}

/// Requests of up to so many pages are of one class; the last takes the rest.
const CLASSES: [usize; 3] = [4, 32, usize::MAX];
/// Requests of a class that go each way before the two are compared.
const TRIALS: u32 = 8;
/// One request in so many goes the way that seemed dearer: things change.
const AGAIN: u32 = 256;

/// Nanoseconds a page, as a moving average.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    ns: u64,
    samples: u32,
}

impl Cost {
    fn took(&mut self, pages: usize, time: Duration) {
        let ns = time.as_nanos() as u64 / pages.max(1) as u64;
        self.ns = if self.samples == 0 { ns } else { (self.ns * 7 + ns) / 8 };
        self.samples = self.samples.saturating_add(1);
    }
}

/// One queue's choice.
#[derive(Debug)]
pub struct Chooser {
    policy: Transient,
    /// Copies of all classes go in one call, so there is one cost of them.
    copy: Cost,
    map: [Cost; CLASSES.len()],
    requests: [u32; CLASSES.len()],
}

impl Chooser {
    /// Nothing is known yet.
    pub fn new(policy: Transient) -> Chooser {
        Chooser { policy, copy: Cost::default(), map: Default::default(), requests: Default::default() }
    }

    /// The way for a request of `pages` pages.
    #[inline]
    pub fn choose(&mut self, pages: usize) -> Method {
        match self.policy {
            Transient::Copy => return Method::Copy,
            Transient::Map => return Method::Map,
            Transient::Auto => {}
        }
        let class = class(pages);
        let number = self.requests[class];
        self.requests[class] = number.wrapping_add(1);
        if number < 2 * TRIALS {
            return if number.is_multiple_of(2) { Method::Copy } else { Method::Map };
        }
        let cheaper = if self.map[class].ns < self.copy.ns { Method::Map } else { Method::Copy };
        match (number.is_multiple_of(AGAIN), cheaper) {
            (false, cheaper) => cheaper,
            (true, Method::Map) => Method::Copy,
            (true, Method::Copy) => Method::Map,
        }
    }

    /// A call copied so many pages in this time.
    pub fn copied(&mut self, pages: usize, time: Duration) {
        self.copy.took(pages, time);
    }

    /// Mapping and unmapping a request of so many pages took this time.
    pub fn mapped(&mut self, pages: usize, time: Duration) {
        self.map[class(pages)].took(pages, time);
    }
}

fn class(pages: usize) -> usize {
    CLASSES.iter().position(|most| pages <= *most).unwrap_or(CLASSES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a machine with these costs, nanoseconds a page and a call, makes of a thousand requests.
    fn chosen(pages: usize, copy: u64, map: u64, call: u64) -> usize {
        let mut chooser = Chooser::new(Transient::Auto);
        (0..1000)
            .filter(|_| {
                let method = chooser.choose(pages);
                match method {
                    Method::Copy => chooser.copied(pages, Duration::from_nanos(copy * pages as u64)),
                    Method::Map => chooser.mapped(pages, Duration::from_nanos(map * pages as u64 + call)),
                }
                method == Method::Map
            })
            .count()
    }

    #[test]
    fn the_cheaper_way_wins_and_the_other_is_tried_now_and_then() {
        assert!((1..20).contains(&chosen(1, 500, 200, 5000)), "a call for one page");
        assert!((980..1000).contains(&chosen(256, 500, 200, 5000)), "a call for many");
    }

    #[test]
    fn it_notices_when_things_change() {
        let mut chooser = Chooser::new(Transient::Auto);
        let mut maps = 0;
        for round in 0..20_000 {
            match chooser.choose(64) {
                Method::Copy => chooser.copied(64, Duration::from_micros(if round < 5000 { 10 } else { 200 })),
                Method::Map => {
                    chooser.mapped(64, Duration::from_micros(60));
                    maps += usize::from(round >= 10_000);
                }
            }
        }
        assert!(maps > 9_000, "{maps}");
    }

    #[test]
    fn whoever_decides_beforehand_is_obeyed() {
        for (policy, method) in [(Transient::Copy, Method::Copy), (Transient::Map, Method::Map)] {
            let mut chooser = Chooser::new(policy);
            assert!((0..1000).all(|pages| chooser.choose(pages) == method));
        }
    }
}

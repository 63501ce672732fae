//! What a session does, made from its seed alone: the same seed gives the same steps whatever the backend answers when.

use fastrand::Rng;

use crate::features::Features;
use crate::guest::{PAGES, WRITABLE};
use crate::wire::{BARRIER, DISCARD, FLUSH, READ, WRITE};

/// Part of a page of data, or what a hostile guest would write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From [`PAGES`] on there is no such page, and nothing is granted.
    pub page: usize,
    pub first: u8,
    pub last: u8,
}

#[derive(Clone, Debug)]
pub struct Put {
    /// Modulo the number of queues.
    pub queue: usize,
    pub operation: u8,
    pub sector: u64,
    pub parts: Vec<Part>,
    /// Segments stand on pages of their own.
    pub indirect: bool,
    /// The number of segments said to be there, when it is not true.
    pub count: Option<u16>,
    /// Sectors of a discard.
    pub sectors: u64,
    /// The page with the segments is not granted.
    pub lost_list: bool,
    /// The ring's producer index is moved at once, or with the next one.
    pub push: bool,
}

#[derive(Clone, Debug)]
pub enum Step {
    Put(Put),
    /// The guest writes to a sector of its pages; the content is taken from the noise at this place.
    Fill {
        sector: usize,
        noise: usize,
    },
    /// Waits until so many requests or fewer are in flight.
    Wait {
        left: usize,
    },
    /// Waits for all requests and compares everything.
    Compare,
    /// The disk is closed with requests in flight, and connected anew.
    Reconnect(Box<Features>),
    /// The guest dies with requests in flight; another one gets the disk.
    Die(Box<Features>),
}

/// Sectors where most requests go, so that they meet.
const CROWDED: u64 = 300;

/// `count` steps of any kind.
pub fn random(random: &mut Rng, first: &Features, count: usize) -> Vec<Step> {
    let mut features = first.clone();
    (0..count)
        .map(|_| match random.u16(..1000) {
            0..=2 => {
                features = Features::random(random);
                Step::Reconnect(Box::new(features.clone()))
            }
            3 => {
                features = Features::random(random);
                Step::Die(Box::new(features.clone()))
            }
            4..=9 => Step::Compare,
            10..=39 => Step::Wait { left: random.usize(..40) },
            40..=139 => Step::Fill { sector: random.usize(..PAGES * 8), noise: random.usize(..2 << 20) },
            _ => Step::Put(put(random, &features)),
        })
        .collect()
}

fn put(random: &mut Rng, features: &Features) -> Put {
    let operation = match random.u8(..100) {
        0..=44 => READ,
        45..=84 => WRITE,
        85..=89 => FLUSH,
        90..=94 => BARRIER,
        95..=98 => DISCARD,
        _ => random.u8(..),
    };
    let indirect = features.max_indirect > 0 && operation <= WRITE && random.u8(..5) == 0;
    let most = if indirect { features.max_indirect } else { 11 };
    let least = if matches!(operation, FLUSH | BARRIER) && random.bool() { 0 } else { 1 };
    // Mostly few, sometimes all that may be.
    let count = (random.f64().powi(3) * f64::from(most)) as u16 + least;
    let count = if random.u8(..30) == 0 { most } else { count.min(most) };
    let mut parts = parts(random, operation, usize::from(count));
    let sectors: u64 = parts.iter().map(|part| u64::from(part.last - part.first) + 1).sum();
    let end = features.offered().sectors;
    let room = end - sectors.min(end);
    let last = if random.u8(..3) > 0 { room.min(CROWDED) } else { room };
    let mut sector = random.u64(..=last);
    let mut discarded = random.u64(..64);
    if operation == DISCARD {
        let granularity = features.offered().discard.unwrap_or(1);
        sector -= if random.u8(..10) > 0 { sector % granularity } else { 0 };
        discarded = discarded.min(end - sector);
    }
    let mut put = Put {
        queue: random.usize(..4),
        operation,
        sector,
        indirect,
        count: None,
        sectors: discarded,
        lost_list: false,
        push: random.u8(..4) > 0,
        parts: Vec::new(),
    };
    if random.u8(..16) == 0 {
        spoil(random, &mut put, &mut parts, end);
    }
    put.parts = parts;
    put
}

fn parts(random: &mut Rng, operation: u8, count: usize) -> Vec<Part> {
    let pages = if operation == READ { WRITABLE } else { PAGES };
    // Neighbours, or any: the same page may come again.
    let (start, in_order, whole) = (random.usize(..pages), random.bool(), random.bool());
    (0..count)
        .map(|at| {
            let page = if in_order { (start + at) % pages } else { random.usize(..pages) };
            let first = if whole { 0 } else { random.u8(..8) };
            Part { page, first, last: if whole { 7 } else { random.u8(first..8) } }
        })
        .collect()
}

/// Breaks one thing.
fn spoil(random: &mut Rng, put: &mut Put, parts: &mut [Part], end: u64) {
    let Some(part) = (!parts.is_empty()).then(|| random.usize(..parts.len())).map(|at| &mut parts[at]) else {
        put.operation = random.u8(..);
        return;
    };
    match random.u8(..8) {
        0 => (part.first, part.last) = (random.u8(..), random.u8(8..)),
        1 => (part.first, part.last) = (random.u8(1..8), 0),
        2 => part.page = PAGES + random.usize(..1000),
        3 => part.page = WRITABLE,
        4 => put.sector = end - random.u64(..2).min(end),
        5 => put.sector = [u64::MAX, u64::MAX - 7, u64::MAX / 512, i64::MAX as u64 / 512][random.usize(..4)],
        6 => put.count = Some([0, 12, 33, 255, 257, u16::MAX][random.usize(..6)]),
        _ => put.lost_list = true,
    }
}

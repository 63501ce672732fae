//! What waits for a guest that has posted no buffers: bounded in bytes, fair between flows, and short for each of them
//! (FQ-CoDel, RFC 8290, over CoDel, RFC 8289). A guest that takes nothing costs the same as one that takes all.
//!
//! Memory comes in chunks, is taken when something waits, used again, and given back when nothing does, except for a
//! little, so that a guest that is behind now and then costs no allocations.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::packet::{Hash, Offload};

/// Bytes of a chunk.
const CHUNK: usize = 2048;
/// Most bytes that wait for one card, counted in whole chunks.
pub const LIMIT: usize = 512 * 1024;
/// Least that a queue of it gets: the largest packet.
const LEAST: usize = 64 * 1024;
/// Chunks that are kept while nothing waits.
const KEPT: usize = 32;
/// Packets of a flow for which there is always room.
const ROOM: usize = 16;
/// Flows that are told apart.
const FLOWS: usize = 64;
/// Bytes that a flow may take in its turn (RFC 8290, 4.1.2: an MTU).
const QUANTUM: i64 = 1514;
/// What a packet may wait for (RFC 8289, 4.4).
const TARGET: Duration = Duration::from_millis(5);
/// How long the shortest wait must have been longer before something is dropped.
const INTERVAL: Duration = Duration::from_millis(100);

/// A packet that waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Bytes.
    pub len: usize,
    /// The work that is left.
    pub offload: Offload,
    /// The hash that goes with it.
    pub hash: Option<Hash>,
    since: Instant,
    first: u32,
}

/// The packets that wait for one receive queue.
pub struct Backlog {
    flows: Vec<Flow>,
    fresh: VecDeque<u16>,
    old: VecDeque<u16>,
    /// The packet whose turn it is.
    head: Option<Waiting>,
    #[allow(clippy::vec_box, reason = "a chunk that was filled is not to be moved when there are more")]
    chunks: Vec<Box<[u8; CHUNK]>>,
    /// The chunk after a chunk.
    after: Vec<u32>,
    vacant: Vec<u32>,
    limit: usize,
    /// Packets that wait.
    count: usize,
}

#[derive(Default)]
struct Flow {
    packets: VecDeque<Waiting>,
    bytes: usize,
    credit: i64,
    listed: bool,
    codel: Codel,
}

/// RFC 8289, 5.2 to 5.5.
#[derive(Default)]
struct Codel {
    first_above: Option<Instant>,
    dropping: bool,
    next: Option<Instant>,
    count: u32,
}

const END: u32 = u32::MAX;

/// Bytes for each queue of a card that has so many.
pub fn share(queues: usize) -> usize {
    (LIMIT / queues.max(1)).max(LEAST)
}

impl Backlog {
    /// Nothing waits, and at most `limit` bytes will.
    pub fn new(limit: usize) -> Backlog {
        Backlog {
            flows: Vec::new(),
            fresh: VecDeque::new(),
            old: VecDeque::new(),
            head: None,
            chunks: Vec::new(),
            after: Vec::new(),
            vacant: Vec::new(),
            limit: limit / CHUNK,
            count: 0,
        }
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes in use, in whole chunks.
    pub fn bytes(&self) -> usize {
        (self.chunks.len() - self.vacant.len()) * CHUNK
    }

    /// Takes a packet of a flow; how many packets, of any flow, were dropped for it, or it itself.
    pub fn push(&mut self, flow: usize, offload: Offload, hash: Option<Hash>, frame: &[u8], now: Instant) -> usize {
        let wanted = frame.len().div_ceil(CHUNK);
        if wanted == 0 || wanted > self.limit {
            return 1;
        }
        if self.flows.is_empty() {
            self.flows.resize_with(FLOWS, Flow::default);
        }
        let mut dropped = 0;
        while self.limit - self.used() < wanted {
            // From the head of the fattest flow (RFC 8290, 4.1): what is oldest is of least use.
            let Some(fattest) =
                (0..FLOWS).max_by_key(|&at| self.flows[at].bytes).filter(|&at| self.flows[at].bytes > 0)
            else {
                return dropped + 1;
            };
            self.drop_first(fattest);
            dropped += 1;
        }
        let first = self.store(frame);
        let at = flow % FLOWS;
        let flow = &mut self.flows[at];
        flow.packets.push_back(Waiting { len: frame.len(), offload, hash, since: now, first });
        flow.bytes += frame.len();
        self.count += 1;
        if !std::mem::replace(&mut flow.listed, true) {
            flow.credit = QUANTUM;
            self.fresh.push_back(at as u16);
        }
        dropped
    }

    /// The packet whose turn it is; it stays first until [`Backlog::pop`]. What has waited for too long is dropped and
    /// counted in `dropped`.
    pub fn first(&mut self, now: Instant, dropped: &mut u64) -> Option<Waiting> {
        if self.head.is_none() {
            self.head = self.choose(now, dropped);
        }
        self.head
    }

    /// Copies the first packet out; `to` has at least its length.
    pub fn read(&self, mut to: impl FnMut(usize, &[u8])) {
        let Some(head) = self.head else { return };
        let (mut chunk, mut at) = (head.first, 0);
        while at < head.len {
            let now = (head.len - at).min(CHUNK);
            to(at, &self.chunks[chunk as usize][..now]);
            at += now;
            chunk = self.after[chunk as usize];
        }
    }

    /// The first packet is on its way.
    pub fn pop(&mut self) {
        if let Some(head) = self.head.take() {
            self.release(head);
        }
        if self.count == 0 {
            self.rest();
        }
    }

    /// Nothing waits any more: gives back what a guest that is behind now and then does not need.
    fn rest(&mut self) {
        for at in self.fresh.drain(..).chain(self.old.drain(..)) {
            let flow = &mut self.flows[usize::from(at)];
            (flow.listed, flow.codel) = (false, Codel::default());
            flow.packets.shrink_to(ROOM);
        }
        if self.chunks.len() > KEPT {
            self.chunks.truncate(KEPT);
            self.after.truncate(KEPT);
            self.vacant.clear();
            self.vacant.extend(0..KEPT as u32);
        }
    }

    /// Drops everything; how many packets.
    pub fn clear(&mut self) -> usize {
        let limit = self.limit * CHUNK;
        let count = self.count;
        *self = Backlog::new(limit);
        count
    }

    /// No hash goes with anything that waits.
    pub fn forget_hashes(&mut self) {
        let waiting = self.flows.iter_mut().flat_map(|flow| &mut flow.packets);
        waiting.chain(&mut self.head).for_each(|packet| packet.hash = None);
    }

    /// Since when the packet waits whose turn it is.
    pub fn waits_since(&self) -> Option<Instant> {
        self.head.map(|head| head.since)
    }

    fn used(&self) -> usize {
        self.chunks.len() - self.vacant.len()
    }

    fn store(&mut self, frame: &[u8]) -> u32 {
        let (mut first, mut last) = (END, END);
        for bytes in frame.chunks(CHUNK) {
            let at = self.vacant.pop().unwrap_or_else(|| {
                self.chunks.push(Box::new([0; CHUNK]));
                self.after.push(END);
                (self.chunks.len() - 1) as u32
            });
            self.chunks[at as usize][..bytes.len()].copy_from_slice(bytes);
            self.after[at as usize] = END;
            match last {
                END => first = at,
                last => self.after[last as usize] = at,
            }
            last = at;
        }
        first
    }

    fn release(&mut self, packet: Waiting) {
        let mut at = packet.first;
        while at != END {
            self.vacant.push(at);
            at = self.after[at as usize];
        }
        self.count -= 1;
    }

    fn drop_first(&mut self, flow: usize) {
        let flow = &mut self.flows[flow];
        if let Some(packet) = flow.packets.pop_front() {
            flow.bytes -= packet.len;
            self.release(packet);
        }
    }

    /// The deficit round robin of RFC 8290, 4.2.
    fn choose(&mut self, now: Instant, dropped: &mut u64) -> Option<Waiting> {
        loop {
            let is_fresh = !self.fresh.is_empty();
            let list = if is_fresh { &mut self.fresh } else { &mut self.old };
            let at = *list.front()?;
            let flow = &mut self.flows[usize::from(at)];
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                list.pop_front();
                self.old.push_back(at);
                continue;
            }
            match self.dequeue(usize::from(at), now, dropped) {
                Some(packet) => {
                    self.flows[usize::from(at)].credit -= packet.len as i64;
                    return Some(packet);
                }
                None => {
                    let list = if is_fresh { &mut self.fresh } else { &mut self.old };
                    list.pop_front();
                    if is_fresh && !self.old.is_empty() {
                        self.old.push_back(at);
                    } else {
                        self.flows[usize::from(at)].listed = false;
                    }
                }
            }
        }
    }

    /// The next packet of a flow that has not waited for too long.
    fn dequeue(&mut self, at: usize, now: Instant, dropped: &mut u64) -> Option<Waiting> {
        loop {
            let flow = &mut self.flows[at];
            let packet = flow.packets.pop_front()?;
            flow.bytes -= packet.len;
            let waited = now.saturating_duration_since(packet.since);
            if !flow.codel.drops(waited, flow.bytes, now) {
                return Some(packet);
            }
            *dropped += 1;
            self.release(packet);
        }
    }
}

impl Codel {
    /// Is a packet that has waited for so long to be dropped? `left` are the bytes behind it.
    fn drops(&mut self, waited: Duration, left: usize, now: Instant) -> bool {
        if waited < TARGET || left < QUANTUM as usize {
            (self.first_above, self.dropping) = (None, false);
            return false;
        }
        let Some(above) = self.first_above else {
            self.first_above = Some(now + INTERVAL);
            return false;
        };
        if now < above {
            return false;
        }
        if !self.dropping {
            self.dropping = true;
            // It was not long ago: go on where it stopped.
            let recent = self.next.is_some_and(|next| now.saturating_duration_since(next) < INTERVAL * 16);
            self.count = if recent && self.count > 2 { self.count - 2 } else { 1 };
            self.next = Some(self.after(now));
            return true;
        }
        if self.next.is_some_and(|next| now >= next) {
            self.count = self.count.saturating_add(1);
            self.next = self.next.map(|next| self.after(next));
            return true;
        }
        false
    }

    fn after(&self, at: Instant) -> Instant {
        at + INTERVAL.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(backlog: &mut Backlog, now: Instant, dropped: &mut u64) -> Option<Vec<u8>> {
        let first = backlog.first(now, dropped)?;
        let mut bytes = vec![0; first.len];
        backlog.read(|at, part| bytes[at..at + part.len()].copy_from_slice(part));
        backlog.pop();
        Some(bytes)
    }

    #[test]
    fn what_went_in_comes_out_and_the_memory_goes() {
        let (mut backlog, now, mut dropped) = (Backlog::new(LIMIT), Instant::now(), 0);
        let frames: Vec<Vec<u8>> = [14, 2048, 2049, 65_535].map(|len| (0..len).map(|at| at as u8).collect()).into();
        for frame in &frames {
            assert_eq!(backlog.push(3, Offload::default(), None, frame, now), 0);
        }
        assert_eq!((backlog.len(), backlog.bytes()), (4, (1 + 1 + 2 + 32) * CHUNK));
        for frame in &frames {
            assert_eq!(take(&mut backlog, now, &mut dropped).as_ref(), Some(frame));
        }
        assert!(backlog.is_empty() && backlog.chunks.len() == KEPT && backlog.bytes() == 0);
        assert_eq!(take(&mut backlog, now, &mut dropped), None);
    }

    #[test]
    fn what_waits_for_a_card_is_bounded_however_many_queues_it_has() {
        for queues in 1..=8 {
            assert!(share(queues) * queues <= LIMIT && share(queues) >= 65_535, "{queues}");
        }
        assert_eq!(share(16) * 16, 2 * LIMIT, "the largest packet fits into each");
    }

    #[test]
    fn the_fattest_flow_pays_for_what_does_not_fit() {
        let (mut backlog, now) = (Backlog::new(64 * CHUNK), Instant::now());
        assert_eq!(backlog.push(1, Offload::default(), None, &[1; 100], now), 0);
        let dropped: usize = (0..1000).map(|_| backlog.push(2, Offload::default(), None, &[2; 1500], now)).sum();
        assert_eq!((backlog.len(), dropped), (64, 1000 - 63));
        assert_eq!(backlog.push(3, Offload::default(), None, &[3; 100], now), 1);
        let (mut dropped, mut seen) = (0, Vec::new());
        while let Some(frame) = take(&mut backlog, now, &mut dropped) {
            seen.push(frame[0]);
        }
        assert_eq!((seen.len(), dropped), (64, 0));
        assert!(seen[..4].contains(&1) && seen[..4].contains(&3), "thin flows first: {seen:?}");
        assert_eq!(backlog.push(1, Offload::default(), None, &[1; 65 * CHUNK], now), 1, "larger than all of it");
    }

    #[test]
    fn a_standing_queue_is_shortened_and_a_burst_is_not() {
        let start = Instant::now();
        let (mut backlog, mut dropped) = (Backlog::new(LIMIT), 0);
        for _ in 0..50 {
            backlog.push(0, Offload::default(), None, &[0; 1500], start);
        }
        // All of it is gone within an interval: fine, however long it has waited.
        for _ in 0..50 {
            take(&mut backlog, start + Duration::from_millis(90), &mut dropped);
        }
        assert_eq!((dropped, backlog.len()), (0, 0));
        // A thousand packets per second come and as many go, but fifty always wait.
        let mut delivered = 0;
        for millisecond in 0..3000 {
            let now = start + Duration::from_millis(1000 + millisecond);
            for _ in 0..if millisecond == 0 { 50 } else { 1 } {
                backlog.push(0, Offload::default(), None, &[0; 1500], now);
            }
            delivered += u64::from(take(&mut backlog, now, &mut dropped).is_some());
        }
        assert!(dropped >= 40 && backlog.len() < 10, "{dropped} dropped, {} left", backlog.len());
        assert!(delivered > 2900, "{delivered}");
    }

    proptest! {
        #[test]
        fn no_chunk_is_lost_or_used_twice(steps in prop::collection::vec((0usize..200, 0usize..9000, any::<bool>()), 1..400)) {
            let (start, mut dropped, mut gone) = (Instant::now(), 0, 0);
            let mut backlog = Backlog::new(40 * CHUNK);
            let (mut pushed, mut taken) = (0, 0);
            for (at, (flow, len, pull)) in steps.into_iter().enumerate() {
                let now = start + Duration::from_millis(at as u64);
                if pull {
                    if let Some(frame) = take(&mut backlog, now, &mut dropped) {
                        let number = frame[0];
                        prop_assert!(frame.iter().all(|byte| *byte == number), "packets are mixed up");
                        taken += 1;
                    }
                } else {
                    pushed += 1;
                    gone += backlog.push(flow, Offload::default(), None, &vec![at as u8; len], now);
                }
                prop_assert!(backlog.bytes() <= 40 * CHUNK);
                prop_assert_eq!(pushed, taken + gone + dropped as usize + backlog.len());
            }
            while take(&mut backlog, start, &mut dropped).is_some() {}
            prop_assert_eq!(backlog.bytes(), 0);
        }
    }
}

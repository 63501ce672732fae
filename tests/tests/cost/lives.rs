//! Lives of a worker that differ by nothing but the reads that it has served: what these cost is the difference.
//!
//! In lock-step: the client publishes `depth` requests of a queue with one store, waits for all, and lets the backend fall
//! asleep before it goes on, with the next queue if there are several. Statistics, validation and journal are on; at least
//! 1,056 persistent grants of each queue are used in random order.

use std::fs::File;
use std::os::unix::fs::FileExt;

use blkback::proto::{
    Abi, BLKIF_OP_READ, BlkifRequestSegment, MAX_INDIRECT_PAGES, MAX_SEGMENTS, SECTOR_SIZE, SEGMENTS_PER_PAGE,
};
use blkback::stats::Stats;
use frontend::blkfront::{Encoded, Encoder};
use frontend::hostile::write_segments;
use grant::{Access, GrantAccess, Granted, PAGE_SIZE};
use tests::world::{Lane, Shape, World};
use unikernel::bench::load::GRANTS;

use crate::worker::{Counted, DEVID};

/// Bytes of the image.
const SIZE: u64 = 16 << 20;
const ENCODER: Encoder = Encoder { abi: Abi::X86_64, handle: 0 };

/// What is read, and beside what.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Not through the arena.
    pub zero_copy: bool,
    /// Reads at once, on each queue.
    pub depth: u32,
    /// Bytes of a read: whole sectors, a power of two, 1 MiB at most.
    pub bytes: usize,
    /// Queues of the disk.
    pub queues: usize,
    /// Disks beside it that nobody reads.
    pub idle: usize,
}

impl Load {
    /// Reads of 4 KiB at depth 32 on one queue of the only disk.
    pub const PLAIN: Load = Load { zero_copy: true, depth: 32, bytes: PAGE_SIZE, queues: 1, idle: 0 };

    fn pages(&self) -> usize {
        self.bytes.div_ceil(PAGE_SIZE)
    }

    /// Pages that a queue's reads use.
    fn grants(&self) -> usize {
        GRANTS.max(self.depth as usize * self.pages())
    }

    /// Pages of segments that they use.
    fn lists(&self) -> usize {
        if self.pages() > MAX_SEGMENTS { self.depth as usize } else { 0 }
    }

    /// Reads at once while every grant is mapped.
    fn warm_depth(&self) -> u32 {
        if self.lists() > 0 { self.depth } else { self.depth.max(32) }
    }

    fn ring_order(&self) -> u8 {
        // A page has 32 slots.
        self.depth.div_ceil(32).next_power_of_two().trailing_zeros() as u8
    }
}

/// What a read came to, and what a batch did.
pub struct Cost {
    /// User instructions of the worker's whole process.
    pub instructions: f64,
    /// Turns of the backend for each batch; more than one where it is longer than a turn.
    pub turns: f64,
    /// System calls as on Xen, for each batch.
    pub system_calls: f64,
    /// Events from the guest for each batch.
    pub events_in: f64,
    /// Events to the guest for each batch.
    pub events_out: f64,
}

/// An image in the page cache, on whatever file system the tests lie on.
pub fn image() -> File {
    let file = tempfile::tempfile_in(".").unwrap();
    let mut block = [0; PAGE_SIZE];
    for at in (0..SIZE).step_by(PAGE_SIZE) {
        block.fill(fastrand::u8(..));
        file.write_all_at(&block, at).unwrap();
    }
    file
}

/// Brings back what has left the page cache: a read that waits for its page is answered in a batch of its own.
fn warm(file: &File) {
    let mut blocks = vec![0; 1 << 20];
    for at in (0..SIZE).step_by(blocks.len()) {
        file.read_exact_at(&mut blocks, at).unwrap();
    }
}

/// What reads cost, from a life with `few` and one with `many`.
pub fn cost(load: &Load, file: &File, (few, many): (u32, u32), name: &str) -> Cost {
    let (first, ..) = serve(load, file, few, &format!("{name}, {few}"));
    let (second, before, after) = serve(load, file, many, &format!("{name}, {many}"));
    let queues = load.queues as f64;
    let batches = f64::from(many / load.depth) * queues;
    let per_batch = |of: fn(&Stats) -> u64| (of(&after) - of(&before)) as f64 / batches;
    assert_eq!(after.errors, 0);
    let of_queue = load.grants() + load.lists() + (1 << load.ring_order());
    assert_eq!(after.pages_mapped as usize, load.queues * of_queue, "every grant is mapped once, and the ring");
    assert_eq!(after.pages_mapped, before.pages_mapped, "... and stays so");
    Cost {
        instructions: (second - first) as f64 / f64::from(many - few) / queues,
        turns: per_batch(|stats| stats.batches),
        system_calls: per_batch(|stats| stats.system_calls),
        events_in: per_batch(|stats| stats.notified_in),
        events_out: per_batch(|stats| stats.notified_out),
    }
}

/// The guest's end of a queue, with the memory that it reads into.
struct Reader {
    load: Load,
    data: Granted,
    /// Of its pages.
    order: Vec<usize>,
    next: usize,
    lists: Option<Granted>,
    put: u32,
}

impl Reader {
    fn new(world: &World, load: Load, random: &mut fastrand::Rng) -> Reader {
        let grant = |count, access| world.memory.clone().grant(world.service.domid, count, access).unwrap();
        let mut order: Vec<usize> = (0..load.grants()).collect();
        random.shuffle(&mut order);
        let lists = (load.lists() > 0).then(|| grant(load.lists(), Access::ReadWrite));
        Reader { load, data: grant(load.grants(), Access::ReadWrite), order, next: 0, lists, put: 0 }
    }

    fn segment(&mut self, bytes: usize) -> BlkifRequestSegment {
        let gref = self.data.refs[self.order[self.next]].0;
        self.next = (self.next + 1) % self.order.len();
        BlkifRequestSegment { gref, first_sect: 0, last_sect: (bytes / SECTOR_SIZE as usize - 1) as u8, pad: 0 }
    }

    fn read(&mut self, id: u32, random: &mut fastrand::Rng) -> Encoded {
        let (bytes, pages) = (self.load.bytes, self.load.pages());
        let segments: Vec<BlkifRequestSegment> = (0..pages).map(|_| self.segment(bytes.min(PAGE_SIZE))).collect();
        let sector = random.u64(..SIZE / bytes as u64) * (bytes as u64 / SECTOR_SIZE);
        let Some(lists) = &self.lists else { return ENCODER.direct(BLKIF_OP_READ, id.into(), sector, &segments) };
        write_segments(&lists.memory.pages(), id as usize * SEGMENTS_PER_PAGE, &segments);
        let list = [lists.refs[id as usize].0; MAX_INDIRECT_PAGES];
        ENCODER.indirect(BLKIF_OP_READ, id.into(), sector, pages as u16, list)
    }

    fn publish(&mut self, depth: u32, lane: &mut Lane, random: &mut fastrand::Rng) {
        let batch: Vec<Encoded> = (0..depth).map(|id| self.read(id, random)).collect();
        // Asked for before there can be any: whether the backend tells us must not depend on who is faster.
        assert!(!lane.ring.final_check().unwrap());
        if lane.put_bytes(batch.iter().map(Encoded::bytes)) {
            lane.notify();
        }
        self.put += depth;
    }
}

/// Instructions of a worker's whole life in which it served `ios` reads of each queue, and its counters for these alone.
fn serve(load: &Load, file: &File, ios: u32, name: &str) -> (u64, Stats, Stats) {
    warm(file);
    let world = World::new();
    let mut counted = Counted::start(&world);
    let max_persistent = (load.grants() + load.lists()) as u32;
    let shape = Shape { zero_copy: load.zero_copy, max_persistent, ring_order: load.ring_order(), ..Shape::default() };
    let mut lanes = counted.connect(&world, file, shape, DEVID, load.queues);
    let _idle = counted.connect_idle(&world, file, load.idle, &mut lanes);
    let mut random = fastrand::Rng::with_seed(7);
    let mut readers: Vec<Reader> = lanes.iter().map(|_| Reader::new(&world, *load, &mut random)).collect();
    let mut ports = Vec::with_capacity(64);
    let mut step = |depth: u32| {
        for (reader, lane) in readers.iter_mut().zip(&mut lanes) {
            reader.publish(depth, lane, &mut random);
            lane.drain(depth as usize, &mut ports);
            counted.rest(lane, reader.put);
        }
        lanes[0].stats()
    };
    // Every grant once.
    let mut before = Stats::default();
    for _ in 0..load.grants().div_ceil(load.pages() * load.warm_depth() as usize) {
        before = step(load.warm_depth());
    }
    let mut after = before;
    for _ in 0..ios / load.depth {
        after = step(load.depth);
    }
    (counted.end(&mut lanes, name), before, after)
}

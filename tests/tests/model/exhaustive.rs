//! All there is: every pair of first and last sector, every number of segments. Of each exactly the valid ones are
//! executed, and nothing else is touched: not a byte of the file, of other pages, or of the guard pages between them.

use std::os::fd::OwnedFd;

use blkback::config::Transient;
use blkback::proto::Abi;
use tests::world::World;

use crate::features::{FILE_SECTORS, Features};
use crate::guest::{Attached, Guest, PAGE, PAGES, WRITABLE};
use crate::reference::SECTOR;
use crate::wire::{self, BARRIER, DIRECT, ERROR, FLUSH, OKAY, READ, Segment, UNSUPPORTED, WRITE};

/// The ways to the data.
pub fn paths() -> Vec<Features> {
    let zero_copy = Features {
        abi: Abi::X86_64,
        ring_order: 4,
        first_index: u32::MAX - 100,
        queues: 1,
        threads: 1,
        persistent: true,
        max_persistent: 1056,
        zero_copy: true,
        transient: Transient::Auto,
        fixed: true,
        max_indirect: 256,
        unit: 512,
        read_only: false,
        barrier: true,
        discard: None,
        shorten: None,
        delay_ms: 0,
        direct: false,
    };
    let arena = Features { zero_copy: false, abi: Abi::X86_32, ..zero_copy.clone() };
    let mapped = Features { persistent: false, transient: Transient::Map, ..zero_copy.clone() };
    let copied = Features { persistent: false, transient: Transient::Copy, ..arena.clone() };
    vec![zero_copy, arena, mapped, copied]
}

/// A disk in hand, and what is on it and in the guest's pages.
struct Bench<'a> {
    features: &'a Features,
    guest: Guest,
    attached: Option<Attached>,
    file: OwnedFd,
    disk: Vec<u8>,
    pages: Vec<u8>,
    executed: u64,
}

impl<'a> Bench<'a> {
    fn new(world: &World, features: &'a Features, name: &str) -> Bench<'a> {
        let mut random = fastrand::Rng::with_seed(4);
        let (mut disk, mut pages) = (vec![0; FILE_SECTORS as usize * SECTOR], vec![0; PAGES * PAGE]);
        random.fill(&mut disk);
        random.fill(&mut pages);
        let file = rustix::fs::memfd_create("volume", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(rustix::io::pwrite(&file, &disk, 0), Ok(disk.len()));
        let guest = Guest::new(world, name);
        guest.fill(&pages);
        let attached = Some(Attached::connect(world, &guest, features, &file));
        Bench { features, guest, attached, file, disk, pages, executed: 0 }
    }

    /// What a good request does: `sectors` on the disk and in the pages, one after the other.
    fn execute(&mut self, operation: u8, sector: u64, sectors: impl Iterator<Item = usize>) {
        self.executed += 1;
        for (number, sector) in (sector as usize..).zip(sectors) {
            let disk = &mut self.disk[number * SECTOR..(number + 1) * SECTOR];
            let page = &mut self.pages[sector * SECTOR..(sector + 1) * SECTOR];
            if operation == READ { page.copy_from_slice(disk) } else { disk.copy_from_slice(page) }
        }
    }

    /// Puts slots into the ring all at once. The responses have these statuses in the order of their ids, which count
    /// from 0, and nothing else has changed.
    fn run(&mut self, slots: &[Vec<u8>], operation: u8, expected: &[i16]) {
        let attached = self.attached.as_mut().unwrap();
        let queue = &mut attached.queues[0];
        if queue.put_bytes(slots.iter().map(Vec::as_slice)) {
            queue.notify().unwrap();
        }
        let mut statuses = vec![None; slots.len()];
        while statuses.contains(&None) {
            for (_, response) in attached.responses(self.features).unwrap() {
                assert_eq!((response.operation, response.padding), (operation, 0));
                assert_eq!(statuses[response.id as usize].replace(response.status), None, "answered twice");
            }
        }
        let statuses: Vec<i16> = statuses.into_iter().flatten().collect();
        assert_eq!(statuses, expected);
        let mut disk = vec![0; self.disk.len()];
        rustix::io::pread(&self.file, &mut disk, 0).unwrap();
        assert!(disk == self.disk, "something else was written to the disk");
        assert!(self.guest.content() == self.pages, "something else was written to the guest's pages");
        assert_eq!(self.guest.touched_guard(), None);
    }

    fn end(mut self) -> u64 {
        assert_eq!(self.attached.take().unwrap().close(self.features), Ok(Vec::new()));
        self.guest.end_grants().unwrap();
        self.executed
    }
}

/// Slots of a batch.
const BATCH: usize = 256;

/// Every pair in one request each, which has its own page and its own sectors of the disk.
fn all_pairs(bench: &mut Bench<'_>, operation: u8, indirect: bool) {
    let abi = bench.features.abi;
    let pairs: Vec<(u8, u8)> = (0..=255).flat_map(|first| (0..=255).map(move |last| (first, last))).collect();
    for batch in pairs.chunks(if indirect { 64 } else { BATCH }) {
        let (mut slots, mut expected) = (Vec::new(), Vec::new());
        for (at, &(first, last)) in batch.iter().enumerate() {
            let page = 1 + at;
            let (sector, segment) = (8 * at as u64, Segment { gref: bench.guest.gref(page), first, last });
            slots.push(if indirect {
                bench.guest.list(at).write(0, &wire::list(&[segment]));
                wire::indirect(abi, operation, 1, at as u64, sector, &[bench.guest.list_gref(at)])
            } else {
                wire::direct(abi, operation, 1, at as u64, sector, &[segment])
            });
            let valid = first <= last && last <= 7;
            expected.push(if valid { OKAY } else { ERROR });
            if valid {
                bench.execute(operation, sector, (first..=last).map(|sector| page * 8 + usize::from(sector)));
            }
        }
        bench.run(&slots, operation, &expected);
    }
}

#[test]
fn of_all_sector_pairs_exactly_the_36_valid_ones_are_executed() {
    let world = World::new();
    for (number, features) in paths().iter().enumerate() {
        let mut bench = Bench::new(&world, features, &format!("guest-{number}"));
        for (operation, indirect) in [(READ, false), (WRITE, false), (READ, true), (WRITE, true)] {
            all_pairs(&mut bench, operation, indirect);
        }
        assert_eq!(bench.end(), 4 * 36);
    }
}

/// Segments of one sector each, every one on its own page.
fn one_sector_each(bench: &Bench<'_>, count: usize) -> Vec<Segment> {
    let segment = |at: usize| {
        let sector = (at % 8) as u8;
        Segment { gref: bench.guest.gref(at % WRITABLE), first: sector, last: sector }
    };
    (0..count).map(segment).collect()
}

#[test]
fn of_all_segment_counts_exactly_those_that_fit_are_executed() {
    let world = World::new();
    for (number, features) in paths().iter().enumerate() {
        let mut bench = Bench::new(&world, features, &format!("guest-{number}"));
        for operation in [READ, WRITE, FLUSH, BARRIER] {
            let before = bench.executed;
            for count in 0..=255u8 {
                let segments = one_sector_each(&bench, DIRECT);
                let sector = u64::from(count) * 11;
                let slot = wire::direct(features.abi, operation, count, 0, sector, &segments);
                let may_be_empty = matches!(operation, FLUSH | BARRIER);
                let valid = usize::from(count) <= DIRECT && (count > 0 || may_be_empty);
                if valid {
                    bench.execute(operation, sector, (0..usize::from(count)).map(|at| at * 8 + at % 8));
                }
                bench.run(&[slot], operation, &[if valid { OKAY } else { ERROR }]);
            }
            assert_eq!(bench.executed - before, if operation <= WRITE { 11 } else { 12 });
        }
        bench.end();
    }
}

/// Counts of indirect segments: all that are near something, and with `WINDSOR_LONG` all there are.
fn indirect_counts() -> Vec<u16> {
    if std::env::var_os("WINDSOR_LONG").is_some() {
        return (0..=u16::MAX).collect();
    }
    let near = |edge: u32| (edge.saturating_sub(2)..=edge + 2).filter_map(|count| u16::try_from(count).ok());
    let mut counts: Vec<u16> = (0..=600).chain((0..=16).flat_map(|bit| near(1 << bit))).collect();
    counts.extend([512 * 3, 512 * 5, 512 * 7, 512 * 9].into_iter().flat_map(near));
    let mut random = fastrand::Rng::with_seed(5);
    counts.extend((0..300).map(|_| random.u16(..)));
    counts.sort_unstable();
    counts.dedup();
    counts
}

#[test]
fn of_all_indirect_segment_counts_exactly_those_that_were_offered_are_executed() {
    let world = World::new();
    let counts = indirect_counts();
    for (number, path) in paths().into_iter().enumerate() {
        for max_indirect in [0, 11, 32, 256] {
            let features = Features { max_indirect, ..path.clone() };
            let mut bench = Bench::new(&world, &features, &format!("guest-{number}-{max_indirect}"));
            let list = wire::list(&one_sector_each(&bench, PAGE / 8));
            bench.guest.list(0).write(0, &list);
            let grefs = [bench.guest.list_gref(0); 8];
            // Those that are executed one by one, the others in batches.
            let (good, bad): (Vec<u16>, Vec<u16>) = counts.iter().partition(|count| (1..=max_indirect).contains(count));
            for operation in [READ, WRITE] {
                for &count in &good {
                    let sector = u64::from(count);
                    bench.execute(operation, sector, (0..usize::from(count)).map(|at| at * 8 + at % 8));
                    let slot = wire::indirect(features.abi, operation, count, 0, sector, &grefs);
                    bench.run(&[slot], operation, &[OKAY]);
                }
                let (named, status) = if max_indirect > 0 { (operation, ERROR) } else { (wire::INDIRECT, UNSUPPORTED) };
                for batch in bad.chunks(BATCH) {
                    let slot = |(id, &count): (usize, &u16)| {
                        wire::indirect(features.abi, operation, count, id as u64, 0, &grefs)
                    };
                    let slots: Vec<Vec<u8>> = batch.iter().enumerate().map(slot).collect();
                    bench.run(&slots, named, &vec![status; slots.len()]);
                }
            }
            assert_eq!(bench.end(), 2 * u64::from(max_indirect));
        }
    }
}

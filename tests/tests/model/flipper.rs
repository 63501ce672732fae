//! A thread changes every byte of the ring's slots and of the pages of segments, at full speed, while requests run
//! (XSA-155). Whatever is executed is what the header allows, of one copy; and nobody touches what was not granted.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkback::disk;
use fastrand::Rng;
use grant::Pages;
use grant::ring::SLOTS_AT;
use tests::world::World;

use crate::exhaustive::paths;
use crate::features::{FILE_SECTORS, Features};
use crate::guest::{Attached, Guest, LISTS, PAGE, PAGES, WRITABLE};
use crate::recorder::{Log, Recorder};
use crate::reference::SECTOR;
use crate::wire::{self, BARRIER, DIRECT, FLUSH, READ, Segment, WRITE};

/// How long all paths to the data take together.
fn duration() -> Duration {
    Duration::from_secs(if std::env::var_os("WINDSOR_LONG").is_some() { 600 } else { 5 })
}

/// Changes byte after byte of these pages; most of them only for a moment.
fn flip(areas: &[Pages], stop: &AtomicBool, flips: &AtomicU64, seed: u64) {
    let mut random = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        for area in areas {
            for at in 0..area.len() {
                let byte: u8 = area.load(at);
                area.store(at, &(byte ^ random.u8(1..)));
                std::hint::spin_loop();
                if random.u8(..8) > 0 {
                    area.store(at, &byte);
                }
            }
            flips.fetch_add(area.len() as u64, Ordering::Relaxed);
        }
    }
}

/// A guest that is at war with its own ring.
struct War<'a> {
    features: &'a Features,
    guest: Guest,
    attached: Option<Attached>,
    log: Arc<Mutex<Log>>,
    random: Rng,
    answered: u64,
    ruined: u64,
}

impl<'a> War<'a> {
    fn new(world: &World, features: &'a Features, file: &OwnedFd, name: &str) -> War<'a> {
        let (guest, log) = (Guest::new(world, name), Arc::default());
        let attached = Some(connect(world, &guest, features, file, &log));
        War { features, guest, attached, log, random: Rng::with_seed(6), answered: 0, ruined: 0 }
    }

    /// Fills the ring with good requests.
    fn put(&mut self) {
        let attached = self.attached.as_mut().unwrap();
        let queue = &mut attached.queues[0];
        let (random, abi) = (&mut self.random, self.features.abi);
        let mut slots = Vec::new();
        for _ in 0..queue.ring.free() {
            let indirect = random.u8(..3) == 0;
            let count = if indirect {
                random.usize(1..=usize::from(self.features.max_indirect))
            } else {
                random.usize(1..=DIRECT)
            };
            let segments: Vec<Segment> = (0..count)
                .map(|_| {
                    let first = random.u8(..8);
                    Segment { gref: self.guest.gref(random.usize(..WRITABLE)), first, last: random.u8(first..8) }
                })
                .collect();
            let (sector, id) = (random.u64(..1500), random.u64(..));
            let operation = if random.bool() { READ } else { WRITE };
            slots.push(match random.u8(..40) {
                0 => wire::discard(abi, 0, id, sector, random.u64(..50)),
                1 => wire::direct(abi, FLUSH, 0, id, sector, &[]),
                2 => wire::direct(abi, BARRIER, count.min(DIRECT) as u8, id, sector, &segments),
                _ if indirect => {
                    let list = random.usize(..LISTS);
                    self.guest.list(list).write(0, &wire::list(&segments));
                    wire::indirect(abi, operation, count as u16, id, sector, &[self.guest.list_gref(list)])
                }
                _ => wire::direct(abi, operation, count as u8, id, sector, &segments),
            });
        }
        queue.put_bytes(slots.iter().map(Vec::as_slice));
        // Asked or not: the backend's wish stands in the ring as well.
        queue.notify().unwrap();
    }

    /// Until the time is over, or the guest has had data read into its ring's own indexes.
    fn fight(&mut self, until: Instant) {
        let areas: Vec<Pages> = {
            let ring = self.attached.as_ref().unwrap().queues[0].pages();
            let slots = ring.slice(SLOTS_AT, ring.len() - SLOTS_AT).unwrap();
            std::iter::once(slots).chain((0..LISTS).map(|list| self.guest.list(list))).collect()
        };
        let (stop, flips) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| flip(&areas[..1], &stop, &flips, 7));
            scope.spawn(|| flip(&areas[1..], &stop, &flips, 8));
            while Instant::now() < until {
                self.put();
                match self.attached.as_mut().unwrap().responses(self.features) {
                    Ok(responses) => self.answered += responses.len() as u64,
                    Err(what) => {
                        let ring = &self.attached.as_ref().unwrap().queues[0].ring_grant.refs;
                        let log = self.log.lock().unwrap();
                        assert!(ring.iter().any(|gref| log.read_into.contains(&gref.0)), "{what}");
                        self.ruined += 1;
                        break;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(flips.into_inner() > 0);
    }
}

fn connect(world: &World, guest: &Guest, features: &Features, file: &OwnedFd, log: &Arc<Mutex<Log>>) -> Attached {
    let (offered, log) = (features.offered(), Arc::clone(log));
    Attached::connect_with(world, guest, features, file, |mut journals| {
        let journal = Mutex::new(journals.pop());
        Arc::new(move |params, file, eraser| {
            let inner = disk::open(params, file, eraser)?;
            let journal = Recorder::journal(journal.lock().unwrap().take()?);
            Some(Box::new(Recorder { inner, journal, offered, log: Arc::clone(&log) }))
        })
    })
}

#[test]
fn bytes_that_change_under_the_backend_change_what_is_asked_for_and_nothing_else() {
    let world = World::new();
    let mut paths = paths();
    paths.iter_mut().for_each(|features| features.discard = Some(1));
    for (number, features) in paths.iter().enumerate() {
        let file = rustix::fs::memfd_create("volume", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut disk = vec![0; FILE_SECTORS as usize * SECTOR];
        Rng::with_seed(9).fill(&mut disk);
        assert_eq!(rustix::io::pwrite(&file, &disk, 0), Ok(disk.len()));
        let mut war = War::new(&world, features, &file, &format!("guest-{number}"));
        let mut before = vec![0; PAGES * PAGE];
        Rng::with_seed(10).fill(&mut before);
        war.guest.fill(&before);
        let until = Instant::now() + duration() / paths.len() as u32;
        while Instant::now() < until {
            if war.attached.is_none() {
                war.attached = Some(connect(&world, &war.guest, features, &file, &war.log));
                // The rings that were ruined count no more.
                war.log.lock().unwrap().read_into.clear();
            }
            war.fight(until);
            war.attached.take().unwrap().abandon().unwrap();
        }
        let log = war.log.lock().unwrap();
        println!("{features:?}: {} answered, {:?} executed, {} rings ruined", war.answered, log.executed, war.ruined);
        assert_eq!(log.complaint, None);
        let executed: u64 = log.executed.iter().sum();
        assert!(log.executed.iter().enumerate().all(|(operation, count)| operation == 4 || *count > 0));
        assert!(war.answered > executed, "nothing was refused: {} of {executed}", war.answered);
        let mut after = vec![0; disk.len()];
        rustix::io::pread(&file, &mut after, 0).unwrap();
        let sectors = disk.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate();
        for (sector, _) in sectors.filter(|(_, (before, after))| before != after) {
            assert!(log.changed.contains(&(sector as u64)), "sector {sector} was written to by nobody");
        }
        drop(log);
        assert_eq!(war.guest.touched_guard(), None);
        assert!(
            war.guest.content()[WRITABLE * PAGE..PAGES * PAGE] == before[WRITABLE * PAGE..],
            "a read-only page was written to"
        );
        war.guest.end_grants().unwrap();
    }
}

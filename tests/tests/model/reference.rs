//! The reference: a disk and a guest's pages as plain bytes, with all that may be there while requests are in flight.
//!
//! A protocol without order among what is in flight promises little: a read that meets a write sees the old content or
//! the new, byte by byte; of two writes either stays. What ended before another began is below it, and so is what stands
//! before a barrier in the same queue.

use std::collections::HashMap;
use std::rc::Rc;

pub const SECTOR: usize = 512;

/// The content of a sector.
pub type Bytes = Rc<[u8]>;

/// Order within a queue: the number of barriers before it, doubled, and one more for a barrier itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub queue: usize,
    pub epoch: u64,
}

struct Version {
    bytes: Bytes,
    /// Which request wrote it.
    request: u64,
    begun: u64,
    ended: Option<u64>,
    place: Place,
}

/// Each byte is that of one of these.
pub fn explained(actual: &[u8], candidates: &[Bytes]) -> bool {
    candidates.iter().any(|bytes| actual == &**bytes)
        || (0..actual.len()).all(|at| candidates.iter().any(|bytes| bytes[at] == actual[at]))
}

/// The disk. Sectors with one possible content are settled.
pub struct Disk {
    settled: Vec<u8>,
    open: HashMap<u64, Vec<Version>>,
    clock: u64,
}

impl Disk {
    pub fn new(content: Vec<u8>) -> Disk {
        Disk { settled: content, open: HashMap::new(), clock: 1 }
    }

    pub fn settled(&self, sector: u64) -> Bytes {
        let at = sector as usize * SECTOR;
        Rc::from(&self.settled[at..at + SECTOR])
    }

    /// What a read that begins now may find.
    pub fn candidates(&self, sector: u64) -> Vec<Bytes> {
        match self.open.get(&sector) {
            Some(versions) => versions.iter().map(|version| Rc::clone(&version.bytes)).collect(),
            None => vec![self.settled(sector)],
        }
    }

    /// A write of these sectors begins.
    pub fn begin(&mut self, request: u64, place: Place, sector: u64, content: &[Bytes]) {
        self.clock += 1;
        for (number, bytes) in (sector..).zip(content) {
            let below = Version {
                bytes: self.settled(number),
                request: u64::MAX,
                begun: 0,
                ended: Some(0),
                place: Place { queue: usize::MAX, epoch: 0 },
            };
            let versions = self.open.entry(number).or_insert_with(|| vec![below]);
            versions.push(Version { bytes: Rc::clone(bytes), request, begun: self.clock, ended: None, place });
        }
    }

    /// It has ended well: what ended before it began is under it.
    pub fn end(&mut self, request: u64, sector: u64, sectors: u64) {
        self.close(request, sector, sectors, true);
    }

    /// Nobody knows how much of it was done.
    pub fn lose(&mut self, request: u64, sector: u64, sectors: u64) {
        self.close(request, sector, sectors, false);
    }

    fn close(&mut self, request: u64, sector: u64, sectors: u64, covers: bool) {
        self.clock += 1;
        for number in sector..sector + sectors {
            let versions = self.open.get_mut(&number).expect("it was begun");
            let own = versions.iter_mut().find(|version| version.request == request).expect("it was begun");
            own.ended = Some(self.clock);
            let (begun, place) = (own.begun, own.place);
            if covers {
                versions.retain(|version| {
                    let earlier = version.ended.is_some_and(|ended| ended < begun);
                    let fenced = version.place.queue == place.queue && version.place.epoch < place.epoch;
                    version.request == request || !(earlier || fenced)
                });
            }
            if let [Version { bytes, ended: Some(_), .. }] = &versions[..] {
                let at = number as usize * SECTOR;
                self.settled[at..at + SECTOR].copy_from_slice(bytes);
                self.open.remove(&number);
            }
        }
    }

    /// It was never done.
    pub fn undo(&mut self, request: u64, sector: u64, sectors: u64) {
        for number in sector..sector + sectors {
            let versions = self.open.get_mut(&number).expect("it was begun");
            versions.retain(|version| version.request != request);
        }
    }

    /// Compares with what is really there while nothing is in flight, and goes on from that.
    pub fn settle(&mut self, actual: &[u8]) -> Result<(), u64> {
        for (number, versions) in self.open.drain() {
            let at = number as usize * SECTOR;
            let found = &actual[at..at + SECTOR];
            let candidates: Vec<Bytes> = versions.iter().map(|version| Rc::clone(&version.bytes)).collect();
            if !explained(found, &candidates) {
                return Err(number);
            }
            self.settled[at..at + SECTOR].copy_from_slice(found);
        }
        match self.settled.chunks(SECTOR).zip(actual.chunks(SECTOR)).position(|(ours, theirs)| ours != theirs) {
            Some(sector) => Err(sector as u64),
            None => Ok(()),
        }
    }
}

/// A sector of a guest's page that reads in flight write to.
#[derive(Default)]
struct Target {
    reads: u32,
    candidates: Vec<Bytes>,
}

/// The guest's pages, in sectors.
pub struct Pages {
    known: Vec<u8>,
    targets: HashMap<usize, Target>,
    /// Writes in flight that take their data from a sector.
    sources: Vec<u32>,
}

impl Pages {
    pub fn new(content: Vec<u8>) -> Pages {
        let sources = vec![0; content.len() / SECTOR];
        Pages { known: content, targets: HashMap::new(), sources }
    }

    pub fn known(&self, sector: usize) -> Bytes {
        Rc::from(&self.known[sector * SECTOR..(sector + 1) * SECTOR])
    }

    /// The guest may read it, or have it written from.
    pub fn is_stable(&self, sector: usize) -> bool {
        !self.targets.contains_key(&sector)
    }

    /// The guest may change it, or have it read into.
    pub fn is_unused(&self, sector: usize) -> bool {
        self.sources[sector] == 0
    }

    pub fn set(&mut self, sector: usize, bytes: &[u8]) {
        assert!(self.is_stable(sector) && self.is_unused(sector));
        self.known[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
    }

    pub fn lend(&mut self, sector: usize) {
        self.sources[sector] += 1;
    }

    pub fn take_back(&mut self, sector: usize) {
        self.sources[sector] -= 1;
    }

    pub fn aim(&mut self, sector: usize) {
        self.targets.entry(sector).or_default().reads += 1;
    }

    /// A read into it is over and may have left any of `candidates`; `actual` is what is there. False when that cannot
    /// be.
    pub fn hit(&mut self, sector: usize, candidates: &[Bytes], actual: &[u8]) -> bool {
        let target = self.targets.get_mut(&sector).expect("it was aimed at");
        target.candidates.extend_from_slice(candidates);
        target.reads -= 1;
        if target.reads > 0 {
            return true;
        }
        let candidates = self.targets.remove(&sector).expect("it is there").candidates;
        let known = &mut self.known[sector * SECTOR..(sector + 1) * SECTOR];
        // Without a candidate nothing has come.
        let good = if candidates.is_empty() { actual == known } else { explained(actual, &candidates) };
        known.copy_from_slice(actual);
        good
    }

    /// The first sector that is not as it should be while nothing is in flight.
    pub fn difference(&self, actual: &[u8]) -> Option<usize> {
        assert!(self.targets.is_empty());
        self.known.chunks(SECTOR).zip(actual.chunks(SECTOR)).position(|(ours, theirs)| ours != theirs)
    }
}

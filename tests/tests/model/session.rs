//! A session: steps done with a real worker and with the reference, which must agree.

use std::collections::HashMap;
use std::rc::Rc;

use grant::embedded;
use tests::world::World;

use crate::features::{FILE_SECTORS, Features};
use crate::guest::{Attached, Guest, LISTS, PAGE, PAGES, WRITABLE};
use crate::reference::{Bytes, Disk, Pages, Place, SECTOR};
use crate::steps::{Put, Step};
use crate::validator::{Verdict, Work, judge};
use crate::volume::Volume;
use crate::wire::{self, BARRIER, DISCARD, ERROR, OKAY, READ, Response, Segment, UNSUPPORTED};

/// What happened, to be sure that it did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub indirect: u64,
    pub refused: u64,
    pub bad_grants: u64,
    pub barriers: u64,
    pub discards: u64,
    /// Sectors that were read while they were written.
    pub contested: u64,
    pub unanswered: u64,
    pub reconnects: u64,
    pub deaths: u64,
    pub most_in_flight: u64,
}

/// A request in the ring.
struct Flight {
    queue: usize,
    place: Place,
    /// What the response must name.
    operation: u8,
    work: Option<Work>,
    /// What it must say.
    status: i16,
    /// Its page of segments, and what stands there.
    list: Option<(usize, Vec<u8>)>,
    /// Sectors of the guest's pages, none for those without a page of their own that may be used so.
    sectors: Vec<Option<usize>>,
    /// A read: what each sector may bring.
    candidates: Vec<Vec<Bytes>>,
}

impl Flight {
    fn reads(&self) -> Option<&Work> {
        self.work.as_ref().filter(|work| work.operation == READ)
    }

    /// It changes the disk when it ends well.
    fn changes(&self) -> Option<&Work> {
        self.work.as_ref().filter(|work| work.operation != READ && self.status == OKAY && work.sectors > 0)
    }
}

/// Where it went wrong.
pub struct Failure {
    /// The number of steps that were done.
    pub steps: usize,
    pub what: String,
}

/// What never changes while sessions come and go.
pub struct Stage {
    pub world: World,
    /// Where content comes from.
    pub noise: Vec<u8>,
    guests: u32,
    pub tally: Tally,
}

impl Stage {
    pub fn new() -> Stage {
        let mut noise = vec![0; 4 << 20];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        Stage { world: World::new(), noise, guests: 0, tally: Tally::default() }
    }

    fn guest(&mut self) -> Guest {
        self.guests += 1;
        let guest = Guest::new(&self.world, &format!("guest-{}", self.guests));
        guest.fill(&self.noise[..PAGES * PAGE]);
        guest
    }

    /// Does the steps on a fresh disk.
    pub fn play(&mut self, features: &Features, steps: &[Step]) -> Result<(), Failure> {
        let content = self.noise[2 << 20..].to_vec();
        let volume = if features.direct { Volume::direct(&content) } else { Volume::in_memory(&content) };
        let guest = self.guest();
        let mut session = Session {
            attached: Some(Attached::connect(&self.world, &guest, features, &volume.backend)),
            pages: Pages::new(guest.content()),
            guest: Some(guest),
            stage: self,
            features: features.clone(),
            volume,
            disk: Disk::new(content),
            flights: HashMap::new(),
            epochs: [0; 4],
            unpushed: [false; 4],
            lists: (0..LISTS).collect(),
            next: 0,
        };
        for (at, step) in steps.iter().enumerate() {
            session.step(step).map_err(|what| Failure { steps: at + 1, what })?;
        }
        session.end().map_err(|what| Failure { steps: steps.len(), what })
    }
}

struct Session<'a> {
    stage: &'a mut Stage,
    features: Features,
    volume: Volume,
    guest: Option<Guest>,
    attached: Option<Attached>,
    disk: Disk,
    pages: Pages,
    flights: HashMap<u64, Flight>,
    epochs: [u64; 4],
    unpushed: [bool; 4],
    lists: Vec<usize>,
    next: u64,
}

impl Session<'_> {
    fn guest(&self) -> &Guest {
        self.guest.as_ref().expect("alive")
    }

    fn attached(&mut self) -> &mut Attached {
        self.attached.as_mut().expect("connected")
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Put(put) => self.put(put),
            Step::Fill { sector, noise } => {
                while !(self.pages.is_stable(*sector) && self.pages.is_unused(*sector)) {
                    self.collect()?;
                }
                let bytes = &self.stage.noise[*noise..][..SECTOR];
                self.pages.set(*sector, bytes);
                self.guest().write_sector(*sector, bytes);
                Ok(())
            }
            Step::Wait { left } => self.wait(*left),
            Step::Compare => self.compare(),
            Step::Reconnect(features) => {
                self.stage.tally.reconnects += 1;
                self.detach(false)?;
                self.features = (**features).clone();
                self.attach();
                Ok(())
            }
            Step::Die(features) => {
                self.stage.tally.deaths += 1;
                self.guest.as_mut().expect("alive").die();
                self.detach(true)?;
                let old = self.guest.replace(self.stage.guest()).expect("it was alive");
                old.end_grants()?;
                self.pages = Pages::new(self.guest().content());
                self.lists = (0..LISTS).collect();
                self.features = (**features).clone();
                self.attach();
                Ok(())
            }
        }
    }

    fn end(mut self) -> Result<(), String> {
        self.compare()?;
        self.detach(false)?;
        self.guest.take().expect("alive").end_grants()
    }

    fn attach(&mut self) {
        let guest = self.guest.as_ref().expect("alive");
        self.attached = Some(Attached::connect(&self.stage.world, guest, &self.features, &self.volume.backend));
        self.epochs = [0; 4];
    }

    /// Closes the disk and compares everything. `dying`: nobody knows what became of requests without an answer.
    fn detach(&mut self, dying: bool) -> Result<(), String> {
        (0..self.features.queues).for_each(|queue| self.push(queue));
        let attached = self.attached.take().expect("connected");
        for (queue, response) in attached.close(&self.features)? {
            self.answered(queue, response, dying)?;
        }
        let active = self.active_grants();
        if active > 0 {
            return Err(format!("{active} grants are mapped after Closed"));
        }
        let mut left: Vec<u64> = self.flights.keys().copied().collect();
        left.sort_unstable();
        for id in left {
            self.stage.tally.unanswered += 1;
            let flight = self.flights.remove(&id).expect("it is there");
            self.finish(id, flight, if dying { Outcome::Unknown } else { Outcome::Never })?;
        }
        self.compare_now()
    }

    /// Pages that the backend has mapped. Nothing is left of a guest that died when there are none.
    fn active_grants(&self) -> u32 {
        embedded::usage(self.stage.world.dir.path(), self.guest().domid).map_or(0, |usage| usage.active_grants)
    }

    fn put(&mut self, put: &Put) -> Result<(), String> {
        let queue = put.queue % self.features.queues;
        while self.attached().queues[queue].ring.free() == 0 || (put.indirect && self.lists.is_empty()) {
            self.collect()?;
        }
        self.next += 1;
        // Any number will do for the backend.
        let id = self.next << 40 | self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24;
        let (slot, list) = self.encode(put, id);
        let granted = |gref| match &list {
            Some((page, bytes)) if self.guest().list_gref(*page) == gref => Some(bytes.clone()),
            _ => None,
        };
        let judged = judge(&self.features.offered(), &slot, granted);
        assert_eq!(judged.id, id);
        let (work, mut status) = match judged.verdict {
            Verdict::Execute(work) => (Some(work), OKAY),
            Verdict::Refuse(status) => (None, status),
        };
        let mut sectors = Vec::new();
        if let Some(work) = &work {
            sectors = self.sectors_of(work);
            while !self.may_use(work, &sectors) {
                self.collect()?;
            }
            if sectors.contains(&None) {
                self.stage.tally.bad_grants += 1;
                status = ERROR;
            }
        }
        let barrier = work.as_ref().is_some_and(|work| work.operation == BARRIER);
        self.epochs[queue] += u64::from(barrier);
        let place = Place { queue, epoch: self.epochs[queue] };
        self.epochs[queue] += u64::from(barrier);
        let operation = judged.operation;
        let flight = Flight { queue, place, operation, work, status, list, sectors, candidates: Vec::new() };
        self.begin(id, flight, put.indirect);
        self.attached().queues[queue].ring.put(&slot);
        self.unpushed[queue] = true;
        if put.push {
            self.push(queue);
        }
        Ok(())
    }

    /// The slot, and the page of segments that goes with it.
    fn encode(&mut self, put: &Put, id: u64) -> (Vec<u8>, Option<(usize, Vec<u8>)>) {
        let gref = |page: usize| if page < PAGES { self.guest().gref(page) } else { 20_000 + page as u32 };
        let parts = put.parts.iter();
        let segments: Vec<Segment> =
            parts.map(|part| Segment { gref: gref(part.page), first: part.first, last: part.last }).collect();
        let abi = self.features.abi;
        let count = put.count.unwrap_or(segments.len() as u16);
        if put.operation == DISCARD {
            return (wire::discard(abi, id as u8, id, put.sector, put.sectors), None);
        }
        if !put.indirect {
            return (wire::direct(abi, put.operation, count as u8, id, put.sector, &segments), None);
        }
        let page = self.lists.pop().expect("one is free");
        // Whatever stands behind the segments must not matter.
        let mut bytes = self.stage.noise[page * PAGE..(page + 1) * PAGE].to_vec();
        let list = wire::list(&segments);
        bytes[..list.len()].copy_from_slice(&list);
        self.guest().list(page).write(0, &bytes);
        let list_gref = if put.lost_list { 30_000 } else { self.guest().list_gref(page) };
        (wire::indirect(abi, put.operation, count, id, put.sector, &[list_gref]), Some((page, bytes)))
    }

    /// The sectors of the guest's pages that a request takes, in order.
    fn sectors_of(&self, work: &Work) -> Vec<Option<usize>> {
        let usable = |page: &usize| *page < WRITABLE || work.operation != READ;
        let sectors = work.segments.iter().flat_map(|segment| {
            let page = self.guest().page_of(segment.gref).filter(usable);
            (segment.first..=segment.last).map(move |sector| page.map(|page| page * 8 + usize::from(sector)))
        });
        sectors.collect()
    }

    fn may_use(&self, work: &Work, sectors: &[Option<usize>]) -> bool {
        let mut sectors = sectors.iter().flatten();
        match work.operation {
            READ => sectors.all(|sector| self.pages.is_unused(*sector)),
            _ => sectors.all(|sector| self.pages.is_stable(*sector)),
        }
    }

    fn begin(&mut self, id: u64, mut flight: Flight, indirect: bool) {
        let tally = &mut self.stage.tally;
        tally.requests += 1;
        tally.indirect += u64::from(indirect && flight.work.is_some());
        tally.refused += u64::from(flight.work.is_none());
        if let Some(work) = &flight.work {
            tally.barriers += u64::from(work.operation == BARRIER);
            tally.discards += u64::from(work.operation == DISCARD);
        }
        if let Some(work) = flight.reads() {
            let sectors = work.sector..work.sector + work.sectors;
            flight.candidates = sectors.map(|sector| self.disk.candidates(sector)).collect();
            flight.sectors.iter().flatten().for_each(|sector| self.pages.aim(*sector));
        } else if flight.work.is_some() {
            flight.sectors.iter().flatten().for_each(|sector| self.pages.lend(*sector));
        }
        if let Some(work) = flight.changes() {
            let content: Vec<Bytes> = match work.operation {
                DISCARD => vec![Rc::from([0; SECTOR]); work.sectors as usize],
                _ => flight.sectors.iter().flatten().map(|sector| self.pages.known(*sector)).collect(),
            };
            self.disk.begin(id, flight.place, work.sector, &content);
            // Reads in flight may meet it.
            for other in self.flights.values_mut() {
                let Some(read) = other.work.as_ref().filter(|work| work.operation == READ) else { continue };
                let both = read.sector.max(work.sector)..(read.sector + read.sectors).min(work.sector + work.sectors);
                for sector in both {
                    let bytes = Rc::clone(&content[(sector - work.sector) as usize]);
                    other.candidates[(sector - read.sector) as usize].push(bytes);
                }
            }
        }
        self.flights.insert(id, flight);
        self.stage.tally.most_in_flight = self.stage.tally.most_in_flight.max(self.flights.len() as u64);
    }

    fn push(&mut self, queue: usize) {
        if std::mem::take(&mut self.unpushed[queue]) {
            let queue = &mut self.attached().queues[queue];
            if queue.ring.push() {
                // The port of a guest that died is gone with it.
                let _ = queue.notify();
            }
        }
    }

    /// Takes what has been answered; there is something in flight.
    fn collect(&mut self) -> Result<(), String> {
        (0..self.features.queues).for_each(|queue| self.push(queue));
        let features = self.features.clone();
        for (queue, response) in self.attached().responses(&features)? {
            self.answered(queue, response, false)?;
        }
        Ok(())
    }

    fn wait(&mut self, left: usize) -> Result<(), String> {
        while self.flights.len() > left {
            self.collect()?;
        }
        Ok(())
    }

    fn answered(&mut self, queue: usize, response: Response, dying: bool) -> Result<(), String> {
        let Some(flight) = self.flights.remove(&response.id) else {
            return Err(format!("{response:?} answers nothing that is in flight"));
        };
        let expected = Response { id: response.id, operation: flight.operation, status: flight.status, padding: 0 };
        let lost = dying && response.status == ERROR && flight.work.is_some();
        if queue != flight.queue || (response != expected && !lost) {
            return Err(format!("{response:?} in queue {queue} for {:?}, not {expected:?}", flight.work));
        }
        let writes = |flight: &Flight| flight.changes().is_some_and(|work| work.operation != DISCARD);
        if writes(&flight) && !lost {
            let early =
                |other: &&Flight| other.queue == queue && other.place.epoch < flight.place.epoch && writes(other);
            if let Some(other) = self.flights.values().find(early) {
                return Err(format!("{:?} has overtaken {:?}", flight.work, other.work));
            }
        }
        if let Some((page, bytes)) = &flight.list {
            let mut actual = vec![0; PAGE];
            self.guest().list(*page).read(0, &mut actual);
            if actual != *bytes {
                return Err(format!("the page of segments of {:?} was written to", flight.work));
            }
        }
        let outcome = match (lost, flight.status) {
            (true, _) => Outcome::Unknown,
            (false, OKAY) => Outcome::Done,
            (false, UNSUPPORTED | ERROR) => Outcome::Failed,
            _ => unreachable!("no other status is expected"),
        };
        self.finish(response.id, flight, outcome)
    }

    /// A request is no longer in flight.
    fn finish(&mut self, id: u64, flight: Flight, outcome: Outcome) -> Result<(), String> {
        self.lists.extend(flight.list.as_ref().map(|(page, _)| *page));
        if flight.reads().is_some() {
            for (sector, candidates) in flight.sectors.iter().zip(&flight.candidates) {
                let Some(sector) = sector else { continue };
                self.stage.tally.contested += u64::from(candidates.len() > 1);
                let mut candidates = match outcome {
                    Outcome::Never => Vec::new(),
                    _ => candidates.clone(),
                };
                if matches!(outcome, Outcome::Unknown | Outcome::Failed) {
                    candidates.push(self.pages.known(*sector));
                }
                let mut actual = [0; SECTOR];
                self.guest().read_sector(*sector, &mut actual);
                if !self.pages.hit(*sector, &candidates, &actual) {
                    return Err(format!(
                        "page {} sector {} holds what no read of {:?} can have brought",
                        sector / 8,
                        sector % 8,
                        flight.work
                    ));
                }
            }
            return Ok(());
        }
        if flight.work.is_some() {
            flight.sectors.iter().flatten().for_each(|sector| self.pages.take_back(*sector));
        }
        let Some(Work { operation, sector, sectors, .. }) = flight.changes() else { return Ok(()) };
        match outcome {
            // A discard is a hint.
            Outcome::Done if *operation != DISCARD => self.disk.end(id, *sector, *sectors),
            Outcome::Done | Outcome::Unknown => self.disk.lose(id, *sector, *sectors),
            Outcome::Failed | Outcome::Never => self.disk.undo(id, *sector, *sectors),
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<(), String> {
        self.wait(0)?;
        if !self.features.persistent {
            // Linux gives a disk up when a page is mapped that was answered for.
            let rings = (self.features.queues << self.features.ring_order) as u32;
            let active = self.active_grants();
            if active != rings {
                return Err(format!("{active} grants are mapped beside {rings} of the rings"));
            }
        }
        self.compare_now()
    }

    /// Nothing is in flight: the file, and every byte of the guest's pages.
    fn compare_now(&mut self) -> Result<(), String> {
        let actual = self.volume.content(FILE_SECTORS as usize * SECTOR);
        self.disk.settle(&actual).map_err(|sector| format!("sector {sector} holds what nobody wrote"))?;
        if let Some(guard) = self.guest().touched_guard() {
            return Err(format!("guard page {guard} was written to"));
        }
        match self.pages.difference(&self.guest().content()) {
            Some(sector) => Err(format!("page {} sector {} was written to", sector / 8, sector % 8)),
            None => Ok(()),
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// It was answered with an error that was due.
    Failed,
    /// It was not answered by a disk that was closed in good order.
    Never,
    /// It was not answered, or with an error, because its guest died.
    Unknown,
}

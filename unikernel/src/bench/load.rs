//! The load generator: requests on one ring whose data stays in the granted pages, as a guest's page cache would have it.
//! Nothing is copied, so that what is measured is the backend.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use blkback::proto::{
    Abi, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_OKAY, BlkifRequestSegment, MAX_INDIRECT_PAGES, MAX_SEGMENTS,
};
use frontend::blkfront::{Encoder, Queue};
use grant::{Access, DomId, GrantAccess, Granted, PAGE_SIZE};
use hdrhistogram::Histogram;
use zerocopy::IntoBytes;

use super::job::{Job, Ran, Rw, Side, histogram};

/// Pages granted for data at least: what Linux's backend keeps of a ring of one page.
pub const GRANTS: usize = 1056;
/// How long nothing may complete.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request under way.
#[derive(Clone)]
struct Flight {
    started: Instant,
    write: bool,
    pages: Vec<u32>,
}

/// One queue of a disk, and the pages that its requests use in random order.
pub struct Lane {
    /// The ring.
    pub queue: Queue,
    data: Granted,
    /// One page of segments for each request.
    indirect: Granted,
    encoder: Encoder,
    max_indirect: usize,
    flights: Vec<Flight>,
    idle: Vec<u16>,
    /// Taken at the front, given back at the end: each is used as often as the others.
    free: VecDeque<u32>,
    segments: Vec<BlkifRequestSegment>,
}

impl Lane {
    /// Grants what `depth` requests of `pages` pages each need, and at least [`GRANTS`].
    ///
    /// # Errors
    /// When the guest's memory is used up.
    pub fn new(
        queue: Queue,
        access: &mut dyn GrantAccess,
        peer: DomId,
        max_indirect: usize,
        (depth, pages): (usize, usize),
    ) -> io::Result<Lane> {
        let data = access.grant(peer, GRANTS.max(depth * pages), Access::ReadWrite)?;
        let indirect = access.grant(peer, depth, Access::ReadWrite)?;
        let mut order: Vec<u32> = (0..data.refs.len() as u32).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut order);
        Ok(Lane {
            queue,
            data,
            indirect,
            encoder: Encoder { abi: Abi::X86_64, handle: 0 },
            max_indirect,
            flights: vec![Flight { started: Instant::now(), write: false, pages: Vec::with_capacity(pages) }; depth],
            idle: (0..depth as u16).collect(),
            free: order.into(),
            segments: Vec::with_capacity(pages),
        })
    }

    /// Pages granted for data.
    pub fn grants(&self) -> usize {
        self.data.refs.len()
    }

    /// Takes it apart: the grants can be ended once the backend has let go.
    pub fn into_parts(self) -> (Queue, [Granted; 2]) {
        (self.queue, [self.data, self.indirect])
    }

    /// Runs a load.
    ///
    /// # Errors
    /// When the job does not fit the disk, the backend stops answering, or answers nonsense.
    pub fn run(&mut self, job: &Job) -> io::Result<Ran> {
        let pages = (job.bs as usize).div_ceil(PAGE_SIZE);
        let most = self.max_indirect.max(MAX_SEGMENTS);
        if pages > most {
            return Err(io::Error::other(format!("--bs {}: the disk takes {} KiB at most", job.bs, most * 4)));
        }
        let blocks = job.size / u64::from(job.bs);
        if blocks == 0 {
            return Err(io::Error::other("--size is less than --bs"));
        }
        if job.iodepth > self.flights.len() {
            return Err(io::Error::other(format!("the ring has room for {} requests", self.flights.len())));
        }
        Load {
            places: Places { random: fastrand::Rng::with_seed(job.seed), blocks, next: 0, rw: job.rw },
            reads: Count::new()?,
            writes: Count::new()?,
            publishes: 0,
            job: *job,
            lane: self,
        }
        .run()
    }

    /// Puts a request into the ring; nobody sees it yet.
    fn put(&mut self, write: bool, at: u64, bytes: usize, now: Instant) -> io::Result<()> {
        let id = self.idle.pop().ok_or_else(|| io::Error::other("more requests than slots"))?;
        let pages = bytes.div_ceil(PAGE_SIZE);
        let flight = &mut self.flights[usize::from(id)];
        (flight.started, flight.write) = (now, write);
        flight.pages.clear();
        flight.pages.extend(self.free.drain(..pages));
        self.segments.clear();
        for (index, page) in flight.pages.iter().enumerate() {
            let len = (bytes - index * PAGE_SIZE).min(PAGE_SIZE);
            let last_sect = (len / 512 - 1) as u8;
            let gref = self.data.refs[*page as usize].0;
            self.segments.push(BlkifRequestSegment { gref, first_sect: 0, last_sect, pad: 0 });
        }
        let operation = if write { BLKIF_OP_WRITE } else { BLKIF_OP_READ };
        let encoded = if pages <= MAX_SEGMENTS {
            self.encoder.direct(operation, id.into(), at / 512, &self.segments)
        } else {
            // At most 256 segments: they stand on one page.
            self.indirect.memory.pages().write(usize::from(id) * PAGE_SIZE, self.segments.as_bytes());
            let mut grefs = [0; MAX_INDIRECT_PAGES];
            grefs[0] = self.indirect.refs[usize::from(id)].0;
            self.encoder.indirect(operation, id.into(), at / 512, pages as u16, grefs)
        };
        match self.queue.put_raw(encoded.bytes()) {
            true => Ok(()),
            false => Err(io::Error::other("the ring is full")),
        }
    }
}

/// Where the next request goes.
struct Places {
    random: fastrand::Rng,
    blocks: u64,
    next: u64,
    rw: Rw,
}

impl Places {
    fn next(&mut self) -> (bool, u64) {
        let write = match self.rw {
            Rw::RandRw => self.random.bool(),
            rw => rw.writes(),
        };
        if self.rw.is_random() {
            return (write, self.random.u64(..self.blocks));
        }
        self.next += 1;
        (write, (self.next - 1) % self.blocks)
    }
}

struct Count {
    ios: u64,
    errors: u64,
    latencies: Histogram<u64>,
}

impl Count {
    fn new() -> io::Result<Count> {
        Ok(Count { ios: 0, errors: 0, latencies: histogram().map_err(io::Error::other)? })
    }

    fn side(&self) -> Side {
        let latencies = self.latencies.iter_recorded();
        let latencies = latencies.map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
        Side { ios: self.ios, errors: self.errors, latencies }
    }
}

struct Load<'a> {
    lane: &'a mut Lane,
    job: Job,
    places: Places,
    reads: Count,
    writes: Count,
    publishes: u64,
}

impl Load<'_> {
    fn run(mut self) -> io::Result<Ran> {
        let before = self.lane.queue.counts();
        let begun = Instant::now();
        let end = begun + Duration::from_millis(self.job.runtime_ms);
        let mut left = self.job.number_ios.unwrap_or(u64::MAX);
        let (mut flying, mut now) = (0, begun);
        loop {
            let more = if now < end { left.min((self.job.iodepth - flying) as u64) as usize } else { 0 };
            // In lock-step the next batch waits for the last response to this one.
            if more > 0 && (!self.job.lock_step || flying == 0) {
                for _ in 0..more {
                    let (write, block) = self.places.next();
                    self.lane.put(write, block * u64::from(self.job.bs), self.job.bs as usize, now)?;
                }
                self.lane.queue.kick();
                self.publishes += 1;
                (flying, left) = (flying + more, left - more as u64);
            }
            if flying == 0 {
                break;
            }
            flying -= self.take(now)?;
            now = Instant::now();
        }
        let after = self.lane.queue.counts();
        Ok(Ran {
            read: self.reads.side(),
            write: self.writes.side(),
            seconds: now.duration_since(begun).as_secs_f64(),
            publishes: self.publishes,
            notifications_sent: after.notifications_sent - before.notifications_sent,
            notifications_received: after.notifications_received - before.notifications_received,
        })
    }

    /// Waits for responses and takes those that are there.
    fn take(&mut self, since: Instant) -> io::Result<usize> {
        let broken = |error: grant::ring::RingBroken| io::Error::other(error.to_string());
        let mut now = None;
        let mut taken = 0;
        loop {
            while let Some(response) = self.lane.queue.take_raw().map_err(broken)? {
                let flight = usize::try_from(response.id).ok().and_then(|id| self.lane.flights.get_mut(id));
                let Some(flight) = flight else { return Err(io::Error::other("a response to no request")) };
                // One look at the clock for all that arrive together.
                let now = *now.get_or_insert_with(Instant::now);
                let count = if flight.write { &mut self.writes } else { &mut self.reads };
                count.ios += 1;
                count.errors += u64::from(response.status != BLKIF_RSP_OKAY);
                count.latencies.saturating_record(now.duration_since(flight.started).as_nanos() as u64);
                self.lane.free.extend(flight.pages.drain(..));
                self.lane.idle.push(response.id as u16);
                taken += 1;
            }
            if taken > 0 {
                return Ok(taken);
            }
            if since.elapsed() > PATIENCE || !self.lane.queue.gate().is_open() {
                return Err(io::Error::other("the backend does not answer"));
            }
            self.lane.queue.wait(Some(PATIENCE))?;
        }
    }
}

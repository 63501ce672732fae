//! The guest's use of its disk: several requests under way on one queue, completions in any order.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use frontend::blkfront::{Blkfront, Completion, Event, Op, Queue, Refusal, Request, Status};
use hdrhistogram::Histogram;
use sha2::{Digest, Sha256};
use xenstore::Client;

use super::blocks::{self, BLOCK, CHUNK};
use super::orders::{Load, Measured};

/// Chunks under way when the whole disk is read or written.
const CHUNKS: usize = 8;
/// How long nothing may complete before the store is asked whether the backend is still there.
const LOOK: Duration = Duration::from_millis(500);
/// How long nothing may complete at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connected disk.
pub struct Disk {
    /// Its life in the store.
    pub front: Blkfront,
    /// The guest's store.
    pub store: Client,
    /// Its only queue.
    pub queue: Queue,
    /// Bytes.
    pub size: u64,
    done: Vec<Completion>,
}

/// Bytes of the chunk that begins at `at`.
fn chunk(size: u64, at: u64) -> usize {
    (size - at).min(CHUNK as u64) as usize
}

impl Disk {
    /// A disk that nobody has used yet.
    pub fn new(front: Blkfront, store: Client, queue: Queue, size: u64) -> Disk {
        Disk { front, store, queue, size, done: Vec::new() }
    }

    fn submit(&mut self, op: Op, at: u64, buffer: Vec<u8>, tag: u64) -> io::Result<()> {
        let request = Request { tag, op, sector: at / 512, buffer };
        self.queue.submit(request).map_err(|refused| match refused.reason {
            Refusal::Full => io::Error::other("the ring is full"),
            Refusal::Malformed => io::Error::other("a malformed request"),
            Refusal::Closed => self.gone(),
        })
    }

    fn gone(&self) -> io::Error {
        let reason = self.queue.gate().reason().unwrap_or("the backend is closing it");
        io::Error::other(format!("the disk has gone: {reason}"))
    }

    /// Waits for at least one completion; leaves all of them in `done`.
    fn complete(&mut self) -> io::Result<()> {
        self.queue.kick();
        let since = Instant::now();
        while self.queue.reap(&mut self.done) == 0 {
            self.queue.wait(Some(LOOK))?;
            if since.elapsed() >= LOOK {
                // Whoever would tell us that the backend has gone is not listened to while all goes well.
                match self.front.turn(&mut self.store).map_err(io::Error::other)? {
                    Event::Nothing | Event::Changed(_) => {}
                    _ => return Err(self.gone()),
                }
            }
            if since.elapsed() >= PATIENCE {
                return Err(io::Error::other(format!("the backend has not answered for {} s", PATIENCE.as_secs())));
            }
        }
        match self.done.iter().find(|completion| completion.status != Status::Okay) {
            None => Ok(()),
            Some(Completion { op, sector, .. }) if self.queue.gate().is_open() => {
                let op = if *op == Op::Read { "reading" } else { "writing" };
                Err(io::Error::other(format!("{op} at byte {} failed", sector * 512)))
            }
            Some(_) => Err(self.gone()),
        }
    }

    /// Reads the whole disk and hands out its chunks in order.
    fn read_all(&mut self, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut early = BTreeMap::new();
        let (mut sent, mut taken, mut spare) = (0, 0, Vec::new());
        while taken < self.size {
            while sent < self.size && self.queue.in_flight() + early.len() < CHUNKS {
                let len = chunk(self.size, sent);
                let mut buffer: Vec<u8> = spare.pop().unwrap_or_default();
                buffer.resize(len, 0);
                self.submit(Op::Read, sent, buffer, 0)?;
                sent += len as u64;
            }
            self.complete()?;
            early.extend(self.done.drain(..).map(|completion| (completion.sector * 512, completion.buffer)));
            while let Some(buffer) = early.remove(&taken) {
                take(taken, &buffer)?;
                taken += buffer.len() as u64;
                spare.push(buffer);
            }
        }
        Ok(())
    }

    /// SHA-256 of the whole disk; `each` gets the hashes of the blocks of each chunk.
    ///
    /// # Errors
    /// When the disk cannot be read or `each` fails.
    pub fn digest(&mut self, mut each: impl FnMut(Vec<u64>) -> io::Result<()>) -> io::Result<String> {
        let mut sha256 = Sha256::new();
        self.read_all(|_, data| {
            sha256.update(data);
            each(blocks::hashes(data).collect())
        })?;
        Ok(format!("{:x}", sha256.finalize()))
    }

    /// Writes the pattern everywhere and flushes.
    ///
    /// # Errors
    /// When the disk cannot be written, or `progress` fails.
    pub fn fill(&mut self, seed: u64, mut progress: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let (mut sent, mut spare) = (0, Vec::new());
        while sent < self.size || self.queue.in_flight() > 0 {
            while sent < self.size && self.queue.in_flight() < CHUNKS {
                let len = chunk(self.size, sent);
                let mut buffer: Vec<u8> = spare.pop().unwrap_or_default();
                buffer.resize(len, 0);
                blocks::fill(seed, sent / BLOCK as u64, &mut buffer);
                self.submit(Op::Write, sent, buffer, 0)?;
                sent += len as u64;
                progress(sent)?;
            }
            self.complete()?;
            spare.extend(self.done.drain(..).map(|completion| completion.buffer));
        }
        self.submit(Op::Flush, 0, Vec::new(), 0)?;
        self.complete()?;
        self.done.clear();
        Ok(())
    }

    /// Reads the pattern back. The first block that is wrong.
    ///
    /// # Errors
    /// When the disk cannot be read, or `progress` fails.
    pub fn check(&mut self, seed: u64, mut progress: impl FnMut(u64) -> io::Result<()>) -> io::Result<Option<u64>> {
        let mut wrong = None;
        self.read_all(|at, data| {
            wrong = wrong.or_else(|| blocks::first_wrong(seed, at / BLOCK as u64, data));
            progress(at + data.len() as u64)
        })?;
        Ok(wrong)
    }

    /// Reads for some time.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn measure(&mut self, load: Load) -> io::Result<Measured> {
        // A disk smaller than a block of the load is one block.
        let block = u64::from(load.block).min(self.size);
        let places = self.size / block;
        let mut next = 0;
        let mut place = || {
            if load.random {
                return fastrand::u64(..places);
            }
            next = (next + 1) % places;
            next
        };
        let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)?;
        let depth = load.depth.clamp(1, self.queue.depth());
        let begun = Instant::now();
        let end = begun + Duration::from_secs(load.seconds);
        let mut started = vec![begun; depth];
        let (mut ios, mut now) = (0, begun);
        for (tag, started) in started.iter_mut().enumerate() {
            *started = Instant::now();
            self.submit(Op::Read, place() * block, vec![0; block as usize], tag as u64)?;
        }
        while self.queue.in_flight() > 0 {
            self.complete()?;
            now = Instant::now();
            let mut done = std::mem::take(&mut self.done);
            for Completion { tag, buffer, .. } in done.drain(..) {
                let Some(started) = started.get_mut(tag as usize) else { continue };
                times.saturating_record(now.duration_since(*started).as_nanos() as u64);
                ios += 1;
                if now < end {
                    *started = now;
                    self.submit(Op::Read, place() * block, buffer, tag)?;
                }
            }
            self.done = done;
        }
        Ok(Measured {
            ios,
            seconds: now.duration_since(begun).as_secs_f64(),
            p50_ns: times.value_at_quantile(0.5),
            p99_ns: times.value_at_quantile(0.99),
        })
    }
}

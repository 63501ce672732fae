//! One attached disk as NBD clients use it: their jobs go to the threads that own its queues.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blkback::proto::{SECTOR_SIZE, VDISK_READONLY};
use frontend::blkfront::{Completion, Op, Properties, Queue, Refusal, Request, Status, Waker};

use crate::nbd::{Batch, Command, Errno, Export, Info, Job, Ticket};

/// A disk; it answers with errors once its queues have gone.
pub struct Disk {
    properties: Mutex<Properties>,
    lanes: Vec<Arc<Lane>>,
}

/// The way to one queue.
struct Lane {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<Job>,
    /// The thread looks here again before it sleeps.
    awake: bool,
    /// There is no thread any more.
    closed: bool,
}

impl Lane {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, job: Job) {
        let mut inbox = self.inbox();
        if inbox.closed {
            // The ticket answers, but not under the lock.
            drop(inbox);
            drop(job);
            return;
        }
        inbox.jobs.push_back(job);
        let asleep = !inbox.awake;
        drop(inbox);
        if asleep {
            self.waker.wake();
        }
    }
}

impl Disk {
    /// Starts one thread per queue. Each calls `ended` with its queue once the device takes no more requests and nothing
    /// is under way.
    ///
    /// # Errors
    /// No more threads: the queues that have none come back, the others end through `ended`.
    pub fn start(
        name: &str,
        properties: Properties,
        queues: Vec<Queue>,
        ended: impl Fn(Queue) + Clone + Send + 'static,
    ) -> io::Result<Disk> {
        let trim_block = u64::from(properties.discard_granularity.max(SECTOR_SIZE as u32));
        let lanes = queues.into_iter().enumerate().map(|(index, queue)| {
            let lane = Arc::new(Lane { inbox: Mutex::default(), waker: queue.waker() });
            let (mine, ended) = (Arc::clone(&lane), ended.clone());
            let thread = std::thread::Builder::new().name(format!("{name}-{index}"));
            thread.spawn(move || ended(Serving::new(queue, mine, trim_block).run()))?;
            Ok(lane)
        });
        Ok(Disk { properties: Mutex::new(properties), lanes: lanes.collect::<io::Result<_>>()? })
    }

    fn properties(&self) -> MutexGuard<'_, Properties> {
        self.properties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend has changed what it may.
    pub fn change(&self, properties: Properties) {
        *self.properties() = properties;
    }
}

impl Export for Disk {
    fn info(&self) -> Info {
        let disk = *self.properties();
        Info {
            size: disk.sectors * SECTOR_SIZE,
            min_block: disk.sector_size,
            preferred_block: disk.physical_sector_size.max(4096),
            read_only: disk.info & VDISK_READONLY != 0,
            flush: disk.flush,
            trim: disk.discard,
        }
    }

    fn submit(&self, job: Job) {
        // One connection stays on one queue: its requests go out in batches, and connections spread over the queues.
        let index = job.ticket.connection() % self.lanes.len().max(1) as u64;
        if let Some(lane) = self.lanes.get(index as usize) {
            lane.put(job);
        }
    }
}

/// A job while the backend has it.
struct UnderWay {
    ticket: Ticket,
    /// A flush follows.
    fua: bool,
    /// What a job that moves no data keeps for its client.
    idle: Vec<u8>,
}

/// The thread of one queue.
struct Serving {
    queue: Queue,
    lane: Arc<Lane>,
    /// Alignment of a discard, bytes.
    trim_block: u64,
    backlog: VecDeque<Job>,
    under_way: Vec<Option<UnderWay>>,
    free: Vec<usize>,
    answers: Batch,
}

impl Serving {
    fn new(queue: Queue, lane: Arc<Lane>, trim_block: u64) -> Serving {
        let depth = queue.depth();
        Serving {
            queue,
            lane,
            trim_block,
            backlog: VecDeque::new(),
            under_way: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            answers: Batch::default(),
        }
    }

    /// Serves until the device takes no more and has answered everything.
    fn run(mut self) -> Queue {
        let mut done = Vec::with_capacity(self.queue.depth());
        loop {
            {
                let mut inbox = self.lane.inbox();
                inbox.awake = true;
                self.backlog.append(&mut inbox.jobs);
            }
            while let Some(job) = self.backlog.pop_front() {
                if let Some(job) = self.start(job) {
                    self.backlog.push_front(job);
                    break;
                }
            }
            self.queue.kick();
            if self.queue.reap(&mut done) > 0 {
                done.drain(..).for_each(|completion| self.ended(completion));
                self.answers.send();
                continue;
            }
            if !self.queue.gate().is_open() && self.queue.in_flight() == 0 && self.backlog.is_empty() {
                break;
            }
            let mut inbox = self.lane.inbox();
            if !inbox.jobs.is_empty() && self.backlog.is_empty() {
                continue;
            }
            // With a backlog more jobs change nothing: only a completion does.
            inbox.awake = !self.backlog.is_empty();
            drop(inbox);
            if let Err(error) = self.queue.wait(None) {
                self.queue.gate().fail(format!("waiting for events failed: {error}"));
            }
        }
        let late = {
            let mut inbox = self.lane.inbox();
            inbox.closed = true;
            std::mem::take(&mut inbox.jobs)
        };
        // Their tickets say that the disk is gone.
        drop(late);
        self.queue
    }

    /// Starts a job; gives it back when there is no room for it now.
    fn start(&mut self, job: Job) -> Option<Job> {
        let Some(&tag) = self.free.last() else { return Some(job) };
        let Job { command, offset, buffer, fua, ticket } = job;
        let sector = offset / SECTOR_SIZE;
        let (op, sector, data, idle) = match command {
            Command::Read => (Op::Read, sector, buffer, Vec::new()),
            Command::Write => (Op::Write, sector, buffer, Vec::new()),
            Command::Flush => (Op::Flush, 0, Vec::new(), buffer),
            Command::Trim(len) => {
                // Trimming is advice: what is not a whole block of the disk's stays.
                let (first, end) = (offset.div_ceil(self.trim_block), (offset + u64::from(len)) / self.trim_block);
                if first >= end {
                    ticket.finish(Ok(()), buffer);
                    return None;
                }
                let per_block = self.trim_block / SECTOR_SIZE;
                let op = Op::Discard { sectors: (end - first) * per_block, secure: false };
                (op, first * per_block, Vec::new(), buffer)
            }
        };
        match self.queue.submit(Request { tag: tag as u64, op, sector, buffer: data }) {
            Ok(()) => {
                self.free.pop();
                self.under_way[tag] = Some(UnderWay { ticket, fua, idle });
                None
            }
            Err(refused) => {
                let buffer = if op == Op::Read || op == Op::Write { refused.request.buffer } else { idle };
                match refused.reason {
                    Refusal::Full => Some(Job { command, offset, buffer, fua, ticket }),
                    Refusal::Closed => {
                        ticket.finish(Err(Errno::Io), buffer);
                        None
                    }
                    Refusal::Malformed => {
                        ticket.finish(Err(Errno::Invalid), buffer);
                        None
                    }
                }
            }
        }
    }

    fn ended(&mut self, completion: Completion) {
        let tag = completion.tag as usize;
        let Some(UnderWay { ticket, fua, idle }) = self.under_way[tag].take() else { return };
        self.free.push(tag);
        let buffer = if completion.buffer.capacity() > 0 { completion.buffer } else { idle };
        match completion.status {
            Status::Okay if fua => {
                self.backlog.push_front(Job { command: Command::Flush, offset: 0, buffer, fua: false, ticket });
            }
            Status::Okay => ticket.finish_with(Ok(()), buffer, &mut self.answers),
            Status::Unsupported => ticket.finish_with(Err(Errno::Unsupported), buffer, &mut self.answers),
            Status::Error => ticket.finish_with(Err(Errno::Io), buffer, &mut self.answers),
        }
    }
}

//! One ring of a disk, owned by one thread: requests in, completions out, data copied between the caller's buffers
//! and granted pages.
//!
//! A request that needs more than one ring slot is cut into parts, as a block layer would; what finds no free slot
//! waits inside the queue. Nothing is allocated per request once the pool of persistent grants has grown to the load.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use blkback::proto::{BlkifRequestSegment, SECTOR_SIZE};
use grant::{Granted, Port};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::gate::{Gate, Waker};
use super::io::{Completion, Counts, Op, Refusal, Refused, Request, Status};
use super::pool::Pool;
use super::request::Response;
use super::slot::{Slot, Widths};
use super::wiring::Wiring;

/// A request under way.
pub(super) struct Entry {
    pub(super) tag: u64,
    pub(super) op: Op,
    pub(super) sector: u64,
    pub(super) buffer: Vec<u8>,
    /// Bytes of the buffer that have been put into the ring.
    pub(super) sent: usize,
    /// Parts that the backend has.
    pub(super) parts: u32,
    pub(super) status: Status,
}

/// One ring of a connected disk.
pub struct Queue {
    pub(super) wiring: Wiring,
    pub(super) widths: Widths,
    pub(super) pool: Option<Pool>,
    pub(super) gate: Gate,
    pub(super) waker: Waker,
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) free_slots: Vec<u16>,
    /// Slots not in use, for their allocations.
    pub(super) spare: Vec<Slot>,
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) free_entries: Vec<u32>,
    /// Requests with parts that are not in the ring yet.
    pub(super) unsent: VecDeque<u32>,
    /// Requests that have ended and wait to be taken.
    pub(super) ended: VecDeque<Completion>,
    /// Grants that the backend would not let go.
    pub(super) orphans: Vec<Granted>,
    pub(super) segments: Vec<BlkifRequestSegment>,
    /// Requests are in the ring that the backend cannot see yet.
    pub(super) unpushed: bool,
    /// The first part waits for pages that nobody of this queue will give back.
    pub(super) starved: bool,
    pub(super) masked: Vec<Port>,
    pub(super) counts: Counts,
}

/// How long a starved queue sleeps before it tries again.
const STARVED: Duration = Duration::from_millis(10);

impl Queue {
    /// Starts on a ring that the backend has mapped.
    ///
    /// # Errors
    /// The domain has nothing left to grant; the ring comes back.
    pub(super) fn new(mut wiring: Wiring, widths: Widths, gate: Gate) -> Result<Queue, Box<(Wiring, io::Error)>> {
        let entries = wiring.ring.entries();
        let waker = match Waker::new() {
            Ok(waker) => waker,
            Err(error) => return Err(Box::new((wiring, error))),
        };
        let mut counts = Counts::default();
        let mut pool = None;
        if widths.persistent {
            let most = widths.pages() * entries as usize;
            match Pool::new(&mut *wiring.grants, wiring.peer, widths.pages(), most) {
                Ok(made) => counts.pages_granted = pool.insert(made).len() as u64,
                Err(error) => return Err(Box::new((wiring, error))),
            }
        }
        gate.join(waker.clone());
        Ok(Queue {
            pool,
            gate,
            waker,
            slots: (0..entries).map(|_| None).collect(),
            free_slots: (0..entries as u16).rev().collect(),
            spare: Vec::with_capacity(entries as usize),
            entries: (0..entries).map(|_| None).collect(),
            free_entries: (0..entries).rev().collect(),
            unsent: VecDeque::with_capacity(entries as usize),
            ended: VecDeque::with_capacity(entries as usize),
            orphans: Vec::new(),
            segments: Vec::with_capacity(widths.segments()),
            unpushed: false,
            starved: false,
            masked: Vec::with_capacity(grant::MAX_PENDING),
            counts,
            wiring,
            widths,
        })
    }

    /// Slots in the ring, which is also how many requests may be under way.
    pub fn depth(&self) -> usize {
        self.entries.len()
    }

    /// Requests taken and not yet given back by [`Queue::reap`].
    pub fn in_flight(&self) -> usize {
        self.entries.len() - self.free_entries.len() + self.ended.len()
    }

    /// Counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Ends a wait from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Whether the device still takes requests.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Takes a request. The backend does not see it before [`Queue::kick`].
    ///
    /// # Errors
    /// [`Refused`] gives it back.
    pub fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let refused = |reason, request| Err(Refused { reason, request });
        let sector = SECTOR_SIZE as usize;
        let whole = !request.buffer.is_empty() && request.buffer.len().is_multiple_of(sector);
        if whole != request.op.has_data() || (!whole && !request.buffer.is_empty()) {
            return refused(Refusal::Malformed, request);
        }
        if !self.gate.is_open() {
            return refused(Refusal::Closed, request);
        }
        let Some(index) = self.free_entries.pop() else {
            return refused(Refusal::Full, request);
        };
        self.entries[index as usize] = Some(Entry {
            tag: request.tag,
            op: request.op,
            sector: request.sector,
            buffer: request.buffer,
            sent: 0,
            parts: 0,
            status: Status::Okay,
        });
        self.unsent.push_back(index);
        self.issue();
        Ok(())
    }

    /// Shows the backend what was submitted, and tells it if it wants to be told.
    pub fn kick(&mut self) {
        if std::mem::take(&mut self.unpushed) && self.wiring.ring.push() {
            self.counts.notifications_sent += 1;
            if let Err(error) = self.wiring.events.notify(self.wiring.port) {
                self.gate.fail(format!("notifying the backend failed: {error}"));
            }
        }
    }

    /// Takes the responses that are there and appends the requests that have ended; never waits. Parts that found
    /// no slot before go out now.
    pub fn reap(&mut self, done: &mut Vec<Completion>) -> usize {
        if let Err(reason) = self.take_responses() {
            self.gate.fail(reason);
        }
        if self.gate.is_open() {
            self.issue();
            self.kick();
        } else {
            self.give_up();
        }
        let count = self.ended.len();
        done.extend(self.ended.drain(..));
        count
    }

    /// Waits until there may be something to reap, somebody wakes us, or the time is over.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.ended.is_empty() || (self.gate.is_failed() && self.in_flight() > 0) {
            return Ok(());
        }
        match self.wiring.ring.final_check() {
            Ok(false) => {}
            // What is wrong with the ring shows again, and is treated, in `reap`.
            Ok(true) | Err(_) => return Ok(()),
        }
        if !self.masked.is_empty() {
            // Masked as long as we were busy: the backend's events cost nothing meanwhile.
            self.wiring.events.unmask(&self.masked)?;
            self.masked.clear();
        }
        let timeout = match self.starved {
            true => Some(timeout.unwrap_or(STARVED).min(STARVED)),
            false => timeout,
        };
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
        let mut fds =
            [PollFd::from_borrowed_fd(self.wiring.events.fd(), PollFlags::IN), PollFd::new(&self.waker, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [event, wake] = fds.map(|fd| !fd.revents().is_empty());
        if wake {
            self.waker.clear();
        }
        if event {
            self.wiring.events.pending(&mut self.masked)?;
            self.counts.notifications_received += self.masked.len() as u64;
        }
        Ok(())
    }

    pub(super) fn part_ended(&mut self, index: u32, status: Status) {
        let Some(entry) = self.entries[index as usize].as_mut() else {
            return;
        };
        entry.parts -= 1;
        entry.status = entry.status.worse(status);
        if entry.parts == 0 && entry.sent == entry.buffer.len() {
            self.end(index);
        }
    }

    fn end(&mut self, index: u32) {
        let Some(entry) = self.entries[index as usize].take() else {
            return;
        };
        self.free_entries.push(index);
        self.ended.push_back(Completion {
            tag: entry.tag,
            op: entry.op,
            sector: entry.sector,
            status: entry.status,
            buffer: entry.buffer,
        });
    }

    /// The device takes nothing more: what the backend does not have ends now, and once it has failed, everything.
    #[cold]
    fn give_up(&mut self) {
        self.kick();
        while let Some(index) = self.unsent.pop_front() {
            let Some(entry) = self.entries[index as usize].as_mut() else {
                continue;
            };
            entry.status = Status::Error;
            entry.sent = entry.buffer.len();
            if entry.parts == 0 {
                self.end(index);
            }
        }
        if !self.gate.is_failed() {
            return;
        }
        for id in 0..self.slots.len() {
            let Some(mut slot) = self.slots[id].take() else {
                continue;
            };
            // The backend may still write to these pages: they are kept until it lets them be ended.
            self.orphans.extend(slot.take_lent());
            self.part_ended(slot.entry, Status::Error);
        }
    }

    /// Puts hand-made bytes into the ring, for peers that mean harm: nothing is remembered of them, and their
    /// responses must be taken with [`Queue::take_raw`]. False when the ring is full.
    pub fn put_raw(&mut self, slot: &[u8]) -> bool {
        if self.wiring.ring.free() == 0 {
            return false;
        }
        self.wiring.ring.put(slot);
        self.unpushed = true;
        true
    }

    /// The next response, whatever it answers.
    ///
    /// # Errors
    /// The backend claims more responses than there were requests.
    pub fn take_raw(&mut self) -> Result<Option<Response>, grant::ring::RingBroken> {
        if self.wiring.ring.unconsumed()? == 0 {
            return Ok(None);
        }
        let mut bytes = [0; Response::LEN];
        self.wiring.ring.take(&mut bytes);
        Ok(Some(Response::parse(&bytes)))
    }

    /// Ends everything that was granted and closes the port: the backend must have let go before. Returns what it
    /// still has mapped, which must not be used for anything else.
    pub(super) fn close(mut self) -> Vec<Granted> {
        self.gate.drain();
        self.wiring.close_port();
        let mut granted = std::mem::take(&mut self.orphans);
        granted.extend(self.slots.iter_mut().flatten().flat_map(Slot::take_lent));
        granted.extend(self.pool.take().into_iter().flat_map(Pool::into_granted));
        let Wiring { mut grants, ring_memory, ring, .. } = self.wiring;
        drop(ring);
        granted.push(ring_memory);
        granted.into_iter().filter_map(|granted| Some(grants.end(granted).err()?.0)).collect()
    }
}

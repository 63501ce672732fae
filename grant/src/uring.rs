//! One thread's io_uring and everything that is in flight on it.
//!
//! Callers are safe code: they name memory by [`Span`] (adopted into a queue's [`Memory`]), files by [`FileSlot`],
//! and get a [`Completion`] with what they said at submission. An operation's memory stays mapped until its
//! completion, whatever the caller drops.
//!
//! File slot 0 is the **fence**: the write end of a pipe that stands in this ring's file table and nowhere else.
//! Its reader sees a hang-up exactly when the kernel has finished with every request of the ring (DESIGN, "Built for
//! recovery"). The slot is never updated and the table never unregistered.

mod buffers;
mod entries;
mod events;
mod operation;
mod sqe;
mod transfer;
mod waits;
mod whole;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{EnterFlags, IoUring, opcode, types};

pub use buffers::BufferTable;
pub use operation::{Completion, Direction, Operation, Outcome, Owner, Transfer};

use crate::arena::Arena;
use crate::caps::{self, BUFFER_SLOTS, Caps, FILE_SLOTS};
use crate::memory::{Mapped, Memory, RegionId, Span};
use crate::{PAGE_SIZE, Pages, SharedMemory, memfd};
use events::Events;
use whole::Whole;
pub use whole::{EndedWholes, Wholes};

/// A file in the ring's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSlot(u32);

/// Names one queue's [`Memory`] in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryId(u16);

impl MemoryId {
    /// A small number, unique among the open memories of the ring.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Clone, Copy)]
struct InFlight {
    owner: Owner,
    operation: Operation,
    generation: u64,
    /// The transient region that it is about.
    region: Option<RegionId>,
}

/// Vectors that one submission may name; more and the batch is submitted early.
const VECTORS: usize = 4096;
/// Entries of the submission queue.
const ENTRIES: u32 = 256;
/// How often entries for events are passed over while there is nothing else to submit: a thread that goes to sleep after
/// this takes them along, and one that does not is still to hear of others' events.
const PASSED_OVER: u32 = 2;
/// Owner of operations that belong to no queue.
const THREAD: MemoryId = MemoryId(u16::MAX);

/// One thread's ring.
pub struct Uring {
    ring: IoUring,
    caps: Caps,
    memories: Vec<Option<Memory>>,
    flying: Vec<Option<InFlight>>,
    vacant: Vec<u32>,
    /// Entries in the submission queue, for the next submission.
    put: u32,
    /// Those among them that wait for an event or ask for one, and how often they have been passed over.
    patient: u32,
    passed_over: u32,
    /// What the kernel has ended beside whole transfers, and how much of it has been handed out.
    reaped: Vec<(u64, i32)>,
    handed: usize,
    vectors: Vec<libc::iovec>,
    timeouts: Vec<types::Timespec>,
    events: Events,
    files: Vec<u32>,
    buffers: Vec<u16>,
    enters: u64,
    arena: Option<SharedArena>,
}

/// The arena that the thread's queues share.
struct SharedArena {
    memory: SharedMemory,
    place: Rc<Mapped>,
    free: Arena,
}

impl Uring {
    /// Makes the ring of the calling thread; no other thread may use it. `fence` goes into file slot 0 and is
    /// closed everywhere else in this process before anything is submitted.
    ///
    /// # Errors
    /// See [`caps::check_io_uring`].
    pub fn new(fence: Option<OwnedFd>) -> io::Result<Uring> {
        let (ring, caps) = caps::open_ring(ENTRIES)?;
        if let Some(fence) = fence {
            ring.submitter().register_files_update(0, &[fence.as_raw_fd()])?;
        }
        Ok(Uring {
            ring,
            caps,
            memories: Vec::new(),
            flying: Vec::new(),
            vacant: Vec::new(),
            put: 0,
            patient: 0,
            passed_over: 0,
            reaped: Vec::with_capacity(ENTRIES as usize * 4),
            handed: 0,
            vectors: Vec::with_capacity(VECTORS),
            timeouts: Vec::with_capacity(ENTRIES as usize),
            events: Events::default(),
            files: (1..FILE_SLOTS).rev().collect(),
            buffers: if caps.buffer_table { (0..BUFFER_SLOTS as u16).rev().collect() } else { Vec::new() },
            enters: 0,
            arena: None,
        })
    }

    /// Makes the thread's arena of `pages` pages, if there is none yet; before any memory is opened. With `fixed` it is
    /// registered as a fixed buffer where the kernel does that, which pins it.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn open_arena(&mut self, pages: usize, fixed: bool) -> io::Result<()> {
        if self.arena.is_none() {
            let memory = memfd::anonymous(pages * PAGE_SIZE)?;
            let place = Rc::new(Mapped { pages: memory.pages(), buffer: Cell::new(None) });
            self.arena = Some(SharedArena { memory, place, free: Arena::new(pages) });
        }
        if fixed
            && let Some(arena) = &self.arena
            && arena.place.buffer.get().is_none()
        {
            let mut table = BufferTable { submitter: self.ring.submitter(), vacant: &mut self.buffers };
            arena.place.buffer.set(table.insert(&arena.place.pages));
        }
        Ok(())
    }

    /// Takes `len` bytes of the arena; `None` until somebody gives some back.
    #[inline]
    pub fn take_arena(&mut self, len: u32) -> Option<Span> {
        self.arena.as_mut()?.free.take(len)
    }

    /// Gives a run of the arena back.
    #[inline]
    pub fn give_arena(&mut self, run: Span) {
        if let Some(arena) = &mut self.arena {
            arena.free.give(run);
        }
    }

    /// What the kernel offers.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// `io_uring_enter` calls so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Opens a queue's memory. `operations` are set aside, so that nothing is allocated while it runs.
    pub fn open_memory(&mut self, operations: usize) -> MemoryId {
        let memory = Memory::new(self.arena.as_ref().map(|shared| Rc::clone(&shared.place)));
        self.flying.reserve(operations);
        self.vacant.reserve(operations);
        match self.memories.iter().position(Option::is_none) {
            Some(at) => {
                self.memories[at] = Some(memory);
                MemoryId(at as u16)
            }
            None => {
                // The highest bit is needed elsewhere, and there are not so many files.
                assert!(self.memories.len() < 1 << 15, "too many queues on one thread");
                self.memories.push(Some(memory));
                MemoryId((self.memories.len() - 1) as u16)
            }
        }
    }

    /// Closes a queue's memory; everything in it is unmapped.
    ///
    /// # Errors
    /// `EBUSY` while operations are in flight; nothing is closed then.
    pub fn close_memory(&mut self, id: MemoryId) -> io::Result<()> {
        let Some(memory) = self.memories.get(usize::from(id.0)).and_then(Option::as_ref) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        if memory.in_flight() > 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let regions = memory.region_ids();
        let mut result = Ok(());
        for region in regions {
            result = result.and(self.retire(id, region));
        }
        self.memories[usize::from(id.0)] = None;
        result
    }

    /// A queue's memory.
    ///
    /// # Panics
    /// When it was closed.
    #[inline]
    pub fn memory(&self, id: MemoryId) -> &Memory {
        self.memories[usize::from(id.0)].as_ref().expect("an open memory")
    }

    fn with_table<T>(&mut self, id: MemoryId, act: impl FnOnce(&mut Memory, &mut BufferTable<'_>) -> T) -> T {
        let memory = self.memories[usize::from(id.0)].as_mut().expect("an open memory");
        let mut table = BufferTable { submitter: self.ring.submitter(), vacant: &mut self.buffers };
        act(memory, &mut table)
    }

    /// Takes a mapping into a queue's memory; with `fixed` it is registered as a fixed buffer, if the kernel does
    /// that for this kind of mapping.
    ///
    /// # Errors
    /// Gives it back when there are too many.
    pub fn adopt(&mut self, id: MemoryId, memory: SharedMemory, fixed: bool) -> Result<RegionId, SharedMemory> {
        self.with_table(id, |owner, table| owner.adopt(memory, fixed, table))
    }

    /// Takes a mapping into a queue's memory that serves one request: operations on it may name nothing else.
    ///
    /// # Errors
    /// Gives it back when there are too many.
    pub fn adopt_transient(&mut self, id: MemoryId, memory: SharedMemory) -> Result<RegionId, SharedMemory> {
        self.with_table(id, |owner, table| owner.adopt_transient(memory, table))
    }

    /// Unmaps such a mapping on the spot.
    ///
    /// # Errors
    /// `EBUSY` while an operation on it is in flight, or for another kind of mapping; else what unmapping said.
    pub fn unmap_now(&mut self, id: MemoryId, region: RegionId) -> io::Result<()> {
        self.with_table(id, |owner, table| owner.unmap_now(region, table))
    }

    /// Tries whether the kernel takes this very mapping as a fixed buffer.
    pub fn takes_fixed(&mut self, pages: &Pages) -> bool {
        let mut table = BufferTable { submitter: self.ring.submitter(), vacant: &mut self.buffers };
        table.insert(pages).map(|slot| table.remove(slot)).is_some()
    }

    /// Gives a mapping up; unmapped when nothing that is in flight can touch it.
    ///
    /// # Errors
    /// What unmapping said, if it was done at once.
    pub fn retire(&mut self, id: MemoryId, region: RegionId) -> io::Result<()> {
        self.with_table(id, |owner, table| owner.retire(region, table))
    }

    /// Puts a file into the table; the caller may close its own descriptor.
    ///
    /// # Errors
    /// `ENFILE` when the table is full, or what the kernel says.
    pub fn register_file(&mut self, file: BorrowedFd<'_>) -> io::Result<FileSlot> {
        let slot = self.files.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        match self.ring.submitter().register_files_update(slot, &[file.as_raw_fd()]) {
            Ok(_) => Ok(FileSlot(slot)),
            Err(error) => {
                self.files.push(slot);
                Err(error)
            }
        }
    }

    /// Takes a file out of the table.
    ///
    /// # Errors
    /// What the kernel says; the slot is not used again then.
    pub fn unregister_file(&mut self, slot: FileSlot) -> io::Result<()> {
        self.ring.submitter().register_files_update(slot.0, &[-1])?;
        self.files.push(slot.0);
        Ok(())
    }

    /// Submits an `fdatasync` of the file.
    pub fn flush(&mut self, owner: Owner, file: FileSlot) {
        let entry = opcode::Fsync::new(types::Fixed(file.0)).flags(types::FsyncFlags::DATASYNC).build();
        self.push(owner, Operation::Flush(file), entry);
    }

    /// Submits a `fallocate` that makes a hole of `len` bytes at `at` of the file, whose size stays.
    pub fn punch(&mut self, owner: Owner, file: FileSlot, at: u64, len: u64) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(types::Fixed(file.0), len).offset(at).mode(mode).build();
        self.push(owner, Operation::Punch { file, at, len }, entry);
    }

    /// Submits what [`Outcome::Again`] said is left; `spans` as in [`Uring::transfer`].
    pub fn again(&mut self, owner: Owner, rest: Operation, spans: &[Span]) {
        match rest {
            Operation::Transfer(transfer) => self.transfer(owner, transfer, spans, u32::MAX),
            Operation::Flush(file) => self.flush(owner, file),
            Operation::Punch { file, at, len } => self.punch(owner, file, at, len),
            Operation::Timeout
            | Operation::Poll(_)
            | Operation::Cancel
            | Operation::Unmask(_)
            | Operation::Readable(_) => {
                debug_assert!(false, "not to be repeated")
            }
        }
    }

    #[inline]
    fn push(&mut self, owner: Owner, operation: Operation, entry: Entry) {
        self.make_room(1);
        let generation = match self.memories.get_mut(usize::from(owner.memory.0)) {
            Some(Some(memory)) => memory.started(),
            _ => 0,
        };
        self.stage(InFlight { owner, operation, generation, region: None }, entry);
    }

    /// Submits what is in the way of so many more entries. Before an entry's vectors are made, because a submission gives
    /// the place of all vectors to whoever comes next.
    #[inline]
    fn make_room(&mut self, entries: u32) {
        if self.put + entries > ENTRIES {
            self.submit();
        }
    }

    /// Notes what an entry is and puts it into the submission queue; there is room: see `make_room`.
    #[inline]
    fn stage(&mut self, it: InFlight, entry: Entry) {
        let number = self.note(it);
        self.enqueue(entry, number);
    }

    /// What is in flight from now on; its number is its entry's user data.
    #[inline]
    fn note(&mut self, it: InFlight) -> u64 {
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.flying.push(None);
            // The number comes back to `vacant`, which must not allocate then.
            self.vacant.reserve(self.flying.len());
            (self.flying.len() - 1) as u32
        });
        self.flying[at as usize] = Some(it);
        u64::from(at)
    }

    #[inline]
    fn enqueue(&mut self, entry: Entry, user_data: u64) {
        // SAFETY: an entry names memory of its owner, which Memory keeps mapped until the operation has ended, vectors
        // and timeouts, which stay in place until the submission (the kernel copies them: FEAT_SUBMIT_STABLE), ports,
        // which stay as long as `Events` says, and files of the ring's table or descriptors the thread keeps.
        let put = unsafe { self.ring.submission().push(&entry.user_data(user_data)) };
        put.expect("room in the submission queue");
        self.put += 1;
    }

    /// Hands everything over to the kernel; returns when the queue is empty again.
    pub fn submit(&mut self) {
        if self.put > 0 {
            self.enter(0, EnterFlags::empty());
        }
    }

    /// Hands over what was put and waits for `want` completions: one system call, where the kernel takes everything.
    fn enter(&mut self, want: u32, flags: EnterFlags) {
        let put = std::mem::take(&mut self.put);
        self.enters += 1;
        // SAFETY: no signal mask and no argument are passed; so many entries stand in the queue (see `stage`, `Wholes`).
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(put, want, flags.bits(), None) };
        if !matches!(result, Ok(taken) if taken == put as usize) {
            self.finish(result);
        }
        self.submitted();
    }

    /// The kernel has taken all entries, and what they pointed to.
    fn submitted(&mut self) {
        self.vectors.clear();
        self.timeouts.clear();
        self.events.unmasked.clear();
        (self.patient, self.passed_over) = (0, 0);
    }

    /// The kernel has not taken everything: a partial submission is finished before the vectors are used again.
    #[cold]
    fn finish(&mut self, mut result: io::Result<usize>) {
        loop {
            if let Err(error) = result {
                self.refused(error);
            }
            if self.ring.submission().is_empty() {
                return;
            }
            self.enters += 1;
            result = self.ring.submit();
        }
    }

    /// Submits, waits for at least one completion, or `timeout`; one system call.
    pub fn submit_and_wait(&mut self, timeout: Option<Duration>) {
        let Some(timeout) = timeout else { return self.enter(1, EnterFlags::GETEVENTS) };
        let timespec = types::Timespec::from(timeout);
        let args = types::SubmitArgs::new().timespec(&timespec);
        self.put = 0;
        self.enters += 1;
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => self.finish(Ok(0)),
            result => self.finish(result),
        }
        self.submitted();
    }

    /// Submits without waiting and lets the kernel process what has ended; at most one system call, and none for entries
    /// that can wait for the next time.
    pub fn submit_and_peek(&mut self) {
        let queue = self.ring.submission();
        let due = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if due {
            self.enter(0, EnterFlags::GETEVENTS);
        } else if self.put > self.patient || self.passed_over == PASSED_OVER {
            self.submit();
        } else {
            self.passed_over += u32::from(self.put > 0);
        }
    }

    /// True when something has ended, as far as can be told without a system call.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        self.handed < self.reaped.len() || !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    #[cold]
    fn refused(&self, error: io::Error) {
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // The kernel is short of memory or its completion queue is full: the caller reaps and comes again.
            Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
            _ => panic!("io_uring_enter failed: {error}"),
        }
    }

    /// Takes what has ended out of the ring and never waits. Of whole transfers `whole` hears now, of those of a queue that
    /// stand together at a time; it takes all of them. The rest is for [`Uring::reap`]. True when there was anything.
    #[inline(always)]
    pub fn take_ended(&mut self, mut whole: impl FnMut(MemoryId, &mut EndedWholes<'_, '_>)) -> bool {
        let mut queue = self.ring.completion();
        let (mut next, mut emptied) = (queue.next(), false);
        let any = next.is_some();
        while let Some(entry) = next {
            let Some(Whole { owner, .. }) = Whole::from_user_data(entry.user_data()) else {
                self.reaped.push((entry.user_data(), entry.result()));
                next = queue.next();
                continue;
            };
            let memory = self.memories[owner.memory.index()].as_mut().expect("open while it works");
            let mut ended = EndedWholes::new(&mut queue, memory, entry);
            whole(owner.memory, &mut ended);
            let (rest, last) = ended.finish();
            (next, emptied) = (rest, emptied | last);
        }
        drop(queue);
        if emptied {
            self.collect();
        }
        any
    }

    /// A generation of some memory has ended.
    #[cold]
    fn collect(&mut self) {
        for at in 0..self.memories.len() {
            if self.memories[at].is_some() {
                self.with_table(MemoryId(at as u16), Memory::collect);
            }
        }
    }

    /// The next completion of those that [`Uring::take_ended`] has taken and that are not whole transfers.
    #[inline]
    pub fn reap(&mut self) -> Option<Completion> {
        let Some(&(user_data, result)) = self.reaped.get(self.handed) else {
            self.reaped.clear();
            self.handed = 0;
            return None;
        };
        self.handed += 1;
        Some(events::refused_unmask(user_data, result).unwrap_or_else(|| self.ended(user_data as usize, result)))
    }

    #[inline(never)]
    fn ended(&mut self, at: usize, result: i32) -> Completion {
        let flying = self.flying[at].take().expect("one completion per operation");
        self.vacant.push(at as u32);
        if let Some(Some(memory)) = self.memories.get_mut(usize::from(flying.owner.memory.0)) {
            if let Some(region) = flying.region {
                memory.used(region);
            }
            if memory.ended(flying.generation) {
                self.with_table(flying.owner.memory, Memory::collect);
            }
        }
        Completion { owner: flying.owner, operation: flying.operation, result }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What the kernel still works on must stay mapped: the process is ending, and its exit waits for the kernel.
        let mut busy = false;
        for memory in self.memories.iter_mut().flatten() {
            if memory.in_flight() > 0 {
                memory.leak();
                busy = true;
            }
        }
        if let Some(arena) = self.arena.take().filter(|_| busy) {
            std::mem::forget(arena.memory);
        }
        let ids: Vec<MemoryId> = (0..self.memories.len()).map(|at| MemoryId(at as u16)).collect();
        for id in ids {
            if self.memories[usize::from(id.0)].is_some()
                && let Err(error) = self.close_memory(id)
                && error.raw_os_error() != Some(libc::EBUSY)
            {
                tracing::error!(%error, "unmapping at the end failed");
            }
        }
    }
}

#[cfg(test)]
mod tests;

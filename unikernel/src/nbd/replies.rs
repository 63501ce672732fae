//! What a connection owes its client: jobs under way, and answers on their way out.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{Command, Errno, Export, Job, MAX_REQUEST, wire};

/// Most data of jobs under way and answers not yet sent, per connection.
const MAX_BYTES: usize = 2 * MAX_REQUEST as usize;
/// Most jobs and answers, per connection.
const MAX_JOBS: usize = 1024;
/// Answers written at once.
const BATCH: usize = 64;
/// Buffers kept for later, and the largest that is.
const MAX_SPARE: usize = 64;
const LARGEST_SPARE: usize = 1 << 20;

/// Shared by the two threads of a connection and the tickets that are out.
#[derive(Debug, Default)]
pub struct Replies {
    state: Mutex<State>,
    /// An answer is there, or nothing will come any more.
    answered: Condvar,
    /// There is room for more jobs.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Reply>,
    /// Jobs taken and answers not yet sent.
    jobs: usize,
    bytes: usize,
    /// The client sends nothing more.
    finished: bool,
    /// Nobody reads answers.
    dead: bool,
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Reply {
    head: [u8; 16],
    data: Vec<u8>,
    /// Whether the data goes out.
    send: bool,
    cost: usize,
}

/// The right, and the duty, to answer one request. One that is dropped answers with an I/O error.
#[derive(Debug)]
pub struct Ticket {
    replies: Option<Arc<Replies>>,
    connection: u64,
    cookie: u64,
    cost: usize,
    read: bool,
}

impl Ticket {
    /// A number that all jobs of one connection share.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Answers. A read's data is sent from `buffer` if it ended well; otherwise the buffer is only given back.
    pub fn finish(mut self, result: Result<(), Errno>, buffer: Vec<u8>) {
        self.answer(result, buffer);
    }

    fn answer(&mut self, result: Result<(), Errno>, data: Vec<u8>) {
        let Some(replies) = self.replies.take() else { return };
        let error = result.err().map_or(0, |errno| errno as u32);
        let reply = Reply {
            head: wire::simple_reply(error, self.cookie),
            data,
            send: self.read && result.is_ok(),
            cost: self.cost,
        };
        let mut state = replies.lock();
        state.queue.push_back(reply);
        // The writer looks at everything each time it wakes: it sleeps only when there is nothing.
        if state.queue.len() == 1 {
            replies.answered.notify_one();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer(Err(Errno::Io), Vec::new());
    }
}

impl Replies {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket and a buffer of `len` bytes for one more job, once there is room; `None` when nobody would read the
    /// answer. What is in the buffer is left over from other jobs of this connection.
    pub fn open(
        self: &Arc<Replies>,
        connection: u64,
        cookie: u64,
        len: usize,
        read: bool,
    ) -> Option<(Ticket, Vec<u8>)> {
        let mut state = self.lock();
        while !state.dead && state.jobs > 0 && (state.jobs >= MAX_JOBS || state.bytes + len > MAX_BYTES) {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.dead {
            return None;
        }
        state.jobs += 1;
        state.bytes += len;
        let mut buffer = match len {
            0 => Vec::new(),
            _ => state.spare.pop().unwrap_or_default(),
        };
        drop(state);
        if buffer.capacity() < len {
            buffer = vec![0; len];
        }
        buffer.resize(len, 0);
        let ticket = Ticket { replies: Some(Arc::clone(self)), connection, cookie, cost: len, read };
        Some((ticket, buffer))
    }

    /// The client has said its last word: [`Replies::write_all`] ends with the last answer.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.answered.notify_all();
    }

    /// Sends answers until there will be no more, or the client cannot be reached.
    pub fn write_all(&self, stream: &mut impl Write) {
        let mut batch: Vec<Reply> = Vec::with_capacity(BATCH);
        let mut state = self.lock();
        loop {
            while state.queue.is_empty() && !(state.finished && state.jobs == 0) {
                state = self.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.queue.is_empty() {
                return;
            }
            let count = state.queue.len().min(BATCH);
            batch.extend(state.queue.drain(..count));
            let dead = state.dead;
            drop(state);
            let failed = !dead && send(stream, &batch).is_err();
            state = self.lock();
            state.dead |= failed;
            for reply in batch.drain(..) {
                state.jobs -= 1;
                state.bytes -= reply.cost;
                let keep = state.spare.len() < MAX_SPARE && reply.data.capacity() <= LARGEST_SPARE;
                if keep && reply.data.capacity() > 0 {
                    state.spare.push(reply.data);
                }
            }
            self.room.notify_all();
        }
    }
}

/// Does one job that moves no data, for ourselves, and waits for its end.
///
/// # Errors
/// What a client would be told.
pub fn ask(export: &dyn Export, command: Command) -> Result<(), Errno> {
    let replies = Arc::new(Replies::default());
    let (ticket, buffer) = replies.open(u64::MAX, 0, 0, false).ok_or(Errno::Io)?;
    export.submit(Job { command, offset: 0, buffer, fua: false, ticket });
    replies.finish();
    let mut answer = Vec::new();
    replies.write_all(&mut answer);
    if answer == wire::simple_reply(0, 0) { Ok(()) } else { Err(Errno::Io) }
}

/// Writes a batch with as few calls as it takes.
fn send(stream: &mut impl Write, batch: &[Reply]) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); 2 * BATCH];
    let mut count = 0;
    for reply in batch {
        slices[count] = IoSlice::new(&reply.head);
        count += 1;
        if reply.send {
            slices[count] = IoSlice::new(&reply.data);
            count += 1;
        }
    }
    let mut left = &mut slices[..count];
    while !left.is_empty() {
        match stream.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

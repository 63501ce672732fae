//! What a connection owes its client: jobs under way, and answers on their way out.
//!
//! Whoever has answers sends them, as far as the socket takes them at once; only what is left over waits for a thread
//! of the connection's own. So a batch of answers costs one system call and no change of threads.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno as Os;
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::{Command, Errno, Export, Job, MAX_REQUEST, wire};

/// Most data of jobs under way and answers not yet sent, per connection.
const MAX_BYTES: usize = 2 * MAX_REQUEST as usize;
/// Most jobs and answers, per connection.
const MAX_JOBS: usize = 1024;
/// Answers sent at once.
const AT_ONCE: usize = 64;
/// Buffers kept for later, and the largest that is.
const MAX_SPARE: usize = 64;
const LARGEST_SPARE: usize = 1 << 20;

/// Shared by the threads of a connection and the tickets that are out.
#[derive(Debug, Default)]
pub struct Replies {
    /// Without one somebody waits for the only answer.
    stream: Option<UnixStream>,
    state: Mutex<State>,
    /// The connection's own thread has something to do.
    called: Condvar,
    /// There is room for more jobs.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Reply>,
    /// Jobs taken and answers not yet sent.
    jobs: usize,
    bytes: usize,
    /// Somebody is sending, without the lock.
    sending: bool,
    /// The socket was full: the rest is for the connection's own thread.
    overflow: bool,
    /// The client sends nothing more.
    finished: bool,
    /// Nobody reads answers.
    dead: bool,
    sender_waits: bool,
    reader_waits: bool,
    spare: Vec<Vec<u8>>,
    /// What is being sent; here for its allocation.
    batch: Vec<Reply>,
}

#[derive(Debug)]
struct Reply {
    head: [u8; 16],
    data: Vec<u8>,
    /// Bytes of `data` that go out.
    len: usize,
    /// Bytes that have gone out, the head's among them.
    sent: usize,
    cost: usize,
}

impl Reply {
    fn left(&self) -> usize {
        self.head.len() + self.len - self.sent
    }

    fn is_sent(&self) -> bool {
        self.left() == 0
    }
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

/// Answers that go out together.
#[derive(Debug, Default)]
pub struct Batch(Vec<Arc<Replies>>);

impl Batch {
    /// Sends them; what a client does not take at once follows later.
    pub fn send(&mut self) {
        self.0.drain(..).for_each(|replies| replies.send());
    }
}

impl Ticket {
    /// A number that all jobs of one connection share.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Answers at once. A read's data is sent from `buffer` if it ended well; otherwise the buffer is only given back.
    pub fn finish(mut self, result: Result<(), Errno>, buffer: Vec<u8>) {
        if let Some(replies) = self.answer(result, buffer) {
            replies.send();
        }
    }

    /// Answers with the rest of a batch.
    pub fn finish_with(mut self, result: Result<(), Errno>, buffer: Vec<u8>, batch: &mut Batch) {
        if let Some(replies) = self.answer(result, buffer)
            && !batch.0.iter().any(|other| Arc::ptr_eq(other, &replies))
        {
            batch.0.push(replies);
        }
    }

    fn answer(&mut self, result: Result<(), Errno>, data: Vec<u8>) -> Option<Arc<Replies>> {
        let replies = self.replies.take()?;
        let error = result.err().map_or(0, |errno| errno as u32);
        let len = if self.read && result.is_ok() { data.len() } else { 0 };
        let head = wire::simple_reply(error, self.cookie);
        replies.lock().queue.push_back(Reply { head, data, len, sent: 0, cost: self.cost });
        Some(replies)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(replies) = self.answer(Err(Errno::Io), Vec::new()) {
            replies.send();
        }
    }
}

impl State {
    /// A reply is gone, one way or another.
    fn forget(&mut self, reply: Reply) {
        self.jobs -= 1;
        self.bytes -= reply.cost;
        let capacity = reply.data.capacity();
        if self.spare.len() < MAX_SPARE && (1..=LARGEST_SPARE).contains(&capacity) {
            self.spare.push(reply.data);
        }
    }

    /// There is nothing more to come.
    fn is_over(&self) -> bool {
        self.finished && self.jobs == 0
    }
}

impl Replies {
    /// For a client at the other end of `stream`.
    pub fn new(stream: UnixStream) -> Replies {
        Replies { stream: Some(stream), ..Replies::default() }
    }

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
            state.reader_waits = true;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.reader_waits = false;
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

    /// The client has said its last word: [`Replies::send_rest`] ends with the last answer.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.called.notify_one();
    }

    /// Sends what the socket takes at once.
    fn send(&self) {
        let mut state = self.lock();
        if !state.sending && !state.overflow {
            state = self.send_queue(state, SendFlags::DONTWAIT);
            state.overflow = self.stream.is_some() && !state.queue.is_empty();
        }
        // Without a stream the only answer is waited for.
        let call = state.overflow || state.is_over() || self.stream.is_none();
        if state.sender_waits && call {
            self.called.notify_one();
        }
    }

    /// Sends what is left over, as long as anything may come.
    pub fn send_rest(&self) {
        let mut state = self.lock();
        while !state.is_over() {
            if state.overflow && !state.sending {
                state = self.send_queue(state, SendFlags::empty());
                state.overflow = false;
            } else {
                state = self.wait(state);
            }
        }
    }

    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.sender_waits = true;
        let mut state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.sender_waits = false;
        state
    }

    /// Sends until the queue is empty or, with `DONTWAIT`, the socket full.
    fn send_queue<'a>(&'a self, mut state: MutexGuard<'a, State>, flags: SendFlags) -> MutexGuard<'a, State> {
        let Some(stream) = &self.stream else { return state };
        state.sending = true;
        let mut batch = std::mem::take(&mut state.batch);
        let mut full = false;
        while !full && !state.queue.is_empty() {
            let count = state.queue.len().min(AT_ONCE);
            batch.extend(state.queue.drain(..count));
            if !state.dead {
                drop(state);
                let sent = send(stream, &mut batch, flags);
                state = self.lock();
                full = sent == Err(Os::AGAIN);
                state.dead |= sent.is_err() && !full;
            }
            while let Some(rest) = batch.pop_if(|reply| full && !reply.is_sent()) {
                state.queue.push_front(rest);
            }
            batch.drain(..).for_each(|reply| state.forget(reply));
            if state.reader_waits {
                self.room.notify_one();
            }
        }
        state.batch = batch;
        state.sending = false;
        state
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
    let mut state = replies.lock();
    loop {
        match state.queue.pop_front() {
            Some(reply) if reply.head == wire::simple_reply(0, 0) => return Ok(()),
            Some(_) => return Err(Errno::Io),
            None => state = replies.wait(state),
        }
    }
}

/// Sends a batch, or as much of it as fits, and notes how much it was.
fn send(stream: &UnixStream, batch: &mut [Reply], flags: SendFlags) -> Result<(), Os> {
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        let mut slices = [IoSlice::new(&[]); 2 * AT_ONCE];
        let mut count = 0;
        for reply in batch.iter() {
            let head = reply.sent.min(reply.head.len());
            for part in [&reply.head[head..], &reply.data[reply.sent - head..reply.len]] {
                if !part.is_empty() {
                    slices[count] = IoSlice::new(part);
                    count += 1;
                }
            }
        }
        if count == 0 {
            return Ok(());
        }
        let mut left = match rustix::net::sendmsg(stream, &slices[..count], &mut SendAncillaryBuffer::default(), flags)
        {
            Ok(sent) => sent,
            Err(Os::INTR) => 0,
            Err(error) => return Err(error),
        };
        for reply in batch.iter_mut() {
            let part = left.min(reply.left());
            reply.sent += part;
            left -= part;
        }
    }
}

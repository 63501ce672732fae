//! What the two sides of one frontend tell each other: the thread that follows the store, and the threads that own
//! the queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::event::EventfdFlags;

const OPEN: u8 = 0;
const DRAINING: u8 = 1;
const FAILED: u8 = 2;

/// Whether a device takes requests; clones are the same device.
#[derive(Clone, Default)]
pub struct Gate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    reason: OnceLock<String>,
    wakers: Mutex<Vec<Waker>>,
}

impl Gate {
    /// True while requests are taken.
    pub fn is_open(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == OPEN
    }

    /// True once nothing will be answered any more.
    pub fn is_failed(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == FAILED
    }

    /// Takes no more requests; what the backend already has may still be answered.
    pub fn drain(&self) {
        let open = self.0.state.compare_exchange(OPEN, DRAINING, Ordering::AcqRel, Ordering::Acquire);
        if open.is_ok() {
            self.wake();
        }
    }

    /// Gives the device up: every request ends with an error. The first reason counts.
    pub fn fail(&self, reason: String) {
        if self.0.reason.set(reason).is_ok() {
            self.0.state.store(FAILED, Ordering::Release);
            self.wake();
        }
    }

    /// Why it failed.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    /// Has `waker` woken at every change.
    pub fn join(&self, waker: Waker) {
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    fn wake(&self) {
        for waker in self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake();
        }
    }
}

/// Ends a [`Queue::wait`](super::Queue::wait) from another thread.
#[derive(Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Not woken yet.
    pub fn new() -> io::Result<Waker> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker(Arc::new(fd)))
    }

    /// The wait that runs, or else the next one, ends at once.
    pub fn wake(&self) {
        // The only error of interest, a full counter, means that it is awake already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Takes all wakes back.
    pub fn clear(&self) {
        // Nothing to read is as good as having read it.
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

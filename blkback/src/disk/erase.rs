//! Discards on block devices. No io_uring of the kernels we support has them, and the ioctl blocks until the device is
//! done, so each queue of such a disk has a thread for them: a slow one keeps nothing else waiting.
//!
//! The death of a worker ends no ioctl: the process lives until the kernel has left it, and a worker is fenced only
//! when its process is gone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, unbounded};

use super::Ended;

/// Longest piece that the device is asked to discard at once, bytes: another discard of the disk waits this long.
const PIECE: u64 = 1 << 30;

/// A discard has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erased {
    /// The request.
    pub slot: u16,
    /// How.
    pub ended: Ended,
}

struct Order {
    slot: u16,
    at: u64,
    len: u64,
    secure: bool,
}

/// One queue's thread for discards. Dropping it waits until the last one has ended.
pub struct Eraser {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Eraser {
    /// Starts the thread; `tell` hears of every end, on that thread.
    ///
    /// # Errors
    /// When there are no threads left.
    pub fn start(device: Arc<OwnedFd>, tell: impl Fn(Erased) + Send + 'static) -> std::io::Result<Eraser> {
        let (orders, inbox) = unbounded::<Order>();
        let work = move || {
            for Order { slot, at, len, secure } in inbox {
                tell(Erased { slot, ended: erase(&device, at, len, secure) });
            }
        };
        let thread = std::thread::Builder::new().name("discards".into()).spawn(work)?;
        Ok(Eraser { orders: Some(orders), thread: Some(thread) })
    }

    /// Has `len` bytes at `at` discarded. At most one order per request of the ring is under way, which bounds them.
    pub fn erase(&self, slot: u16, at: u64, len: u64, secure: bool) {
        if let Some(orders) = &self.orders {
            // The thread ends only when we drop the sender.
            let _ = orders.send(Order { slot, at, len, secure });
        }
    }
}

impl Drop for Eraser {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread for discards panicked");
        }
    }
}

fn erase(device: &OwnedFd, at: u64, len: u64, secure: bool) -> Ended {
    let (mut at, end) = (at, at + len);
    while at < end {
        let piece = PIECE.min(end - at);
        grant::blockdev::discard(device, at, piece, secure).map_err(|error| error.raw_os_error().unwrap_or(5))?;
        at += piece;
    }
    Ok(())
}

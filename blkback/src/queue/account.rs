//! What a queue counts, and how much of it is logged.

use std::time::Instant;

use grant::uring::Operation as RingOperation;

use super::{BlkQueue, Slot};
use crate::proto::{BLKIF_RSP_OKAY, SECTOR_SIZE};
use crate::request::Operation;
use crate::stats::Counter;

impl BlkQueue {
    #[inline]
    pub(super) fn account_request(&self, state: &Slot, now: Instant) {
        if state.rejected {
            return;
        }
        let len = u64::from(state.job.len);
        let (operations, bytes, len) = match state.job.operation {
            Operation::Read => (Counter::Reads, Counter::ReadBytes, len),
            Operation::Write => (Counter::Writes, Counter::WriteBytes, len),
            Operation::Flush => (Counter::Flushes, Counter::WriteBytes, len),
            Operation::Barrier => (Counter::Barriers, Counter::WriteBytes, len),
            Operation::Discard { sectors, .. } => (Counter::Discards, Counter::DiscardBytes, sectors * SECTOR_SIZE),
        };
        self.count(operations, 1);
        self.count(bytes, len);
        if state.status != BLKIF_RSP_OKAY {
            self.count(Counter::Errors, 1);
        }
        let nanoseconds = now.duration_since(state.taken).as_nanos() as u64;
        self.parts.meter.record(nanoseconds);
        self.count(Counter::Nanoseconds, nanoseconds);
    }

    /// The kernel failed something.
    #[cold]
    pub(super) fn failed(&self, operation: RingOperation, errno: i32) {
        log_error(self.parts.devid, errno);
        if matches!(operation, RingOperation::Flush(_)) {
            // Counted first: the meter outlives a worker that dies before anybody hears of it.
            self.count(Counter::FlushFailures, 1);
            self.parts.hold.fail_flushes();
        }
    }

    pub(super) fn account_copies(&mut self) {
        let data = &mut self.parts.data;
        let (memcpy, copied) = (std::mem::take(&mut data.memcpy_bytes), std::mem::take(&mut data.copied_bytes));
        let pages = std::mem::take(&mut data.pages_copied);
        if pages > 0 {
            self.count(Counter::BytesMemcpy, memcpy);
            self.count(Counter::BytesGrantCopy, copied);
            self.count(Counter::PagesCopied, pages);
        }
    }
}

/// A volume's error is the host's business; a guest that provokes them must not fill the log.
fn log_error(devid: u32, errno: i32) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LOGGED: AtomicU64 = AtomicU64::new(0);
    let nth = LOGGED.fetch_add(1, Ordering::Relaxed);
    if nth < 10 || nth.is_power_of_two() {
        let error = std::io::Error::from_raw_os_error(errno);
        tracing::warn!(devid, %error, total = nth + 1, "the volume failed a request");
    }
}

//! What a queue counts, and how much of it is logged.

use grant::meter::Block;
use grant::uring::Operation as RingOperation;

use super::{BlkQueue, Slot};
use crate::proto::{BLKIF_RSP_OKAY, SECTOR_SIZE};
use crate::request::Operation;
use crate::stats::Counter;

/// What most requests of a batch are, summed up before it is counted where others can see it.
#[derive(Default)]
pub(super) struct Tally {
    /// All of them, and the bytes of reads and writes.
    answered: u64,
    bytes: u64,
    /// Of these, writes.
    writes: u64,
    write_bytes: u64,
    /// Of these, neither reads nor writes.
    rare: u64,
    nanoseconds: u64,
    /// When requests were taken, and how many had been answered when the first of them was: what was taken together is
    /// mostly answered together.
    taken: u64,
    before: u64,
}

impl Tally {
    /// Counts a request that is answered at `now`.
    #[inline]
    pub(super) fn add(&mut self, state: &Slot, now: u64, meter: &Block) {
        if state.rejected {
            return;
        }
        let len = u64::from(state.job.len);
        match state.job.operation {
            Operation::Read => self.add_plain(false, len, state.taken, now, meter),
            Operation::Write => self.add_plain(true, len, state.taken, now, meter),
            _ => {
                self.rare += 1;
                count_rare(state, len, meter);
                self.add_plain(false, 0, state.taken, now, meter);
            }
        }
        if state.status != BLKIF_RSP_OKAY {
            meter.add(Counter::Errors as usize, 1);
        }
    }

    /// Counts a read or write that was taken at `taken`.
    #[inline(always)]
    pub(super) fn add_plain(&mut self, write: bool, len: u64, taken: u64, now: u64, meter: &Block) {
        if taken != self.taken {
            self.record(now, meter);
            self.taken = taken;
        }
        self.answered += 1;
        self.bytes += len;
        if write {
            self.writes += 1;
            self.write_bytes += len;
        }
    }

    /// Puts those that were taken together into the histogram.
    pub(super) fn record(&mut self, now: u64, meter: &Block) {
        let (times, nanoseconds) = (self.answered - self.before, now.saturating_sub(self.taken));
        self.before = self.answered;
        if times > 0 {
            self.nanoseconds += nanoseconds * times;
            meter.record(nanoseconds, times);
        }
    }
}

#[cold]
fn count_rare(state: &Slot, len: u64, meter: &Block) {
    let (operations, bytes, len) = match state.job.operation {
        Operation::Read | Operation::Write => return,
        Operation::Flush => (Counter::Flushes, Counter::WriteBytes, len),
        Operation::Barrier => (Counter::Barriers, Counter::WriteBytes, len),
        Operation::Discard { sectors, .. } => (Counter::Discards, Counter::DiscardBytes, sectors * SECTOR_SIZE),
    };
    meter.add(operations as usize, 1);
    meter.add(bytes as usize, len);
}

impl BlkQueue {
    pub(super) fn account_tally(&self, tally: &Tally) {
        let Tally { answered, bytes, writes, write_bytes, rare, nanoseconds, .. } = *tally;
        self.count(Counter::Reads, answered - writes - rare);
        self.count(Counter::ReadBytes, bytes - write_bytes);
        self.count(Counter::Writes, writes);
        self.count(Counter::WriteBytes, write_bytes);
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

//! Wraps any disk and delays, fails, shortens or flips: for tests, and proof that the trait carries several steps.

use std::time::{Duration, Instant};

use super::{Disk, DiskLimits, Ended, Io, Job};
use crate::config::FaultParams;
use crate::request::Operation;

/// A disk that misbehaves on purpose.
pub struct Fault {
    inner: Box<dyn Disk>,
    params: FaultParams,
}

/// `Job::outer_step` while the delay runs.
const DELAYED: u32 = 1;

impl Fault {
    /// Wraps `inner`.
    pub fn new(inner: Box<dyn Disk>, params: FaultParams) -> Fault {
        Fault { inner, params }
    }

    fn touches(job: &Job, byte: u64) -> bool {
        byte.checked_sub(job.at).is_some_and(|offset| offset < u64::from(job.len))
    }

    fn begin(&mut self, job: &mut Job, io: &mut Io<'_>) {
        job.outer_step = 0;
        let fails = self.params.fail.is_some_and(|byte| Fault::touches(job, byte));
        if fails || (self.params.fail_flush && job.operation == Operation::Flush) {
            return io.finish(Err(5));
        }
        self.inner.start(job, io);
        // Whatever ends comes here first.
        job.last = false;
        self.end(job, io);
    }

    /// The inner disk has had its say; a read that succeeded may still be spoilt.
    fn end(&mut self, job: &Job, io: &mut Io<'_>) {
        let flip = self.params.flip.filter(|&byte| Fault::touches(job, byte));
        if let (Some(byte), Some(Ok(())), Operation::Read) = (flip, io.finished, job.operation) {
            io.flip((byte - job.at) as u32 + u32::from(job.edges.head));
        }
    }

    fn limit(&self, io: &mut Io<'_>) {
        if let Some(bytes) = self.params.shorten {
            io.limit_transfers(bytes);
        }
    }
}

impl Disk for Fault {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        self.limit(io);
        if self.params.delay_ms > 0 {
            job.outer_step = DELAYED;
            return io.timeout(job, Duration::from_millis(self.params.delay_ms));
        }
        self.begin(job, io);
    }

    fn step(&mut self, job: &mut Job, ended: Ended, io: &mut Io<'_>) {
        self.limit(io);
        if job.outer_step == DELAYED {
            return self.begin(job, io);
        }
        self.inner.step(job, ended, io);
        job.last = false;
        self.end(job, io);
    }

    fn tick(&mut self, now: Instant) {
        self.inner.tick(now);
    }

    fn wants_tick(&self) -> bool {
        self.inner.wants_tick()
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { operations: self.inner.limits().operations + 1, ..self.inner.limits() }
    }
}

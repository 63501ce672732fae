//! Reads are zeros and writes vanish: what is left is the cost of the ring.

use super::{Disk, DiskLimits, Ended, Io, Job};
use crate::request::Operation;

/// One queue's way to nothing.
pub struct Null {
    sectors: u64,
    read_only: bool,
}

impl Null {
    /// A disk of `sectors` 512-byte sectors.
    pub fn new(sectors: u64, read_only: bool) -> Null {
        Null { sectors, read_only }
    }
}

impl Disk for Null {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        if job.operation == Operation::Read {
            // The memory may be an arena that held another request's data.
            io.zero();
        }
        io.finish(Ok(()));
    }

    fn step(&mut self, _job: &mut Job, ended: Ended, io: &mut Io<'_>) {
        io.finish(ended);
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits {
            sectors: self.sectors,
            unit: 512,
            flush: !self.read_only,
            discard: None,
            read_only: self.read_only,
            operations: 1,
        }
    }
}

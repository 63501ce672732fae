//! A file or block device, byte for byte: one operation per job.

use grant::uring::FileSlot;

use super::{Disk, DiskLimits, Ended, Io, Job};
use crate::request::Operation;

/// One queue's way to a raw volume.
pub struct Raw {
    file: FileSlot,
    sectors: u64,
    read_only: bool,
}

impl Raw {
    /// A volume of `sectors` 512-byte sectors, `file` in the ring's table.
    pub fn new(file: FileSlot, sectors: u64, read_only: bool) -> Raw {
        Raw { file, sectors, read_only }
    }
}

impl Disk for Raw {
    fn start(&mut self, job: &mut Job, io: &mut Io<'_>) {
        match job.operation {
            Operation::Read => io.read(job, self.file, job.at, 0, job.len),
            Operation::Write => io.write(job, self.file, job.at, 0, job.len),
            Operation::Flush => io.flush(job, self.file),
        }
    }

    fn step(&mut self, job: &mut Job, ended: Ended, io: &mut Io<'_>) {
        job.step += 1;
        // A flush with data flushes what came before it, then writes (blkif.h allows it).
        if ended.is_ok() && job.operation == Operation::Flush && job.len > 0 && job.step == 1 {
            io.write(job, self.file, job.at, 0, job.len);
        } else {
            io.finish(ended);
        }
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { sectors: self.sectors, flush: !self.read_only, read_only: self.read_only, operations: 1 }
    }
}

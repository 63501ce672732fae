//! One request at a time, waited for: for tests and programs that have nothing else to do.

use std::io;

use blkback::proto::SECTOR_SIZE;

use super::io::{Completion, Op, Request, Status};
use super::queue::Queue;

impl Queue {
    /// Does one request and waits for its end. Nothing else may be under way.
    ///
    /// # Errors
    /// `ResourceBusy` when something else is, `InvalidInput` when the request is malformed, `BrokenPipe` when the device
    /// takes no more requests. How the request itself ended stands in the completion.
    pub fn perform(&mut self, request: Request) -> io::Result<Completion> {
        if self.in_flight() > 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        if let Err(refused) = self.submit(request) {
            let kind = match refused.reason {
                super::io::Refusal::Full => io::ErrorKind::ResourceBusy,
                super::io::Refusal::Closed => io::ErrorKind::BrokenPipe,
                super::io::Refusal::Malformed => io::ErrorKind::InvalidInput,
            };
            return Err(kind.into());
        }
        self.kick();
        let mut done = Vec::with_capacity(1);
        while self.reap(&mut done) == 0 {
            self.wait(None)?;
        }
        done.pop().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn move_data(&mut self, op: Op, offset: u64, buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        if !offset.is_multiple_of(SECTOR_SIZE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let done = self.perform(Request { tag: 0, op, sector: offset / SECTOR_SIZE, buffer })?;
        let wrong = || {
            let text = self.gate().reason().unwrap_or("the backend says no").to_owned();
            io::Error::other(format!("{op:?} at {offset}: {text}"))
        };
        match done.status {
            Status::Okay => Ok(done.buffer),
            Status::Unsupported => Err(io::ErrorKind::Unsupported.into()),
            Status::Error => Err(wrong()),
        }
    }

    /// Reads whole sectors from byte `offset` on.
    ///
    /// # Errors
    /// As [`Queue::perform`], and when the backend says no.
    pub fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        to.copy_from_slice(&self.move_data(Op::Read, offset, vec![0; to.len()])?);
        Ok(())
    }

    /// Writes whole sectors from byte `offset` on.
    ///
    /// # Errors
    /// As [`Queue::read_at`].
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.move_data(Op::Write, offset, from.to_vec()).map(drop)
    }

    /// Makes everything written before durable.
    ///
    /// # Errors
    /// As [`Queue::read_at`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.move_data(Op::Flush, 0, Vec::new()).map(drop)
    }
}

//! What a ring is asked for, and how it ends.

use super::{FileSlot, MemoryId};

/// What kind of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into memory.
    Read,
    /// The same, but nothing is waited for: `EAGAIN` when there is nothing, `EOPNOTSUPP` of a file that does not know
    /// (`RWF_NOWAIT`, linux/fs.h). `O_NONBLOCK` alone would be waited for where the file does know.
    ReadNow,
    /// From memory to the file.
    Write,
}

/// One read or write: `len` bytes at `at` of the file, from or to byte `start` of the request's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// The file.
    pub file: FileSlot,
    /// Byte offset in the file.
    pub at: u64,
    /// First byte in the memory of the request.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

/// Whose operation it is: given at submission, returned on completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The queue's memory, which is also the queue's number on its thread.
    pub memory: MemoryId,
    /// The request.
    pub slot: u16,
}

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read or write.
    Transfer(Transfer),
    /// `fdatasync`.
    Flush(FileSlot),
    /// A hole is made in the file: its blocks are given back and read as zeros.
    Punch {
        /// The file.
        file: FileSlot,
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// A timeout.
    Timeout,
    /// The thread's own poll of a descriptor; the number says which.
    Poll(u32),
    /// The end of such a poll.
    Cancel,
    /// Ports of the source of that number were not unmasked; there is no word of those that were.
    Unmask(u32),
    /// A queue's wait for a file to have something to read.
    Readable(FileSlot),
}

/// An operation has ended.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// As submitted.
    pub owner: Owner,
    /// As submitted.
    pub operation: Operation,
    /// As the kernel answered: a count, or a negative errno.
    pub result: i32,
}

/// What is to be done about a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// This is left and must be submitted again: the rest of a short transfer, or the whole after EINTR or EAGAIN.
    Again(Operation),
    /// It failed with this errno.
    Failed(i32),
}

impl Completion {
    /// Classifies the result; the one place that knows about short transfers.
    #[inline]
    pub fn outcome(&self) -> Outcome {
        let again = self.result == -libc::EINTR || self.result == -libc::EAGAIN;
        match self.operation {
            operation @ (Operation::Transfer(_) | Operation::Flush(_) | Operation::Punch { .. }) if again => {
                Outcome::Again(operation)
            }
            _ if self.result < 0 && !(self.operation == Operation::Timeout && self.result == -libc::ETIME) => {
                Outcome::Failed(-self.result)
            }
            Operation::Transfer(transfer) => {
                let moved = self.result as u32;
                match transfer.len.checked_sub(moved) {
                    Some(0) => Outcome::Done,
                    // Nothing moved and no error: the file is shorter than the disk says.
                    _ if moved == 0 => Outcome::Failed(libc::EIO),
                    Some(rest) => Outcome::Again(Operation::Transfer(Transfer {
                        at: transfer.at + u64::from(moved),
                        start: transfer.start + moved,
                        len: rest,
                        ..transfer
                    })),
                    None => Outcome::Failed(libc::EIO),
                }
            }
            _ => Outcome::Done,
        }
    }
}

//! What a queue is asked and what it answers.

use blkback::proto::{
    BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_OKAY,
};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fills the buffer.
    Read,
    /// Writes the buffer.
    Write,
    /// Writes the buffer, after everything before it and before everything after it.
    WriteBarrier,
    /// Makes everything that has completed durable; the buffer is empty.
    Flush,
    /// Forgets a range; the buffer is empty.
    Discard {
        /// How long the range is.
        sectors: u64,
        /// So that nobody can read it again.
        secure: bool,
    },
}

impl Op {
    pub(super) fn wire(self) -> u8 {
        match self {
            Op::Read => BLKIF_OP_READ,
            Op::Write => BLKIF_OP_WRITE,
            Op::WriteBarrier => BLKIF_OP_WRITE_BARRIER,
            Op::Flush => BLKIF_OP_FLUSH_DISKCACHE,
            Op::Discard { .. } => BLKIF_OP_DISCARD,
        }
    }

    pub(super) fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::WriteBarrier)
    }
}

/// Something for the disk to do. Whether it fits on the disk is the backend's to check.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the completion.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// First sector, in 512-byte units.
    pub sector: u64,
    /// The data: whole sectors, none for a flush or discard. Comes back with the completion.
    pub buffer: Vec<u8>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As asked.
    Okay,
    /// The backend cannot do this, now or ever.
    Unsupported,
    /// It failed, or the device has gone.
    Error,
}

impl Status {
    pub(super) fn from_wire(status: i16) -> Status {
        match status {
            BLKIF_RSP_OKAY => Status::Okay,
            BLKIF_RSP_EOPNOTSUPP => Status::Unsupported,
            _ => Status::Error,
        }
    }

    /// Of two parts of one request.
    pub(super) fn worse(self, other: Status) -> Status {
        match (self, other) {
            (Status::Error, _) | (_, Status::Error) => Status::Error,
            (Status::Unsupported, _) | (_, Status::Unsupported) => Status::Unsupported,
            (Status::Okay, Status::Okay) => Status::Okay,
        }
    }
}

/// A request that has ended.
#[derive(Debug)]
pub struct Completion {
    /// From the request.
    pub tag: u64,
    /// From the request.
    pub op: Op,
    /// From the request.
    pub sector: u64,
    /// The parts' worst.
    pub status: Status,
    /// From the request; filled by a read that ended well.
    pub buffer: Vec<u8>,
}

/// A request that was not taken.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub reason: Refusal,
    /// The request itself.
    pub request: Request,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests as the ring has slots are under way: reap first.
    Full,
    /// The device is closing, or has failed.
    Closed,
    /// Data where none belongs, no data, or not whole sectors.
    Malformed,
}

/// What a queue has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ring slots filled.
    pub requests: u64,
    /// Of these with indirect segments.
    pub indirect: u64,
    /// Events sent to the backend.
    pub notifications_sent: u64,
    /// Events received from it.
    pub notifications_received: u64,
    /// Pages granted, the ring's own aside.
    pub pages_granted: u64,
    /// Grants that could not be ended because the backend still had them mapped.
    pub refusals: u64,
}

//! What a ring waits for beside transfers: a time, and descriptors with something to read.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{opcode, types};

use super::{FileSlot, InFlight, MemoryId, Operation, Owner, THREAD, Uring};

impl Uring {
    /// Completes after `delay`.
    pub fn timeout(&mut self, owner: Owner, delay: Duration) {
        if self.timeouts.len() == self.timeouts.capacity() {
            self.submit();
        }
        self.make_room(1);
        self.timeouts.push(types::Timespec::from(delay));
        let entry = opcode::Timeout::new(self.timeouts.last().expect("just pushed")).build();
        self.push(owner, Operation::Timeout, entry);
    }

    /// Completes when `fd`, which the thread keeps open, is readable. `number` comes back in the operation.
    pub fn poll(&mut self, number: u32, fd: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_fd().as_raw_fd()), libc::POLLIN as u32).build();
        self.push(Owner { memory: THREAD, slot: 0 }, Operation::Poll(number), entry);
        self.patient += 1;
    }

    /// Completes when there is something to read from the file.
    pub fn readable(&mut self, owner: Owner, file: FileSlot) {
        let entry = opcode::PollAdd::new(types::Fixed(file.0), libc::POLLIN as u32).build();
        self.push(owner, Operation::Readable(file), entry);
    }

    /// Ends a wait of this number, whether it polls or reads by now; its completion still comes. False when there is none.
    pub fn cancel_poll(&mut self, number: u32) -> bool {
        let is_it = |it: &Option<InFlight>| it.is_some_and(|it| it.operation == Operation::Poll(number));
        let Some(at) = self.flying.iter().position(is_it) else { return false };
        let entry = opcode::AsyncCancel::new(at as u64).build();
        self.push(Owner { memory: THREAD, slot: 0 }, Operation::Cancel, entry);
        true
    }

    /// Ends a queue's wait for a file; its completion still comes.
    pub fn cancel_readable(&mut self, memory: MemoryId) {
        let is_it = |it: &InFlight| it.owner.memory == memory && matches!(it.operation, Operation::Readable(_));
        if let Some(at) = self.flying.iter().position(|it| it.as_ref().is_some_and(is_it)) {
            let entry = opcode::PollRemove::new(at as u64).build();
            self.push(Owner { memory: THREAD, slot: 0 }, Operation::Cancel, entry);
        }
    }
}

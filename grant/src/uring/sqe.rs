//! The entry of the most frequent operation, field by field: what the crate's builders make is put together elsewhere and
//! moved twice.

use std::ptr::NonNull;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};

use super::{Direction, FileSlot};

/// `struct io_uring_sqe` (linux/io_uring.h) as far as reads and writes know it: in words, for as many stores.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Sqe([u64; 8]);

const _: () = assert!(size_of::<Sqe>() == size_of::<Entry>() && align_of::<Sqe>() >= align_of::<Entry>());
const _: () = assert!(cfg!(target_endian = "little"), "where fields lie in their words");

impl Sqe {
    /// A transfer between a file of the table and a registered buffer.
    #[inline(always)]
    pub(super) fn fixed(
        direction: Direction,
        file: FileSlot,
        at: u64,
        address: NonNull<u8>,
        len: u32,
        buffer: u16,
        user_data: u64,
    ) -> Sqe {
        let (opcode, rw_flags) = match direction {
            Direction::Read => (opcode::ReadFixed::CODE, 0),
            Direction::ReadNow => (opcode::ReadFixed::CODE, libc::RWF_NOWAIT as u32),
            Direction::Write => (opcode::WriteFixed::CODE, 0),
        };
        let flags = u64::from(Flags::FIXED_FILE.bits());
        Sqe([
            // The priority, between flags and file, is 0.
            u64::from(opcode) | flags << 8 | u64::from(file.0) << 32,
            at,
            address.as_ptr() as u64,
            u64::from(len) | u64::from(rw_flags) << 32,
            user_data,
            // No personality, no splice.
            u64::from(buffer),
            0,
            0,
        ])
    }

    /// The same for the crate.
    #[inline(always)]
    pub(super) fn entry(self) -> Entry {
        // SAFETY: an `Entry` is the kernel's structure (`repr(C)`, one field) of the same size, of plain integers, so this
        // is one.
        unsafe { std::mem::transmute::<Sqe, Entry>(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::types;

    /// Field by field what the crate's own builder makes.
    #[test]
    fn an_entry_is_what_the_builder_makes() {
        let mut byte = 7u8;
        let address = NonNull::from(&mut byte);
        for direction in [Direction::Read, Direction::ReadNow, Direction::Write] {
            let file = types::Fixed(5);
            let theirs = match direction {
                Direction::Write => opcode::WriteFixed::new(file, address.as_ptr(), 4096, 3).offset(8192).build(),
                _ => {
                    let flags = if direction == Direction::Read { 0 } else { libc::RWF_NOWAIT };
                    opcode::ReadFixed::new(file, address.as_ptr(), 4096, 3).offset(8192).rw_flags(flags).build()
                }
            };
            let both = [theirs.user_data(77), Sqe::fixed(direction, FileSlot(5), 8192, address, 4096, 3, 77).entry()];
            // SAFETY: two entries of 64 bytes of plain integers.
            let bytes = unsafe { std::slice::from_raw_parts(both.as_ptr().cast::<[u8; 64]>(), 2) };
            assert_eq!(bytes[0], bytes[1], "{direction:?}");
        }
    }
}

//! What a transfer is as submission queue entries: its vectors, and the operation that suits them.

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::{Direction, Transfer};
use crate::memory::{Memory, RegionId, Span};

/// Appends the vectors for `len` bytes from byte `start` of `spans`, neighbours joined. Returns the region when
/// they all lie in one.
#[inline]
pub(super) fn gather(
    memory: &Memory,
    vectors: &mut Vec<libc::iovec>,
    spans: &[Span],
    start: u32,
    len: u32,
) -> Option<RegionId> {
    let (mut skip, mut left) = (start, len);
    let mut last: Option<Span> = None;
    let mut region = spans.first().map(|span| span.region);
    for span in spans {
        if skip >= span.len {
            skip -= span.len;
            continue;
        }
        let part = Span { offset: span.offset + skip, len: (span.len - skip).min(left), ..*span };
        skip = 0;
        left -= part.len;
        last = Some(match last {
            Some(before) if before.continues(&part) => {
                let joined = vectors.last_mut().expect("a vector of the span before");
                joined.iov_len += part.len as usize;
                Span { len: before.len + part.len, ..before }
            }
            _ => {
                let pages = memory.pages(part.region).expect("a live region");
                let address = pages.address(part.offset as usize, part.len as usize).expect("inside of the region");
                vectors.push(libc::iovec { iov_base: address.as_ptr().cast(), iov_len: part.len as usize });
                part
            }
        });
        if region != Some(part.region) {
            region = None;
        }
        if left == 0 {
            break;
        }
    }
    assert_eq!(left, 0, "a transfer longer than its memory");
    region
}

fn flags(transfer: &Transfer) -> i32 {
    match transfer.direction {
        Direction::ReadNow => libc::RWF_NOWAIT,
        Direction::Read | Direction::Write => 0,
    }
}

#[inline(always)]
pub(super) fn one_fixed(transfer: &Transfer, vector: &libc::iovec, buffer: u16) -> Entry {
    let (file, base, len) = (types::Fixed(transfer.file.0), vector.iov_base.cast::<u8>(), transfer.len);
    match transfer.direction {
        Direction::Read | Direction::ReadNow => {
            opcode::ReadFixed::new(file, base, len, buffer).offset(transfer.at).rw_flags(flags(transfer)).build()
        }
        Direction::Write => opcode::WriteFixed::new(file, base, len, buffer).offset(transfer.at).build(),
    }
}

pub(super) fn one_plain(transfer: &Transfer, vector: &libc::iovec) -> Entry {
    let (file, base, len) = (types::Fixed(transfer.file.0), vector.iov_base.cast::<u8>(), transfer.len);
    match transfer.direction {
        Direction::Read | Direction::ReadNow => {
            opcode::Read::new(file, base, len).offset(transfer.at).rw_flags(flags(transfer)).build()
        }
        Direction::Write => opcode::Write::new(file, base, len).offset(transfer.at).build(),
    }
}

pub(super) fn many_fixed(transfer: &Transfer, vectors: &[libc::iovec], buffer: u16) -> Entry {
    let (file, first, count) = (types::Fixed(transfer.file.0), vectors.as_ptr(), vectors.len() as u32);
    match transfer.direction {
        Direction::Read | Direction::ReadNow => {
            opcode::ReadvFixed::new(file, first, count, buffer).offset(transfer.at).rw_flags(flags(transfer)).build()
        }
        Direction::Write => opcode::WritevFixed::new(file, first, count, buffer).offset(transfer.at).build(),
    }
}

pub(super) fn many_plain(transfer: &Transfer, vectors: &[libc::iovec]) -> Entry {
    let (file, first, count) = (types::Fixed(transfer.file.0), vectors.as_ptr(), vectors.len() as u32);
    match transfer.direction {
        Direction::Read | Direction::ReadNow => {
            opcode::Readv::new(file, first, count).offset(transfer.at).rw_flags(flags(transfer)).build()
        }
        Direction::Write => opcode::Writev::new(file, first, count).offset(transfer.at).build(),
    }
}

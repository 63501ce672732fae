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
    let region = spans.first().map_or(RegionId::ARENA, |span| span.region);
    let mut one_region = true;
    // Where the vector before ends; none of ours begins at nowhere.
    let mut end = std::ptr::null_mut();
    for span in spans {
        if skip >= span.len {
            skip -= span.len;
            continue;
        }
        one_region &= span.region == region;
        let (offset, len) = (span.offset + skip, (span.len - skip).min(left));
        skip = 0;
        left -= len;
        let (offset, len) = (offset as usize, len as usize);
        let pages = memory.pages(span.region).expect("a live region");
        let address = pages.address(offset, len).expect("inside of the region").as_ptr();
        if address == end {
            vectors.last_mut().expect("a vector of the span before").iov_len += len;
        } else {
            vectors.push(libc::iovec { iov_base: address.cast(), iov_len: len });
        }
        end = address.wrapping_add(len);
        if left == 0 {
            break;
        }
    }
    assert_eq!(left, 0, "a transfer longer than its memory");
    one_region.then_some(region)
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

//! Reads and writes: from a request's memory to the entry that suits it.

use super::entries::{gather, many_fixed, many_plain, one_fixed, one_plain};
use super::{InFlight, Operation, Owner, Transfer, Uring, VECTORS};
use crate::memory::{Mapped, Span};

impl Uring {
    /// Submits a read or write over `spans`, the whole memory of the request. At most `most` bytes are moved now;
    /// the completion tells how many, and [`outcome`](super::Completion::outcome) what is left.
    ///
    /// # Panics
    /// When the transfer is longer than the spans: both are ours.
    #[inline(always)]
    pub fn transfer(&mut self, owner: Owner, transfer: Transfer, spans: &[Span], most: u32) {
        if let [span] = spans
            && (transfer.start, transfer.len) == (0, span.len)
            && most >= span.len
        {
            return self.transfer_one(owner, transfer, *span);
        }
        self.transfer_many(owner, transfer, spans, most);
    }

    fn transfer_many(&mut self, owner: Owner, transfer: Transfer, spans: &[Span], most: u32) {
        if self.vectors.len() + spans.len() > VECTORS {
            self.submit();
        }
        self.make_room(1);
        let first = self.vectors.len();
        let memory = self.memories[usize::from(owner.memory.0)].as_ref().expect("an open memory");
        let now = Transfer { len: transfer.len.min(most), ..transfer };
        let whole = gather(memory, &mut self.vectors, spans, now.start, now.len);
        let vectors = &self.vectors[first..];
        let fixed = whole.and_then(|region| memory.buffer(region));
        let entry = match (fixed, vectors) {
            (Some(buffer), [one]) => one_fixed(&now, one, buffer),
            (None, [one]) => one_plain(&now, one),
            (Some(buffer), many) if self.caps.vectored_fixed => many_fixed(&now, many, buffer),
            (_, many) => many_plain(&now, many),
        };
        let memory = self.memories[usize::from(owner.memory.0)].as_mut().expect("an open memory");
        let (region, generation) = (memory.uses(whole, spans), memory.started());
        self.stage(InFlight { owner, operation: Operation::Transfer(transfer), generation, region }, entry);
    }

    /// The most frequent transfer: all of a request's memory, which is one piece.
    #[inline(always)]
    fn transfer_one(&mut self, owner: Owner, transfer: Transfer, span: Span) {
        self.make_room(1);
        let memory = self.memories[usize::from(owner.memory.0)].as_mut().expect("an open memory");
        let Mapped { pages, buffer } = memory.mapped_as(span.region).expect("a live region");
        let address = pages.address(span.offset as usize, span.len as usize).expect("inside of the region");
        let vector = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: span.len as usize };
        let entry = match buffer.get() {
            Some(buffer) => one_fixed(&transfer, &vector, buffer),
            None => one_plain(&transfer, &vector),
        };
        let (region, generation) = (memory.uses(Some(span.region), &[span]), memory.started());
        self.stage(InFlight { owner, operation: Operation::Transfer(transfer), generation, region }, entry);
    }
}

//! What the fuzz targets do with an input; `tests/corpus.rs` does the very same with the kept ones. What is expected is
//! worked out here from Xen's header and the RFCs, slowly and by other means than the backend's.
#![allow(dead_code, reason = "each target uses a part")]

pub mod control;
pub mod frame;
pub mod transmit;

/// Takes an input apart; what is not there is zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        let mut bytes = head.to_vec();
        bytes.resize(count, 0);
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// RFC 1071, the slow way: the sum of 16-bit words, folded, not complemented.
fn ones_sum(bytes: &[u8], start: u32) -> u32 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum
}

//! What the fuzz targets do with an input; `tests/corpus.rs` does the very same with the kept ones. What a slot means is
//! said by the validator of `tests`, which was written from Xen's header and shares nothing with our parser.
#![allow(dead_code, reason = "each target uses a part")]

pub mod queue;
#[path = "../../../tests/tests/model/recorder.rs"]
mod recorder;
pub mod ring;
pub mod slot;
#[path = "../../../tests/tests/model/validator.rs"]
mod validator;
#[path = "../../../tests/tests/model/wire.rs"]
mod wire;

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

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

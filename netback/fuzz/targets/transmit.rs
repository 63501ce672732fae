//! See `body/transmit.rs`.
#![no_main]

#[path = "../body/mod.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::transmit::transmit(input));

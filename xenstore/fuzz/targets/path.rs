//! See `body.rs`.
#![no_main]

#[path = "../body.rs"]
mod body;
#[path = "../../tests/model/paths.rs"]
mod paths;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::path(input));

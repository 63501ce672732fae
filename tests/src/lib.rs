//! What the tests that need two sides share.
#![forbid(unsafe_code)]

pub mod flow;
pub mod headers;
pub mod measure;
pub mod network;
pub mod skip;
pub mod table;
pub mod world;

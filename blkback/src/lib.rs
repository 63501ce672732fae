//! One virtual disk: the protocol, its queues, the device's life, and what stands behind it ([`disk`]).
#![forbid(unsafe_code)]

pub mod config;
pub mod proto;

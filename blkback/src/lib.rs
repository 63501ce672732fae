//! One virtual disk: the protocol, its queues, the device's life, and what stands behind it ([`disk`]).
//!
//! ```text
//!   ring --take--> journal --parse--> Request --Data--> Job --Disk/Io--> io_uring
//!   ring <--one publish-- responses <--copy out-- ended jobs <-----------'
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod data;
pub mod device;
pub mod disk;
pub mod gate;
pub mod hold;
pub mod keys;
pub mod limit;
pub mod proto;
pub mod queue;
pub mod request;
mod station;
pub mod stats;
mod transient;

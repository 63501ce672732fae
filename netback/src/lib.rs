//! One virtual network card: the protocol, its queues, the device's life, and the network that joins cards and an uplink.
#![forbid(unsafe_code)]

pub mod backlog;
pub mod config;
pub mod device;
pub mod headers;
pub mod limit;
pub mod multicast;
pub mod offload;
pub mod packet;
pub mod policy;
pub mod proto;
pub mod request;
pub mod slots;
mod station;
pub mod switch;

//! One virtual network card: the protocol, its queues, the device's life, and the network that joins cards and an uplink.
#![forbid(unsafe_code)]

pub mod backlog;
pub mod config;
mod control;
pub mod device;
mod fabric;
mod frame;
pub mod hash;
pub mod headers;
pub mod keys;
pub mod limit;
pub mod multicast;
pub mod offload;
pub mod packet;
pub mod policy;
pub mod proto;
mod queue;
mod receive;
pub mod request;
pub mod slots;
mod station;
pub mod stats;
pub mod switch;
mod transmit;
mod uplink;
mod vif;
mod work;

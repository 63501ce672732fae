//! The control plane: xenstore's wire format, a client that nothing surprises, the xenbus handshake of a device, and
//! an embedded xenstored for machines without Xen.
#![forbid(unsafe_code)]

mod client;
pub mod compat;
mod error;
mod perms;
pub mod server;
mod store;
pub mod wire;
pub mod xenbus;

pub use client::{Client, Transaction, WatchEvent};
pub use error::Error;
pub use perms::Permission;
pub use store::Store;

//! An embedded xenstored: what `windsor host` serves on Unix sockets, one per domain.
//!
//! ```text
//!   serve       one thread: sockets, half messages, unread output, commands of the host
//!   dispatch    one message: which operation, in which transaction, what the answer is
//!   operations  the semantics of the C daemon 4.17, on the tree or inside of a transaction
//!   tree, transaction, watch, perms, quota
//! ```
//!
//! The socket a client connected to is its identity: the main one is dom0's, each domain has its own.

mod connection;
mod dispatch;
#[cfg(test)]
mod model;
mod operations;
mod perms;
mod quota;
mod serve;
mod transaction;
mod tree;
mod watch;

pub use quota::Limits;
pub use serve::{Server, ServerHandle};

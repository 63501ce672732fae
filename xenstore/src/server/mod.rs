//! An embedded xenstored: what `windsor host` serves on Unix sockets, one per domain.
//!
//! ```text
//!   serve, sockets   one thread: waiting, turns, clients and domains that come and go; handle: the host's commands
//!   connection       one client: half messages, unread output, transactions
//!   dispatch         one message: which operation, in which transaction, what the answer is; control: dom0's own
//!   operations       the semantics of the C daemon 4.17, on the tree or inside of a transaction
//!   tree, names, transaction, watch, special, perms, domains, quota, rate
//! ```
//!
//! The socket a client connected to is its identity: the main one is dom0's, each domain has its own.

mod connection;
mod control;
mod dispatch;
mod domains;
mod handle;
#[cfg(test)]
mod model;
mod names;
mod operations;
mod perms;
mod quota;
mod rate;
mod serve;
mod sockets;
mod special;
mod transaction;
mod tree;
mod watch;

pub use handle::ServerHandle;
pub use quota::Limits;
pub use serve::Server;

//! The limits of the C daemon 4.17, and their errors. dom0 has none but the wire's.

/// What one domain may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes it owns (`quota-nb-entry-per-domain`); `ENOSPC`.
    pub nodes: usize,
    /// Watches (`quota-nb-watch-per-domain`); `E2BIG`.
    pub watches: usize,
    /// Open transactions (`quota-transaction`); `ENOSPC`.
    pub transactions: usize,
    /// Bytes of a node (`quota-max-entry-size`); `ENOSPC`.
    pub node_size: usize,
    /// Permission entries of a node; `ENOSPC`.
    pub perms: usize,
    /// Nodes touched by a transaction; `ENOSPC`.
    pub transaction_nodes: usize,
    /// Connections; one more is closed at once.
    pub connections: usize,
    /// Bytes of answers and events that a client may leave unread before its requests wait.
    pub unread: usize,
    /// Bytes of events that a client may leave unread; for more than that it is told once per watch that something
    /// has changed there.
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            node_size: 2048,
            perms: 5,
            transaction_nodes: 1024,
            connections: 64,
            unread: 64 << 10,
            events: 512 << 10,
        }
    }
}

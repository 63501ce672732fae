//! The limits of the C daemon 4.17, by the names that `xenstore-control quota` has for them. dom0 has none but the wire's.

use crate::wire::REL_PATH_MAX;

/// What one domain may use, `usize::MAX` for as much as it likes. What is refused, with which error, is said at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes it owns; `ENOSPC`.
    pub nodes: usize,
    /// Watches; `E2BIG`.
    pub watches: usize,
    /// Open transactions; `ENOSPC`.
    pub transactions: usize,
    /// Answers of one connection that are not read yet; its next requests wait.
    pub outstanding: usize,
    /// Nodes touched by a transaction; `ENOSPC`.
    pub transaction_nodes: usize,
    /// Bytes of nodes, watches, transactions and what is not read yet; whatever needs more is refused, `ENOMEM`.
    pub memory: usize,
    /// Bytes of the same at which the log says so once.
    pub memory_soft: usize,
    /// Bytes of a node, which has to be smaller: value, permissions, names of children; `ENOSPC`.
    pub node_size: usize,
    /// Bytes of a path, not counting `/local/domain/NUMBER/`; `EINVAL`.
    pub path_max: usize,
    /// Permission entries of a node; `ENOSPC`.
    pub permissions: usize,
    /// Writes per second that all domains share while a transaction is open; a domain that has had its share waits.
    pub write_rate: usize,
    /// Connections; one more is closed at once. The C daemon has one per domain.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            outstanding: 20,
            transaction_nodes: 1024,
            memory: (2 << 20) + (512 << 10),
            memory_soft: 2 << 20,
            node_size: 2048,
            path_max: REL_PATH_MAX,
            permissions: 5,
            write_rate: 200,
            connections: 64,
        }
    }
}

impl Limits {
    /// The names that [`Limits::set`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        QUOTAS.iter().chain(&START_QUOTAS).map(|quota| quota.name)
    }

    /// Sets a limit by the name that `xenstore-control quota` has for it, or that of a limit that only a start can set;
    /// 0 for none; false if there is none such.
    #[must_use]
    pub fn set(&mut self, name: &str, limit: usize) -> bool {
        let quota = QUOTAS.iter().chain(&START_QUOTAS).find(|quota| quota.name == name);
        quota.map(|quota| quota.set(self, limit)).is_some()
    }
}

/// A limit that can be looked at and set while the daemon runs.
pub struct Quota {
    /// What `xenstore-control` calls it.
    pub name: &'static str,
    /// What it limits.
    pub about: &'static str,
    of: fn(&mut Limits) -> &mut usize,
}

impl Quota {
    /// The limit; 0 for none.
    pub fn get(&self, limits: &mut Limits) -> usize {
        Some(*(self.of)(limits)).filter(|limit| *limit != usize::MAX).unwrap_or(0)
    }

    /// Sets it; 0 for none.
    pub fn set(&self, limits: &mut Limits, limit: usize) {
        *(self.of)(limits) = if limit == 0 { usize::MAX } else { limit };
    }
}

/// The limits that `xenstore-control quota` shows.
pub const QUOTAS: [Quota; 9] = [
    Quota { name: "nodes", about: "Nodes per domain", of: |limits| &mut limits.nodes },
    Quota { name: "watches", about: "Watches per domain", of: |limits| &mut limits.watches },
    Quota { name: "transactions", about: "Open transactions per domain", of: |limits| &mut limits.transactions },
    Quota { name: "outstanding", about: "Unread answers per connection", of: |limits| &mut limits.outstanding },
    Quota {
        name: "transaction-nodes",
        about: "Nodes touched by a transaction",
        of: |limits| &mut limits.transaction_nodes,
    },
    Quota { name: "memory", about: "Bytes per domain (refused)", of: |limits| &mut limits.memory },
    Quota { name: "path-max", about: "Bytes of a path", of: |limits| &mut limits.path_max },
    Quota { name: "permissions", about: "Permissions of a node", of: |limits| &mut limits.permissions },
    Quota { name: "node-size", about: "Bytes of a node", of: |limits| &mut limits.node_size },
];

/// The one that `xenstore-control quota-soft` shows.
pub const SOFT_QUOTAS: [Quota; 1] =
    [Quota { name: "memory", about: "Bytes per domain (logged)", of: |limits| &mut limits.memory_soft }];

/// Those that the C daemon has no name for, which stay as the daemon was started with them.
const START_QUOTAS: [Quota; 1] = [Quota {
    name: "write-rate",
    about: "Writes per second of all domains while a transaction is open",
    of: |limits| &mut limits.write_rate,
}];

//! What can go wrong with a request: always with the operation and the path.

use std::io;

use crate::wire::{ErrorName, MessageType};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon said no.
    #[error("xenstore: {operation:?} {path}: {name}")]
    Xenstore {
        /// What was asked.
        operation: MessageType,
        /// Of which node; empty where there is none.
        path: String,
        /// The daemon's word.
        name: ErrorName,
    },
    /// The request could not be sent, or was not answered in time.
    #[error("xenstore: {operation:?} {path}: {source}")]
    Io {
        /// What was asked.
        operation: MessageType,
        /// Of which node.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The request cannot be put in a message, and was not sent.
    #[error("xenstore: {operation:?} {path:?} cannot be asked: {reason}")]
    Unfit {
        /// What was to be asked.
        operation: MessageType,
        /// Of which node.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The connection is gone.
    #[error("the connection to xenstored is gone: {source}")]
    Connection {
        /// Why.
        source: io::Error,
    },
    /// The daemon does not speak the protocol.
    #[error("xenstored broke the protocol: {0}")]
    Protocol(String),
    /// A value that was to be text is none.
    #[error("xenstore: the value of {path} is not UTF-8")]
    NotUtf8 {
        /// The node.
        path: String,
    },
    /// Somebody else interfered each time.
    #[error("xenstore: a transaction was in conflict {tries} times")]
    Conflict {
        /// How often it was tried.
        tries: u32,
    },
}

impl Error {
    /// The daemon's word, if it was the daemon who said no.
    pub fn name(&self) -> Option<&ErrorName> {
        match self {
            Error::Xenstore { name, .. } => Some(name),
            _ => None,
        }
    }

    /// There is no such node.
    pub fn is_not_found(&self) -> bool {
        self.name() == Some(&ErrorName::Enoent)
    }

    /// One of our limits at the store is used up: the number of nodes most likely, or memory (`EQUOTA` is oxenstored's
    /// word).
    pub fn is_quota(&self) -> bool {
        matches!(self.name(), Some(ErrorName::Enospc | ErrorName::Enomem | ErrorName::E2big))
            || matches!(self.name(), Some(ErrorName::Other(name)) if name == "EQUOTA")
    }

    /// The node is not ours to read or write.
    pub fn is_permission(&self) -> bool {
        matches!(self.name(), Some(ErrorName::Eacces | ErrorName::Eperm))
    }
}

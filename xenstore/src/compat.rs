//! The traits of the crate xenstore-rs over our client, so that code written for it runs on ours: listing, reading,
//! writing and removing, of text, in transactions too. Everything else is in [`crate::Store`].

use std::cell::{RefCell, RefMut};
use std::io;
use std::rc::Rc;

use crate::Client;
use crate::error::Error;
use crate::store::Store;
use crate::wire::{ErrorName, MessageType};

/// A client with xenstore-rs' interface.
#[derive(Clone, Debug)]
pub struct Compat(Rc<RefCell<Client>>);

impl Compat {
    /// Wraps a client.
    pub fn new(client: Client) -> Compat {
        Compat(Rc::new(RefCell::new(client)))
    }
}

/// A transaction with xenstore-rs' interface: aborted where it is not committed. It ends with the connection that it
/// was begun on; then, as in a conflict, everything fails with `WouldBlock`, and is to be done again in another one.
#[derive(Debug)]
pub struct Span {
    client: Rc<RefCell<Client>>,
    id: u32,
    connection: Option<u64>,
    open: bool,
}

/// What both are to a request.
struct Through<'a> {
    client: RefMut<'a, Client>,
    /// A transaction and the connection that it is of.
    of: Option<(u32, Option<u64>)>,
}

impl Store for Through<'_> {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        match self.of {
            None => self.client.ask(kind, 0, path, parts),
            // The number may be somebody else's on the connection of now.
            Some((_, connection)) if connection != self.client.connection() => Err(Error::Conflict { tries: 1 }),
            Some((id, _)) => self.client.ask(kind, id, path, parts),
        }
    }

    fn generation(&self) -> u64 {
        self.client.generation()
    }
}

impl Compat {
    fn store(&self) -> Through<'_> {
        Through { client: self.0.borrow_mut(), of: None }
    }
}

impl Span {
    fn store(&self) -> Through<'_> {
        Through { client: self.client.borrow_mut(), of: Some((self.id, self.connection)) }
    }

    fn end(&mut self, how: &[u8]) -> Result<(), Error> {
        self.open = false;
        self.store().request(MessageType::TransactionEnd, "", &[how]).map(drop)
    }
}

fn io_error(error: Error) -> io::Error {
    let kind = match &error {
        Error::Xenstore { name, .. } => match name {
            ErrorName::Enoent => io::ErrorKind::NotFound,
            ErrorName::Eacces | ErrorName::Eperm => io::ErrorKind::PermissionDenied,
            ErrorName::Eexist => io::ErrorKind::AlreadyExists,
            ErrorName::Einval => io::ErrorKind::InvalidInput,
            ErrorName::Enospc => io::ErrorKind::StorageFull,
            ErrorName::Other(name) if name == "EQUOTA" => io::ErrorKind::QuotaExceeded,
            ErrorName::Enosys => io::ErrorKind::Unsupported,
            // Try the whole transaction again.
            ErrorName::Eagain => io::ErrorKind::WouldBlock,
            _ => io::ErrorKind::Other,
        },
        Error::Conflict { .. } => io::ErrorKind::WouldBlock,
        Error::Io { source, .. } | Error::Connection { source } => source.kind(),
        Error::Unfit { .. } => io::ErrorKind::InvalidInput,
        Error::NotUtf8 { .. } | Error::Protocol(_) => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

/// The four verbs, the same for both.
macro_rules! verbs {
    ($type:ty) => {
        impl xenstore_rs::Xs for $type {
            fn directory(&self, path: &str) -> io::Result<Vec<Box<str>>> {
                let names = self.store().directory(path).map_err(io_error)?;
                Ok(names.into_iter().map(String::into_boxed_str).collect())
            }

            fn read(&self, path: &str) -> io::Result<Box<str>> {
                self.store().read_string(path).map(String::into_boxed_str).map_err(io_error)
            }

            fn write(&self, path: &str, data: &str) -> io::Result<()> {
                self.store().write(path, data.as_bytes()).map_err(io_error)
            }

            fn rm(&self, path: &str) -> io::Result<()> {
                self.store().rm(path).map_err(io_error)
            }
        }
    };
}

verbs!(Compat);
verbs!(Span);

impl xenstore_rs::XsTransaction for Compat {
    type Span = Span;

    fn transaction(&self) -> io::Result<Span> {
        let mut client = self.0.borrow_mut();
        let id = client.start_transaction().map_err(io_error)?;
        Ok(Span { client: Rc::clone(&self.0), id, connection: client.connection(), open: true })
    }
}

impl xenstore_rs::XsTransactionSpan for Span {
    /// An error of the kind `WouldBlock` says that somebody has interfered.
    fn commit(mut self) -> io::Result<()> {
        self.end(b"T\0").map_err(io_error)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.open {
            // The daemon ends it with the connection if it cannot be told.
            let _ = self.end(b"F\0");
        }
    }
}

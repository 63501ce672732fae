//! The traits of the crate xenstore-rs over our client, so that code written for it runs on ours: listing, reading,
//! writing and removing, of text, in transactions too. Everything else is in [`crate::Store`].

use std::cell::RefCell;
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

/// A transaction with xenstore-rs' interface: aborted where it is not committed.
#[derive(Debug)]
pub struct Span {
    client: Rc<RefCell<Client>>,
    id: u32,
    open: bool,
}

/// What both are to a request.
struct Through<'a> {
    client: std::cell::RefMut<'a, Client>,
    id: u32,
}

impl Store for Through<'_> {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.client.ask(kind, self.id, path, parts)
    }
}

impl Compat {
    fn store(&self) -> Through<'_> {
        Through { client: self.0.borrow_mut(), id: 0 }
    }
}

impl Span {
    fn store(&self) -> Through<'_> {
        Through { client: self.client.borrow_mut(), id: self.id }
    }
}

fn io_error(error: Error) -> io::Error {
    let kind = match error.name() {
        Some(ErrorName::Enoent) => io::ErrorKind::NotFound,
        Some(ErrorName::Eacces | ErrorName::Eperm) => io::ErrorKind::PermissionDenied,
        Some(ErrorName::Eexist) => io::ErrorKind::AlreadyExists,
        Some(ErrorName::Einval) => io::ErrorKind::InvalidInput,
        Some(ErrorName::Enospc) => io::ErrorKind::StorageFull,
        // Try the whole transaction again.
        Some(ErrorName::Eagain) => io::ErrorKind::WouldBlock,
        _ => io::ErrorKind::Other,
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
        let id = self.0.borrow_mut().start_transaction().map_err(io_error)?;
        Ok(Span { client: Rc::clone(&self.0), id, open: true })
    }
}

impl xenstore_rs::XsTransactionSpan for Span {
    /// An error of the kind `WouldBlock` says that somebody has interfered.
    fn commit(mut self) -> io::Result<()> {
        self.open = false;
        self.client.borrow_mut().end_transaction(self.id, true).map_err(io_error)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.open {
            // The daemon ends it with the connection if it cannot be told.
            let _ = self.client.borrow_mut().end_transaction(self.id, false);
        }
    }
}

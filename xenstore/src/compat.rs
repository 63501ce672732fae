//! The `Xs` trait of the crate xenstore-rs over our client, so that code written for it runs on ours. It has listing,
//! reading, writing and removing, of text; everything else is in [`crate::Store`].

use std::cell::RefCell;
use std::io;

use crate::Client;
use crate::error::Error;
use crate::store::Store;
use crate::wire::ErrorName;

/// A client with xenstore-rs' interface.
#[derive(Debug)]
pub struct Compat(RefCell<Client>);

impl Compat {
    /// Wraps a client.
    pub fn new(client: Client) -> Compat {
        Compat(RefCell::new(client))
    }

    /// The client again.
    pub fn into_inner(self) -> Client {
        self.0.into_inner()
    }
}

fn io_error(error: Error) -> io::Error {
    let kind = match error.name() {
        Some(ErrorName::Enoent) => io::ErrorKind::NotFound,
        Some(ErrorName::Eacces | ErrorName::Eperm) => io::ErrorKind::PermissionDenied,
        Some(ErrorName::Eexist) => io::ErrorKind::AlreadyExists,
        Some(ErrorName::Einval) => io::ErrorKind::InvalidInput,
        Some(ErrorName::Enospc) => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl xenstore_rs::Xs for Compat {
    fn directory(&self, path: &str) -> io::Result<Vec<Box<str>>> {
        let names = self.0.borrow_mut().directory(path).map_err(io_error)?;
        Ok(names.into_iter().map(String::into_boxed_str).collect())
    }

    fn read(&self, path: &str) -> io::Result<Box<str>> {
        self.0.borrow_mut().read_string(path).map(String::into_boxed_str).map_err(io_error)
    }

    fn write(&self, path: &str, data: &str) -> io::Result<()> {
        self.0.borrow_mut().write(path, data.as_bytes()).map_err(io_error)
    }

    fn rm(&self, path: &str) -> io::Result<()> {
        self.0.borrow_mut().rm(path).map_err(io_error)
    }
}

//! A request and its answer, on the connection there is and on the next one.

use std::io;
use std::time::Instant;

use rustix::event::PollFlags;

use super::Client;
use super::events::WatchEvent;
use super::reconnect::Comeback;
use crate::error::Error;
use crate::wire::{self, ErrorName, Header, MessageType};

impl Client {
    /// Sends a request and waits for its answer, from a daemon that has come back if need be.
    pub(crate) fn ask(
        &mut self,
        kind: MessageType,
        transaction: u32,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        if path.contains('\0') {
            return Err(unfit(kind, path, "a path has no NUL".into()));
        }
        let mut comeback = Comeback::new(self.survives);
        loop {
            // What is not settled in a transaction is its owner's to begin anew.
            if self.broken && transaction == 0 {
                self.reconnect(not_connected(), &mut comeback)?;
            }
            let deadline = Instant::now().checked_add(self.patience);
            match self.exchange(kind, transaction, path, parts, deadline) {
                Err(error) if self.broken && transaction == 0 && !self.survives.is_zero() => {
                    self.reconnect(error, &mut comeback)?;
                    if !is_repeatable(kind) {
                        let source = io::Error::from(io::ErrorKind::ConnectionReset);
                        return Err(Error::Io { operation: kind, path: path.to_owned(), source });
                    }
                }
                other => return other,
            }
        }
    }

    /// A request and its answer on this connection.
    pub(super) fn exchange(
        &mut self,
        kind: MessageType,
        transaction: u32,
        path: &str,
        parts: &[&[u8]],
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, Error> {
        if self.broken {
            return Err(not_connected());
        }
        self.request = self.request.wrapping_add(1).max(1);
        let request = self.request;
        let message = wire::message(kind as u32, request, transaction, parts);
        let message = message.filter(|message| self.link.takes(message.len())).ok_or_else(|| {
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            unfit(kind, path, format!("{bytes} bytes are more than a message holds here"))
        })?;
        self.send(kind, path, &message, deadline)?;
        loop {
            while let Some((header, payload)) = self.message()? {
                let is_error = header.kind == MessageType::Error as u32;
                // Kernels before 4.11 answer both with request number 0.
                let is_unnumbered = header.request == 0
                    && matches!(kind, MessageType::Watch | MessageType::Unwatch)
                    && (header.kind == kind as u32 || is_error);
                if header.request != request && !is_unnumbered {
                    continue;
                }
                if is_error {
                    let name = ErrorName::parse(&payload);
                    return Err(Error::Xenstore { operation: kind, path: path.to_owned(), name });
                }
                if header.kind != kind as u32 {
                    return Err(self.distrust(format!("{kind:?} was answered with type {}", header.kind)));
                }
                return Ok(payload);
            }
            // A daemon that says something all the time, but not that, is late as well.
            if is_over(deadline) || !self.fill(deadline)? {
                return Err(self.late(kind, path));
            }
        }
    }

    /// Sends a whole message.
    fn send(&mut self, kind: MessageType, path: &str, message: &[u8], deadline: Option<Instant>) -> Result<(), Error> {
        let mut sent = 0;
        while sent < message.len() {
            let count = match self.link.send(&message[sent..]) {
                Ok(count) => count,
                // The kernel has dropped the message, not the connection.
                Err(source) if self.link.is_device() => return Err(refused(kind, path, source)),
                Err(source) => return Err(self.gone(source)),
            };
            sent += count;
            if count == 0 {
                // The daemon may be waiting for us to read: take in what is there while we wait.
                let ready = self.link.wait(PollFlags::OUT | PollFlags::IN, deadline);
                if is_over(deadline) || !ready.map_err(|source| self.gone(source))? {
                    return Err(self.late(kind, path));
                }
                self.link.receive().map_err(|source| self.gone(source))?;
                while self.message()?.is_some() {}
            }
        }
        Ok(())
    }

    /// Takes the next whole message out of the input; events go to the queue on the way.
    pub(super) fn message(&mut self) -> Result<Option<(Header, Vec<u8>)>, Error> {
        loop {
            let message = self.link.message().map_err(|len| self.distrust(format!("a message of {len} bytes")))?;
            let Some((header, payload)) = message else { return Ok(None) };
            if header.kind != MessageType::WatchEvent as u32 {
                return Ok(Some((header, payload)));
            }
            let mut strings = payload.split(|byte| *byte == 0);
            let (path, token) = (strings.next().unwrap_or_default(), strings.next().unwrap_or_default());
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            self.events.push(WatchEvent { path: text(path), token: text(token) });
        }
    }

    /// Waits for input and takes it in; false when the deadline has passed.
    pub(super) fn fill(&mut self, deadline: Option<Instant>) -> Result<bool, Error> {
        if !self.link.wait(PollFlags::IN, deadline).map_err(|source| self.gone(source))? {
            return Ok(false);
        }
        self.link.receive().map_err(|source| self.gone(source))?;
        Ok(true)
    }

    fn gone(&mut self, source: io::Error) -> Error {
        self.give_up();
        Error::Connection { source }
    }

    /// What was asked and not answered may be done yet, in half a message or an open transaction: only the end of the
    /// connection settles it.
    fn late(&mut self, kind: MessageType, path: &str) -> Error {
        self.give_up();
        Error::Io { operation: kind, path: path.to_owned(), source: io::ErrorKind::TimedOut.into() }
    }

    fn distrust(&mut self, what: String) -> Error {
        self.give_up();
        Error::Protocol(what)
    }

    /// The connection is of no use any more.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
        self.link.cut();
    }
}

pub(super) fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

pub(super) fn unfit(kind: MessageType, path: &str, reason: String) -> Error {
    Error::Unfit { operation: kind, path: path.to_owned(), reason }
}

fn not_connected() -> Error {
    Error::Connection { source: io::ErrorKind::NotConnected.into() }
}

/// What a write to the kernel's device failed with: it registers a watch itself, and says there what the daemon said.
fn refused(kind: MessageType, path: &str, source: io::Error) -> Error {
    let path = path.to_owned();
    match ErrorName::from_errno(&source) {
        Some(name) if kind == MessageType::Watch => Error::Xenstore { operation: kind, path, name },
        _ => Error::Io { operation: kind, path, source },
    }
}

/// Done twice it is as if done once.
fn is_repeatable(kind: MessageType) -> bool {
    use MessageType::*;
    !matches!(kind, Control | Introduce | Release | Resume | SetTarget | SetFeature | SetQuota)
}

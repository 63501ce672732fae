//! A request and its answer, on the connection there is and on the next one.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::Client;
use super::events::WatchEvent;
use super::link::Place;
use crate::error::Error;
use crate::wire::{self, ErrorName, Header, MessageType};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause between two attempts to connect again.
const PAUSE: Duration = Duration::from_millis(500);

impl Client {
    /// Sends a request and waits for its answer, from a daemon that has come back if need be.
    pub(crate) fn ask(
        &mut self,
        kind: MessageType,
        transaction: u32,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        loop {
            // What is not settled in a transaction is its owner's to begin anew.
            if self.broken && transaction == 0 {
                self.reconnect(Error::Connection { source: io::ErrorKind::NotConnected.into() })?;
            }
            match self.exchange(kind, transaction, path, parts) {
                Err(error) if self.broken && transaction == 0 => {
                    self.reconnect(error)?;
                    if !is_repeatable(kind) {
                        let source = io::Error::from(io::ErrorKind::ConnectionReset);
                        return Err(Error::Io { operation: kind, path: path.to_owned(), source });
                    }
                }
                other => return other,
            }
        }
    }

    fn exchange(&mut self, kind: MessageType, transaction: u32, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Io { operation: kind, path: path.to_owned(), source };
        if self.broken {
            return Err(Error::Connection { source: io::ErrorKind::NotConnected.into() });
        }
        self.request = self.request.wrapping_add(1).max(1);
        let request = self.request;
        let message = wire::message(kind as u32, request, transaction, parts);
        let message = message.filter(|message| self.link.takes(message.len()));
        let message = message.ok_or_else(|| failed(io::Error::from(Errno::TOOBIG)))?;
        let deadline = Instant::now().checked_add(PATIENCE);
        let late = || failed(io::Error::from(io::ErrorKind::TimedOut));
        if !self.send(&message, deadline)? {
            return Err(late());
        }
        loop {
            while let Some((header, payload)) = self.message()? {
                // Kernels before 4.11 answer watches with request number 0.
                let unnumbered = header.request == 0 && header.kind == kind as u32;
                if header.request != request && !unnumbered {
                    continue;
                }
                if header.kind == MessageType::Error as u32 {
                    let name = ErrorName::parse(&payload);
                    return Err(Error::Xenstore { operation: kind, path: path.to_owned(), name });
                }
                if header.kind != kind as u32 {
                    return Err(Error::Protocol(format!("{kind:?} was answered with type {}", header.kind)));
                }
                return Ok(payload);
            }
            if !self.fill(deadline)? {
                return Err(late());
            }
        }
    }

    /// Sends a whole message; false when the deadline has passed.
    fn send(&mut self, message: &[u8], deadline: Option<Instant>) -> Result<bool, Error> {
        let mut sent = 0;
        while sent < message.len() {
            let count = self.link.send(&message[sent..]).map_err(|source| self.gone(source))?;
            sent += count;
            if count == 0 {
                // The daemon may be waiting for us to read: take in what is there while we wait.
                let ready = self.link.wait(PollFlags::OUT | PollFlags::IN, deadline);
                if !ready.map_err(|source| self.gone(source))? {
                    return Ok(false);
                }
                self.link.receive().map_err(|source| self.gone(source))?;
                while self.message()?.is_some() {}
            }
        }
        Ok(true)
    }

    /// Takes the next whole message out of the input; events go to the queue on the way.
    pub(super) fn message(&mut self) -> Result<Option<(Header, Vec<u8>)>, Error> {
        while let Some((header, payload)) = self.link.message()? {
            if header.kind != MessageType::WatchEvent as u32 {
                return Ok(Some((header, payload)));
            }
            let mut strings = payload.split(|byte| *byte == 0);
            let (path, token) = (strings.next().unwrap_or_default(), strings.next().unwrap_or_default());
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            self.events.push(WatchEvent { path: text(path), token: text(token) });
        }
        Ok(None)
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
        self.broken = true;
        Error::Connection { source }
    }

    /// Connects again to a daemon that comes back in time, and registers all watches. `error` is what it is otherwise.
    pub(super) fn reconnect(&mut self, error: Error) -> Result<(), Error> {
        let deadline = Instant::now() + self.survives;
        let mut pause = Duration::from_millis(5);
        while !self.survives.is_zero() && !matches!(self.place, Place::Unknown) {
            let fresh = self.place.connect().and_then(|fd| self.link.replace(fd));
            if fresh.is_ok() {
                self.broken = false;
                self.generation += 1;
                if self.register_again()? {
                    tracing::debug!(generation = self.generation, "connected to xenstored again");
                    return Ok(());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Everybody comes back at once, but not in step.
            std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0).min(left));
            pause = (pause * 2).min(PAUSE);
        }
        self.broken = true;
        Err(error)
    }

    /// False when the daemon is gone again.
    fn register_again(&mut self) -> Result<bool, Error> {
        for watch in self.events.watches.clone() {
            match self.exchange(MessageType::Watch, 0, &watch.path, &[&watch.payload()]) {
                Err(_) if self.broken => return Ok(false),
                // The watch stays in the list: the daemon after this one may take it.
                Err(error @ Error::Xenstore { .. }) => self.lost.push(error),
                other => drop(other?),
            }
        }
        Ok(true)
    }
}

/// Done twice it is as if done once.
fn is_repeatable(kind: MessageType) -> bool {
    use MessageType::*;
    !matches!(kind, Control | Introduce | Release | Resume | SetTarget | SetFeature | SetQuota)
}

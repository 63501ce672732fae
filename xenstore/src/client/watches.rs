//! Watching.

use std::time::{Duration, Instant};

use super::Client;
use super::events::{Watch, WatchEvent};
use crate::error::Error;
use crate::wire::{ErrorName, MessageType};

/// A watch may be for so many levels only (`XENSTORE_SERVER_FEATURE_WATCHDEPTH` of newer headers).
const FEATURE_WATCHDEPTH: u32 = 4;

impl Client {
    /// Watches a path and what is below it. The first event comes at once.
    ///
    /// # Errors
    /// `EEXIST` for a watch that there is, `E2BIG` (or `ENOSPC`, `EQUOTA`) for too many.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.register(Watch { path: path.to_owned(), token: token.to_owned(), depth: None })
    }

    /// Watches a path and so many levels below it, 0 for the path alone, where the daemon can do that; everything below
    /// where it cannot, so that events of deeper nodes may come too.
    ///
    /// # Errors
    /// As [`Client::watch`].
    pub fn watch_depth(&mut self, path: &str, token: &str, depth: u32) -> Result<(), Error> {
        let can = self.features(None)?.is_some_and(|features| features & FEATURE_WATCHDEPTH != 0);
        self.register(Watch { path: path.to_owned(), token: token.to_owned(), depth: can.then_some(depth) })
    }

    fn register(&mut self, watch: Watch) -> Result<(), Error> {
        let before = self.generation;
        match self.ask_watch(&watch) {
            // Asked again after a daemon that had it went away without a word: it has it.
            Err(error) if self.generation != before && error.name() == Some(&ErrorName::Eexist) => {}
            other => other?,
        }
        self.events.watches.push(watch);
        Ok(())
    }

    fn ask_watch(&mut self, watch: &Watch) -> Result<(), Error> {
        self.ask(MessageType::Watch, 0, &watch.path, &[&watch.payload()]).map(drop)
    }

    /// Ends a watch; events of it that are still queued go with it.
    ///
    /// # Errors
    /// `ENOENT` when there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.ask(MessageType::Unwatch, 0, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"])?;
        self.events.end(path, token);
        Ok(())
    }

    /// Ends all watches and transactions.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reset_watches(&mut self) -> Result<(), Error> {
        self.ask(MessageType::ResetWatches, 0, "", &[b"\0"])?;
        self.events.clear();
        Ok(())
    }

    /// The next event; `None` when `timeout` is over. Without a timeout it waits as long as it takes.
    ///
    /// # Errors
    /// When the connection is gone or the daemon breaks the protocol; once for each watch that a daemon which came back
    /// did not take again.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            // Late answers to requests that were given up are dropped here.
            while self.message()?.is_some() {}
            if let Some(error) = self.lost.pop() {
                return Err(error);
            }
            if let Some(event) = self.events.take() {
                return Ok(Some(event));
            }
            match self.fill(deadline) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => self.reconnect(error)?,
            }
        }
    }

    /// An event that is here already, without looking at the connection.
    pub fn queued_event(&mut self) -> Option<WatchEvent> {
        // Events that were read together with an answer may lie in the input still; answers that nobody waits for
        // any more go, and a broken protocol is for the next request to tell.
        while let Ok(Some(_)) = self.message() {}
        self.events.take()
    }
}

//! Watching.

use std::time::{Duration, Instant};

use super::Client;
use super::events::{Watch, WatchEvent};
use super::exchange::{is_over, unfit};
use super::reconnect::Comeback;
use crate::error::Error;
use crate::wire::{ErrorName, MessageType};

impl Client {
    /// Watches a path and what is below it. The first event comes at once.
    ///
    /// # Errors
    /// `EEXIST` for a watch that there is, `E2BIG` (or `ENOSPC`, `EQUOTA`) for too many.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.register(Watch { path: path.to_owned(), token: token.to_owned(), depth: None })
    }

    /// Watches a path and so many levels below it, 0 for the path alone, where the daemon can do that (Xen 4.22, and
    /// not through Linux' device); everything below where it cannot, so that events of deeper nodes may come too.
    ///
    /// # Errors
    /// As [`Client::watch`].
    pub fn watch_depth(&mut self, path: &str, token: &str, depth: u32) -> Result<(), Error> {
        self.register(Watch { path: path.to_owned(), token: token.to_owned(), depth: Some(depth) })
    }

    fn register(&mut self, watch: Watch) -> Result<(), Error> {
        let Watch { path, token, .. } = &watch;
        if token.contains('\0') {
            return Err(unfit(MessageType::Watch, path, "a token has no NUL".into()));
        }
        let (was_there, before) = (self.events.has(path, token), self.generation);
        if was_there && self.link.is_device() {
            // The kernel would take a second one, and end one of the two with it.
            let (operation, path) = (MessageType::Watch, path.clone());
            return Err(Error::Xenstore { operation, path, name: ErrorName::Eexist });
        }
        if !was_there {
            // Before it is asked for: its events come as soon as the daemon has it, and so may the end of the daemon.
            self.events.watches.push(watch.clone());
        }
        let asked = self.try_watch(&watch, |client, parts| client.ask(MessageType::Watch, 0, &watch.path, parts));
        match asked {
            // The daemon that is back has it from us already.
            Err(error) if !was_there && self.generation != before && error.name() == Some(&ErrorName::Eexist) => Ok(()),
            Err(error) => {
                if !was_there {
                    self.forget(&watch.path, &watch.token);
                }
                Err(error)
            }
            Ok(()) => {
                self.lost.retain(|(lost, _)| !lost.is(&watch.path, &watch.token));
                Ok(())
            }
        }
    }

    /// WATCH, and once more without a depth if it has one that the daemon does not know.
    pub(super) fn try_watch(
        &mut self,
        watch: &Watch,
        mut ask: impl FnMut(&mut Client, &[&[u8]]) -> Result<Vec<u8>, Error>,
    ) -> Result<(), Error> {
        let (path, token) = (watch.path.as_bytes(), watch.token.as_bytes());
        if let Some(depth) = watch.depth {
            match ask(self, &[path, b"\0", token, b"\0", depth.to_string().as_bytes(), b"\0"]) {
                Err(error) if error.name() == Some(&ErrorName::Einval) => {}
                other => return other.map(drop),
            }
        }
        ask(self, &[path, b"\0", token, b"\0"]).map(drop)
    }

    /// Ends a watch; events of it that are still queued go with it.
    ///
    /// # Errors
    /// `ENOENT` when there is no such watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        if token.contains('\0') {
            return Err(unfit(MessageType::Unwatch, path, "a token has no NUL".into()));
        }
        let was_there = self.events.has(path, token);
        match self.ask(MessageType::Unwatch, 0, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"]) {
            // A daemon that came back did not take it again.
            Err(error) if error.is_not_found() => {
                self.forget(path, token);
                if was_there && self.generation > 0 { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
            Ok(_) => {
                self.forget(path, token);
                Ok(())
            }
        }
    }

    fn forget(&mut self, path: &str, token: &str) {
        self.events.end(path, token);
        self.lost.retain(|(lost, _)| !lost.is(path, token));
    }

    /// Ends all watches and transactions of this connection.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reset_watches(&mut self) -> Result<(), Error> {
        if self.link.is_device() {
            // The daemon knows the kernel only, whose own watches would go too. No transaction is open here: one
            // borrows the client.
            for watch in self.events.watches.clone() {
                self.unwatch(&watch.path, &watch.token)?;
            }
        } else {
            self.ask(MessageType::ResetWatches, 0, "", &[b"\0"])?;
        }
        self.events.clear();
        self.lost.clear();
        Ok(())
    }

    /// The next event; `None` when `timeout` is over. Without a timeout it waits as long as it takes. Coming back to a
    /// daemon that was started again is not part of the timeout.
    ///
    /// # Errors
    /// When the connection is gone or the daemon breaks the protocol; once for each watch that a daemon which came back
    /// did not take again.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut comeback = Comeback::new(self.survives);
        let mut is_last = false;
        loop {
            // Late answers to requests that were given up are dropped here.
            while self.message()?.is_some() {}
            if let Some((_, error)) = self.lost.pop_front() {
                return Err(error);
            }
            if let Some(event) = self.events.take() {
                return Ok(Some(event));
            }
            if is_last {
                return Ok(None);
            }
            // One more look when the time is over, and no further one whatever the daemon sends.
            is_last = is_over(deadline);
            match self.fill(deadline) {
                Ok(true) => comeback = Comeback::new(self.survives),
                Ok(false) => return Ok(None),
                Err(error) => self.reconnect(error, &mut comeback)?,
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

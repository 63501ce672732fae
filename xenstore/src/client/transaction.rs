//! Transactions: run again until nobody has interfered, and never left open.

use std::time::{Duration, Instant};

use super::Client;
use super::reconnect::Comeback;
use crate::error::Error;
use crate::store::Store;
use crate::wire::{ErrorName, MessageType};

/// How often a transaction is tried.
const TRIES: u32 = 64;
/// How long it is tried.
const LONGEST: Duration = Duration::from_secs(30);

impl Client {
    /// Runs `body` in a transaction until nobody has interfered: at most 64 times and 30 seconds, with pauses that grow
    /// and vary, so that two clients that get in each other's way do so less and less. `body` must be repeatable: it
    /// may have been run, even committed, without our hearing of it, when a daemon ends in the middle (see
    /// [`Client::survive`]). The transaction never stays open.
    ///
    /// # Errors
    /// What `body` returned, or [`Error::Conflict`].
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let mut comeback = Comeback::new(self.survives);
        for attempt in 0..TRIES {
            match self.attempt(&mut body) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                // Of a connection that is gone nothing is left to end.
                Err(error) if self.broken => self.reconnect(error, &mut comeback)?,
                Err(error) => return Err(error),
            }
            if started.elapsed() > LONGEST {
                return Err(Error::Conflict { tries: attempt + 1 });
            }
            let most = 1u64 << attempt.min(6);
            std::thread::sleep(Duration::from_micros(fastrand::u64(100..=most * 1000)));
        }
        Err(Error::Conflict { tries: TRIES })
    }

    /// None when it is to be run again.
    fn attempt<T>(
        &mut self,
        body: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let is_conflict = |error: &Error| error.name() == Some(&ErrorName::Eagain);
        let id = match self.start_transaction() {
            Err(error) if is_conflict(&error) => return Ok(None),
            other => other?,
        };
        let mut transaction = Transaction { client: self, id, open: true };
        let result = body(&mut transaction);
        let ended = transaction.end(result.is_ok());
        match (result, ended) {
            (Ok(value), Ok(())) => Ok(Some(value)),
            // No such transaction (the C daemon, oxenstored): behind Linux' device is another daemon than before.
            (_, Err(error)) if matches!(error.name(), Some(ErrorName::Enoent | ErrorName::Eio)) => Ok(None),
            // A daemon may say at any operation that somebody interfered, not only at the end.
            (Err(error), _) | (Ok(_), Err(error)) if is_conflict(&error) => Ok(None),
            // What went wrong is worth more than whether giving up worked.
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    /// The number of a fresh one.
    pub(crate) fn start_transaction(&mut self) -> Result<u32, Error> {
        let id = self.ask(MessageType::TransactionStart, 0, "", &[b"\0"])?;
        let id = String::from_utf8_lossy(&id).trim_end_matches('\0').parse();
        let id = id.ok().filter(|id| *id != 0);
        id.ok_or_else(|| Error::Protocol("the transaction's number is none".into()))
    }
}

/// An open transaction; see [`Client::transaction`].
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    id: u32,
    open: bool,
}

impl Transaction<'_> {
    fn end(&mut self, commit: bool) -> Result<(), Error> {
        self.open = false;
        let how: &[u8] = if commit { b"T\0" } else { b"F\0" };
        self.client.ask(MessageType::TransactionEnd, self.id, "", &[how]).map(drop)
    }
}

impl Store for Transaction<'_> {
    fn request(&mut self, kind: MessageType, path: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.client.ask(kind, self.id, path, parts)
    }
}

impl Drop for Transaction<'_> {
    /// Left by a panic.
    fn drop(&mut self) {
        if self.open {
            // The daemon ends it with the connection if it cannot be told.
            let _ = self.end(false);
        }
    }
}

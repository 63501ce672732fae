//! Making, resizing and removing volumes: checked here, done by a thread of its own, because a disk may take its time
//! and guests must not notice.

use std::collections::VecDeque;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xenstore::Error;

use super::Supervisor;
use crate::source::{self, Change, Refusal};

/// So many outcomes are remembered for whoever asks.
const REMEMBERED: usize = 32;

/// What is being done to volumes, and what has become of it.
#[derive(Default)]
pub(super) struct Changes {
    last: u64,
    running: Option<Running>,
    done: VecDeque<(u64, Result<u64, Refusal>)>,
}

/// The one change that is under way.
struct Running {
    ticket: u64,
    name: String,
    thread: JoinHandle<Result<u64, Refusal>>,
    /// Hangs up when the thread has ended.
    ended: PipeReader,
}

impl Changes {
    /// Whether a volume is not to be opened now.
    pub fn is_changing(&self, name: &str) -> bool {
        self.running.as_ref().is_some_and(|running| running.name == name)
    }

    /// Readable when the change that is under way has ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.ended.as_fd())
    }

    /// What has become of a change; none while it is under way.
    pub fn outcome(&self, ticket: u64) -> Option<Result<u64, Refusal>> {
        if self.running.as_ref().is_some_and(|running| running.ticket == ticket) {
            return None;
        }
        let found = self.done.iter().find(|(done, _)| *done == ticket).map(|(_, outcome)| outcome.clone());
        Some(found.unwrap_or_else(|| Err(Refusal::Missing(format!("no change has the number {ticket}")))))
    }

    /// What has ended, if anything has.
    fn reap(&mut self) -> Option<(String, Result<u64, Refusal>)> {
        let ended = self.running.as_ref().is_some_and(|running| {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(&running.ended, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
        });
        let running = self.running.take_if(|_| ended)?;
        let outcome = running.thread.join().unwrap_or_else(|_| Err(Refusal::Failed("its thread has died".into())));
        self.done.push_back((running.ticket, outcome.clone()));
        while self.done.len() > REMEMBERED {
            self.done.pop_front();
        }
        Some((running.name, outcome))
    }
}

impl Supervisor {
    /// Begins a change; its ticket.
    pub(super) fn change(&mut self, name: &str, change: Change) -> Result<u64, Refusal> {
        if let Some(running) = &self.changes.running {
            return Err(Refusal::Busy(format!("volume {} is being changed; one at a time", running.name)));
        }
        // As the medium is now, not as we last saw it.
        source::refresh(&mut self.config);
        let order = source::check(&self.config, name, change)?;
        if let Some(user) = self.user_of(name) {
            return Err(Refusal::Busy(format!("volume {name} is in use by {user}")));
        }
        let failed = |error: io::Error| Refusal::Failed(format!("volume {name}: no thread for it: {error}"));
        let (ended, end) = io::pipe().map_err(failed)?;
        let thread = std::thread::Builder::new().name("volume".into()).spawn(move || {
            let _end = end;
            order.run()
        });
        self.changes.last += 1;
        let (ticket, thread) = (self.changes.last, thread.map_err(failed)?);
        self.changes.running = Some(Running { ticket, name: name.to_owned(), thread, ended });
        Ok(ticket)
    }

    /// Notices the end of a change.
    pub(super) fn tend_changes(&mut self) -> Result<(), Error> {
        let Some((name, outcome)) = self.changes.reap() else { return Ok(()) };
        match outcome {
            Ok(0) => tracing::info!("volume {name} is removed"),
            Ok(bytes) => tracing::info!("volume {name} has {bytes} bytes"),
            Err(refusal) => tracing::warn!("{refusal}"),
        }
        self.find_volumes()
    }
}

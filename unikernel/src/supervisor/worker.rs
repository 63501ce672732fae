//! A worker's process, as its supervisor sees it: a control socket, a fence pipe per thread, a process.
//!
//! ```text
//! Running --socket hangs up--> Dead --every fence hangs up--> Fenced: its I/O is over, volumes may be let go
//!                                '--10 s--> Held: nothing is issued again, until the fences hang up after all
//! ```
//! The write end of a fence is in the worker's io_uring and nowhere else, so its hang-up says that the kernel has
//! ended every request of that ring; the death of the process says no such thing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process::{Ended, Process};
use crate::log::voice::{Speak, Voice};
use crate::message::{Channel, Line, Start, Word};

/// How long a dead worker's I/O may take before its disks are held.
pub const FENCE_PATIENCE: Duration = Duration::from_secs(10);

/// Lines that are read one after the other: more than a socket holds of one that counts them as it should.
const LINES_AT_ONCE: usize = 4096;

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Running,
    /// Its socket hung up; the kernel may still work on its I/O.
    Dead {
        /// When it was noticed.
        since: Instant,
    },
    /// All its I/O is over, and the process is gone.
    Fenced,
    /// Its I/O is not over in time.
    Held,
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    channel: Channel,
    /// Read ends that have not hung up.
    fences: Vec<OwnedFd>,
    process: Process,
    /// The process is gone.
    ended: bool,
    /// Where it stands.
    pub life: Life,
    /// Why it is dead.
    pub reason: String,
    voice: Voice,
}

/// Both ends of a fence: the one to watch, and the one to give away.
///
/// # Errors
/// When there are no descriptors left.
pub fn fence() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

impl Worker {
    /// Starts a worker; `fences` are the read ends of those that are sent.
    ///
    /// # Errors
    /// With what could not be opened or started.
    pub fn start(start: &Start, sent: &[OwnedFd], fences: Vec<OwnedFd>) -> io::Result<Worker> {
        let (channel, theirs) = Channel::pair()?;
        let process = Process::worker(theirs)?;
        let mut worker = Worker::taken_over(process, channel, fences);
        if let Err(error) = worker.send(start, &sent.iter().map(AsFd::as_fd).collect::<Vec<_>>()) {
            worker.kill("it cannot be spoken to");
            return Err(error);
        }
        Ok(worker)
    }

    fn taken_over(process: Process, channel: Channel, fences: Vec<OwnedFd>) -> Worker {
        Worker {
            channel,
            fences,
            process,
            ended: false,
            life: Life::Running,
            reason: String::new(),
            voice: Voice::default(),
        }
    }

    /// One that a supervisor before us kept: socket, process, fences, as from [`Worker::handles`].
    pub fn from_handles(pid: i32, handles: Vec<OwnedFd>) -> Option<Worker> {
        let mut fds = handles.into_iter();
        let channel = Channel::new(fds.next()?);
        let process = Process::taken_over(pid, fds.next()?);
        Some(Worker::taken_over(process, channel, fds.collect()))
    }

    /// What somebody needs to take this worker over: socket, process, fences.
    pub fn handles(&self) -> Vec<BorrowedFd<'_>> {
        let mut handles = vec![self.channel.as_fd(), self.process.as_fd()];
        handles.extend(self.fences.iter().map(AsFd::as_fd));
        handles
    }

    /// The process's number.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Gives it an order.
    ///
    /// # Errors
    /// `WouldBlock` when it does not read; else what the kernel says.
    pub fn send<T: Serialize>(&self, order: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.channel.send(order, fds)
    }

    /// The next report, if one waits. Notices the worker's death.
    pub fn next_report<R: DeserializeOwned>(&mut self) -> Option<R> {
        if self.life != Life::Running {
            return None;
        }
        for _ in 0..LINES_AT_ONCE {
            match self.channel.receive::<Word<R>>() {
                Ok(Some((_, fds))) if !fds.is_empty() => self.kill("it sent a descriptor"),
                Ok(Some((Word::Report(report), _))) => return Some(report),
                Ok(Some((Word::Line(line), _))) => {
                    if self.voice.may_speak(Instant::now()) != Speak::No {
                        self.quote(&line);
                    }
                    continue;
                }
                Ok(None) => self.kill(""),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.kill(&format!("it sent nonsense ({error})")),
            }
            return None;
        }
        self.kill("it does not stop talking");
        None
    }

    /// Logs what the worker says. It is a stranger's: one line, and never as if it were our own.
    fn quote(&self, line: &Line) {
        let (worker, text) = (self.pid(), line.text.replace(char::is_control, " "));
        match line.level {
            ..=3 => tracing::error!(worker, "{text}"),
            4 => tracing::warn!(worker, "{text}"),
            _ => tracing::info!(worker, "{text}"),
        }
    }

    /// Ends the worker, if it has not ended by itself, and keeps the reason. Does not wait: a process ends when its
    /// I/O does.
    pub fn kill(&mut self, why: &str) {
        // One that closed its socket may live on.
        self.process.kill();
        self.life = Life::Dead { since: Instant::now() };
        self.reason = match why {
            "" => String::new(),
            why => format!("its worker (process {}) was stopped because {why}", self.pid()),
        };
        self.reap();
        if self.reason.is_empty() {
            self.reason = self.died(Ended::Unknown);
        }
    }

    fn died(&self, how: Ended) -> String {
        format!("its worker (process {}) {how}", self.pid())
    }

    /// Collects the process if it has ended; true when that changed [`Worker::life`] or the reason.
    pub fn reap(&mut self) -> bool {
        if self.life == Life::Running {
            // Its socket hangs up first: what it said last is read before it counts as dead.
            return false;
        }
        let Some(how) = (if self.ended { None } else { self.process.ended() }) else {
            return false;
        };
        self.ended = true;
        let unexplained = self.reason.is_empty() || self.reason == self.died(Ended::Unknown);
        if unexplained {
            self.reason = self.died(how);
        }
        unexplained
    }

    /// Lets a worker end that has nothing left to serve: it ends when its socket hangs up.
    pub fn retire(self) -> Retired {
        Retired { process: self.process, since: Instant::now() }
    }

    /// What to poll: the socket of a running worker; of a dead one its fences, and its process until it is gone.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        if self.life == Life::Running {
            return vec![self.channel.as_fd()];
        }
        let process = (!self.ended).then(|| self.process.as_fd());
        self.fences.iter().map(AsFd::as_fd).chain(process).collect()
    }

    /// Looks at the fences of a dead worker; true when [`Worker::life`] changed.
    pub fn check_fences(&mut self, now: Instant) -> bool {
        let before = self.life;
        if !matches!(self.life, Life::Dead { .. } | Life::Held) {
            return false;
        }
        self.fences.retain(|fence| !hung_up(fence));
        match self.life {
            _ if self.fences.is_empty() && self.ended => self.life = Life::Fenced,
            Life::Dead { since } if now.duration_since(since) >= FENCE_PATIENCE => self.life = Life::Held,
            _ => {}
        }
        self.life != before
    }

    /// When [`Worker::check_fences`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.life {
            Life::Dead { since } => Some(since + FENCE_PATIENCE),
            _ => None,
        }
    }
}

/// A worker on its way out.
#[derive(Debug)]
pub struct Retired {
    process: Process,
    since: Instant,
}

impl Retired {
    /// True once it is gone; one that does not go is killed after a while.
    pub fn reap(&mut self, now: Instant) -> bool {
        if self.process.ended().is_some() {
            return true;
        }
        if now.duration_since(self.since) > FENCE_PATIENCE {
            // Its end is seen by a later call.
            self.process.kill();
        }
        false
    }
}

fn hung_up(fence: &OwnedFd) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(fence.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ready, Some(&now)).is_ok() && ready[0].revents().contains(PollFlags::HUP)
}

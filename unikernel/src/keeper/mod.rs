//! The keeper: the small parent that outlives the supervisor. PID 1 is one, and `windsor serve` is one.
//!
//! It starts the supervisor with one end of a SOCK_SEQPACKET pair as standard input, keeps the descriptors it is given
//! (journals, volumes with their locks, read ends of fence pipes, workers' sockets), and hands them to the next
//! supervisor when one dies. It reaps everything, forwards a request to stop, and reads nothing but those messages.
//!
//! ```text
//! start --> supervisor runs --exit(code)--> wait for workers --> end with code
//!   ^            |
//!   |       killed by a signal
//!   +-- pause <--+--> too often: give up, end with 1
//! ```
//!
//! An exit code means that the supervisor ended on purpose; only a death by signal (a panic aborts) is a crash.

mod client;
mod store;
pub mod wire;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitOptions, WaitStatus, wait};

pub use client::Keeper;
use store::Store;

/// How patient the keeper is.
#[derive(Clone, Debug)]
pub struct Limits {
    /// So many crashes within `window` are followed by a restart; one more is the last.
    pub crashes: usize,
    /// The time over which crashes are counted.
    pub window: Duration,
    /// The pause after the first crash; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long a supervisor may take to end after it was asked; then it is killed.
    pub stop: Duration,
    /// How long workers may take to end after the supervisor; then they are killed.
    pub workers: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            crashes: 5,
            window: Duration::from_secs(60),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            stop: Duration::from_secs(30),
            workers: Duration::from_secs(10),
        }
    }
}

/// How often a watchdog is kept quiet: the shortest patience of those there are is a minute.
const WATCHDOG: Duration = Duration::from_secs(10);

/// What the keeper runs.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program; `/proc/self/exe` is this one.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// What its environment has besides ours.
    pub environment: Vec<(OsString, OsString)>,
    /// A supervisor that was asked to stop serves on for a while: one that dies meanwhile has a successor, which is asked
    /// again.
    pub lingers: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Spec {
    /// This very program as `windsor supervisor ARGS...`.
    pub fn supervisor(args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let args = std::iter::once("supervisor".into()).chain(args.into_iter().map(Into::into)).collect();
        Self {
            program: "/proc/self/exe".into(),
            args,
            environment: Vec::new(),
            lingers: false,
            limits: Limits::default(),
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The supervisor's exit code, or 1 when it crashed too often or had to be killed.
    pub code: i32,
    /// The signal that asked for the end, SIGTERM or SIGINT.
    pub signal: Option<Signal>,
}

/// Runs the supervisor, again and again if need be, until it ends on purpose.
///
/// To be called by a process of one thread: SIGTERM, SIGINT and SIGCHLD are blocked for it and for its children.
///
/// # Errors
/// When signals cannot be received, or the supervisor cannot be started the first time.
pub fn run(spec: &Spec) -> io::Result<Ended> {
    run_with(spec, Vec::new(), None)
}

/// [`run`] with descriptors that even the first supervisor finds kept, and a watchdog that bites unless this process
/// goes on living.
///
/// # Errors
/// As there.
pub fn run_with(spec: &Spec, kept: Vec<(&str, OwnedFd)>, watchdog: Option<File>) -> io::Result<Ended> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // Workers whose supervisor died become children of this process, and are reaped here.
    nix::sys::prctl::set_child_subreaper(true)?;
    Watch { spec, signals, store: Store::of(kept), stop: None, alone: false, watchdog }.run()
}

/// A request to stop.
#[derive(Clone, Copy)]
struct Stop {
    signal: Signal,
    deadline: Instant,
}

struct Watch<'a> {
    spec: &'a Spec,
    signals: SignalFd,
    store: Store,
    stop: Option<Stop>,
    /// Whether the last look found no children at all.
    alone: bool,
    watchdog: Option<File>,
}

impl Watch<'_> {
    fn run(mut self) -> io::Result<Ended> {
        let limits = self.spec.limits.clone();
        let mut crashes = VecDeque::new();
        let mut started = false;
        loop {
            let why = match self.start() {
                Ok((pid, socket)) => {
                    started = true;
                    let status = self.attend(pid, socket)?;
                    if let Some(code) = status.exit_status() {
                        return self.finish(code);
                    }
                    let signal = status.terminating_signal().unwrap_or(0);
                    let name = Signal::try_from(signal).map_or("an unknown signal", Signal::as_str);
                    format!("the supervisor (process {pid}) was killed by {name} ({signal})")
                }
                Err(error) if !started => return Err(error),
                Err(error) => format!("the supervisor cannot be started ({error})"),
            };
            if self.stop.is_some() && !self.spec.lingers {
                log(&format!("{why} while stopping"));
                return self.finish(1);
            }
            let now = Instant::now();
            crashes.push_back(now);
            while crashes.front().is_some_and(|&at| now.duration_since(at) > limits.window) {
                crashes.pop_front();
            }
            if crashes.len() > limits.crashes {
                let (count, window) = (crashes.len(), limits.window);
                log(&format!("{why}; that is {count} times within {window:?}, giving up"));
                return self.finish(1);
            }
            let doublings = u32::try_from(crashes.len() - 1).unwrap_or(u32::MAX);
            let pause = limits.first_pause.saturating_mul(2u32.saturating_pow(doublings)).min(limits.longest_pause);
            log(&format!("{why}; starting it again in {pause:?}, its devices pause until then"));
            if self.pause(pause)? && !self.spec.lingers {
                return self.finish(1);
            }
        }
    }

    /// Starts a supervisor: its process and our end of its socket.
    fn start(&self) -> io::Result<(Pid, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(&self.spec.program)
            .args(&self.spec.args)
            .envs(self.spec.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot run {}: {error}", self.spec.program.display()))
            })?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok((Pid::from_raw(pid), ours))
    }

    /// Serves one supervisor until it has ended and everything it sent has been read.
    fn attend(&mut self, pid: Pid, socket: OwnedFd) -> io::Result<WaitStatus> {
        let mut socket = Some(socket);
        let mut killed = false;
        if self.stop.is_some() {
            let _ = kill(pid, Signal::SIGTERM);
        }
        loop {
            let (asked, ended) = self.signals_and_children(Some(pid))?;
            if let Some(status) = ended {
                if let Some(socket) = &socket {
                    // What was sent before the death counts; nobody is left to send without end.
                    self.answer(socket, usize::MAX);
                }
                return Ok(status);
            }
            if asked {
                let _ = kill(pid, Signal::SIGTERM);
            }
            if let Some(stop) = self.stop
                && !killed
                && Instant::now() >= stop.deadline
            {
                log(&format!("the supervisor did not stop within {:?} and is killed", self.spec.limits.stop));
                let _ = kill(pid, Signal::SIGKILL);
                killed = true;
            }
            if let Some(open) = &socket
                && !self.answer(open, 64)
            {
                socket = None;
            }
            let deadline = self.stop.filter(|_| !killed).map(|stop| stop.deadline);
            self.sleep(socket.as_ref(), deadline)?;
        }
    }

    /// Answers requests; `false` when the connection is over.
    fn answer(&mut self, socket: &OwnedFd, limit: usize) -> bool {
        self.store.answer(socket.as_fd(), limit).unwrap_or_else(|error| {
            log(&format!("the supervisor's messages are of no use any more: {error}"));
            false
        })
    }

    /// Reads the signals that have come and reaps. Whether a request to stop was among them, and the status of `pid`
    /// if it was reaped.
    fn signals_and_children(&mut self, pid: Option<Pid>) -> io::Result<(bool, Option<WaitStatus>)> {
        let mut asked = false;
        while let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal @ (Signal::SIGTERM | Signal::SIGINT)) = signal {
                asked = true;
                let deadline = Instant::now() + self.spec.limits.stop;
                self.stop.get_or_insert(Stop { signal, deadline });
            }
        }
        let mut ended = None;
        self.alone = loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((child, status))) if pid.is_some_and(|pid| pid.as_raw() == child.as_raw_nonzero().get()) => {
                    ended = Some(status);
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        Ok((asked, ended))
    }

    /// Waits for a signal, a message or the deadline.
    fn sleep(&mut self, socket: Option<&OwnedFd>, deadline: Option<Instant>) -> io::Result<()> {
        let deadline = match &mut self.watchdog {
            Some(watchdog) => {
                // One that does not take it bites, which is what it is for.
                let _ = watchdog.write_all(b"k");
                let next = Instant::now() + WATCHDOG;
                Some(deadline.map_or(next, |deadline| deadline.min(next)))
            }
            None => deadline,
        };
        let timeout = deadline
            .map(|deadline| Timespec::try_from(deadline.saturating_duration_since(Instant::now())))
            .transpose()
            .map_err(io::Error::other)?;
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits between two supervisors. Whether a request to stop came.
    fn pause(&mut self, length: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + length;
        while self.stop.is_none() && Instant::now() < deadline {
            self.sleep(None, Some(deadline))?;
            self.signals_and_children(None)?;
        }
        Ok(self.stop.is_some())
    }

    /// Lets go of everything, which tells the workers to end, and waits for them.
    fn finish(mut self, code: i32) -> io::Result<Ended> {
        self.store = Store::default();
        let mut deadline = Instant::now() + self.spec.limits.workers;
        let mut killed = false;
        loop {
            self.signals_and_children(None)?;
            if self.alone {
                break;
            }
            if Instant::now() >= deadline {
                let left = children();
                if killed {
                    log(&format!("processes {left:?} cannot be killed: a device does not answer"));
                    break;
                }
                log(&format!("processes {left:?} did not end within {:?} and are killed", self.spec.limits.workers));
                for pid in left {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                killed = true;
                deadline = Instant::now() + Duration::from_secs(1);
            }
            self.sleep(None, Some(deadline))?;
        }
        if let Some(watchdog) = &mut self.watchdog {
            // The last word that lets it rest (linux/watchdog.rst): turning off may take a while.
            let _ = watchdog.write_all(b"V");
        }
        Ok(Ended { code, signal: self.stop.map(|stop| stop.signal) })
    }
}

/// The children of this process, which has one thread; none where the kernel does not tell.
fn children() -> Vec<i32> {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// What the keeper says is always worth a look.
fn log(text: &str) {
    crate::log::line(4, text);
}

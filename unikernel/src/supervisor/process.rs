//! A worker's process: our own child, or one that a supervisor before us started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process by descriptor: its number may be used again, the descriptor means this one for ever.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    child: Option<Child>,
}

/// A process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Ours: how.
    Status(ExitStatus),
    /// Somebody else collected it.
    Unknown,
}

impl Process {
    /// Starts this very program as `windsor worker` with its control socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn worker(socket: OwnedFd) -> io::Result<Process> {
        let mut child = Command::new("/proc/self/exe")
            // Wherever it was started from, a person finds it by this name.
            .arg0("windsor")
            .arg("worker")
            .stdin(Stdio::from(socket))
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        match Process::pidfd(pid) {
            Ok(pidfd) => Ok(Process { pid, pidfd, child: Some(child) }),
            Err(error) => {
                // Not ours to keep if we cannot tell when it ends.
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn pidfd(pid: i32) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    /// One that a supervisor before us started.
    pub fn taken_over(pid: i32, pidfd: OwnedFd) -> Process {
        Process { pid, pidfd, child: None }
    }

    /// Its number, for people.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it; one that is gone already is no error.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Whether it has ended; never waits.
    pub fn ended(&mut self) -> Option<Ended> {
        match &mut self.child {
            Some(child) => match child.try_wait() {
                Ok(status) => status.map(Ended::Status),
                Err(_) => Some(Ended::Unknown),
            },
            None => {
                let mut ready = [PollFd::new(&self.pidfd, PollFlags::IN)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                let ended = poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0);
                ended.then_some(Ended::Unknown)
            }
        }
    }
}

impl AsFd for Process {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ended::Status(status) = self else { return f.write_str("died") };
        match (status.code(), status.signal().map(nix::sys::signal::Signal::try_from)) {
            (Some(code), _) => write!(f, "ended with code {code}"),
            (None, Some(Ok(signal))) => write!(f, "was killed by {signal}"),
            (None, _) => f.write_str("died"),
        }
    }
}

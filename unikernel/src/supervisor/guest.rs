//! The worker process of one guest, as its supervisor sees it: a control socket, a fence pipe per thread, a process.
//!
//! ```text
//! Running --socket hangs up--> Dead --every fence hangs up--> Fenced: its I/O is over, volumes may be let go
//!                                '--10 s--> Held: nothing is issued again
//! ```
//! The write end of a fence is in the worker's io_uring and nowhere else, so its hang-up says that the kernel has
//! ended every request of that ring; the death of the process says no such thing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use blkback::config::Connect;
use blkback::device::{Report, create_journal};
use grant::DomId;
use grant::meter::Meter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::message::{Channel, Order, VERSION};
use crate::world::World;

/// How long a dead worker's I/O may take before its disks are held.
pub const FENCE_PATIENCE: Duration = Duration::from_secs(10);

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
    /// All its I/O is over.
    Fenced,
    /// Its I/O is not over in time.
    Held,
}

/// One worker.
#[derive(Debug)]
pub struct Guest {
    /// The guest it serves.
    pub domid: DomId,
    channel: Channel,
    /// Read ends that have not hung up.
    fences: Vec<OwnedFd>,
    child: Child,
    /// Where it stands.
    pub life: Life,
    /// Why it is dead.
    pub reason: String,
}

impl Guest {
    /// Starts a worker and its threads.
    ///
    /// # Errors
    /// With what could not be opened or started.
    pub fn start(world: &World, own: DomId, domid: DomId, threads: usize) -> io::Result<Guest> {
        let mut sent = Vec::with_capacity(threads * 2);
        let mut fences = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            sent.push(world.open_events(own)?);
            sent.push(write);
            fences.push(read);
        }
        let (channel, theirs) = Channel::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0_windsor()
            .arg("worker")
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("a worker cannot be started: {error}")))?;
        let guest = Guest { domid, channel, fences, child, life: Life::Running, reason: String::new() };
        let start = Order::Start { version: VERSION, world: world.kind(), guest: domid.0, threads };
        let fds: Vec<BorrowedFd<'_>> = sent.iter().map(AsFd::as_fd).collect();
        guest.channel.send(&start, &fds)?;
        // Our copies of the write ends close here: from now on only the worker can keep a fence up.
        Ok(guest)
    }

    /// Gives the worker a disk. Returns the disk's meter, to be read at leisure.
    ///
    /// # Errors
    /// With what could not be opened, or the worker's end of the socket being full or gone.
    pub fn connect(
        &self,
        world: &World,
        own: DomId,
        connect: Connect,
        volume: Option<BorrowedFd<'_>>,
    ) -> io::Result<Meter> {
        let queues = connect.negotiated.queues.len();
        let meter = Meter::create(queues)?;
        let mut sent = vec![meter.try_clone()?];
        for queue in 0..queues {
            sent.push(create_journal(&connect, queue)?);
            sent.push(world.open_grants(own)?);
        }
        let mut fds: Vec<BorrowedFd<'_>> = Vec::with_capacity(sent.len() + 1);
        fds.extend(volume);
        fds.extend(sent.iter().map(AsFd::as_fd));
        self.channel.send(&Order::Connect { connect, volume: volume.is_some() }, &fds)?;
        Meter::open(meter)
    }

    /// Asks the worker to give a disk up; it answers `Closed`.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn disconnect(&self, devid: u32) -> io::Result<()> {
        self.channel.send(&Order::Disconnect { devid }, &[])
    }

    /// The next report, if one waits. Notices the worker's death.
    pub fn next_report(&mut self) -> Option<Report> {
        if self.life != Life::Running {
            return None;
        }
        match self.channel.receive::<Report>() {
            Ok(Some((report, fds))) if fds.is_empty() => Some(report),
            Ok(Some(_)) => {
                self.kill("it sent a descriptor");
                None
            }
            Ok(None) => {
                self.kill("");
                None
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                self.kill(&format!("it sent nonsense ({error})"));
                None
            }
        }
    }

    /// Ends the worker, if it has not ended by itself, and keeps the reason. Does not wait: a process ends when its
    /// I/O does.
    pub fn kill(&mut self, why: &str) {
        let pid = self.child.id();
        // A process that closed its socket may live on.
        let _ = self.child.kill();
        self.reason = match why {
            "" => format!("its worker (process {pid}) died"),
            why => format!("its worker (process {pid}) was stopped because {why}"),
        };
        self.life = Life::Dead { since: Instant::now() };
        self.reap();
    }

    /// Collects the process if it has ended; true when that changed [`Guest::life`] or the reason.
    pub fn reap(&mut self) -> bool {
        let Ok(Some(status)) = self.child.try_wait() else {
            return false;
        };
        let running = self.life == Life::Running;
        if running {
            self.life = Life::Dead { since: Instant::now() };
        }
        if running || self.reason.ends_with("died") {
            self.reason = format!("its worker (process {}) {}", self.child.id(), describe(status));
            return true;
        }
        false
    }

    /// Lets a worker end that has nothing left to serve: it ends when its socket hangs up.
    pub fn retire(self) -> Retired {
        Retired { child: self.child, since: Instant::now() }
    }

    /// What to poll: the socket of a running worker, the fences of a dead one.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match self.life {
            Life::Running => vec![self.channel.as_fd()],
            Life::Dead { .. } | Life::Held => self.fences.iter().map(AsFd::as_fd).collect(),
            Life::Fenced => Vec::new(),
        }
    }

    /// Looks at the fences of a dead worker; true when [`Guest::life`] changed.
    pub fn check_fences(&mut self, now: Instant) -> bool {
        let before = self.life;
        if !matches!(self.life, Life::Dead { .. } | Life::Held) {
            return false;
        }
        self.fences.retain(|fence| !hung_up(fence));
        match self.life {
            _ if self.fences.is_empty() => self.life = Life::Fenced,
            Life::Dead { since } if now.duration_since(since) >= FENCE_PATIENCE => self.life = Life::Held,
            _ => {}
        }
        self.life != before
    }

    /// When [`Guest::check_fences`] has to be called at the latest.
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
    child: Child,
    since: Instant,
}

impl Retired {
    /// True once it is gone; one that does not go is killed after a while.
    pub fn reap(&mut self, now: Instant) -> bool {
        match self.child.try_wait() {
            Ok(None) => {
                if now.duration_since(self.since) > FENCE_PATIENCE {
                    // Its exit comes with the next call.
                    let _ = self.child.kill();
                }
                false
            }
            Ok(Some(_)) | Err(_) => true,
        }
    }
}

/// The process is called `windsor` wherever it was started from, so that a person finds it.
trait Named {
    fn arg0_windsor(&mut self) -> &mut Self;
}

impl Named for Command {
    fn arg0_windsor(&mut self) -> &mut Command {
        std::os::unix::process::CommandExt::arg0(self, "windsor")
    }
}

fn hung_up(fence: &OwnedFd) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(fence.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ready, Some(&now)).is_ok() && ready[0].revents().contains(PollFlags::HUP)
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

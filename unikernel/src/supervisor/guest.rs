//! The worker process of one guest, as its supervisor sees it: a control socket, a fence pipe per thread, a process.
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

use blkback::config::Connect;
use blkback::device::{Report, create_journal};
use grant::DomId;
use grant::meter::Meter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::process::{Ended, Process};
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
    /// All its I/O is over, and the process is gone.
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
    process: Process,
    /// The process is gone.
    ended: bool,
    /// Where it stands.
    pub life: Life,
    /// Why it is dead.
    pub reason: String,
}

/// Everything that a worker needs for one disk.
pub struct Package {
    order: Order,
    volume: Option<OwnedFd>,
    /// The disk's meter, to be read at leisure.
    pub meter: OwnedFd,
    /// Per queue its journal and its way to the guest's pages.
    queues: Vec<OwnedFd>,
}

impl Package {
    /// Makes journals and a meter and opens a way to the guest's pages for each queue.
    ///
    /// # Errors
    /// With what could not be made or opened.
    pub fn new(world: &World, own: DomId, connect: Connect, volume: Option<BorrowedFd<'_>>) -> io::Result<Package> {
        let count = connect.negotiated.queues.len();
        let mut queues = Vec::with_capacity(count * 2);
        for queue in 0..count {
            queues.push(create_journal(&connect, queue)?);
            queues.push(world.open_grants(own)?);
        }
        let volume = volume.map(|volume| volume.try_clone_to_owned()).transpose()?;
        let order = Order::Connect { connect, volume: volume.is_some() };
        Ok(Package { order, volume, meter: Meter::create(count)?, queues })
    }

    /// Copies of the queues' journals: all of a queue's state can be rebuilt from its journal and its ring.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn journals(&self) -> io::Result<Vec<OwnedFd>> {
        self.queues.iter().step_by(2).map(OwnedFd::try_clone).collect()
    }
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
        let process = Process::worker(theirs)?;
        let mut guest = Guest::taken_over(domid, process, channel, fences);
        let start = Order::Start { version: VERSION, world: world.kind(), guest: domid.0, threads };
        let fds: Vec<BorrowedFd<'_>> = sent.iter().map(AsFd::as_fd).collect();
        if let Err(error) = guest.channel.send(&start, &fds) {
            guest.kill("it cannot be spoken to");
            return Err(error);
        }
        // Our copies of the write ends close here: from now on only the worker can keep a fence up.
        Ok(guest)
    }

    /// A worker that a supervisor before us started.
    pub fn taken_over(domid: DomId, process: Process, channel: Channel, fences: Vec<OwnedFd>) -> Guest {
        Guest { domid, channel, fences, process, ended: false, life: Life::Running, reason: String::new() }
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

    /// Gives the worker a disk.
    ///
    /// # Errors
    /// `WouldBlock` when it does not read; else what the kernel says.
    pub fn connect(&self, package: &Package) -> io::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = Vec::with_capacity(package.queues.len() + 2);
        fds.extend(package.volume.as_ref().map(AsFd::as_fd));
        fds.push(package.meter.as_fd());
        fds.extend(package.queues.iter().map(AsFd::as_fd));
        self.channel.send(&package.order, &fds)
    }

    /// Asks the worker to give a disk up; it answers `Closed`.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn disconnect(&self, devid: u32) -> io::Result<()> {
        self.channel.send(&Order::Disconnect { devid }, &[])
    }

    /// Tells the worker that a disk has grown; it answers `Resized`.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn resize(&self, devid: u32, sectors: u64) -> io::Result<()> {
        self.channel.send(&Order::Resize { devid, sectors }, &[])
    }

    /// Tells the worker that the volume of a disk is well again.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn resume(&self, devid: u32) -> io::Result<()> {
        self.channel.send(&Order::Resume { devid }, &[])
    }

    /// The next report, if one waits. Notices the worker's death.
    pub fn next_report(&mut self) -> Option<Report> {
        if self.life != Life::Running {
            return None;
        }
        match self.channel.receive::<Report>() {
            Ok(Some((report, fds))) if fds.is_empty() => return Some(report),
            Ok(Some(_)) => self.kill("it sent a descriptor"),
            Ok(None) => self.kill(""),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.kill(&format!("it sent nonsense ({error})")),
        }
        None
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

    /// Collects the process if it has ended; true when that changed [`Guest::life`] or the reason.
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

    /// Looks at the fences of a dead worker; true when [`Guest::life`] changed.
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

//! The worker's real process, every thread of it, under callgrind: the test speaks to it as its supervisor would.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use blkback::device::{Report, create_journal};
use frontend::hostile::{Index, Queue};
use grant::embedded;
use grant::meter::Meter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tests::world::{Lane, Shape, World, lay_out};
use unikernel::message::{Channel, Order, Served, Start};
use unikernel::world::Kind;

/// valgrind takes seconds to start a program on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const DEVID: u32 = 51712;

/// The binary as users get it: what a debug build executes says nothing.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let build = escargot::CargoBuild::new().package("unikernel").bin("windsor").release().current_target();
        build.run().expect("windsor does not build").path().to_owned()
    })
}

/// Where callgrind's files are kept, each instruction counted for itself, when somebody wants to look at them.
fn profiles() -> Option<PathBuf> {
    std::env::var_os("WINDSOR_PROFILE").map(PathBuf::from)
}

/// A worker under callgrind that serves one disk.
pub struct Counted {
    child: Child,
    channel: Channel,
    out: PathBuf,
    /// The process directory of its queue thread.
    thread: Option<PathBuf>,
}

impl Counted {
    /// Starts one, event-driven and with one thread, and connects a disk.
    pub fn start(world: &World, volume: &File, shape: Shape) -> (Counted, Lane) {
        let out = world.dir.path().join("callgrind.out");
        let (channel, theirs) = Channel::pair().unwrap();
        let instructions = if profiles().is_some() { "--dump-instr=yes" } else { "--dump-instr=no" };
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet", instructions])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(binary())
            .arg("worker")
            .stdin(Stdio::from(theirs))
            .spawn()
            .expect("valgrind");
        let mut counted = Counted { child, channel, out, thread: None };
        let (service, guest) = (world.service.domid, world.guest.domid);
        let connection = || embedded::connect(world.dir.path(), service).unwrap();
        // The read end may go: nobody waits for the fence here.
        let (_, fence) = rustix::pipe::pipe().unwrap();
        let start = Start::new(Kind::Embedded, Served::Disks { guest: guest.0, threads: 1, poll_us: 0 });
        counted.send(&start, &[connection().as_fd(), fence.as_fd()]);
        drop(fence);
        let (mut queue, connect) = lay_out(world, (guest, world.memory.clone()), DEVID, volume, shape);
        let (journal, meter) = (create_journal(&connect, 0).unwrap(), Meter::create(1).unwrap());
        let fds = [volume.as_fd(), meter.as_fd(), journal.as_fd()];
        let grants = connection();
        counted.send(&Order::Connect { connect, volume: true }, &[fds[0], fds[1], fds[2], grants.as_fd()]);
        let Report::Connected { path, .. } = counted.report(&mut queue) else { panic!("not connected") };
        counted.thread = Some(counted.queue_thread());
        (counted, Lane::new(DEVID, queue, path, meter))
    }

    fn send(&self, message: &impl serde::Serialize, fds: &[BorrowedFd<'_>]) {
        self.channel.send(message, fds).unwrap();
    }

    /// What the worker says next. valgrind runs one thread at a time and does not know that io_uring_enter waits: the
    /// thread that speaks to us only has its turn when the one of the queue gets an event.
    fn report(&mut self, queue: &mut Queue) -> Report {
        let deadline = Instant::now() + PATIENCE;
        let moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        while poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&moment)) == Ok(0) {
            assert!(Instant::now() < deadline, "the worker says nothing");
            queue.notify().unwrap();
        }
        self.channel.receive().unwrap().expect("the worker has ended").0
    }

    fn queue_thread(&self) -> PathBuf {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let is_it =
            |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("queues-"));
        tasks.map(|task| task.unwrap().path()).find(is_it).expect("a queue thread")
    }

    /// Waits until the backend has asked for request `next` and sleeps: what it does for the next batch then depends
    /// on nothing that went before.
    pub fn rest(&self, lane: &Lane, next: u32) {
        let thread = self.thread.as_ref().expect("it is connected").join("stat");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = lane.index(Index::ReqEvent) == next.wrapping_add(1);
            if asked && std::fs::read_to_string(&thread).is_ok_and(|stat| stat.contains(") S ")) {
                return;
            }
            assert!(Instant::now() < deadline, "the backend does not rest");
            std::thread::yield_now();
        }
    }

    /// Disconnects the disk, ends the process and says how many instructions it has executed in all. `name` is that of its
    /// profile.
    pub fn end(mut self, lane: &mut Lane, name: &str) -> u64 {
        self.send(&Order::Disconnect { devid: DEVID }, &[]);
        assert_eq!(self.report(lane), Report::Closed { devid: DEVID });
        let Counted { mut child, channel, out, .. } = self;
        drop(channel);
        assert!(child.wait().unwrap().success());
        let text = std::fs::read_to_string(&out).expect("callgrind's file");
        if let Some(dir) = profiles() {
            std::fs::copy(&out, dir.join(name)).expect("a directory for the profile");
        }
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        total.and_then(|total| total.trim().parse().ok()).unwrap_or_else(|| panic!("no total in {}", out.display()))
    }
}

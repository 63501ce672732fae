//! The worker's real process, every thread of it, under callgrind: the test speaks to it as its supervisor would.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use blkback::config::Connect;
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
/// `xvda`, the first disk (vbd-interface.7).
pub const DEVID: u32 = 51712;

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

/// A worker under callgrind.
pub struct Counted {
    child: Child,
    channel: Channel,
    out: PathBuf,
    /// The process directory of its queue thread, once a disk is connected.
    thread: Option<PathBuf>,
    /// Its disks.
    served: Vec<u32>,
}

impl Counted {
    /// Starts one, event-driven and with one thread.
    pub fn start(world: &World) -> Counted {
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
        let counted = Counted { child, channel, out, thread: None, served: Vec::new() };
        let connection = embedded::connect(world.dir.path(), world.service.domid).unwrap();
        // The read end may go: nobody waits for the fence here.
        let (_, fence) = rustix::pipe::pipe().unwrap();
        let guest = world.guest.domid.0;
        let start = Start::new(Kind::Embedded, Served::Disks { guest, threads: 1, poll_us: 0 });
        counted.send(&start, &[connection.as_fd(), fence.as_fd()]);
        counted
    }

    /// Connects a disk of so many queues.
    pub fn connect(&mut self, world: &World, volume: &File, shape: Shape, devid: u32, queues: usize) -> Vec<Lane> {
        let (mut ends, meter) = self.order(world, volume, shape, devid, queues);
        let connected = self.report(|| ends.iter_mut().for_each(|end| end.notify().unwrap()));
        let Report::Connected { path, .. } = connected else { panic!("not connected") };
        self.thread = Some(queue_thread(&self.child));
        ends.into_iter().map(|end| Lane::new(devid, end, path.clone(), meter.try_clone().unwrap())).collect()
    }

    /// Connects more disks, a few at a time, which nobody will use. `lanes` are those of the first.
    pub fn connect_idle(&mut self, world: &World, volume: &File, count: usize, lanes: &mut [Lane]) -> Vec<Queue> {
        let mut idle = Vec::new();
        while idle.len() < count {
            let some = (count - idle.len()).min(16);
            for _ in 0..some {
                let devid = DEVID + 16 * (1 + idle.len() as u32);
                idle.extend(self.order(world, volume, Shape::default(), devid, 1).0);
            }
            for _ in 0..some {
                let connected = self.report(|| lanes.iter_mut().for_each(Lane::notify));
                assert!(matches!(connected, Report::Connected { .. }));
            }
        }
        idle
    }

    /// Asks for a disk: the guest's ends of its queues, and its counters.
    fn order(
        &mut self,
        world: &World,
        volume: &File,
        shape: Shape,
        devid: u32,
        queues: usize,
    ) -> (Vec<Queue>, OwnedFd) {
        let guest = || (world.guest.domid, world.memory.clone());
        let (ends, connects): (Vec<Queue>, Vec<Connect>) =
            (0..queues).map(|_| lay_out(world, guest(), devid, volume, shape)).unzip();
        let mut connects = connects.into_iter();
        let mut connect = connects.next().expect("a queue");
        connect.negotiated.queues.extend(connects.flat_map(|other| other.negotiated.queues));
        let meter = Meter::create(queues).unwrap();
        let connection = || embedded::connect(world.dir.path(), world.service.domid).unwrap();
        let of_queues: Vec<OwnedFd> =
            (0..queues).flat_map(|queue| [create_journal(&connect, queue).unwrap(), connection()]).collect();
        let fds: Vec<BorrowedFd> =
            [volume.as_fd(), meter.as_fd()].into_iter().chain(of_queues.iter().map(AsFd::as_fd)).collect();
        self.send(&Order::Connect { connect, volume: true }, &fds);
        self.served.push(devid);
        (ends, meter)
    }

    fn send(&self, message: &impl serde::Serialize, fds: &[BorrowedFd<'_>]) {
        self.channel.send(message, fds).unwrap();
    }

    /// What the worker says next. valgrind runs one thread at a time and does not know that io_uring_enter waits: the
    /// thread that speaks to us only has its turn when `wake` gives the one of the queues an event.
    fn report(&mut self, mut wake: impl FnMut()) -> Report {
        let deadline = Instant::now() + PATIENCE;
        let moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        while poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&moment)) == Ok(0) {
            assert!(Instant::now() < deadline, "the worker says nothing");
            wake();
        }
        self.channel.receive().unwrap().expect("the worker has ended").0
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

    /// Disconnects all disks, ends the process and says how many instructions it has executed in all. `lanes` are the queues of
    /// the first disk, `name` is that of its profile.
    pub fn end(mut self, lanes: &mut [Lane], name: &str) -> u64 {
        for devid in std::mem::take(&mut self.served).into_iter().rev() {
            self.send(&Order::Disconnect { devid }, &[]);
            assert_eq!(self.report(|| lanes.iter_mut().for_each(|lane| lane.notify())), Report::Closed { devid });
        }
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

fn queue_thread(child: &Child) -> PathBuf {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let is_it =
        |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("queues-"));
    tasks.map(|task| task.unwrap().path()).find(is_it).expect("a queue thread")
}

//! `windsor bench`: a load on the paravirtual path, measured at both ends. Host, service VM and guest are processes of
//! their own, as in the demo; or the guest joins a host that is already there.
//!
//! What the numbers can and cannot say stands in docs/performance.md.

pub mod figures;
pub mod fio;
pub mod guest;
pub mod job;
pub mod load;
pub mod machine;
pub mod net;
pub mod page;
pub mod read;
pub mod report;
pub mod svg;

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use blkback::stats::Stats;
use xenstore::Client;

use crate::cli::{FAILED, Failure, MISSING};
use crate::demo::image::Image;
use crate::demo::orders::{hear, say};
use crate::demo::parts::{Part, Parts};
use crate::publish::DeviceNode;
use crate::store;
use crate::toolstack::attach::{self, Wanted};
use crate::toolstack::domain;
use crate::vdev::Vdev;
use crate::world::World;
use job::{Answer, Job, Order, Ran};
use machine::{Machine, Pressure, Threads};
use report::Report;

/// The guest's name on a host of our own.
const GUEST: &str = "bench-guest";
/// The service VM's name there.
const SERVICE: &str = "bench-service";
/// The volume's name there.
const VOLUME: &str = "disk";
/// As which disk the guest has it.
pub const DISK: Vdev = Vdev(202 << 8);
/// How long attaching may take.
const ATTACH: Duration = Duration::from_secs(30);

/// Where the service VM puts the data of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DataPath {
    /// In the guest's pages.
    ZeroCopy,
    /// In memory of its own; copied from there.
    Arena,
}

impl DataPath {
    /// As a configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            DataPath::ZeroCopy => "zero-copy",
            DataPath::Arena => "arena",
        }
    }
}

/// Somebody else's host, and what to use there.
#[derive(Clone, Debug)]
pub struct There {
    /// Its directory.
    pub dir: PathBuf,
    /// The name the guest shall have.
    pub guest: String,
    /// The service VM.
    pub service: String,
    /// Its volume.
    pub volume: String,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The load on each queue.
    pub job: Job,
    /// Queues.
    pub numjobs: u16,
    /// Bytes of the scratch image, if there is no other disk.
    pub scratch: u64,
    /// The user's image, which is only read unless the load writes.
    pub filename: Option<PathBuf>,
    /// Past the page cache.
    pub direct: bool,
    /// Where data goes.
    pub data_path: DataPath,
    /// Keep grants.
    pub persistent: bool,
    /// How long the service VM polls.
    pub poll_us: u64,
    /// A host that is there.
    pub there: Option<There>,
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(FAILED, error)
}

impl Bench {
    /// Runs it, and leaves nothing behind.
    ///
    /// # Errors
    /// With the exit code, when it cannot be run to its end.
    pub fn run(&self) -> Result<Report, Failure> {
        grant::caps::check_io_uring().map_err(|error| Failure::new(MISSING, error))?;
        let parts = Parts::new().map_err(|error| {
            Failure::new(MISSING, format!("no directory to work in: {error} (set TMPDIR to one that can be written)"))
        })?;
        let ran = Running::start(&parts, self).and_then(|mut running| {
            let report = running.measure(self)?;
            running.close()?;
            Ok(report)
        });
        // What went wrong first counts.
        let ended = parts.end();
        ran.and_then(|report| ended.map(|()| report))
    }

    fn config(&self, image: &Image) -> Result<String, Failure> {
        Ok(format!(
            "[vm]\nname = \"{SERVICE}\"\n\n{}\n[backend]\ninitwait-dwell-ms = 0\nqueues = {}\ndata-path = \"{}\"\n\
             poll-us = {}\n",
            image.volume(VOLUME, None)?,
            self.numjobs.max(1),
            self.data_path.name(),
            self.poll_us
        ))
    }

    fn image(&self, parts: &Parts) -> Result<Image, Failure> {
        let mut image = match &self.filename {
            Some(path) => Image { read_only: !self.job.rw.writes(), ..Image::of_user(path)? },
            None => {
                let (image, scratch) = Image::scratch(self.scratch)?;
                parts.keep(scratch);
                image.fill().map_err(|error| failed(format!("{}: {error}", image.path.display())))?;
                image
            }
        };
        if !self.direct {
            image.buffered = Some("--direct=0");
        } else if let Some(why) = image.buffered {
            return Err(Failure::new(MISSING, format!("--direct: {}: {why}", image.path.display())));
        }
        Ok(image)
    }
}

/// A guest with its disk, and the store as dom0 sees it.
struct Running<'a> {
    parts: &'a Parts,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    store: Client,
    service: u16,
    guest: u16,
    /// The service VM's keeper, if it is ours.
    keeper: Option<u32>,
    size: u64,
    queues: usize,
    grants: usize,
}

impl<'a> Running<'a> {
    fn start(parts: &'a Parts, bench: &Bench) -> Result<Running<'a>, Failure> {
        let there = match &bench.there {
            Some(there) => there.clone(),
            None => {
                let there = There {
                    dir: parts.dir().join("host"),
                    guest: GUEST.into(),
                    service: SERVICE.into(),
                    volume: VOLUME.into(),
                };
                let config = parts.dir().join("serve.toml");
                std::fs::write(&config, bench.config(&bench.image(parts)?)?).map_err(failed)?;
                let in_dir = [Path::new("--dir"), &there.dir];
                parts.daemon(Part::Host, &in_dir)?;
                parts.daemon(Part::Serve, &[in_dir[0], in_dir[1], Path::new("--config"), &config])?;
                there
            }
        };
        let pages = (bench.job.bs as usize).div_ceil(grant::PAGE_SIZE).to_string();
        let (depth, queues) = (bench.job.iodepth.to_string(), bench.numjobs.to_string());
        let mut args = vec![Path::new("--dir"), &there.dir, Path::new("--name"), Path::new(&there.guest)];
        args.extend(["--depth", &depth, "--pages", &pages, "--queues", &queues].map(Path::new));
        if !bench.persistent {
            args.push(Path::new("--no-persistent"));
        }
        let (orders, answers) = parts.guest(Part::BenchGuest, &args)?;
        let mut store = store::toolstack(&World::Embedded(there.dir.clone()))?;
        let service = domain::find(&mut store, &there.service, "service VM")?.domid;
        let keeper = parts.pid(Part::Serve);
        let (size, queues, grants) = (0, 0, 0);
        let mut running = Running { parts, orders, answers, store, service, guest: 0, keeper, size, queues, grants };
        let Answer::Up { domid } = running.hear()? else { return Err(running.confused()) };
        running.guest = domid;
        let wanted = Wanted {
            guest: &there.guest,
            service: &there.service,
            volume: &there.volume,
            vdev: Some(DISK),
            read_only: !bench.job.rw.writes(),
            wait: ATTACH,
        };
        attach::run(&mut running.store, &wanted)?;
        parts.unlink();
        let Answer::Connected { sectors, queues, grants } = running.hear()? else { return Err(running.confused()) };
        (running.size, running.queues, running.grants) = (sectors * 512, queues, grants);
        if queues != usize::from(bench.numjobs) {
            return Err(failed(format!("--numjobs {}: the disk has {queues} queues", bench.numjobs)));
        }
        Ok(running)
    }

    fn measure(&mut self, bench: &Bench) -> Result<Report, Failure> {
        let job = Job { size: bench.job.size.min(self.size), ..bench.job };
        // Grants are mapped, tables grow and pages are cached before anything counts.
        let warm = (self.grants.div_ceil((job.bs as usize).div_ceil(grant::PAGE_SIZE)) * 2) as u64;
        self.load(&Job { number_ios: Some(warm), runtime_ms: 10_000, lock_step: false, ..job })?;
        let before = self.settled()?;
        let (threads, pressure) = (self.threads(), Pressure::read());
        let queues = self.load(&job)?;
        let (threads, pressure) = (self.threads().since(&threads), Pressure::read().since(&pressure));
        let after = self.settled()?;
        Report::new(
            bench,
            job,
            self.node()?.path,
            self.grants,
            &queues,
            (&before, &after),
            threads,
            pressure,
            Machine::read(),
        )
        .map_err(failed)
    }

    fn load(&mut self, job: &Job) -> Result<Vec<Ran>, Failure> {
        say(&mut self.orders, &Order::Run(*job)).map_err(|_| self.lost())?;
        let Answer::Ran { queues } = self.hear()? else { return Err(self.confused()) };
        Ok(queues)
    }

    /// The service VM's threads, where they are ours to look at.
    fn threads(&self) -> Threads {
        self.keeper.map_or_else(Threads::default, Threads::of)
    }

    fn hear(&mut self) -> Result<Answer, Failure> {
        match hear(&mut self.answers) {
            Ok(Some(Answer::Failed { why })) => Err(match self.parts.ended() {
                Some(Part::BenchGuest) | None => failed(why),
                Some(part) => failed(format!("{why} ({} has ended)", part.name())),
            }),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.lost()),
            Err(error) => Err(failed(format!("the guest makes no sense: {error}"))),
        }
    }

    fn lost(&self) -> Failure {
        self.parts.explain(self.parts.ended().unwrap_or(Part::BenchGuest))
    }

    fn confused(&self) -> Failure {
        failed("the guest answers something else")
    }

    /// The device's counters once they stand still: a response is there before what it cost is counted.
    fn settled(&mut self) -> Result<Stats, Failure> {
        let mut last = self.sample()?;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.sample()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    /// The device's counters as of now.
    fn sample(&mut self) -> Result<Stats, Failure> {
        self.parts.sample(&mut self.store, self.service)?;
        self.node()?.stats.ok_or_else(|| failed("the disk has no counters"))
    }

    fn node(&mut self) -> Result<DeviceNode, Failure> {
        DeviceNode::read(&mut self.store, self.service, self.guest, DISK.0).map_err(failed)
    }

    fn close(mut self) -> Result<(), Failure> {
        say(&mut self.orders, &Order::Close).map_err(|_| self.lost())?;
        match self.hear()? {
            Answer::Closed { mapped: 0 } => Ok(()),
            Answer::Closed { mapped } => Err(failed(format!("the service VM still has {mapped} pages of the guest"))),
            _ => Err(self.confused()),
        }
    }
}

//! `windsor demo`: the whole thing on one machine. A host, a service VM and guests as processes of their own; one
//! guest checks that it sees the disk as it is, then reads as fast as it can; two send packets to each other.
//!
//! ```text
//! demo --+-- host                                        xenstored and the hypervisor's part
//!        +-- serve -- supervisor -- worker -- the image  the service VM
//!        |                       +- worker               its network
//!        +-- guest                                       blkfront; orders on stdin, answers on stdout
//!        +-- cards                                       two guests, a netfront each; the same
//! ```

pub mod blocks;
pub mod cards;
pub mod guest;
pub mod image;
pub mod load;
pub mod network;
pub mod orders;
pub mod parts;
pub mod report;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use blkback::stats::Stats;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use xenstore::Client;

use crate::cli::{FAILED, Failure, MISSING, USAGE};
use crate::publish::DeviceNode;
use crate::store;
use crate::toolstack::attach::{self, Wanted};
use crate::toolstack::domain;
use crate::vdev::Vdev;
use crate::world::World;
use blocks::CHUNK;
use image::Image;
use orders::{Answer, Load, Order, hear, say};
use parts::{Part, Parts};
use report::{DiskReport, Phase, Place, Report, Verify};

/// The name of the guest with the disk.
pub const GUEST: &str = "demo-guest";
/// The names of those with cards.
pub const CARDS: [&str; 2] = ["demo-left", "demo-right"];
/// The service VM's name.
const SERVICE: &str = "demo-service";
/// The volume's name.
const VOLUME: &str = "disk";
/// The network's name.
const NETWORK: &str = "lan";
/// As which disk the guest has it.
pub const DISK: Vdev = Vdev(202 << 8);
/// How long attaching may take.
const ATTACH: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Debug)]
pub struct Demo {
    /// The user's image; a scratch image otherwise.
    pub disk: Option<PathBuf>,
    /// How long each load runs.
    pub seconds: u64,
    /// The byte that is spoilt whenever it is read.
    pub flip: Option<u64>,
    /// Bytes of the scratch image.
    pub scratch: u64,
}

/// A part that takes orders.
struct Talk<'a> {
    parts: &'a Parts,
    part: Part,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// A guest that has its disk, and the store as dom0 sees it.
struct Running<'a> {
    talk: Talk<'a>,
    store: Client,
    /// The service VM's number.
    service: u16,
    /// The guest's.
    guest: u16,
}

impl Demo {
    /// Runs it, and leaves nothing behind. A difference is no error: it stands in the report.
    ///
    /// # Errors
    /// With the exit code, when it cannot be run to its end.
    pub fn run(&self) -> Result<Report, Failure> {
        grant::caps::check_io_uring().map_err(|error| Failure::new(MISSING, error))?;
        let user = self.disk.as_deref().map(Image::of_user).transpose()?;
        let parts = Parts::new().map_err(|error| {
            Failure::new(MISSING, format!("no directory to work in: {error} (set TMPDIR to one that can be written)"))
        })?;
        let ran = self.run_in(&parts, user);
        // What went wrong first counts.
        let ended = parts.end();
        ran.and_then(|report| ended.map(|()| report))
    }

    fn run_in(&self, parts: &Parts, user: Option<Image>) -> Result<Report, Failure> {
        let bar = ProgressBar::new(0);
        parts.show(&bar);
        let image = match user {
            Some(image) => image,
            None => {
                let (image, scratch) = Image::scratch(self.scratch)?;
                parts.keep(scratch);
                if image.is_in_memory() {
                    let dir = std::env::temp_dir();
                    let dir = dir.display();
                    eprintln!("windsor: {dir} is memory (tmpfs): the numbers are not a disk's; set TMPDIR for a disk");
                }
                image
            }
        };
        if let Some(byte) = self.flip.filter(|&byte| byte >= image.size) {
            let why = format!("--fault flip={byte}: the disk has {} bytes, the last is {}", image.size, image.size - 1);
            return Err(Failure::new(USAGE, why));
        }
        let mut running = Running::start(parts, &image, self.flip)?;
        let verify = match &self.disk {
            Some(path) => running.compare(&image, path, &bar)?,
            None => running.check(&image, &bar)?,
        };
        let mut phases = Vec::new();
        if verify.complaint().is_none() {
            for (block, depth, random) in [(4096, 1, true), (4096, 32, true), (1 << 20, 8, false)] {
                phases.push(running.measure(Load { block, depth, random, seconds: self.seconds }, &bar)?);
            }
        }
        let path = running.node()?.path;
        let network = match verify.complaint() {
            None => Some(running.network(parts, [1, self.seconds.min(2)], &bar)?),
            Some(_) => None,
        };
        bar.finish_and_clear();
        running.close()?;
        Ok(Report {
            schema_version: 1,
            disk: DiskReport {
                path: self.disk.as_ref().map(|path| path.display().to_string()),
                bytes: image.size,
                allocated: image.allocated,
                read_only: image.read_only,
                direct: image.buffered.is_none(),
                buffered_because: image.buffered.map(str::to_owned),
            },
            data_path: path,
            verify,
            phases,
            network,
        })
    }
}

/// Only the network of the demo, for so many seconds of each exchange; leaves nothing behind.
///
/// # Errors
/// With the exit code, when it cannot be run to its end.
pub fn network_only(seconds: u64) -> Result<network::NetworkReport, Failure> {
    grant::caps::check_io_uring().map_err(|error| Failure::new(MISSING, error))?;
    let parts = Parts::new().map_err(|error| {
        Failure::new(MISSING, format!("no directory to work in: {error} (set TMPDIR to one that can be written)"))
    })?;
    let run = || {
        let (image, scratch) = Image::scratch(1 << 20)?;
        parts.keep(scratch);
        let mut running = Running::start(&parts, &image, None)?;
        let report = running.network(&parts, [seconds; 2], &ProgressBar::hidden())?;
        running.close()?;
        Ok(report)
    };
    let ran = run();
    let ended = parts.end();
    ran.and_then(|report| ended.map(|()| report))
}

fn failed(error: impl ToString) -> Failure {
    Failure::new(FAILED, error)
}

impl<'a> Talk<'a> {
    /// Starts it on the host in `dir`.
    fn start(parts: &'a Parts, part: Part, dir: &Path) -> Result<Talk<'a>, Failure> {
        let (orders, answers) = parts.guest(part, &[Path::new("--dir"), dir])?;
        Ok(Talk { parts, part, orders, answers })
    }

    fn tell(&mut self, order: &Order) -> Result<(), Failure> {
        say(&mut self.orders, order).map_err(|_| self.lost())
    }

    fn hear(&mut self) -> Result<Answer, Failure> {
        match hear(&mut self.answers) {
            Ok(Some(Answer::Failed { why })) => Err(match self.parts.ended() {
                Some(part) if part != self.part => failed(format!("{why} ({} has ended)", part.name())),
                _ => failed(why),
            }),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.lost()),
            Err(error) => Err(failed(format!("the guest makes no sense: {error}"))),
        }
    }

    fn lost(&self) -> Failure {
        self.parts.explain(self.parts.ended().unwrap_or(self.part))
    }

    fn confused(&self) -> Failure {
        failed("the guest answers something else")
    }

    /// Has the guest give back what it has; the backend must let everything go.
    fn close(mut self) -> Result<(), Failure> {
        self.tell(&Order::Close)?;
        match self.hear()? {
            Answer::Closed { mapped: 0 } => Ok(()),
            Answer::Closed { mapped } => Err(failed(format!("the service VM still has {mapped} pages of the guest"))),
            _ => Err(self.confused()),
        }
    }
}

impl<'a> Running<'a> {
    /// Starts everything and attaches the disk.
    fn start(parts: &'a Parts, image: &Image, flip: Option<u64>) -> Result<Running<'a>, Failure> {
        let dir = host_dir(parts);
        let config = parts.dir().join("serve.toml");
        let volume = image.volume(VOLUME, flip)?;
        let network = format!("[[network]]\nname = \"{NETWORK}\"\n");
        let text = format!("[vm]\nname = \"{SERVICE}\"\n\n{volume}\n{network}\n[backend]\ninitwait-dwell-ms = 0\n");
        std::fs::write(&config, text).map_err(failed)?;
        let in_dir = [Path::new("--dir"), &dir];
        parts.daemon(Part::Host, &in_dir)?;
        parts.daemon(Part::Serve, &[in_dir[0], in_dir[1], Path::new("--config"), &config])?;
        let talk = Talk::start(parts, Part::Guest, &dir)?;
        let mut store = store::toolstack(&World::Embedded(dir))?;
        let service = domain::find(&mut store, SERVICE, "service VM")?.domid;
        let mut running = Running { talk, store, service, guest: 0 };
        let Answer::Up { domid } = running.talk.hear()? else { return Err(running.talk.confused()) };
        running.guest = domid;
        let wanted = Wanted {
            guest: GUEST,
            service: SERVICE,
            volume: VOLUME,
            vdev: Some(DISK),
            read_only: image.read_only,
            wait: ATTACH,
        };
        attach::run(&mut running.store, &wanted)?;
        parts.unlink();
        match running.talk.hear()? {
            Answer::Connected { sectors } if sectors.checked_mul(512) == Some(image.size) => Ok(running),
            Answer::Connected { sectors } => {
                Err(failed(format!("the guest has a disk of {sectors} sectors, the image has {} bytes", image.size)))
            }
            _ => Err(running.talk.confused()),
        }
    }

    /// Compares what the guest reads with the file, as it comes.
    fn compare(&mut self, image: &Image, path: &Path, bar: &ProgressBar) -> Result<Verify, Failure> {
        let unreadable = |error: std::io::Error| failed(format!("{}: {error}", path.display()));
        in_bytes(bar, image.size, "reading the whole disk");
        let mut file = File::open(&image.path).map_err(unreadable)?;
        let mut sha256 = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let (mut at, mut differs) = (0u64, None);
        self.talk.tell(&Order::Digest)?;
        loop {
            match self.talk.hear()? {
                Answer::Chunk { blocks } => {
                    let len = (image.size - at).min(CHUNK as u64) as usize;
                    let data = &mut buffer[..len];
                    file.read_exact(data).map_err(unreadable)?;
                    sha256.update(&data);
                    if differs.is_none() {
                        let mut pairs = blocks::hashes(data).zip(&blocks);
                        let wrong = pairs.position(|(ours, theirs)| ours != *theirs);
                        differs = wrong.map(|block| Place::of_block(at / blocks::BLOCK as u64 + block as u64));
                    }
                    at += len as u64;
                    bar.set_position(at);
                }
                Answer::Digest { sha256: guest, seconds } => {
                    if at != image.size {
                        return Err(self.talk.confused());
                    }
                    let file = format!("{:x}", sha256.finalize());
                    return Ok(Verify::Sha256 { equal: file == guest, file, guest, seconds, differs });
                }
                _ => return Err(self.talk.confused()),
            }
        }
    }

    /// Has the guest write, flush, read back and check.
    fn check(&mut self, image: &Image, bar: &ProgressBar) -> Result<Verify, Failure> {
        in_bytes(bar, 2 * image.size, "writing, flushing, reading back");
        self.talk.tell(&Order::Check)?;
        loop {
            match self.talk.hear()? {
                Answer::Progress { done } => bar.set_position(done),
                Answer::Checked { differs, write_seconds, read_seconds } => {
                    let differs = differs.map(Place::of_block);
                    return Ok(Verify::Pattern { equal: differs.is_none(), write_seconds, read_seconds, differs });
                }
                _ => return Err(self.talk.confused()),
            }
        }
    }

    fn measure(&mut self, load: Load, bar: &ProgressBar) -> Result<Phase, Failure> {
        let kind = if load.random { "random" } else { "sequential" };
        bar.set_message(format!("{kind} reads of {} KiB, depth {}, {} s", load.block >> 10, load.depth, load.seconds));
        bar.set_style(ProgressStyle::default_spinner());
        let before = self.sample()?;
        self.talk.tell(&Order::Measure(load))?;
        let Answer::Measured(measured) = self.talk.hear()? else { return Err(self.talk.confused()) };
        Ok(Phase::new(load, measured, &before, &self.sample()?))
    }

    /// The device's counters as of now.
    fn sample(&mut self) -> Result<Stats, Failure> {
        self.refresh()?;
        self.node()?.stats.ok_or_else(|| failed("the disk has no counters"))
    }

    /// Has the service VM publish all counters.
    fn refresh(&mut self) -> Result<(), Failure> {
        self.talk.parts.sample(&mut self.store, self.service)
    }

    /// What the service VM says of the device.
    fn node(&mut self) -> Result<DeviceNode, Failure> {
        DeviceNode::read(&mut self.store, self.service, self.guest, DISK.0).map_err(failed)
    }

    /// Has the guest give the disk back.
    fn close(self) -> Result<(), Failure> {
        self.talk.close()
    }
}

/// Where the host lives.
fn host_dir(parts: &Parts) -> PathBuf {
    parts.dir().join("host")
}

/// Shows bytes of `size` from here on; on a terminal only.
fn in_bytes(bar: &ProgressBar, size: u64, what: &'static str) {
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar.set_length(size);
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
}

//! The supervisor of a service VM: the one process that talks to xenstore. It looks after the life of every device,
//! opens volumes, starts workers, hands them what they need, and says in the store how things stand.
//!
//! One thread, one loop. Whatever happens marks devices as worth a look; a look reads the device's nodes, asks
//! [`xenstore::xenbus::backend`] for the next step, takes it, and looks again until there is nothing to do. The
//! supervisor maps no grant and touches no ring.

mod budget;
mod changes;
mod channel;
pub mod device;
mod events;
pub mod grow;
pub mod guest;
mod linger;
mod medium;
pub mod nodes;
pub mod process;
mod published;
mod record;
mod reports;
mod resume;
mod returned;
mod steps;
pub mod takeover;
mod vifs;
mod voice;
pub mod volume;
mod volumes;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use grant::DomId;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xenstore::xenbus::backend::Service;
use xenstore::{Client, Store};

use crate::channel::server::Server;
use crate::config::{Config, DataPath};
use crate::init;
use crate::keeper::Keeper;
use crate::log::voice::Voice;
use crate::metrics::serve::Listen;
use crate::publish::{self, DeviceNode};
use crate::settings::Settings;
use crate::store::{self, NoStore, Nodes};
use crate::world::World;
use changes::Changes;
use device::{Device, WorkerId};
use guest::Guest;
use linger::Linger;
use nodes::Name;
use steps::survivable;
use vifs::Vifs;
use worker::Retired;

/// Most devices of one VM.
const MAX_DEVICES: usize = 1024;
/// How long everything may take to close when we are asked to end.
const STOP_PATIENCE: Duration = Duration::from_secs(12);

/// Between two looks at what nobody tells of: a guest is to see a new size within a second.
const ROUND: Duration = Duration::from_millis(400);

/// Why a supervisor ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SupervisorError {
    #[error(transparent)]
    NoStore(#[from] NoStore),
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("{0}")]
    Unusable(String),
}

/// What a supervisor is told by whoever starts it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Our own domain, in the embedded world.
    pub own: Option<DomId>,
    /// Where Prometheus finds the numbers; nowhere, inside of a service VM.
    pub metrics: Option<Listen>,
    /// How long guests are served once the end was asked for, if nothing else says so.
    pub linger: Duration,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the store is gone, or nothing can be served.
pub fn run(world: World, options: Options, config: Config, keeper: Keeper) -> Result<(), SupervisorError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block().map_err(io::Error::from)?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io::Error::from)?;

    let mut client = store::domain(&world, options.own)?.survive(returned::patience(&world));
    let domid = client.text("domid")?.and_then(|text| text.parse().ok());
    let domid = domid.ok_or_else(|| SupervisorError::Unusable("the store does not say which domain this is".into()))?;
    let linger = settings(&world, options.linger, &config, &mut client)?;
    let zero_copy = match (config.backend.data_path, world.allows_zero_copy()) {
        (DataPath::Arena, _) => false,
        (DataPath::Auto, allowed) => allowed,
        (DataPath::ZeroCopy, true) => true,
        (DataPath::ZeroCopy, false) => {
            let why = "data-path = \"zero-copy\" is not possible in a PV service VM: a worker that dies would never give its grants back; use \"auto\" or \"arena\", or a PVH service VM";
            return Err(SupervisorError::Unusable(why.into()));
        }
    };
    let mut supervisor = Supervisor {
        world,
        own: DomId(domid),
        config,
        zero_copy,
        generation: client.generation(),
        store: client,
        keeper,
        signals,
        devices: BTreeMap::new(),
        dirty: BTreeSet::new(),
        workers: BTreeMap::new(),
        current: HashMap::new(),
        next_worker: 0,
        retired: Vec::new(),
        sizes: HashMap::new(),
        searched: None,
        changes: Changes::default(),
        channel: None,
        pages: Vec::new(),
        overflow: BTreeMap::new(),
        vifs: Vifs::default(),
        voices: HashMap::new(),
        looked: Instant::now(),
        visited: None,
        linger: Linger::new(linger),
        crashes: HashMap::new(),
        stopping: None,
    };
    supervisor.start()?;
    let _metrics = options.metrics.map(|listen| supervisor.serve_metrics(&listen)).transpose()?;
    supervisor.serve()
}

/// What counts of all that an operator may have said, in effect from now on; how long guests are served at the end.
fn settings(world: &World, linger: Duration, config: &Config, store: &mut Client) -> Result<Duration, SupervisorError> {
    if *world != World::Xen {
        // Its command line says it.
        return Ok(linger);
    }
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    let mut lookup = |key: &str| match store.text(&format!("vm-data/windsor/{key}")) {
        Ok(value) => value,
        Err(error) => {
            tracing::warn!(key, %error, "a setting in xenstore cannot be read");
            None
        }
    };
    let (settings, wrong) = Settings::gather(linger, &config.vm, &command_line, &mut lookup);
    for line in wrong {
        tracing::warn!("{line}");
    }
    if let Some(words) = &settings.log {
        crate::log::change(words).map_err(SupervisorError::Unusable)?;
    }
    Ok(settings.linger)
}

struct Supervisor {
    world: World,
    own: DomId,
    config: Config,
    zero_copy: bool,
    store: Client,
    /// Which connection to the store everything was looked at on.
    generation: u64,
    keeper: Keeper,
    signals: SignalFd,
    devices: BTreeMap<Name, Device>,
    /// Devices to look at.
    dirty: BTreeSet<Name>,
    workers: BTreeMap<WorkerId, Guest>,
    /// The running worker of each guest.
    current: HashMap<u16, WorkerId>,
    next_worker: WorkerId,
    retired: Vec<Retired>,
    /// Bytes of each volume, or why it cannot be used.
    sizes: HashMap<String, (u64, String)>,
    /// When we looked last for volumes that we did not know.
    searched: Option<Instant>,
    /// What is being done to volumes.
    changes: Changes,
    /// Where dom0 asks; none where the kernel has no gntalloc.
    channel: Option<Server>,
    /// The nodes of all volumes, as written last.
    pages: Vec<String>,
    /// What is published of devices that have no node.
    overflow: BTreeMap<String, DeviceNode>,
    /// Cards and networks.
    vifs: Vifs,
    /// Bounds the log lines that each guest can cause.
    voices: HashMap<(u16, bool), Voice>,
    /// When we looked around last.
    looked: Instant,
    /// The guest that was visited last.
    visited: Option<u16>,
    /// Between being asked to end and ending.
    linger: Linger,
    /// How often the workers of a guest have died lately, and when the last did.
    crashes: HashMap<u16, (u32, Instant)>,
    /// Since when we are ending.
    stopping: Option<Instant>,
}

impl Supervisor {
    fn start(&mut self) -> Result<(), SupervisorError> {
        self.keep_log()?;
        let taken_over = self.take_over()?;
        if !taken_over {
            self.store.rm(publish::ROOT)?;
        }
        self.store.write(&format!("{}/name", publish::ROOT), self.config.vm.name.as_bytes())?;
        self.make_room()?;
        self.check_volumes()?;
        self.tend_bridges(Instant::now());
        self.check_networks()?;
        self.open_channel(Instant::now())?;
        self.listen()?;
        self.walk()?;
        self.store.write(&format!("{}/ready", publish::ROOT), b"1")?;
        if !taken_over {
            println!("ready");
            io::stdout().flush()?;
            self.keep_ready()?;
        }
        // What a boot of the VM costs beyond its kernel's own.
        let age = (!taken_over).then(init::age).flatten();
        let boot_ms = age.and_then(|age| u64::try_from(age.as_millis()).ok());
        let volumes = self.config.volumes.len();
        tracing::info!(vm = self.config.vm.name, domid = self.own.0, volumes, boot_ms, "serving");
        Ok(())
    }

    fn serve(&mut self) -> Result<(), SupervisorError> {
        loop {
            self.events()?;
            let now = Instant::now();
            self.tend_workers(now);
            self.tend_switches(now);
            self.wake(now);
            // A quota that is used up, for one, is no reason to end.
            survivable(self.tend_changes())?;
            self.tend_channel(now);
            survivable(self.tend_linger(now))?;
            self.look_around(now)?;
            // Devices on their way out first: their volumes may be what others wait for.
            let (leaving, others): (Vec<Name>, Vec<Name>) = std::mem::take(&mut self.dirty)
                .into_iter()
                .partition(|name| self.devices.get(name).is_some_and(|device| device.volume.is_some()));
            for name in leaving.into_iter().chain(others) {
                self.drive(name)?;
            }
            self.drive_vifs(now)?;
            if self.is_done(now) {
                return self.end();
            }
            self.sleep()?;
        }
    }

    /// Devices whose time has come.
    fn wake(&mut self, now: Instant) {
        for (name, device) in &mut self.devices {
            if device.timer.is_some_and(|timer| timer <= now) {
                device.timer = None;
                self.dirty.insert(*name);
            }
        }
    }

    /// Looks, when it is time, at what nobody tells of: how large the volumes are, and whether guests are still there.
    fn look_around(&mut self, now: Instant) -> Result<(), SupervisorError> {
        if now.duration_since(self.looked) < ROUND {
            return Ok(());
        }
        self.looked = now;
        self.measure();
        self.visit()?;
        Ok(self.visit_vifs()?)
    }

    fn is_done(&self, now: Instant) -> bool {
        self.stopping.is_some_and(|since| {
            (self.devices.values().all(|device| device.service == Service::None) && self.vifs.is_idle())
                || now.duration_since(since) >= STOP_PATIENCE
        })
    }

    fn end(&mut self) -> Result<(), SupervisorError> {
        for (name, device) in &self.devices {
            if device.service != Service::None {
                tracing::error!(device = %name, "its last I/O has not ended; left behind");
            }
        }
        for name in self.vifs.in_use() {
            tracing::error!(device = %name, "its worker has not let go; left behind");
        }
        self.flush_volumes();
        self.store.write(&format!("{}/ready", publish::ROOT), b"0")?;
        tracing::info!(vm = self.config.vm.name, "stopped");
        Ok(())
    }

    /// Waits for something to happen.
    fn sleep(&mut self) -> Result<(), SupervisorError> {
        // Looking at devices has read from the store's socket, and may have read events off it.
        let more = self.events()?;
        if more || !self.dirty.is_empty() || !self.vifs.is_quiet() {
            return Ok(());
        }
        let mut timers: Vec<Instant> = self.devices.values().filter_map(|device| device.timer).collect();
        timers.extend(self.workers.values().filter_map(|guest| guest.worker.deadline()));
        timers.extend(self.vifs.timers());
        timers.extend(self.channel.as_ref().and_then(Server::timer));
        let any = !self.devices.is_empty() || self.vifs.len() > 0;
        timers.extend(any.then(|| self.looked + ROUND));
        timers.extend(self.linger.timer());
        timers.extend(self.stopping.map(|since| since + STOP_PATIENCE));
        timers.extend(self.retired.first().map(|_| Instant::now() + Duration::from_secs(1)));
        let timeout = timers.into_iter().min().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            // Rounded up, so as not to wake a moment too early again and again.
            tv_nsec: (i64::from(timeout.subsec_nanos()) + 999_999).min(999_999_999),
        });
        let ready = {
            let keeper = if self.stopping.is_some() { PollFlags::empty() } else { PollFlags::IN };
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.store.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            ];
            if !keeper.is_empty() {
                fds.push(PollFd::from_borrowed_fd(self.keeper.as_fd(), keeper));
            }
            for guest in self.workers.values() {
                // A running worker speaks; a dead one's fences hang up.
                fds.extend(guest.worker.fds().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            }
            fds.extend(self.channel.iter().map(|channel| PollFd::from_borrowed_fd(channel.fd(), PollFlags::IN)));
            fds.extend(self.changes.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            fds.extend(self.vifs.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return Ok(()),
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let ready = |at: usize| !fds[at].revents().is_empty();
            (ready(0), ready(1), !keeper.is_empty() && ready(2))
        };
        if ready.0 {
            self.events()?;
        }
        if ready.1 {
            self.signals()?;
        }
        if ready.2 {
            tracing::error!("the keeper is gone");
            self.stop();
        }
        Ok(())
    }

    fn signals(&mut self) -> Result<(), SupervisorError> {
        while let Some(info) = self.signals.read_signal().map_err(io::Error::from)? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if matches!(signal, Some(Signal::SIGTERM | Signal::SIGINT)) {
                self.asked_to_end(Instant::now());
            }
        }
        Ok(())
    }

    /// Begins to end.
    fn stop(&mut self) {
        if self.stopping.is_none() {
            tracing::info!(devices = self.devices.len(), "stopping");
            self.stopping = Some(Instant::now());
            self.dirty.extend(self.devices.keys().copied());
            self.vifs.touch_all();
        }
    }
}

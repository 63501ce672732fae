//! What dom0 asks over the request channel (see [`crate::channel`]), answered between two looks at the devices.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use blkback::stats;
use grant::meter::Meter;
use netback::config::VifName;
use xenstore::{Error, Store};

use super::takeover::MEMORY;
use super::{Supervisor, takeover};
use crate::channel::server::Server;
use crate::channel::wire::{Answer, Ask, MAX_ANSWER, TopCard, TopDevice, VolumeLine};
use crate::device::Device as AnyDevice;
use crate::metrics::serve::Listen;
use crate::metrics::text::{self, Card, Disk};
use crate::publish;
use crate::source::Refusal;
use crate::vdev::Vdev;
use crate::world::World;

/// Questions answered between two looks at the devices.
const MOST: usize = 4;

impl Supervisor {
    /// Keeps the log where the next supervisor finds it, and takes up what one before us has left.
    pub(super) fn keep_log(&mut self) -> std::io::Result<()> {
        let kept = self.keeper.list()?.into_iter().find(|(key, _)| key == takeover::LOG);
        let fd = match kept.and_then(|(_, fds)| fds.into_iter().next()) {
            Some(fd) => fd,
            None => {
                let fd = crate::log::create()?;
                self.keeper.keep(takeover::LOG, &[std::os::fd::AsFd::as_fd(&fd)])?;
                fd
            }
        };
        crate::log::keep(fd)
    }

    /// Has a process of its own hand out numbers: it asks over the channel, as dom0 does. It ends with us.
    pub(super) fn serve_metrics(&self, listen: &Listen) -> std::io::Result<Child> {
        let listen = match listen {
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Loopback(address) => address.to_string(),
        };
        let mut command = Command::new("/proc/self/exe");
        command.arg0("windsor").args(["metrics", "serve"]);
        if let World::Embedded(dir) = &self.world {
            command.arg("--dir").arg(dir);
        }
        command.args(["--with-parent", "--listen", &listen, &self.config.vm.name]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    }

    /// Opens the channel and announces it. A VM without one serves its guests all the same.
    pub(super) fn open_channel(&mut self, now: Instant) -> Result<(), Error> {
        let node = format!("{}/channel", publish::ROOT);
        match self.channel_server(now) {
            Ok(server) => {
                self.channel = Some(server);
                self.announce_channel()
            }
            Err(error) => {
                let hint = match self.world {
                    World::Xen => " (the kernel needs xen-gntalloc)",
                    World::Embedded(_) => "",
                };
                tracing::warn!("no request channel, so no logs, top, metrics and volume commands: {error}{hint}");
                // What a supervisor before us had announced is not there any more.
                self.store.write(&node, b"")
            }
        }
    }

    /// Says in the store where the channel is.
    pub(super) fn announce_channel(&mut self) -> Result<(), Error> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let place = serde_json::to_string(&channel.place()).unwrap_or_default();
        self.store.write(&format!("{}/channel", publish::ROOT), place.as_bytes())
    }

    fn channel_server(&self, now: Instant) -> std::io::Result<Server> {
        let memory = self.keeper.list()?.into_iter().find(|(key, _)| key == MEMORY);
        let memory = memory.and_then(|(_, fds)| fds.into_iter().next());
        let (mut access, events) = self.world.open_access(self.own, memory)?;
        Server::new(&mut *access, events, now)
    }

    /// Answers what dom0 asks.
    pub(super) fn tend_channel(&mut self, now: Instant) {
        for _ in 0..MOST {
            let Some((id, body)) = self.channel.as_mut().and_then(|channel| channel.turn(now)) else { break };
            let answer = match serde_json::from_slice::<Ask>(&body) {
                Ok(ask) => self.answer(ask),
                Err(_) => Answer::Refused {
                    code: 2,
                    why: format!("version {} of a service VM does not know this question", env!("CARGO_PKG_VERSION")),
                },
            };
            let mut body = serde_json::to_vec(&answer).unwrap_or_default();
            if body.len() > MAX_ANSWER {
                let why = "the answer is longer than the request channel carries".to_owned();
                body = serde_json::to_vec(&Answer::Refused { code: 1, why }).unwrap_or_default();
            }
            if let Some(channel) = &mut self.channel {
                channel.answer(id, &body, now);
            }
        }
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        let refused = |refusal: Refusal| Answer::Refused { code: refusal.exit_code(), why: refusal.to_string() };
        match ask {
            Ask::Logs { after } => {
                let (lines, more) = crate::log::lines(after);
                Answer::Logs { lines, more }
            }
            Ask::Top => Answer::Top { devices: self.top_disks(), cards: self.top_cards() },
            Ask::Metrics => Answer::Metrics { text: self.metrics() },
            Ask::Volumes => {
                let line = |(name, node): (String, publish::VolumeNode)| {
                    let publish::VolumeNode { size, mode, used_by, source, error } = node;
                    VolumeLine { name, size, mode, source, used_by, error }
                };
                Answer::Volumes { volumes: self.volume_nodes().into_iter().map(line).collect() }
            }
            Ask::Outcome { ticket } => match self.changes.outcome(ticket) {
                None => Answer::Working { ticket },
                Some(Ok(bytes)) => Answer::Done { bytes },
                Some(Err(refusal)) => refused(refusal),
            },
            change => match change.change() {
                Some((name, change)) => match self.change(&name, change) {
                    Ok(ticket) => Answer::Working { ticket },
                    Err(refusal) => refused(refusal),
                },
                None => refused(Refusal::Usage("that is no question".into())),
            },
        }
    }

    fn top_disks(&self) -> Vec<TopDevice> {
        let now = Instant::now();
        let device = |(name, device): (&super::Name, &super::Device)| {
            let (_, meter) = device.meter.as_ref()?;
            let counts = meter.histogram();
            let sum = |counter: stats::Counter| meter.sum(counter as usize);
            Some(TopDevice {
                guest: name.guest,
                devid: name.devid,
                volume: device.about.as_ref().map(|about| about.volume.clone()).unwrap_or_default(),
                phase: device.phase(now).name().to_owned(),
                queues: meter.queues(),
                in_flight: sum(stats::Counter::InFlight),
                ring_full: sum(stats::Counter::RingFull),
                grants_mapped: sum(stats::Counter::GrantsMapped),
                stats: stats::snapshot(meter),
                latency: (0..).zip(counts).filter(|(_, count)| *count > 0).collect(),
            })
        };
        self.devices.iter().filter_map(device).collect()
    }

    fn top_cards(&self) -> Vec<TopCard> {
        let card = |(name, network, meter): (VifName, &str, &Meter)| TopCard {
            guest: name.guest,
            devid: name.devid,
            network: network.to_owned(),
            stats: netback::stats::snapshot(meter),
        };
        self.vifs.meters().map(card).collect()
    }

    fn metrics(&self) -> String {
        let disks = self.devices.iter().filter_map(|(name, device)| {
            let (_, meter) = device.meter.as_ref()?;
            let volume = device.about.as_ref().map_or("", |about| &about.volume);
            Some(Disk { guest: name.guest, device: Vdev(name.devid).to_string(), volume, meter })
        });
        let cards = self.vifs.meters().map(|(name, network, meter): (_, &str, &Meter)| Card {
            guest: name.guest,
            device: AnyDevice::Card(name.devid).to_string(),
            network,
            meter,
        });
        let (disks, cards): (Vec<_>, Vec<_>) = (disks.collect(), cards.collect());
        let volumes: Vec<(String, u64)> =
            self.volume_nodes().into_iter().map(|(name, node)| (name, node.size)).collect();
        text::all(&self.config.vm.name, &disks, &cards, &volumes)
    }
}

//! The end of a service VM, as dom0 asks for it: guests are served until the last has let go, or patience is over.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use xenstore::xenbus::backend::Service;
use xenstore::{Error, Store};

use super::Supervisor;
use crate::publish;
use crate::source::partitions;
use crate::vdev::Vdev;

/// Most users that are named.
const NAMED: usize = 16;

/// Since the end was asked for.
#[derive(Debug)]
pub(super) struct Linger {
    /// How long guests are served then.
    patience: Duration,
    /// Until when they are; none while nobody has asked.
    until: Option<Instant>,
    /// Whom we said that we wait for.
    said: String,
}

impl Linger {
    /// With this patience.
    pub fn new(patience: Duration) -> Linger {
        Linger { patience, until: None, said: String::new() }
    }

    /// Nothing new is begun.
    pub fn is_ending(&self) -> bool {
        self.until.is_some()
    }

    /// When patience is over.
    pub fn timer(&self) -> Option<Instant> {
        self.until
    }
}

impl Supervisor {
    /// The end is asked for: at once if nobody is served, or if it is asked for again.
    pub(super) fn asked_to_end(&mut self, now: Instant) {
        if self.linger.is_ending() || self.linger.patience.is_zero() || self.users().is_empty() {
            return self.stop();
        }
        tracing::info!("asked to end: no new disks, and {:?} for those that are in use", self.linger.patience);
        self.linger.until = Some(now + self.linger.patience);
    }

    /// Says whom we wait for, and ends when there is nobody left or no time.
    pub(super) fn tend_linger(&mut self, now: Instant) -> Result<(), Error> {
        let Some(until) = self.linger.until.filter(|_| self.stopping.is_none()) else { return Ok(()) };
        let users = self.users();
        if users.is_empty() {
            self.stop();
        } else if now >= until {
            tracing::error!("still in use, and stopped all the same: {}", named(&users));
            self.stop();
        } else {
            let text = named(&users);
            if text != self.linger.said {
                tracing::warn!("waiting for {text}; {} s left", until.duration_since(now).as_secs());
                self.store.write(&format!("{}/waiting-for", publish::ROOT), text.as_bytes())?;
                self.linger.said = text;
            }
        }
        Ok(())
    }

    fn users(&self) -> Vec<String> {
        let disks = self.devices.iter().filter(|(_, device)| device.service != Service::None);
        let disks = disks.map(|(name, _)| format!("{} of domain {}", Vdev(name.devid), name.guest));
        disks.chain(self.vifs.in_use().map(|name| format!("vif{} of domain {}", name.devid, name.guest))).collect()
    }

    /// Has every medium write down what it holds: a guest may not have asked for that, and power goes next.
    pub(super) fn flush_volumes(&self) {
        for volume in self.config.volumes.iter().filter(|volume| !volume.read_only) {
            let Some(path) = &volume.path else { continue };
            let path = match &volume.label {
                Some(label) => partitions::node(path, label).ok(),
                None => Some(path.clone()),
            };
            let flags = OFlags::NONBLOCK.bits() as i32;
            let Some(Ok(file)) = path.map(|path| OpenOptions::new().read(true).custom_flags(flags).open(path)) else {
                // It could not be opened before, either, and was said to be wrong.
                continue;
            };
            if let Err(error) = file.sync_data() {
                tracing::error!("volume {}: its medium does not write down what it holds: {error}", volume.name);
            }
        }
    }
}

fn named(users: &[String]) -> String {
    let more = users.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", users[..users.len().min(NAMED)].join(", "))
}

//! What is published of our devices, also when xenstored has no node left for it: its quota is used up by disks, and
//! neither a new disk that is refused for that nor anybody else may come to harm.

use std::time::Instant;

use blkback::stats;
use xenstore::wire::ErrorName;
use xenstore::xenbus::backend::Service;
use xenstore::{Error, Store};

use super::Supervisor;
use super::nodes::{self, Name};
use crate::publish::{self, DeviceNode, Phase};
use crate::store::Nodes;
use crate::world::World;

impl Supervisor {
    /// Publishes where a device stands, if that has changed.
    pub(super) fn publish(&mut self, name: Name) -> Result<(), Error> {
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let phase = device.phase(Instant::now());
        let (reason, path) = (device.published_reason(phase), device.path.clone());
        let node = DeviceNode { phase: phase.name().to_owned(), reason, path, stats: None };
        if device.published.as_ref() == Some(&node) {
            return Ok(());
        }
        if phase == Phase::Held && device.holding.is_none() {
            tracing::error!(device = %name, "held: {}", node.reason);
        }
        device.published = Some(node);
        self.write_node(name)
    }

    /// Writes the node of a device, with fresh numbers.
    fn write_node(&mut self, name: Name) -> Result<(), Error> {
        let Some(device) = self.devices.get(&name) else { return Ok(()) };
        let Some(node) = &device.published else { return Ok(()) };
        let stats = device.meter.as_ref().map(|(_, meter)| stats::snapshot(meter));
        let node = DeviceNode { stats, ..node.clone() };
        match nodes::publish(&mut self.store, name, &node) {
            Err(error) if error.is_quota() => {
                let node = DeviceNode { stats: None, ..node };
                match self.overflow.insert(name.to_string(), node.clone()) {
                    Some(before) if before == node => Ok(()),
                    _ => self.write_overflow(),
                }
            }
            other => {
                other?;
                self.leave_overflow(name)
            }
        }
    }

    /// A device is not among those without a node, or not any more.
    pub(super) fn leave_overflow(&mut self, name: Name) -> Result<(), Error> {
        match self.overflow.remove(&name.to_string()) {
            Some(_) => self.write_overflow(),
            None => Ok(()),
        }
    }

    /// Makes the nodes that must be there when no more can be made.
    pub(super) fn make_room(&mut self) -> Result<(), Error> {
        for answer in ["sampled", "resumed", "channel", "waiting-for"] {
            let node = format!("{}/{answer}", publish::ROOT);
            if self.store.read_optional(&node)?.is_none() {
                self.store.write(&node, b"")?;
            }
        }
        self.write_overflow()
    }

    pub(super) fn write_overflow(&mut self) -> Result<(), Error> {
        let mut all = self.overflow.clone();
        all.extend(self.vif_overflow().map(|(name, node)| (name.clone(), node.device())));
        self.store.write(&publish::overflow(), publish::overflow_text(&all).as_bytes())
    }

    /// Brings all published numbers up to date, as dom0 has asked.
    pub(super) fn sample(&mut self) -> Result<(), Error> {
        let Some(token) = self.store.text(&format!("{}/sample", publish::ROOT))? else {
            return Ok(());
        };
        let served = self.devices.iter().filter(|(_, device)| device.meter.is_some());
        for name in served.map(|(name, _)| *name).collect::<Vec<Name>>() {
            self.write_node(name)?;
        }
        self.sample_vifs()?;
        self.store.write(&format!("{}/sampled", publish::ROOT), token.as_bytes())
    }

    /// There is no node left for what a device publishes: it is refused for now, and nothing of it is held.
    pub(super) fn no_room(&mut self, name: Name, error: &Error) -> Result<(), Error> {
        let why = self.no_room_text(error);
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let known = device.retry.is_some();
        device.retry_later();
        if device.service == Service::None {
            device.volume = None;
        }
        device.reason.clone_from(&why);
        self.publish_volumes()?;
        if known {
            return Ok(());
        }
        self.say(name, &why);
        // Published before the toolstack is woken: it looks here for more than one word.
        self.publish(name)?;
        nodes::refuse(&mut self.store, name, &why, false)?;
        Ok(())
    }

    /// Which quota of the store is used up, and how it is raised.
    pub(super) fn no_room_text(&self, error: &Error) -> String {
        let disks = self.devices.values().filter(|device| device.is_open()).count();
        let (quota, unless, enough) = match error.name() {
            Some(ErrorName::Enomem) => ("memory", "2.5 MB", 20_000_000),
            _ => ("nodes", "1000", 20_000),
        };
        let running = format!("`xenstore-control quota set {quota} {enough}`");
        let command = match &self.world {
            World::Xen => format!("in dom0 {running}"),
            World::Embedded(_) => format!("`windsor host --quota {quota}={enough}`, or {running} as it runs"),
        };
        let users = match self.vifs.len() {
            0 => format!("{disks} disks"),
            cards => format!("{disks} disks and {cards} cards"),
        };
        format!(
            "no room left in xenstore ({error}): the quota of {quota} of this service VM ({unless} unless raised) is used up by its {users}; raise it: {command}"
        )
    }
}

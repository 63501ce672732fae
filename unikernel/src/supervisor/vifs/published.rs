//! What is published of cards and networks, also when xenstored has no node left for it, and what is logged of cards.

use std::collections::HashMap;
use std::time::Instant;

use netback::config::VifName;
use netback::stats;
use xenstore::Error;

use super::{network, nodes};
use crate::publish::{self, NetworkNode, Phase, VifNode};
use crate::supervisor::Supervisor;

impl Supervisor {
    /// A warning that a guest may have caused: bounded per guest.
    pub(super) fn say_of_vif(&mut self, name: VifName, text: &str) {
        self.bounded(name.guest, true, |tail| tracing::warn!(device = %name, "{text}{tail}"));
    }

    /// The same for what is no trouble.
    pub(super) fn tell_of_vif(&mut self, name: VifName, text: &str) {
        self.bounded(name.guest, false, |tail| tracing::info!(device = %name, "{text}{tail}"));
    }

    /// Publishes where a card stands, if that has changed.
    pub(super) fn publish_vif(&mut self, name: VifName) -> Result<(), Error> {
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        let standing = vif.network.as_ref().and_then(|network| self.vifs.networks.get(network));
        let node = vif.node(Instant::now(), standing.and_then(|standing| standing.lost.as_deref()));
        if vif.published.as_ref() == Some(&node) {
            return Ok(());
        }
        let before = vif.published.replace(node.clone()).map(|before| before.reason).unwrap_or_default();
        // What is wrong with a card that works is nobody's refusal: it is told here, and taken back.
        let works = [Phase::Connected, Phase::Ready, Phase::Connecting].iter().any(|phase| node.phase == phase.name());
        if works && before != node.reason {
            match node.reason.as_str() {
                "" => nodes::absolve(&mut self.store, name)?,
                why => match nodes::blame(&mut self.store, name, why) {
                    Err(error) if error.is_quota() => {}
                    other => other?,
                },
            }
        }
        self.write_vif_node(name)
    }

    /// Writes the node of a card, with fresh numbers.
    fn write_vif_node(&mut self, name: VifName) -> Result<(), Error> {
        let Some(vif) = self.vifs.vifs.get(&name) else { return Ok(()) };
        let Some(node) = &vif.published else { return Ok(()) };
        let stats = vif.meter.as_ref().map(|(_, meter)| stats::snapshot(meter));
        let node = VifNode { stats, ..node.clone() };
        match nodes::publish(&mut self.store, name, &node) {
            Err(error) if error.is_quota() => {
                let node = VifNode { stats: None, ..node };
                match self.vifs.overflow.insert(name.to_string(), node.clone()) {
                    Some(before) if before == node => Ok(()),
                    _ => self.write_overflow(),
                }
            }
            other => {
                other?;
                self.leave_vif_overflow(name)
            }
        }
    }

    /// Brings the published numbers of all cards up to date.
    pub(in crate::supervisor) fn sample_vifs(&mut self) -> Result<(), Error> {
        let served = self.vifs.vifs.iter().filter(|(_, vif)| vif.meter.is_some());
        for name in served.map(|(name, _)| *name).collect::<Vec<VifName>>() {
            self.write_vif_node(name)?;
        }
        Ok(())
    }

    /// A card is not among those without a node, or not any more.
    pub(super) fn leave_vif_overflow(&mut self, name: VifName) -> Result<(), Error> {
        match self.vifs.overflow.remove(&name.to_string()) {
            Some(_) => self.write_overflow(),
            None => Ok(()),
        }
    }

    /// There is no node left for what a card publishes: it is refused for now and tried again.
    pub(super) fn no_room_for_vif(&mut self, name: VifName, error: &Error) -> Result<(), Error> {
        let why = self.no_room_text(error);
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        let known = vif.retry.is_some();
        vif.retry_later();
        vif.reason.clone_from(&why);
        if known {
            return Ok(());
        }
        self.say_of_vif(name, &why);
        self.publish_vif(name)?;
        nodes::refuse(&mut self.store, name, &why, false)?;
        Ok(())
    }

    /// Publishes every network with its cards, as far as that has changed.
    pub(super) fn publish_networks(&mut self) -> Result<(), Error> {
        if !std::mem::take(&mut self.vifs.republish) {
            return Ok(());
        }
        let mut users: HashMap<&str, Vec<String>> = HashMap::new();
        for (name, vif) in &self.vifs.vifs {
            if let Some(network) = &vif.network {
                users.entry(network).or_default().push(name.to_string());
            }
        }
        let pages = publish::network_pages(self.config.networks.iter().map(|network| {
            let standing = self.vifs.networks.get(&network.name);
            let error = match standing {
                Some(standing) => standing.lost.clone(),
                // Nobody has looked for it yet.
                None => network::check(&network.uplink).err().map(|error| error.to_string()),
            };
            let node = NetworkNode {
                uplink: network.uplink.to_string(),
                mtu: network.mtu,
                vlan: network.vlan,
                used_by: users.remove(network.name.as_str()).unwrap_or_default(),
                error: error.unwrap_or_default(),
            };
            (network.name.clone(), node)
        }));
        let old = std::mem::take(&mut self.vifs.pages);
        let written = publish::write_pages(&mut self.store, "networks", &old, &pages);
        // What could not be written is tried again with the next change.
        self.vifs.pages = if written.is_ok() { pages } else { old };
        written
    }

    /// Says at once what is wrong with a network.
    pub(in crate::supervisor) fn check_networks(&mut self) -> Result<(), Error> {
        for network in &self.config.networks {
            if let Err(error) = network::check(&network.uplink) {
                tracing::error!(network = network.name, "no uplink: {error}");
            }
        }
        self.vifs.republish = true;
        self.publish_networks()
    }

    /// The texts of cards without a node.
    pub(in crate::supervisor) fn vif_overflow(&self) -> impl Iterator<Item = (&String, &VifNode)> {
        self.vifs.overflow.iter()
    }
}

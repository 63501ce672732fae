//! Carrying out what [`xenstore::xenbus::backend`] decides, one card at a time.

use std::time::Instant;

use grant::meter::Meter;
use netback::config::{Connect, VifName, VifParams};
use xenstore::Error;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::{self, Seen, Service, Step};

use super::network::{self, Parts};
use super::nodes::{self, Description};
use super::vif::{self, Changed, Headroom, Vif};
use crate::config::Network;
use crate::message::VifOrder;
use crate::supervisor::device::DRAIN_PATIENCE;
use crate::supervisor::steps::survivable;
use crate::supervisor::worker::Life;
use crate::supervisor::{MAX_DEVICES, Supervisor, SupervisorError};

/// Steps of one look; what is left after that waits for the next round, so that no card keeps the others waiting.
const STEPS: usize = 8;

impl Supervisor {
    /// Brings a card as far as it can be brought now.
    pub(super) fn drive_vif(&mut self, name: VifName) -> Result<(), SupervisorError> {
        match self.vif_steps(name) {
            Ok(()) => {}
            Err(error) if error.is_quota() => survivable(self.no_room_for_vif(name, &error))?,
            Err(error @ (Error::Connection { .. } | Error::Io { .. } | Error::Protocol(_))) => return Err(error.into()),
            // A permission, a conflict without end: this card's trouble alone.
            Err(error) => survivable(self.refuse_vif(name, &error.to_string(), false))?,
        }
        self.keep_vif(name)?;
        survivable(self.publish_vif(name))
    }

    fn vif_steps(&mut self, name: VifName) -> Result<(), Error> {
        for _ in 0..STEPS {
            let seen = nodes::look(&mut self.store, name)?;
            if !self.vifs.vifs.contains_key(&name) && !self.adopt_vif(name, &seen)? {
                return Ok(());
            }
            self.follow(name, &seen)?;
            let stopping = self.stopping.is_some();
            let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
            if vif.state == XenbusState::Closed && seen.frontend != XenbusState::Initialising {
                // A frontend that comes back gets another chance; the reason stays until it does.
                vif.refused = false;
            }
            let now = Instant::now();
            let dwell = self.config.backend.dwell();
            if !seen.online && !vif.unwanted {
                // A card that closed long ago is asked for like any other: the toolstack starts to look now.
                vif.unwanted = true;
                vif.dwell = Some(now + dwell);
            }
            let parts = vif.parts(stopping);
            let another = seen.is_another(&parts);
            let seen = if another { seen.gone() } else { seen };
            let step = backend::next(&seen, &parts, now);
            if let (Step::Prepare | Step::Offer, Some(at)) = (step, vif.retry)
                && now < at
            {
                vif.timer = Some(at);
                return Ok(());
            }
            match step {
                Step::Wait => return Ok(()),
                Step::WaitUntil(at) => {
                    vif.timer = Some(at);
                    return Ok(());
                }
                Step::Prepare => {
                    if self.linger.is_ending() {
                        let why = "this service VM is being shut down: it takes no new cards";
                        return self.refuse_vif(name, why, false);
                    }
                    if !self.join_network(name, now)? {
                        return Ok(());
                    }
                }
                Step::Offer => self.offer_vif(name, now)?,
                Step::Connect => self.connect_vif(name)?,
                Step::Announce => self.announce_vif(name)?,
                Step::Disconnect => self.disconnect_vif(name, now),
                Step::Switch(state) => {
                    backend::switch(&mut self.store, &nodes::backend(name), state)?;
                    let before = std::mem::replace(&mut vif.state, state);
                    vif.headroom = Headroom::Settled;
                    if state == XenbusState::Closed {
                        vif.negotiated = None;
                        vif.dwell = Some(now + dwell);
                        // Its frontend's Closed may have merged with what it wrote next: a connection that was
                        // refused ends here, and whoever is in Initialising now wants another.
                        let connected = matches!(before, XenbusState::Connected | XenbusState::Closing);
                        vif.refused &= !connected && seen.frontend == XenbusState::Initialising;
                    }
                }
                Step::Remove => {
                    // The toolstack takes the end of the directory for the end of our hold on the address.
                    vif.network = None;
                    self.forget_vif_record(name);
                    nodes::remove(&mut self.store, name)?;
                    return self.forget_vif(name);
                }
                Step::Forget => {
                    nodes::clean(&mut self.store, name)?;
                    self.forget_vif(name)?;
                    if !another {
                        return Ok(());
                    }
                }
            }
        }
        self.vifs.dirty.insert(name);
        Ok(())
    }

    /// A directory that is new to us. False when there is nothing to look after.
    fn adopt_vif(&mut self, name: VifName, seen: &Seen) -> Result<bool, Error> {
        let Some(state) = seen.backend else { return Ok(false) };
        if self.vifs.len() >= MAX_DEVICES {
            self.say_of_vif(name, &format!("not served: there are {MAX_DEVICES} cards already"));
            return Ok(false);
        }
        self.vifs.vifs.insert(name, Vif::found(state));
        Ok(true)
    }

    /// Finds the card's place in its network, or finds out why it has none. False when there is nothing more to do for now.
    fn join_network(&mut self, name: VifName, now: Instant) -> Result<bool, Error> {
        // Read again at each try: while an address is waited for the directory may have been made anew.
        let about = match nodes::describe(&mut self.store, name)? {
            Ok(about) => about,
            Err(why) => {
                self.refuse_vif(name, &why, false)?;
                return Ok(false);
            }
        };
        let found = network::of_bridge(&self.config.networks, &self.config.vm.name, about.bridge());
        let found = found.map(|network| network.name.clone());
        if let Some(vif) = self.vifs.vifs.get_mut(&name) {
            vif.about = Some(about.clone());
        }
        let network = match found {
            Ok(network) => network,
            Err(why) => {
                self.refuse_vif(name, &why, false)?;
                return Ok(false);
            }
        };
        if !self.has_address(name, now, &network, &about)? {
            return Ok(false);
        }
        if let Err(error) = self.switch(&network) {
            self.refuse_vif(name, &format!("no worker can be started: {error}"), false)?;
            return Ok(false);
        }
        let lost = self.vifs.networks.get(&network).and_then(|standing| standing.lost.clone());
        if let Some(why) = lost {
            self.refuse_vif(name, &format!("network {network} has no uplink: {why}"), false)?;
            if let Some(vif) = self.vifs.vifs.get_mut(&name) {
                vif.for_uplink = true;
            }
            return Ok(false);
        }
        if let Some(vif) = self.vifs.vifs.get_mut(&name) {
            vif.network = Some(network);
            vif.waiting = None;
            vif.busy = false;
        }
        self.vifs.republish = true;
        Ok(true)
    }

    /// Whether no other card of the network has this one's address. One that is being given up is waited for.
    fn has_address(&mut self, name: VifName, now: Instant, network: &str, about: &Description) -> Result<bool, Error> {
        let mac = about.toolstack.mac;
        let same = |vif: &Vif| {
            let its = vif.about.as_ref().is_some_and(|about| about.toolstack.mac == mac);
            its && vif.network.as_deref() == Some(network)
        };
        let Some((other, holder)) = self.vifs.vifs.iter().find(|(other, vif)| **other != name && same(vif)) else {
            return Ok(true);
        };
        let patience = if holder.is_leaving() { vif::ADDRESS_PATIENCE } else { vif::USED_PATIENCE };
        let why = format!(
            "the address {mac} is in use in network {network} by vif{} of domain {}: each card needs its own",
            other.devid, other.guest
        );
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(false) };
        if now.duration_since(*vif.waiting.get_or_insert(now)) < patience {
            vif.timer = Some(now + vif::ADDRESS_RETRY);
            return Ok(false);
        }
        self.refuse_vif(name, &why, true)?;
        Ok(false)
    }

    /// Publishes what the card can and goes to InitWait.
    fn offer_vif(&mut self, name: VifName, now: Instant) -> Result<(), Error> {
        let Some(network) = self.network_of_vif(name).cloned() else { return Ok(()) };
        if let Err(error) = self.switch(&network.name) {
            return self.refuse_vif(name, &format!("no worker can be started: {error}"), false);
        }
        nodes::offer(&mut self.store, name, &network.offer())?;
        let dwell = self.config.backend.dwell();
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        vif.state = XenbusState::InitWait;
        vif.retry = None;
        vif.reason.clear();
        vif.negotiated = None;
        // Only a toolstack that waits for a new card has to see InitWait; a guest that comes back has seen it.
        vif.dwell = (!vif.offered).then(|| now + dwell);
        vif.offered = true;
        Ok(())
    }

    /// Reads what the frontend chose and hands the card to its network's worker.
    fn connect_vif(&mut self, name: VifName) -> Result<(), Error> {
        let Some(network) = self.network_of_vif(name).cloned() else { return Ok(()) };
        let negotiated = match nodes::negotiated(&mut self.store, name, &network.offer())? {
            Ok(negotiated) => negotiated,
            Err(why) => return self.refuse_vif(name, &why, false),
        };
        // The rate may have changed since the card was offered, and nobody was told of it.
        let about = match nodes::describe(&mut self.store, name)? {
            Ok(about) => about,
            Err(why) => return self.refuse_vif(name, &why, false),
        };
        let params = params(&network, &about);
        let worker = match self.switch(&network.name) {
            Ok(worker) => worker,
            Err(error) => return self.refuse_vif(name, &format!("no worker can be started: {error}"), false),
        };
        let connected = Parts::open(&self.world, self.own, negotiated.queues.len()).and_then(|parts| {
            if let Some(vif) = self.vifs.vifs.get_mut(&name) {
                vif.meter = Some((parts.meter()?, Meter::open(parts.meter()?)?));
                vif.worker = Some(worker);
                vif.service = Service::Connecting;
                vif.negotiated = Some(negotiated.clone());
                vif.rate = params.rate;
                vif.changed = Changed::default();
                vif.headroom = Headroom::Settled;
            }
            // Kept before it is sent: whoever takes over must know that the worker may have it.
            self.keep_vif(name)?;
            let switch = self.vifs.workers.get(&worker).ok_or(std::io::ErrorKind::NotFound)?;
            parts.send(&switch.worker, Connect { vif: name, negotiated, params })
        });
        if let Err(error) = connected {
            if let Some(vif) = self.vifs.vifs.get_mut(&name) {
                vif.let_go();
            }
            return self.refuse_vif(name, &format!("its worker cannot be told of it: {error}"), false);
        }
        Ok(())
    }

    fn announce_vif(&mut self, name: VifName) -> Result<(), Error> {
        if !nodes::announce(&mut self.store, name)? {
            return Ok(());
        }
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        vif.state = XenbusState::Connected;
        let network = vif.network.clone().unwrap_or_default();
        let chosen = vif.negotiated.as_ref().map(|chosen| (chosen.queues.len(), super::features(chosen).join(" ")));
        let (queues, features) = chosen.unwrap_or_default();
        self.tell_of_vif(name, &format!("connected to network {network}: {queues} queues, {features}"));
        Ok(())
    }

    fn disconnect_vif(&mut self, name: VifName, now: Instant) {
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return };
        let switch = vif.worker.and_then(|id| self.vifs.workers.get_mut(&id));
        match switch {
            Some(switch) if switch.worker.life == Life::Running => {
                if let Err(error) = switch.worker.send(&VifOrder::Disconnect { vif: name }, &[]) {
                    // One that takes no message any more is of no use to its other cards either.
                    switch.worker.kill(&format!("it takes no messages ({error})"));
                }
                vif.service = Service::Draining;
                vif.draining = Some(now);
                vif.timer = Some(now + DRAIN_PATIENCE);
            }
            // Dead and not fenced: the fence ends it.
            Some(_) => vif.service = Service::Draining,
            None => vif.let_go(),
        }
    }

    /// Gives up on a card and says so everywhere.
    pub(super) fn refuse_vif(&mut self, name: VifName, why: &str, busy: bool) -> Result<(), Error> {
        if self.vifs.vifs.get(&name).is_none_or(|vif| vif.reason != why || !vif.refused) {
            self.say_of_vif(name, why);
        }
        if let Some(vif) = self.vifs.vifs.get_mut(&name) {
            vif.refuse(why);
            vif.busy = busy;
        }
        // Published before the toolstack is woken: it looks here for more than one word.
        self.publish_vif(name)?;
        let marked = nodes::refuse(&mut self.store, name, why, busy)?;
        if let Some(vif) = self.vifs.vifs.get_mut(&name).filter(|vif| !marked && !vif.is_open()) {
            // Without a mark a directory that is made anew would look the same.
            vif.refused = false;
            vif.retry_later();
        }
        Ok(())
    }

    /// The card is gone.
    fn forget_vif(&mut self, name: VifName) -> Result<(), Error> {
        if self.vifs.vifs.remove(&name).is_some() {
            self.forget_vif_record(name);
            self.tell_of_vif(name, "gone");
        }
        self.forget_voices(name.guest);
        self.vifs.republish = true;
        self.leave_vif_overflow(name)
    }

    pub(super) fn network_of_vif(&self, name: VifName) -> Option<&Network> {
        self.config.network(self.vifs.vifs.get(&name)?.network.as_deref()?)
    }
}

/// What the network is to know of a card: what its toolstack said, else what the configuration says.
pub(super) fn params(network: &Network, about: &Description) -> VifParams {
    let toolstack = &about.toolstack;
    VifParams {
        mac: toolstack.mac,
        addresses: toolstack.addresses.clone(),
        vlan: toolstack.vlan.or(network.vlan),
        mtu: toolstack.mtu.unwrap_or(network.mtu),
        rate: about.rate.unwrap_or(network.rate),
        allow: network.allow,
    }
}

#[cfg(test)]
mod tests {
    use netback::config::{Allow, Rate};

    use super::*;
    use crate::config::Uplink;
    use netback::keys::Toolstack;

    #[test]
    fn what_the_toolstack_says_goes_before_the_configuration() {
        let configured = Rate { bytes: 20_000, interval_us: 20_000, packets: None };
        let network = Network {
            name: "lan".into(),
            uplink: Uplink::Switch,
            vlan: Some(7),
            mtu: 9000,
            rate: Some(configured),
            queues: 4,
            allow: Allow { router: true, ..Allow::default() },
        };
        let mac = "00:16:3e:01:02:03".parse().unwrap();
        let silent = Toolstack { mac, addresses: Vec::new(), bridge: None, rate: None, mtu: None, vlan: None };
        let read = params(&network, &Description { toolstack: silent.clone(), rate: None });
        assert_eq!((read.vlan, read.mtu, read.rate), (Some(7), 9000, Some(configured)));
        assert!(read.allow.router);
        let own = Rate { bytes: 5, interval_us: 6, packets: None };
        let said = Toolstack { mtu: Some(1400), vlan: Some(8), ..silent.clone() };
        let read = params(&network, &Description { toolstack: said, rate: Some(Some(own)) });
        assert_eq!((read.vlan, read.mtu, read.rate), (Some(8), 1400, Some(own)));
        // A toolstack that writes "0,0" wants no limit.
        assert_eq!(params(&network, &Description { toolstack: silent, rate: Some(None) }).rate, None);
    }
}

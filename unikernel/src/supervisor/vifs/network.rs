//! The networks: each has a worker from its first card on, and an uplink that may come and go.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use grant::{DomId, tap};

use crate::config::{Network, Uplink};
use crate::message::{Served, Start, VifOrder};
use crate::supervisor::Supervisor;
use crate::supervisor::device::WorkerId;
use crate::supervisor::worker::{self, Life, Worker};
use crate::world::World;

/// How often an uplink that is not there is looked for.
const UPLINK_RETRY: Duration = Duration::from_secs(2);
/// What a TAP of ours is called; the kernel puts a number there.
const TAP_NAME: &str = "windsor%d";
/// What the addresses of our TAPs begin with: so high that no bridge takes one for its own. Not FE:FF:FF:FF:FF:FF, which
/// dom0 has where its kernel is the backend of the service VM's own card: a bridge keeps frames for a port's address.
const TAP_ADDRESS: [u8; 3] = [0xFE, 0x57, 0x4E];

/// How a network stands.
#[derive(Debug, Default)]
pub struct Standing {
    /// Its running worker.
    pub current: Option<WorkerId>,
    /// Why it has no uplink though it should have one.
    pub lost: Option<String>,
    /// When to look for it again.
    pub retry: Option<Instant>,
    /// Our TAP, where it has to be a port of a bridge: nobody tells us when that goes.
    port: Option<String>,
}

/// The worker of one network.
#[derive(Debug)]
pub struct Switch {
    /// The network's name.
    pub network: String,
    /// Its process.
    pub worker: Worker,
}

impl Switch {
    /// Starts a worker and its thread.
    ///
    /// # Errors
    /// With what could not be opened or started.
    fn start(world: &World, network: &str, uplink: Option<OwnedFd>) -> io::Result<Switch> {
        let (read, write) = worker::fence()?;
        let start = Start::new(world.kind(), Served::Network { uplink: uplink.is_some() });
        let sent: Vec<OwnedFd> = [Some(write), uplink].into_iter().flatten().collect();
        Ok(Switch { network: network.to_owned(), worker: Worker::start(&start, &sent, vec![read])? })
    }
}

/// What a card is connected with: event channels, meter and grants.
pub struct Parts {
    fds: [OwnedFd; 3],
}

impl Parts {
    /// Opens them for a card of `queues` queues.
    ///
    /// # Errors
    /// With what could not be made or opened.
    pub fn open(world: &World, own: DomId, queues: usize) -> io::Result<Parts> {
        let meter = grant::meter::Meter::create(queues)?;
        Ok(Parts { fds: [world.open_events(own)?, meter, world.open_grants(own)?] })
    }

    /// The meter, to be read at leisure.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn meter(&self) -> io::Result<OwnedFd> {
        let [_, meter, _] = &self.fds;
        meter.try_clone()
    }

    /// Gives a worker the card.
    ///
    /// # Errors
    /// `WouldBlock` when it does not read; else what the kernel says.
    pub fn send(&self, worker: &Worker, connect: netback::config::Connect) -> io::Result<()> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        worker.send(&VifOrder::Connect { connect }, &fds)
    }
}

/// An open uplink, and its name where it is ours and a port of a bridge.
type Opened = (Option<OwnedFd>, Option<String>);

/// Opens a network's uplink; none where it has none.
///
/// # Errors
/// With the name of what is not there.
fn open_uplink(network: &Network) -> io::Result<Opened> {
    let tap = match &network.uplink {
        Uplink::Switch => return Ok((None, None)),
        Uplink::Bridge(bridge) => {
            check(&network.uplink)?;
            let tap = tap::open(TAP_NAME)?;
            let name = tap::name(&tap)?;
            let [a, b, c] = TAP_ADDRESS;
            tap::set_address(&name, [a, b, c, fastrand::u8(..), fastrand::u8(..), fastrand::u8(..)])?;
            tap::join_bridge(&name, bridge)?;
            tap
        }
        Uplink::Tap(name) => {
            // Opening it would make it, and it would lead nowhere.
            check(&network.uplink)?;
            tap::open(name)?
        }
    };
    let name = tap::name(&tap)?;
    tap::set_mtu(&name, network.mtu)?;
    tap::set_up(&name)?;
    Ok((Some(tap), matches!(network.uplink, Uplink::Bridge(_)).then_some(name)))
}

/// Whether what an uplink names is there.
///
/// # Errors
/// With its name when it is not.
pub fn check(uplink: &Uplink) -> io::Result<()> {
    let (what, name) = match uplink {
        Uplink::Switch => return Ok(()),
        Uplink::Bridge(name) => ("bridge", name),
        Uplink::Tap(name) => ("TAP", name),
    };
    match tap::exists(name)? {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no {what} {name}"))),
    }
}

/// Which network a card belongs to, by its key `bridge`. `networks` are the VM's, `vm` its name.
///
/// # Errors
/// A sentence with the networks there are.
pub fn of_bridge<'a>(networks: &'a [Network], vm: &str, bridge: &str) -> Result<&'a Network, String> {
    if let Some(network) = networks.iter().find(|network| network.name == bridge) {
        return Ok(network);
    }
    let names: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    // What libxl writes where nobody said anything.
    if bridge.is_empty() || bridge == "xenbr0" {
        return match networks {
            [only] => Ok(only),
            _ => Err(format!("which network of {vm}? give bridge=NAME (it has: {names})")),
        };
    }
    let asked: String = bridge.escape_debug().take(64).collect();
    Err(format!("{vm} has no network \"{asked}\" (it has: {names})"))
}

impl Supervisor {
    /// The running worker of a network, started if there is none. Without its uplink it starts all the same.
    pub(super) fn switch(&mut self, name: &str) -> io::Result<WorkerId> {
        let running = self.vifs.networks.get(name).and_then(|standing| standing.current);
        if let Some(id) = running
            && self.vifs.workers.get(&id).is_some_and(|switch| switch.worker.life == Life::Running)
        {
            return Ok(id);
        }
        let network = self.config.network(name).ok_or(io::ErrorKind::NotFound)?;
        let ((uplink, port), lost) = match open_uplink(network) {
            Ok(opened) => (opened, None),
            Err(error) => ((None, None), Some(error.to_string())),
        };
        let mut switch = Switch::start(&self.world, name, uplink)?;
        let id = self.next_worker;
        if let Err(error) = self.keep_switch(id, &switch) {
            switch.worker.kill("it cannot be kept");
            return Err(error);
        }
        self.next_worker += 1;
        self.vifs.workers.insert(id, switch);
        let standing = self.vifs.networks.entry(name.to_owned()).or_default();
        (standing.current, standing.port) = (Some(id), port);
        self.uplink_changed(name, lost);
        Ok(id)
    }

    /// Why a network has no uplink, or that it has one again.
    pub(super) fn uplink_changed(&mut self, name: &str, lost: Option<String>) {
        let standing = self.vifs.networks.entry(name.to_owned()).or_default();
        let look = lost.is_some() || standing.port.is_some();
        standing.retry = look.then(|| Instant::now() + UPLINK_RETRY);
        if standing.lost == lost {
            return;
        }
        match &lost {
            Some(why) => {
                tracing::error!(network = name, "no uplink: {why}; looked for every {} s", UPLINK_RETRY.as_secs())
            }
            None => tracing::info!(network = name, "the uplink is there again"),
        }
        let back = lost.is_none();
        standing.lost = lost;
        self.keep_uplink(name, !back);
        for (vif, it) in &mut self.vifs.vifs {
            let of_it = it.network.as_deref() == Some(name);
            if back && it.for_uplink {
                (it.refused, it.for_uplink) = (false, false);
                it.reason.clear();
                self.vifs.dirty.insert(*vif);
            } else if of_it {
                self.vifs.dirty.insert(*vif);
            }
        }
        self.vifs.republish = true;
    }

    /// Looks for uplinks whose time has come.
    pub(super) fn tend_uplinks(&mut self, now: Instant) {
        let due = |standing: &Standing| standing.retry.is_some_and(|at| at <= now);
        let names: Vec<String> =
            self.vifs.networks.iter().filter(|(_, it)| due(it)).map(|(name, _)| name.clone()).collect();
        for name in names {
            let (Some(network), Some(standing)) = (self.config.network(&name), self.vifs.networks.get_mut(&name))
            else {
                continue;
            };
            if let (None, Some(port), Uplink::Bridge(bridge)) = (&standing.lost, &standing.port, &network.uplink) {
                if tap::is_port(port, bridge) {
                    standing.retry = Some(now + UPLINK_RETRY);
                    continue;
                }
                let why = check(&network.uplink).err().map(|error| error.to_string());
                let why = why.unwrap_or_else(|| format!("{port} is no port of the bridge {bridge} any more"));
                self.uplink_changed(&name, Some(why));
            }
            let Some(network) = self.config.network(&name) else { continue };
            let (port, lost) = match open_uplink(network) {
                Ok((uplink, port)) => (port, self.give_uplink(&name, uplink).err().map(|error| error.to_string())),
                Err(error) => (None, Some(error.to_string())),
            };
            self.vifs.networks.entry(name.clone()).or_default().port = port;
            self.uplink_changed(&name, lost);
        }
    }

    fn give_uplink(&self, name: &str, uplink: Option<OwnedFd>) -> io::Result<()> {
        let current = self.vifs.networks.get(name).and_then(|standing| standing.current);
        let Some(switch) = current.and_then(|id| self.vifs.workers.get(&id)) else {
            // Whoever is started next opens it anew.
            return Ok(());
        };
        let fds: Vec<_> = uplink.iter().map(AsFd::as_fd).collect();
        switch.worker.send(&VifOrder::Uplink { present: uplink.is_some() }, &fds)
    }
}

#[cfg(test)]
mod tests {
    use netback::config::Allow;

    use super::*;

    fn network(name: &str, uplink: Uplink) -> Network {
        let allow = Allow::default();
        Network { name: name.into(), uplink, vlan: None, mtu: 1500, rate: None, queues: 4, allow }
    }

    #[test]
    fn a_card_names_its_network_by_its_bridge() {
        let (one, two) =
            (vec![network("lan", Uplink::Switch)], ["lan", "dmz"].map(|name| network(name, Uplink::Switch)));
        for bridge in ["lan", "", "xenbr0"] {
            assert_eq!(of_bridge(&one, "acme", bridge).unwrap().name, "lan");
        }
        assert_eq!(of_bridge(&two, "acme", "dmz").unwrap().name, "dmz");
        for (networks, bridge, says) in [
            (&one[..], "wan", "acme has no network \"wan\" (it has: lan)"),
            (&two[..], "", "which network of acme? give bridge=NAME (it has: lan, dmz)"),
            (&two[..], "xenbr0", "which network of acme? give bridge=NAME (it has: lan, dmz)"),
            (&[], "lan", "acme has no network \"lan\" (it has: none)"),
        ] {
            assert_eq!(of_bridge(networks, "acme", bridge).unwrap_err(), says);
        }
    }

    #[test]
    fn an_uplink_that_is_not_there_is_named() {
        for (uplink, says) in [
            (Uplink::Bridge("no-such-br".into()), "there is no bridge no-such-br"),
            (Uplink::Tap("no-such-tap".into()), "there is no TAP no-such-tap"),
        ] {
            assert_eq!(open_uplink(&network("lan", uplink)).unwrap_err().to_string(), says);
        }
        assert!(open_uplink(&network("lan", Uplink::Switch)).unwrap().0.is_none());
    }
}

//! The cards of all guests, beside their disks: the same life ([`xenstore::xenbus::backend`]), but one worker for each
//! network and all its guests.
//!
//! ```text
//! bridge, mac, ip, rate, mtu --> network --> its worker, started at its first card and kept
//!                                               uplink: a TAP of ours in a bridge, somebody's TAP, none;
//!                                               one that is not there is looked for again and again
//! ```

mod bridges;
mod live;
mod network;
mod nodes;
mod published;
mod reports;
mod steps;
mod takeover;
mod vif;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use netback::config::{Negotiated, VifName};
use xenstore::Error;
use xenstore::Store;
use xenstore::xenbus::backend::Service;

use super::device::WorkerId;
use super::{Supervisor, SupervisorError};
use crate::publish::VifNode;
use crate::store::Nodes;
use bridges::Bridges;
use network::{Standing, Switch};
use vif::Vif;

pub use nodes::{TREE, frontend, parse};

/// What the supervisor knows of cards and networks.
#[derive(Default)]
pub struct Vifs {
    vifs: BTreeMap<VifName, Vif>,
    /// Cards to look at.
    dirty: BTreeSet<VifName>,
    workers: BTreeMap<WorkerId, Switch>,
    networks: HashMap<String, Standing>,
    bridges: Bridges,
    /// The nodes of all networks, as written last, and that they may have to be written anew.
    pages: Vec<String>,
    republish: bool,
    /// What is published of cards that have no node.
    overflow: BTreeMap<String, VifNode>,
    /// The guest that was visited last.
    visited: Option<u16>,
}

impl Vifs {
    /// Is a card known?
    pub fn knows(&self, name: VifName) -> bool {
        self.vifs.contains_key(&name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.vifs.len()
    }

    /// Every card that is served, with its network and its counters.
    pub fn meters(&self) -> impl Iterator<Item = (VifName, &str, &grant::meter::Meter)> {
        self.vifs.iter().filter_map(|(name, vif)| {
            let (_, meter) = vif.meter.as_ref()?;
            Some((*name, vif.network.as_deref().unwrap_or_default(), meter))
        })
    }

    /// A card is to be looked at.
    pub fn touch(&mut self, name: VifName) {
        self.dirty.insert(name);
    }

    /// All of a guest's are to be looked at.
    pub fn touch_guest(&mut self, guest: u16) {
        let (first, last) = (VifName { guest, devid: 0 }, VifName { guest, devid: u32::MAX });
        self.dirty.extend(self.vifs.range(first..=last).map(|(name, _)| *name));
    }

    /// All are to be looked at.
    pub fn touch_all(&mut self) {
        self.dirty.extend(self.vifs.keys().copied());
    }

    /// The toolstack has changed `rate`.
    pub fn rate_changed(&mut self, name: VifName) {
        if let Some(vif) = self.vifs.get_mut(&name) {
            vif.changed.rate = true;
            self.dirty.insert(name);
        }
    }

    /// A frontend has changed `request-multicast-control`.
    pub fn multicast_changed(&mut self, name: VifName) {
        if let Some(vif) = self.vifs.get_mut(&name) {
            vif.changed.multicast = true;
            self.dirty.insert(name);
        }
    }

    /// Everything is to be looked at and written anew: the store was away.
    pub fn start_over(&mut self) {
        self.pages.clear();
        self.republish = true;
    }

    /// Does a guest have cards?
    pub fn serves(&self, guest: u16) -> bool {
        self.vifs.keys().any(|name| name.guest == guest)
    }

    /// Nothing is in use, and nothing waits to be looked at.
    pub fn is_idle(&self) -> bool {
        self.vifs.values().all(|vif| vif.service == Service::None)
    }

    /// Cards that are in use.
    pub fn in_use(&self) -> impl Iterator<Item = VifName> {
        self.vifs.iter().filter(|(_, vif)| vif.service != Service::None).map(|(name, _)| *name)
    }

    /// Is there anything to look at now?
    pub fn is_quiet(&self) -> bool {
        self.dirty.is_empty() && !self.republish
    }

    /// When somebody has to look here again without an event.
    pub fn timers(&self) -> impl Iterator<Item = Instant> {
        let vifs = self.vifs.values().filter_map(|vif| vif.timer);
        let workers = self.workers.values().filter_map(|switch| switch.worker.deadline());
        let uplinks = self.networks.values().filter_map(|network| network.retry);
        vifs.chain(workers).chain(uplinks).chain(self.bridges.retry)
    }

    /// What to poll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.workers.values().flat_map(|switch| switch.worker.fds())
    }

    /// Cards whose time has come.
    pub fn wake(&mut self, now: Instant) {
        for (name, vif) in &mut self.vifs {
            if vif.timer.is_some_and(|timer| timer <= now) {
                vif.timer = None;
                self.dirty.insert(*name);
            }
        }
    }
}

impl Supervisor {
    /// Looks after all cards that want it.
    pub(super) fn drive_vifs(&mut self, now: Instant) -> Result<(), SupervisorError> {
        self.vifs.wake(now);
        self.tend_bridges(now);
        self.tend_uplinks(now);
        // Cards on their way out first: their addresses may be what others wait for.
        let (leaving, others): (Vec<VifName>, Vec<VifName>) = std::mem::take(&mut self.vifs.dirty)
            .into_iter()
            .partition(|name| self.vifs.vifs.get(name).is_some_and(|vif| vif.network.is_some()));
        for name in leaving.into_iter().chain(others) {
            self.drive_vif(name)?;
        }
        super::steps::survivable(self.publish_networks())
    }

    /// Every card there is, in whatever state.
    pub(super) fn walk_vifs(&mut self) -> Result<(), SupervisorError> {
        for guest in self.store.list(TREE)? {
            self.walk_vifs_of(&guest)?;
        }
        Ok(())
    }

    /// Every card of a guest.
    pub(super) fn walk_vifs_of(&mut self, guest: &str) -> Result<(), SupervisorError> {
        let devids = match self.store.list(&format!("{TREE}/{guest}")) {
            // It has gone meanwhile, and a domain that may not read the parent is told so.
            Err(error) if error.is_permission() => Vec::new(),
            other => other?,
        };
        self.vifs.dirty.extend(devids.iter().filter_map(|devid| parse(guest, devid)));
        Ok(())
    }

    /// Looks whether the next guest is still there: nobody may have told us.
    pub(super) fn visit_vifs(&mut self) -> Result<(), Error> {
        let after = self.vifs.visited.map_or(0, |guest| guest.saturating_add(1));
        let from = |guest| self.vifs.vifs.range(VifName { guest, devid: 0 }..).next().map(|(name, _)| *name);
        let Some(name) = from(after).or_else(|| from(0)) else { return Ok(()) };
        self.vifs.visited = Some(name.guest);
        let there = match self.store.read_optional(&format!("{}/state", frontend(name))) {
            Err(error) if error.is_permission() => false,
            other => other?.is_some(),
        };
        if !there {
            let of_it = |name: &&VifName| name.guest == self.vifs.visited.unwrap_or_default();
            let open = self.vifs.vifs.iter().filter(|(_, vif)| vif.is_open()).map(|(name, _)| name).filter(of_it);
            let open: Vec<VifName> = open.copied().collect();
            self.vifs.dirty.extend(open);
        }
        Ok(())
    }
}

/// What a frontend and we do together, in words for people.
fn features(chosen: &Negotiated) -> Vec<String> {
    let features = &chosen.features;
    [
        ("sg", features.scatter_gather),
        ("gso4", features.gso_tcpv4),
        ("gso6", features.gso_tcpv6),
        ("csum4", features.checksum_ipv4),
        ("csum6", features.checksum_ipv6),
        ("rx-notify", features.rx_notify),
        ("split-events", chosen.queues.iter().any(|queue| queue.event_channel_rx.is_some())),
        ("ctrl-ring", chosen.control.is_some()),
        ("multicast", features.multicast_control),
        ("xdp", features.xdp_headroom > 0),
    ]
    .into_iter()
    .filter(|(_, on)| *on)
    .map(|(name, _)| name.to_owned())
    .collect()
}

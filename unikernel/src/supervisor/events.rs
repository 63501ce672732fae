//! What has happened in the store, and which devices have to be looked at for it.
//!
//! One watch serves for everything: on `/local/domain` a domain is told of each node that it may read, its own ones and
//! the frontends' directories. So the number of disks is not bounded by the quota of watches (128). The price is that
//! whoever lets us read a node can make us hear of it; what is not about a disk of ours costs no more than to be
//! recognised. One round takes a bounded number of events and then looks after the devices.
//!
//! When the toolstack takes a frontend's directory away we hear of it, for we may read that. When it takes away all of
//! a guest we do not (C xenstored tells those who may read the topmost node), so one disk of each guest is looked at now
//! and then.

use std::time::Duration;

use netback::config::VifName;
use xenstore::Store;

use super::device::Device;
use super::nodes::{self, Name};
use super::steps::survivable;
use super::{Supervisor, SupervisorError, vifs};
use crate::store::Nodes;

/// What is watched.
const WATCHED: &str = "/local/domain";
/// Most events of one round.
const MOST: usize = 512;

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matter {
    /// Nothing of ours.
    Nothing,
    /// Anything may have changed.
    Everything,
    /// dom0 wants fresh numbers.
    Sample,
    /// The operator says that something is well again.
    Resume,
    /// Disks of a guest came or went, on our side.
    Backends(u16),
    /// A device of ours: the toolstack has changed it.
    Backend(Name),
    /// Cards of a guest came or went, on our side.
    VifBackends(u16),
    /// A card of ours: the toolstack has changed it.
    Vif(VifName),
    /// The state of a card's frontend, or its directory.
    VifFrontend(VifName),
    /// The toolstack has changed the rate of a card.
    VifRate(VifName),
    /// A frontend has changed which groups it wants.
    VifMulticast(VifName),
    /// Anything of a guest.
    Guest(u16),
    /// The state of a frontend, or its directory.
    Frontend(Name),
}

impl Matter {
    /// From the path of an event, for the domain `own`.
    fn of(path: &str, own: u16) -> Matter {
        // One more than the longest path that is looked at.
        let parts: Vec<&str> = path.strip_prefix(WATCHED).unwrap_or_default().split('/').skip(1).take(7).collect();
        let Some((domain, rest)) = parts.split_first() else { return Matter::Everything };
        let Ok(domain) = domain.parse::<u16>() else { return Matter::Nothing };
        let known = |name: Option<Name>, matter: fn(Name) -> Matter| name.map_or(Matter::Nothing, matter);
        let card = |name: Option<VifName>, matter: fn(VifName) -> Matter| name.map_or(Matter::Nothing, matter);
        match rest {
            [] if domain != own => Matter::Guest(domain),
            ["device"] | ["device", "vbd" | "vif"] if domain != own => Matter::Guest(domain),
            ["device", "vbd", devid] | ["device", "vbd", devid, "state"] if domain != own => {
                known(Name::parse(&domain.to_string(), devid), Matter::Frontend)
            }
            ["device", "vif", devid] | ["device", "vif", devid, "state"] if domain != own => {
                card(vifs::parse(&domain.to_string(), devid), Matter::VifFrontend)
            }
            ["device", "vif", devid, "request-multicast-control"] if domain != own => {
                card(vifs::parse(&domain.to_string(), devid), Matter::VifMulticast)
            }
            _ if domain != own => Matter::Nothing,
            [] | ["backend"] | ["backend", "vbd" | "vif"] => Matter::Everything,
            ["backend", "vbd", guest] => guest.parse().map_or(Matter::Nothing, Matter::Backends),
            // Our own writes come back as events: only two keys are somebody else's to change.
            ["backend", "vbd", guest, devid] | ["backend", "vbd", guest, devid, "state" | "online"] => {
                known(Name::parse(guest, devid), Matter::Backend)
            }
            ["backend", "vif", guest] => guest.parse().map_or(Matter::Nothing, Matter::VifBackends),
            ["backend", "vif", guest, devid] | ["backend", "vif", guest, devid, "state" | "online"] => {
                card(vifs::parse(guest, devid), Matter::Vif)
            }
            ["backend", "vif", guest, devid, "rate"] => card(vifs::parse(guest, devid), Matter::VifRate),
            ["data", "windsor", "sample"] => Matter::Sample,
            ["data", "windsor", "resume"] => Matter::Resume,
            _ => Matter::Nothing,
        }
    }
}

impl Supervisor {
    /// Hears of everything from now on.
    pub(super) fn listen(&mut self) -> Result<(), SupervisorError> {
        Ok(self.store.watch(WATCHED, "")?)
    }

    /// Takes the events that are there, but no more than a round's; true when there may be more.
    pub(super) fn events(&mut self) -> Result<bool, SupervisorError> {
        for _ in 0..MOST {
            let Some(event) = self.store.next_event(Some(Duration::ZERO))? else {
                self.returned()?;
                return Ok(false);
            };
            self.event(Matter::of(&event.path, self.own.0))?;
        }
        self.returned()?;
        Ok(true)
    }

    fn event(&mut self, matter: Matter) -> Result<(), SupervisorError> {
        match matter {
            Matter::Nothing => {}
            Matter::Everything => {
                self.dirty.extend(self.devices.keys().copied());
                self.vifs.touch_all();
                self.walk()?;
                survivable(self.resume())?;
            }
            Matter::Sample => survivable(self.sample())?,
            Matter::Resume => survivable(self.resume())?,
            Matter::Backends(guest) => {
                self.dirty.extend(self.of_guest(guest));
                self.walk_guest(&guest.to_string())?;
            }
            Matter::Backend(name) => drop(self.dirty.insert(name)),
            Matter::VifBackends(guest) => {
                self.vifs.touch_guest(guest);
                self.walk_vifs_of(&guest.to_string())?;
            }
            Matter::Vif(name) => self.vifs.touch(name),
            Matter::VifFrontend(name) if self.vifs.knows(name) => self.vifs.touch(name),
            Matter::VifFrontend(_) => {}
            Matter::VifRate(name) => self.vifs.rate_changed(name),
            Matter::VifMulticast(name) => self.vifs.multicast_changed(name),
            Matter::Guest(guest) => {
                self.dirty.extend(self.of_guest(guest));
                self.vifs.touch_guest(guest);
            }
            // A frontend without a backend is none of ours.
            Matter::Frontend(name) if self.devices.contains_key(&name) => drop(self.dirty.insert(name)),
            Matter::Frontend(_) => {}
        }
        Ok(())
    }

    fn of_guest(&self, guest: u16) -> Vec<Name> {
        let (first, last) = (Name { guest, devid: 0 }, Name { guest, devid: u32::MAX });
        self.devices.range(first..=last).map(|(name, _)| *name).collect()
    }

    /// Every device there is, in whatever state.
    pub(super) fn walk(&mut self) -> Result<(), SupervisorError> {
        for guest in self.store.list(nodes::TREE)? {
            self.walk_guest(&guest)?;
        }
        self.walk_vifs()
    }

    fn walk_guest(&mut self, guest: &str) -> Result<(), SupervisorError> {
        let devids = match self.store.list(&format!("{}/{guest}", nodes::TREE)) {
            // It has gone meanwhile, and a domain that may not read the parent is told so.
            Err(error) if error.is_permission() => Vec::new(),
            other => other?,
        };
        self.dirty.extend(devids.iter().filter_map(|devid| Name::parse(guest, devid)));
        Ok(())
    }

    /// Looks whether the next guest is still there: nobody may have told us.
    pub(super) fn visit(&mut self) -> Result<(), SupervisorError> {
        let after = self.visited.map_or(0, |guest| guest.saturating_add(1));
        let from = |guest| self.devices.range(Name { guest, devid: 0 }..).next().map(|(name, _)| *name);
        let Some(name) = from(after).or_else(|| from(0)) else { return Ok(()) };
        self.visited = Some(name.guest);
        let there = match self.store.read_optional(&format!("{}/state", name.frontend())) {
            Err(error) if error.is_permission() => false,
            other => other?.is_some(),
        };
        if !there {
            let open = |name: &Name| self.devices.get(name).is_some_and(Device::is_open);
            let guests = self.of_guest(name.guest).into_iter().filter(open);
            self.dirty.extend(guests.collect::<Vec<Name>>());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_to_be_looked_at() {
        let name = Name { guest: 7, devid: 51712 };
        let card = VifName { guest: 7, devid: 0 };
        for (path, matter) in [
            ("/local/domain", Matter::Everything),
            ("/local/domain/3/backend/vbd", Matter::Everything),
            ("/local/domain/3/backend/vbd/7", Matter::Backends(7)),
            ("/local/domain/3/backend/vbd/7/51712", Matter::Backend(name)),
            ("/local/domain/3/backend/vbd/7/51712/state", Matter::Backend(name)),
            ("/local/domain/3/backend/vbd/7/51712/online", Matter::Backend(name)),
            ("/local/domain/3/backend/vbd/7/51712/sectors", Matter::Nothing),
            ("/local/domain/3/backend/vbd/7/051712/state", Matter::Nothing),
            ("/local/domain/3/backend/vif", Matter::Everything),
            ("/local/domain/3/backend/vif/7", Matter::VifBackends(7)),
            ("/local/domain/3/backend/vif/7/0", Matter::Vif(card)),
            ("/local/domain/3/backend/vif/7/0/state", Matter::Vif(card)),
            ("/local/domain/3/backend/vif/7/0/online", Matter::Vif(card)),
            ("/local/domain/3/backend/vif/7/0/rate", Matter::VifRate(card)),
            ("/local/domain/3/backend/vif/7/0/carrier", Matter::Nothing),
            ("/local/domain/3/backend/vif/7/00/state", Matter::Nothing),
            ("/local/domain/7/device/vif", Matter::Guest(7)),
            ("/local/domain/7/device/vif/0", Matter::VifFrontend(card)),
            ("/local/domain/7/device/vif/0/state", Matter::VifFrontend(card)),
            ("/local/domain/7/device/vif/0/request-multicast-control", Matter::VifMulticast(card)),
            ("/local/domain/7/device/vif/0/xdp-headroom", Matter::Nothing),
            ("/local/domain/3/data/windsor/sample", Matter::Sample),
            ("/local/domain/3/data/windsor/sampled", Matter::Nothing),
            ("/local/domain/3/data/windsor/resume", Matter::Resume),
            ("/local/domain/7", Matter::Guest(7)),
            ("/local/domain/7/device/vbd", Matter::Guest(7)),
            ("/local/domain/7/device/vbd/51712", Matter::Frontend(name)),
            ("/local/domain/7/device/vbd/51712/state", Matter::Frontend(name)),
            ("/local/domain/7/device/vbd/51712/state/x", Matter::Nothing),
            ("/local/domain/7/device/vbd/51712/ring-ref", Matter::Nothing),
            ("/local/domain/7/data/windsor/sample", Matter::Nothing),
            ("/local/domain/x", Matter::Nothing),
            ("/local/domain/7/device/vbd/51712/queue-0/ring-ref/a/b/c/d", Matter::Nothing),
        ] {
            assert_eq!(Matter::of(path, 3), matter, "{path}");
        }
    }
}

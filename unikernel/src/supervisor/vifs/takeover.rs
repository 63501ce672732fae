//! What outlives a supervisor, beside its disks: the workers of networks, and their cards.
//!
//! | key | descriptors |
//! | --- | --- |
//! | `switch-ID-PID-NETWORK` | control socket, process, read end of the fence |
//! | `uplink-NETWORK` | none: its worker has no uplink though it should have one |
//! | `card-GUEST-DEVID` | the record (JSON in a memfd), then the meter where there is one |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use grant::meter::Meter;
use netback::config::{Negotiated, Rate, VifName};
use serde::{Deserialize, Serialize};
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::Service;

use super::network::Switch;
use super::nodes;
use super::vif::Vif;
use crate::message::VifOrder;
use crate::publish::VifNode;
use crate::supervisor::device::WorkerId;
use crate::supervisor::worker::Worker;
use crate::supervisor::{Supervisor, SupervisorError, record};

/// What is remembered of a card. What its toolstack wrote is read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    network: Option<String>,
    state: u8,
    service: u8,
    worker: Option<WorkerId>,
    negotiated: Option<Negotiated>,
    rate: Option<Rate>,
    offered: bool,
    refused: bool,
    busy: bool,
    for_uplink: bool,
    reason: String,
    meter: bool,
}

impl Record {
    fn of(vif: &Vif) -> Record {
        Record {
            network: vif.network.clone(),
            state: vif.state as u8,
            service: vif.service as u8,
            worker: vif.worker,
            negotiated: vif.negotiated.clone(),
            rate: vif.rate,
            offered: vif.offered,
            refused: vif.refused,
            busy: vif.busy,
            for_uplink: vif.for_uplink,
            reason: vif.reason.clone(),
            meter: vif.meter.is_some(),
        }
    }

    /// The card again; `fds` follow the record.
    fn vif(self, mut fds: impl Iterator<Item = OwnedFd>) -> io::Result<Vif> {
        let mut vif = Vif::found(XenbusState::Initialising);
        if self.meter {
            let fd = record::next(&mut fds)?;
            vif.meter = Some((fd.try_clone()?, Meter::open(fd)?));
        }
        vif.network = self.network;
        vif.state = record::state(self.state);
        vif.service = record::service(self.service);
        vif.worker = self.worker;
        vif.negotiated = self.negotiated;
        vif.rate = self.rate;
        vif.offered = self.offered;
        vif.refused = self.refused;
        vif.busy = self.busy;
        vif.for_uplink = self.for_uplink;
        vif.reason = self.reason;
        Ok(vif)
    }
}

impl Supervisor {
    /// Renews a card's record if it has changed.
    pub(super) fn keep_vif(&mut self, name: VifName) -> io::Result<()> {
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        let record = Record::of(vif);
        if vif.kept.as_ref() == Some(&record) {
            return Ok(());
        }
        let written = record::write(&record)?;
        let mut fds: Vec<BorrowedFd<'_>> = vec![written.as_fd()];
        fds.extend(vif.meter.as_ref().map(|(fd, _)| fd.as_fd()));
        self.keeper.keep(&key(name), &fds)?;
        vif.kept = Some(record);
        Ok(())
    }

    /// A card is gone.
    pub(super) fn forget_vif_record(&self, name: VifName) {
        if let Err(error) = self.keeper.forget(&key(name)) {
            tracing::error!(%error, "the keeper does not forget a card");
        }
    }

    /// A worker has started.
    pub(super) fn keep_switch(&self, id: WorkerId, switch: &Switch) -> io::Result<()> {
        self.keeper.keep(&switch_key(id, switch), &switch.worker.handles())
    }

    /// A worker is gone.
    pub(super) fn forget_switch(&self, id: WorkerId, switch: &Switch) {
        if let Err(error) = self.keeper.forget(&switch_key(id, switch)) {
            tracing::error!(%error, "the keeper does not forget a worker");
        }
    }

    /// Whether a network's worker lacks its uplink.
    pub(super) fn keep_uplink(&self, network: &str, lost: bool) {
        let key = format!("uplink-{network}");
        let kept = if lost { self.keeper.keep(&key, &[]) } else { self.keeper.forget(&key) };
        if let Err(error) = kept {
            tracing::error!(%error, "the keeper does not keep how an uplink stands");
        }
    }

    /// Takes over one thing that a supervisor before us kept; none when it is of no use.
    pub(in crate::supervisor) fn take_over_vifs(&mut self, kind: &str, rest: &str, fds: Vec<OwnedFd>) -> Option<()> {
        match kind {
            "switch" => {
                let mut parts = rest.splitn(3, '-');
                let id: WorkerId = parts.next()?.parse().ok()?;
                let worker = Worker::from_handles(parts.next()?.parse().ok()?, fds)?;
                let network = parts.next()?.to_owned();
                self.vifs.networks.entry(network.clone()).or_default().current = Some(id);
                self.vifs.workers.insert(id, Switch { network, worker });
                self.next_worker = self.next_worker.max(id + 1);
            }
            "uplink" => {
                let standing = self.vifs.networks.entry(rest.to_owned()).or_default();
                standing.lost = Some("it was lost before the service VM's daemon was started anew".into());
                standing.retry = Some(Instant::now());
            }
            "card" => {
                let (guest, devid) = rest.split_once('-')?;
                let name = nodes::parse(guest, devid)?;
                let mut fds = fds.into_iter();
                let record: Record = record::read(fds.next()?).ok()?;
                let mut vif = record.vif(fds).ok()?;
                vif.timer = Some(Instant::now());
                self.vifs.vifs.insert(name, vif);
            }
            _ => return None,
        }
        Some(())
    }

    /// Brings what was taken over in line with the workers that are left and with the store.
    pub(in crate::supervisor) fn settle_vifs(&mut self) -> Result<(), SupervisorError> {
        for name in self.vifs.vifs.keys().copied().collect::<Vec<VifName>>() {
            let about = match nodes::describe(&mut self.store, name) {
                Err(error) if error.is_permission() || error.is_not_found() => None,
                other => other?.ok(),
            };
            let blamed = nodes::blamed(&mut self.store, name)?;
            let Some(vif) = self.vifs.vifs.get_mut(&name) else { continue };
            vif.about = about;
            // What it was told for is taken back when it is over, also when it ended while nobody looked.
            vif.published = blamed.map(|reason| VifNode { reason, ..VifNode::default() });
            // What changed while nobody looked.
            vif.changed.rate = true;
            vif.changed.multicast = true;
            let Some(switch) = vif.worker.and_then(|id| self.vifs.workers.get_mut(&id)) else {
                if vif.service != Service::None {
                    vif.let_go();
                    vif.worker = None;
                    "its worker was lost together with the supervisor".clone_into(&mut vif.reason);
                }
                continue;
            };
            match vif.service {
                // Nobody knows whether the worker has heard of it. It answers in any case, and then it is asked again.
                Service::Connecting => {
                    if let Err(error) = switch.worker.send(&VifOrder::Disconnect { vif: name }, &[]) {
                        switch.worker.kill(&format!("it takes no messages ({error})"));
                    }
                    vif.service = Service::Draining;
                }
                // Whether the worker was asked already is not known; it may be asked twice.
                Service::Draining => vif.service = Service::Connected,
                Service::None | Service::Connected => {}
            }
        }
        self.vifs.touch_all();
        Ok(())
    }
}

fn key(name: VifName) -> String {
    format!("card-{}-{}", name.guest, name.devid)
}

fn switch_key(id: WorkerId, switch: &Switch) -> String {
    format!("switch-{id}-{}-{}", switch.worker.pid(), switch.network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_survives_its_record() {
        let mut vif = Vif::found(XenbusState::Initialising);
        (vif.state, vif.service) = (XenbusState::Connected, Service::Connected);
        vif.network = Some("lan".into());
        vif.worker = Some(3);
        vif.rate = Some(Rate { bytes: 1, interval_us: 2, packets: Some(3) });
        let meter = || Meter::create(1).unwrap();
        vif.meter = Some((meter(), Meter::open(meter()).unwrap()));
        let record = Record::of(&vif);
        let again =
            record::read::<Record>(record::write(&record).unwrap()).unwrap().vif([meter()].into_iter()).unwrap();
        assert_eq!(Record::of(&again), record);
        assert!(record.vif(std::iter::empty()).is_err());
    }
}

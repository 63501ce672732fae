//! What the workers of networks tell, and what their deaths mean for the cards they served.

use std::time::Instant;

use netback::config::VifName;
use netback::device::Report;
use xenstore::xenbus::backend::Service;

use super::nodes;
use super::vif::Headroom;
use crate::supervisor::Supervisor;
use crate::supervisor::device::WorkerId;
use crate::supervisor::worker::Life;

impl Supervisor {
    /// Reads what workers report, and notices deaths and fences.
    pub(in crate::supervisor) fn tend_switches(&mut self, now: Instant) {
        let ids: Vec<WorkerId> = self.vifs.workers.keys().copied().collect();
        for id in ids {
            let mut reports = Vec::new();
            let Some(switch) = self.vifs.workers.get_mut(&id) else { continue };
            let before = switch.worker.life;
            while let Some(report) = switch.worker.next_report::<Report>() {
                reports.push(report);
            }
            let explained = switch.worker.reap();
            switch.worker.check_fences(now);
            let (life, reason, network) = (switch.worker.life, switch.worker.reason.clone(), switch.network.clone());
            for report in reports {
                self.switch_report(id, &network, report);
            }
            if life != before || explained {
                self.switch_changed(id, &network, life, &reason);
            }
        }
    }

    fn switch_report(&mut self, id: WorkerId, network: &str, report: Report) {
        let name = match &report {
            Report::Connected { vif }
            | Report::Failed { vif, .. }
            | Report::Broken { vif, .. }
            | Report::Reconfigured { vif, .. }
            | Report::Closed { vif } => *vif,
            Report::UplinkLost { reason } => {
                let current = self.vifs.networks.get(network).and_then(|standing| standing.current);
                if current == Some(id) {
                    self.uplink_changed(network, Some(reason.clone()));
                }
                return;
            }
        };
        let Some(vif) = self.vifs.vifs.get_mut(&name).filter(|vif| vif.worker == Some(id)) else { return };
        match report {
            Report::Connected { .. } if vif.service == Service::Connecting => vif.service = Service::Connected,
            Report::Failed { reason, .. } if vif.service != Service::None => {
                vif.let_go();
                vif.refuse(reason.clone());
                self.say_of_vif(name, &format!("cannot be served: {reason}"));
                self.blame_vif(name, &reason);
            }
            Report::Broken { reason, .. } if vif.service != Service::None => {
                let why = format!("the guest broke the protocol: {reason}");
                vif.refuse(why.clone());
                self.say_of_vif(name, &format!("the guest broke the protocol and is disconnected: {reason}"));
                self.blame_vif(name, &why);
            }
            Report::Reconfigured { headroom, .. } if vif.headroom == Headroom::Asked => {
                vif.headroom = Headroom::Done;
                if let Some(chosen) = &mut vif.negotiated {
                    chosen.features.xdp_headroom = headroom;
                }
            }
            Report::Closed { .. } if vif.service == Service::Draining => vif.let_go(),
            _ => {}
        }
        self.vifs.dirty.insert(name);
    }

    fn blame_vif(&mut self, name: VifName, why: &str) {
        if let Err(error) = nodes::blame(&mut self.store, name, why) {
            // A store that is gone is found out by whoever reads from it next.
            tracing::debug!(device = %name, %error, "the reason could not be written");
        }
    }

    fn switch_changed(&mut self, id: WorkerId, network: &str, life: Life, reason: &str) {
        if let Some(standing) = self.vifs.networks.get_mut(network)
            && matches!(life, Life::Dead { .. })
            && standing.current == Some(id)
        {
            standing.current = None;
        }
        if matches!(life, Life::Dead { .. } | Life::Held) {
            tracing::error!(network, "{reason}");
        }
        let served = self.vifs.vifs.iter_mut().filter(|(_, vif)| vif.worker == Some(id));
        for (name, vif) in served {
            self.vifs.dirty.insert(*name);
            if vif.service != Service::None || vif.refused {
                reason.clone_into(&mut vif.reason);
            }
            match life {
                Life::Running => {}
                Life::Dead { .. } => {
                    if vif.service != Service::None {
                        vif.service = Service::Draining;
                    }
                    // The worker's patience is the fence's.
                    vif.draining = None;
                }
                Life::Held => vif.held = true,
                Life::Fenced => {
                    vif.held = false;
                    vif.let_go();
                    vif.worker = None;
                }
            }
        }
        if life == Life::Fenced
            && let Some(switch) = self.vifs.workers.remove(&id)
        {
            self.forget_switch(id, &switch);
        }
    }
}

//! What workers tell, and what their deaths mean for the devices they served.

use std::time::{Duration, Instant};

use blkback::device::Report;
use xenstore::xenbus::backend::Service;

use super::Supervisor;
use super::device::WorkerId;
use super::guest::Guest;
use super::nodes::{self, Name};
use super::worker::Life;

/// After so long a death of a worker counts no more.
const CRASHES_COUNT: Duration = Duration::from_secs(60);

/// How long a guest goes without a worker after so many deaths.
fn back_off(deaths: u32) -> Option<Duration> {
    deaths.checked_sub(2).map(|more| Duration::from_secs(1 << more.min(3)))
}

impl Supervisor {
    /// Reads what workers report, and notices deaths and fences.
    pub(super) fn tend_workers(&mut self, now: Instant) {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            let mut reports = Vec::new();
            let Some(Guest { domid, worker }) = self.workers.get_mut(&id) else { continue };
            let before = worker.life;
            let guest = domid.0;
            while let Some(report) = worker.next_report() {
                reports.push(report);
            }
            let explained = worker.reap();
            worker.check_fences(now);
            let (life, reason) = (worker.life, worker.reason.clone());
            for report in reports {
                self.report(id, guest, report);
            }
            if life != before || explained {
                self.worker_changed(id, guest, life, &reason);
            }
        }
        self.retired.retain_mut(|retired| !retired.reap(now));
    }

    fn report(&mut self, id: WorkerId, guest: u16, report: Report) {
        let (Report::Connected { devid, .. }
        | Report::Failed { devid, .. }
        | Report::Broken { devid, .. }
        | Report::Holding { devid, .. }
        | Report::Resumed { devid }
        | Report::FlushFailed { devid }
        | Report::Resized { devid, .. }
        | Report::Closed { devid }) = report;
        let name = Name { guest, devid };
        let Some(device) = self.devices.get_mut(&name).filter(|device| device.worker == Some(id)) else {
            // A worker that is taken over may name any device.
            return;
        };
        match report {
            Report::Connected { path, .. } if device.service == Service::Connecting => {
                device.service = Service::Connected;
                device.path = path;
            }
            Report::Failed { reason, .. } if device.service != Service::None => {
                device.service = Service::None;
                device.draining = None;
                device.refuse(reason.clone());
                self.say(name, &format!("cannot be served: {reason}"));
                self.blame(name, &reason);
            }
            Report::Broken { reason, .. } if device.service != Service::None => {
                let why = format!("the guest broke the protocol: {reason}");
                device.refuse(why.clone());
                self.say(name, &format!("the guest broke the protocol and is disconnected: {reason}"));
                self.blame(name, &why);
            }
            Report::Holding { reason, .. } if device.service == Service::Connected => {
                device.holding = Some(reason.clone());
                self.say(name, &format!("the volume fails and the guest waits: {reason}"));
            }
            Report::Resumed { .. } if device.service == Service::Connected => {
                device.holding = None;
                self.say(name, "the volume is well again");
            }
            Report::Resized { sectors, .. } if device.service == Service::Connected => {
                Supervisor::resized(device, sectors);
            }
            Report::FlushFailed { .. } if device.service != Service::None => {
                if let Some(volume) = &mut device.volume {
                    volume.disk.flush_failed = true;
                }
                self.say(name, "a flush failed: none succeeds from now on");
            }
            Report::Closed { .. } if device.service == Service::Draining => {
                device.holding = None;
                device.service = Service::None;
                device.draining = None;
                device.journals.clear();
            }
            _ => {}
        }
        self.dirty.insert(name);
    }

    /// A worker of this guest has died; not when we have killed it, or are ending.
    fn crashed(&mut self, guest: u16, now: Instant) {
        self.crashes.retain(|_, (_, last)| now.duration_since(*last) < CRASHES_COUNT);
        let (count, last) = self.crashes.entry(guest).or_insert((0, now));
        (*count, *last) = (*count + 1, now);
    }

    /// Until when this guest gets no new worker: the first death is nobody's habit, after the next ones it waits 1, 2, 4
    /// and at most 8 s, which a toolstack has.
    pub(super) fn rest(&self, guest: u16) -> Option<Instant> {
        let (count, last) = self.crashes.get(&guest)?;
        back_off(*count).map(|rest| *last + rest)
    }

    fn blame(&mut self, name: Name, why: &str) {
        if let Err(error) = nodes::blame(&mut self.store, name, why) {
            // A store that is gone is found out by whoever reads from it next.
            tracing::debug!(device = %name, %error, "the reason could not be written");
        }
    }

    fn worker_changed(&mut self, id: WorkerId, guest: u16, life: Life, reason: &str) {
        if matches!(life, Life::Dead { .. }) && self.current.get(&guest) == Some(&id) {
            self.crashed(guest, Instant::now());
            self.current.remove(&guest);
        }
        let served: Vec<Name> =
            self.devices.iter().filter(|(_, device)| device.worker == Some(id)).map(|(name, _)| *name).collect();
        for name in served {
            if matches!(life, Life::Dead { .. } | Life::Held) {
                self.say(name, reason);
            }
            let Some(device) = self.devices.get_mut(&name) else { continue };
            self.dirty.insert(name);
            if device.service != Service::None || device.refused {
                device.reason = reason.to_owned();
            }
            match life {
                Life::Running => {}
                Life::Dead { .. } => {
                    device.inherit_flush_failure();
                    if device.service != Service::None {
                        device.service = Service::Draining;
                    }
                    // The worker's patience is the fence's.
                    device.draining = None;
                }
                Life::Held => device.held = true,
                Life::Fenced => {
                    device.held = false;
                    device.holding = None;
                    device.service = Service::None;
                    device.worker = None;
                }
            }
        }
        if life == Life::Fenced
            && let Some(worker) = self.workers.remove(&id)
        {
            self.forget_worker(id, &worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_kills_its_workers_waits_longer_and_longer_but_not_longer_than_a_toolstack() {
        let seconds: Vec<Option<u64>> = (0..7).map(|deaths| back_off(deaths).map(|rest| rest.as_secs())).collect();
        assert_eq!(seconds, [None, None, Some(1), Some(2), Some(4), Some(8), Some(8)]);
        assert_eq!(back_off(u32::MAX), Some(Duration::from_secs(8)));
    }
}

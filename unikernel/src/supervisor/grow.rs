//! Volumes that change their size under a connected disk: nobody tells of it, so they are measured again and again, one
//! call of the kernel each.
//!
//! ```text
//! measured: larger --Resize--> worker: no queue refuses the new part --Resized--> `sectors`, and `state` once more
//! measured: smaller: refused; the guest keeps its size, and status says why
//! ```

use xenstore::Error;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::Service;

use super::Supervisor;
use super::device::Device;
use super::nodes::{self, Name};
use super::worker::Life;

/// How the size of a volume in use is changing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Sectors that the worker was told of and has not answered yet.
    asked: Option<u64>,
    /// Sectors that the worker knows and the guest does not.
    known: Option<u64>,
    /// Bytes that are left of a volume that has shrunk.
    pub shrunk: Option<u64>,
}

impl Device {
    /// Its volume may grow.
    fn is_measured(&self) -> bool {
        let has_size = self.volume.as_ref().is_some_and(|volume| volume.fd.is_some());
        has_size && self.service == Service::Connected && self.state == XenbusState::Connected
    }
}

impl Supervisor {
    /// Measures the volumes in use.
    pub(super) fn measure(&mut self) {
        let mut shrunk = Vec::new();
        for (&name, device) in self.devices.iter_mut().filter(|(_, device)| device.is_measured()) {
            let Some(volume) = &device.volume else { continue };
            // A size that cannot be had now may be had next time.
            let Ok(bytes) = volume.bytes() else { continue };
            let (sectors, old) = (volume.whole_sectors(bytes), volume.disk.sectors);
            let worker = device.worker.and_then(|id| self.workers.get(&id));
            if sectors < old {
                if device.size.shrunk.replace(bytes) != Some(bytes) {
                    shrunk.push((name, format!("its volume has shrunk from {} to {bytes} bytes", old * 512)));
                    self.dirty.insert(name);
                }
                continue;
            }
            if device.size.shrunk.take().is_some() {
                self.dirty.insert(name);
            }
            let idle = device.size.asked.is_none() && device.size.known.is_none();
            if let Some(worker) = worker.filter(|worker| sectors > old && idle && worker.worker.life == Life::Running)
                && worker.resize(name.devid, sectors).is_ok()
            {
                device.size.asked = Some(sectors);
            }
        }
        for (name, text) in shrunk {
            self.say(name, &format!("{text}: refused while it is in use, the guest keeps the old size"));
        }
    }

    /// The worker knows a new size.
    pub(super) fn resized(device: &mut Device, sectors: u64) {
        if device.size.asked == Some(sectors) {
            device.size = Change { known: Some(sectors), ..Change::default() };
        }
    }

    /// Tells the guest of a size that the worker knows.
    pub(super) fn announce_size(&mut self, name: Name) -> Result<(), Error> {
        let Some(device) = self.devices.get_mut(&name) else { return Ok(()) };
        let (Some(sectors), Some(volume)) = (device.size.known, &mut device.volume) else { return Ok(()) };
        let told = device.state == XenbusState::Connected && nodes::resize(&mut self.store, name, sectors)?;
        device.size.known = None;
        volume.disk.sectors = sectors;
        if let Some(about) = &device.about {
            self.sizes.insert(about.volume.clone(), (sectors * 512, String::new()));
        }
        if told {
            self.tell(name, &format!("grown to {} bytes", sectors * 512));
        }
        self.publish_volumes()
    }
}

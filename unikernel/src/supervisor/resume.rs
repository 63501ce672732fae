//! The operator's word that a volume is well again: what is held is tried at once, and flushes count again.

use xenstore::{Error, Store};

use super::Supervisor;
use super::nodes::Name;
use super::worker::Life;
use crate::publish;
use crate::store::Nodes;

impl Supervisor {
    /// Does what dom0 has asked for in `resume`, once, and answers in `resumed`.
    pub(super) fn resume(&mut self) -> Result<(), Error> {
        let Some(asked) = self.store.text(&format!("{}/resume", publish::ROOT))? else { return Ok(()) };
        let Some((token, what)) = asked.split_once(' ') else { return Ok(()) };
        let answer = format!("{}/resumed", publish::ROOT);
        let before = self.store.text(&answer)?.unwrap_or_default();
        if before.split(' ').next() == Some(token) {
            return Ok(());
        }
        let meant = |(name, device): &(&Name, &super::Device)| {
            let volume = device.about.as_ref().is_some_and(|about| about.volume == what);
            device.volume.is_some() && (volume || name.to_string() == what)
        };
        let names: Vec<Name> = self.devices.iter().filter(meant).map(|(name, _)| *name).collect();
        let mut text = token.to_owned();
        for name in names {
            self.resume_one(name);
            text = format!("{text} {name}");
        }
        // More disks share a volume than anybody wants to read about.
        text.truncate(1000);
        self.store.write(&answer, text.as_bytes())
    }

    fn resume_one(&mut self, name: Name) {
        let Some(device) = self.devices.get_mut(&name) else { return };
        if let Some(volume) = &mut device.volume {
            volume.disk.flush_failed = false;
        }
        device.forgiven = device.flush_failures();
        let worker = device.worker.and_then(|id| self.workers.get(&id));
        if let Some(worker) = worker.filter(|worker| worker.worker.life == Life::Running)
            && let Err(error) = worker.resume(name.devid)
        {
            tracing::error!(device = %name, %error, "its worker cannot be told that the volume is well again");
        }
        self.dirty.insert(name);
        self.tell(name, "resumed: the operator says that its volume is well again");
    }
}

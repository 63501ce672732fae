//! Volumes by name: opening one for a device, and publishing who has what.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use xenstore::Error;

use super::device::{BUSY_PATIENCE, VOLUME_PATIENCE, VOLUME_RETRY};
use super::nodes::{self, Name};
use super::volume::{self, VolumeError};
use super::{Supervisor, SupervisorError};
use crate::config::Volume;
use crate::publish::{self, VolumeNode};
use crate::source;
use crate::vdev::Vdev;

/// Between two looks at the sources that a guest can cause.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Says at once what is wrong with a volume; only when none can be used is there nothing to do.
    pub(super) fn check_volumes(&mut self) -> Result<(), SupervisorError> {
        let mut errors = source::refresh(&mut self.config);
        let found = errors.len();
        for volume in &self.config.volumes {
            let in_use =
                self.devices.values().find_map(|device| device.volume.as_ref().filter(|_| uses(device, &volume.name)));
            let found = match in_use {
                Some(opened) => Ok(opened.disk.sectors * 512),
                None => volume::check(volume),
            };
            let found = found.map(|bytes| (bytes, String::new())).unwrap_or_else(|error| {
                errors.push(error.to_string());
                (0, error.to_string())
            });
            self.sizes.insert(volume.name.clone(), found);
        }
        // A place for volumes may get some later.
        let wrong = errors.len() - found;
        if wrong > 0 && wrong == self.config.volumes.len() && self.config.sources.is_empty() {
            return Err(SupervisorError::Unusable(errors.join("; ")));
        }
        for error in errors {
            tracing::error!("{error}");
        }
        self.publish_volumes()?;
        Ok(())
    }

    /// Opens the device's volume, or finds out why not. False when there is nothing more to do for now.
    pub(super) fn open_volume(&mut self, name: Name, now: Instant) -> Result<bool, Error> {
        // Read again at each try: while a volume is waited for the directory may have been made anew.
        let about = match nodes::describe(&mut self.store, name)? {
            Ok(about) => about,
            Err(why) => {
                self.refuse(name, &why, false)?;
                return Ok(false);
            }
        };
        if let Some(device) = self.devices.get_mut(&name) {
            device.about = Some(about.clone());
        }
        if self.linger.is_ending() {
            self.refuse(name, "this service VM is being shut down: it takes no new disks", false)?;
            return Ok(false);
        }
        if self.config.volume(&about.volume).is_none() {
            self.search(now)?;
        }
        if self.changes.is_changing(&about.volume) {
            let why = format!("volume {} is being changed", about.volume);
            return self.wait_for_volume(name, now, &about.volume, why);
        }
        let Some(volume) = self.config.volume(&about.volume) else {
            let names: Vec<&str> = self.config.volumes.iter().take(20).map(|volume| volume.name.as_str()).collect();
            let asked: String = about.volume.escape_debug().take(64).collect();
            let why = format!("{} has no volume \"{asked}\" (it has: {})", self.config.vm.name, names.join(", "));
            self.refuse(name, &why, false)?;
            return Ok(false);
        };
        if volume.read_only && !about.read_only {
            let why = format!("volume {} is read-only: attach it with --ro (mode r)", volume.name);
            self.refuse(name, &why, false)?;
            return Ok(false);
        }
        match volume::open(volume, about.read_only) {
            Ok(mut opened) => {
                opened.disk.discard = opened.disk.discard.filter(|_| about.discard);
                opened.disk.barrier &= self.config.backend.barrier;
                self.sizes.insert(about.volume, (opened.disk.sectors * 512, String::new()));
                if let Some(device) = self.devices.get_mut(&name) {
                    device.volume = Some(opened);
                    device.waiting = None;
                    device.busy = false;
                }
                self.publish_volumes()?;
                Ok(true)
            }
            Err(VolumeError::Unusable(why)) => {
                self.refuse(name, &why, false)?;
                Ok(false)
            }
            Err(VolumeError::Busy(why)) => self.wait_for_volume(name, now, &about.volume, why),
        }
    }

    /// Looks again at what the sources hold, but not all the time: a guest may ask for nonsense as often as it likes.
    fn search(&mut self, now: Instant) -> Result<(), Error> {
        let due = self.searched.is_none_or(|before| now.duration_since(before) >= SEARCH_PAUSE);
        if self.config.sources.is_empty() || !due {
            return Ok(());
        }
        self.searched = Some(now);
        self.find_volumes()
    }

    /// Takes what the sources hold now, and publishes it.
    pub(super) fn find_volumes(&mut self) -> Result<(), Error> {
        // The same words again and again would fill the log.
        for error in source::refresh(&mut self.config) {
            tracing::debug!("{error}");
        }
        for volume in self.config.volumes.iter().filter(|volume| volume.source.is_some()) {
            let used = self.devices.values().any(|device| device.volume.is_some() && uses(device, &volume.name));
            if !used {
                let found = volume::check(volume).map(|bytes| (bytes, String::new()));
                let found = found.unwrap_or_else(|error| (0, error.to_string()));
                self.sizes.insert(volume.name.clone(), found);
            }
        }
        let known: HashSet<&str> = self.config.volumes.iter().map(|volume| volume.name.as_str()).collect();
        self.sizes.retain(|name, _| known.contains(name.as_str()));
        self.publish_volumes()
    }

    /// Who has a volume open, for a message.
    pub(super) fn user_of(&self, volume: &str) -> Option<String> {
        let mut users = self.devices.iter().filter(|(_, device)| device.volume.is_some() && uses(device, volume));
        users.next().map(|(name, _)| format!("{} of domain {}", Vdev(name.devid), name.guest))
    }

    /// A volume that is being given up is waited for; one in good use is not.
    fn wait_for_volume(&mut self, name: Name, now: Instant, volume: &str, why: String) -> Result<bool, Error> {
        let holder = self
            .devices
            .iter()
            .find(|(other, device)| **other != name && device.volume.is_some() && uses(device, volume));
        let patience = match holder {
            Some((_, device)) if !device.is_leaving() => BUSY_PATIENCE,
            _ => VOLUME_PATIENCE,
        };
        let why = match holder {
            Some((other, _)) => {
                format!("volume {volume} is in use by {} of domain {}", Vdev(other.devid), other.guest)
            }
            None => why,
        };
        let Some(device) = self.devices.get_mut(&name) else { return Ok(false) };
        let since = *device.waiting.get_or_insert(now);
        if now.duration_since(since) < patience {
            device.timer = Some(now + VOLUME_RETRY);
            return Ok(false);
        }
        self.refuse(name, &why, true)?;
        Ok(false)
    }

    /// Every volume with its users, by the order of the configuration.
    pub(super) fn volume_nodes(&self) -> Vec<(String, VolumeNode)> {
        let mut users: HashMap<&str, Vec<String>> = HashMap::new();
        for (name, device) in &self.devices {
            if let (Some(about), Some(_)) = (&device.about, &device.volume) {
                users.entry(&about.volume).or_default().push(name.to_string());
            }
        }
        let mut node = |volume: &Volume| {
            let (size, error) = self.sizes.get(&volume.name).cloned().unwrap_or_default();
            let mode = if volume.read_only { "ro" } else { "rw" }.to_owned();
            let used_by = users.remove(volume.name.as_str()).unwrap_or_default();
            let source = volume.source.clone().unwrap_or_default();
            (volume.name.clone(), VolumeNode { size, mode, used_by, source, error })
        };
        self.config.volumes.iter().map(&mut node).collect()
    }

    /// Publishes every volume with its users, as far as that has changed.
    pub(super) fn publish_volumes(&mut self) -> Result<(), Error> {
        let pages = publish::volume_pages(self.volume_nodes().into_iter());
        publish::write_pages(&mut self.store, "volumes", &self.pages, &pages)?;
        self.pages = pages;
        Ok(())
    }
}

fn uses(device: &super::device::Device, volume: &str) -> bool {
    device.about.as_ref().is_some_and(|about| about.volume == volume)
}

//! The attached disks by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::Disk;
use crate::nbd::{Export, Exports};
use crate::vdev::Vdev;

/// Disks that can be used now, by number.
#[derive(Default)]
pub struct Attached(Mutex<BTreeMap<Vdev, Arc<Disk>>>);

impl Attached {
    fn disks(&self) -> MutexGuard<'_, BTreeMap<Vdev, Arc<Disk>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk has come.
    pub fn add(&self, vdev: Vdev, disk: Arc<Disk>) {
        self.disks().insert(vdev, disk);
    }

    /// A disk is going; whoever has it open keeps it, and gets errors.
    pub fn remove(&self, vdev: Vdev) {
        self.disks().remove(&vdev);
    }

    /// A disk.
    pub fn get(&self, vdev: Vdev) -> Option<Arc<Disk>> {
        self.disks().get(&vdev).cloned()
    }
}

impl Exports for Attached {
    fn names(&self) -> Vec<String> {
        self.disks().keys().map(Vdev::to_string).collect()
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Export>> {
        let disk = match name {
            "" => self.disks().values().next().cloned(),
            name => self.get(name.parse().ok()?),
        };
        Some(disk? as Arc<dyn Export>)
    }
}

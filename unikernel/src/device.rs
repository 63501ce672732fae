//! What people call a device of a guest: `xvda` is a disk, `vif0` a network card.

use std::fmt;
use std::str::FromStr;

use crate::vdev::{NoVdev, Vdev};

/// A device of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// A disk.
    Disk(Vdev),
    /// A network card, by its number.
    Card(u32),
}

impl Device {
    /// What its directories are called: `vbd` or `vif`.
    pub fn class(self) -> &'static str {
        match self {
            Device::Disk(_) => "vbd",
            Device::Card(_) => "vif",
        }
    }

    /// Its number in xenstore.
    pub fn devid(self) -> u32 {
        match self {
            Device::Disk(Vdev(devid)) | Device::Card(devid) => devid,
        }
    }

    /// The one of that class and number.
    pub fn new(class: &str, devid: u32) -> Option<Device> {
        match class {
            "vbd" => Some(Device::Disk(Vdev(devid))),
            "vif" => Some(Device::Card(devid)),
            _ => None,
        }
    }

    /// What devices of its kind are called: `disk` or `card`.
    pub fn kind(self) -> &'static str {
        match self {
            Device::Disk(_) => "disk",
            Device::Card(_) => "card",
        }
    }

    /// All classes.
    pub const CLASSES: [&'static str; 2] = ["vbd", "vif"];
}

/// The text names no device.
#[derive(Debug, thiserror::Error)]
#[error("{0}, or vif0, vif1, ... for a network card")]
pub struct NoDevice(#[from] NoVdev);

impl FromStr for Device {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Device, NoDevice> {
        let number = text.strip_prefix("vif").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match number.and_then(|digits| digits.parse::<u32>().ok()).filter(|devid| *devid < 1 << 31) {
            Some(devid) => Ok(Device::Card(devid)),
            None => Ok(Device::Disk(text.parse()?)),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Disk(vdev) => vdev.fmt(f),
            Device::Card(devid) => write!(f, "vif{devid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (name, class, devid) in [("xvda", "vbd", 51712), ("vif0", "vif", 0), ("vif17", "vif", 17)] {
            let device: Device = name.parse().unwrap();
            assert_eq!((device.class(), device.devid(), device.to_string().as_str()), (class, devid, name));
            assert_eq!(Device::new(class, devid), Some(device));
        }
        for name in ["vif", "vif-1", "vif+1", "vif2147483648", "eth0", ""] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}

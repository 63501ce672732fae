//! What a service VM says of itself, below its own `data/windsor`: any toolstack can read it, and it needs no other
//! channel than the store.
//!
//! ```text
//! data/windsor/ready                        1 once devices are served
//!              name                         the VM's name
//!              volumes/NAME                 JSON: size, mode, used-by
//!              dev/vbd-GUEST-DEVID/phase    where the device stands
//!                                  reason   why it is not connected
//!                                  path     which data path
//!                                  stats    JSON: counters, as of the last sample
//!              sample                       dom0 writes a token here ...
//!              sampled                      ... and finds it here once all stats are fresh
//! ```

use serde::{Deserialize, Serialize};

/// Below the domain's own directory.
pub const ROOT: &str = "data/windsor";

/// The directory of a device, below the domain's own.
pub fn device(guest: u16, devid: u32) -> String {
    format!("{ROOT}/dev/vbd-{guest}-{devid}")
}

/// The same for somebody else, from the path of the backend's directory.
pub fn device_seen_from_outside(backend: &str) -> Option<String> {
    let (domain, rest) = backend.split_once("/backend/vbd/")?;
    let (guest, devid) = rest.split_once('/')?;
    Some(format!("{domain}/{}", device(guest.parse().ok()?, devid.parse().ok()?)))
}

/// The value of a volume's node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeNode {
    /// Bytes; 0 when the volume cannot be opened now.
    pub size: u64,
    /// `rw` or `ro`.
    pub mode: String,
    /// Devices that have it open, as `vbd-GUEST-DEVID`.
    #[serde(rename = "used-by")]
    pub used_by: Vec<String>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// Where a device stands, for people and scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The volume is not open yet: another device is giving it up.
    Waiting,
    /// The volume is open; the guest has not answered.
    Ready,
    /// The worker takes it over.
    Connecting,
    /// Requests are served.
    Connected,
    /// It is being closed; requests may still be in flight.
    Closing,
    /// Nothing of the guest's is in use.
    Closed,
    /// It cannot be served; see the reason.
    Failed,
    /// Its volume is in use elsewhere; see the reason.
    Busy,
    /// The kernel does not end its I/O: the volume stays locked.
    Held,
}

impl Phase {
    /// As published.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Ready => "ready",
            Phase::Connecting => "connecting",
            Phase::Connected => "connected",
            Phase::Closing => "closing",
            Phase::Closed => "closed",
            Phase::Failed => "failed",
            Phase::Busy => "busy",
            Phase::Held => "held",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_from_its_backend() {
        let outside = device_seen_from_outside("/local/domain/3/backend/vbd/7/51712");
        assert_eq!(outside.unwrap(), "/local/domain/3/data/windsor/dev/vbd-7-51712");
        assert_eq!(device_seen_from_outside("/local/domain/3/backend/vif/7/0"), None);
    }
}

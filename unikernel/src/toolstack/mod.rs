//! dom0's side of the embedded world: the nodes that libxl writes, in its order (toolstack.md A2, A5), and what can be
//! read about domains and devices in any world.

pub mod attach;
pub mod card;
pub mod detach;
pub mod domain;
pub mod look;
pub mod resume;
pub mod sample;

use crate::device::Device;
use crate::image::manifest::Damage;

/// Why a command of the operator did not do what it was asked for: one line, and the code to exit with.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It failed. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// It was asked for in a wrong way. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// An image cannot be built. The exit code is its own.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// An image cannot be used. Exit code 3 when there is none, else 1.
    #[error(transparent)]
    Damage(#[from] crate::image::manifest::Damage),
    /// Something named does not exist, or a prerequisite is missing. Exit code 3.
    #[error("{0}")]
    NotFound(String),
    /// It did not happen in time. Exit code 4.
    #[error("{0}")]
    TimedOut(String),
    /// Somebody else has it. Exit code 5.
    #[error("{0}")]
    Busy(String),
    /// The store did not answer. Exit code 1.
    #[error("{0}")]
    Store(#[from] xenstore::Error),
}

impl Refusal {
    /// What the process ends with.
    pub fn exit_code(&self) -> i32 {
        match self {
            Refusal::Failed(_) | Refusal::Store(_) | Refusal::Damage(Damage::Damaged(_)) => 1,
            Refusal::Usage(_) => 2,
            Refusal::NotFound(_) | Refusal::Damage(Damage::NoImage(_)) => 3,
            Refusal::Image(error) => error.exit_code(),
            Refusal::TimedOut(_) => 4,
            Refusal::Busy(_) => 5,
        }
    }
}

/// Where the nodes of one device stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `/local/domain/GUEST/device/vbd/DEVID`, or `vif`.
    pub frontend: String,
    /// `/local/domain/SERVICE/backend/vbd/GUEST/DEVID`.
    pub backend: String,
    /// `/libxl/GUEST/device/vbd/DEVID`.
    pub libxl: String,
    /// The guest.
    pub guest: u16,
    /// The service VM.
    pub service: u16,
    /// Which device.
    pub device: Device,
}

impl Paths {
    /// For a device of `guest` served by `service`.
    pub fn new(guest: u16, service: u16, device: Device) -> Paths {
        let (class, devid) = (device.class(), device.devid());
        Paths {
            frontend: format!("/local/domain/{guest}/device/{class}/{devid}"),
            backend: format!("/local/domain/{service}/backend/{class}/{guest}/{devid}"),
            libxl: format!("/libxl/{guest}/device/{class}/{devid}"),
            guest,
            service,
            device,
        }
    }
}

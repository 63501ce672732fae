//! The one place where the world is chosen: real Xen, or the embedded host. Everything above gets descriptors and
//! trait objects from here and cannot tell which it is.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use grant::embedded::{self, Foreign, ForeignExchange, GuestMemory, Ports};
use grant::exchange::Exchange;
use grant::xen::{Evtchn, Gntalloc, Gntdev, GntdevExchange};
use grant::{DomId, EventChannel, GrantAccess, Grants};
use serde::{Deserialize, Serialize};

/// Where the embedded host's directory is named when `--dir` is not given.
pub const DIR_VARIABLE: &str = "WINDSOR_DIR";

/// Where the xenstored of real Xen listens, as libxenstore and its programs take it from the environment.
pub const STORE_VARIABLE: &str = "XENSTORED_PATH";

/// What a worker needs to know to use its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// gntdev and evtchn.
    Xen,
    /// Connections to the embedded host.
    Embedded,
}

impl Kind {
    /// The pages of `guest` through a descriptor from [`World::open_grants`].
    ///
    /// # Errors
    /// What the kernel or the host says.
    pub fn grants(self, fd: OwnedFd, guest: DomId) -> io::Result<Box<dyn Grants>> {
        Ok(match self {
            Kind::Xen => Box::new(Gntdev::new(fd, guest)),
            Kind::Embedded => Box::new(Foreign::new(fd, guest)?),
        })
    }

    /// The pages of all guests that one thread serves together; descriptors from [`World::open_grants`] join it.
    pub fn exchange(self) -> Box<dyn Exchange> {
        match self {
            Kind::Xen => Box::new(GntdevExchange::default()),
            Kind::Embedded => Box::new(ForeignExchange::default()),
        }
    }

    /// The event channels behind a descriptor from [`World::open_events`], for `guest` only.
    ///
    /// # Errors
    /// What the kernel or the host says.
    pub fn events(self, fd: OwnedFd, guest: DomId) -> io::Result<Box<dyn EventChannel>> {
        Ok(match self {
            Kind::Xen => {
                let events = Evtchn::new(fd)?;
                // The kernel restricts nobody to dom0 (`EINVAL`), which has a say over every event channel anyway.
                if guest != DomId(0) {
                    events.restrict(guest)?;
                }
                Box::new(events)
            }
            Kind::Embedded => {
                let mut events = Ports::new(fd)?;
                events.restrict(guest)?;
                Box::new(events)
            }
        })
    }
}

/// There is no world to work in.
#[derive(Debug, thiserror::Error)]
#[error(
    "no Xen on this machine (there is no /dev/xen/xenbus and no xenstored): give --dir DIR, or set \
     {DIR_VARIABLE}, for an embedded host (`windsor host --dir DIR` starts one)"
)]
pub struct NoWorld;

/// A world as found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum World {
    /// Real Xen.
    Xen,
    /// The embedded host of a directory.
    Embedded(PathBuf),
}

impl World {
    /// Takes the embedded world of `dir`, or of the environment's, or else Xen.
    ///
    /// # Errors
    /// [`NoWorld`] when there is neither.
    pub fn find(dir: Option<&Path>) -> Result<World, NoWorld> {
        if let Some(dir) = dir {
            return Ok(World::Embedded(dir.to_owned()));
        }
        let xen = ["/dev/xen/xenbus", "/proc/xen/xenbus", "/run/xenstored/socket"];
        if World::store_path().is_some() || xen.iter().any(|path| Path::new(path).exists()) {
            return Ok(World::Xen);
        }
        Err(NoWorld)
    }

    /// Where real Xen's xenstored listens, if the environment says so.
    pub fn store_path() -> Option<PathBuf> {
        std::env::var_os(STORE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// What the descriptors of this world are.
    pub fn kind(&self) -> Kind {
        match self {
            World::Xen => Kind::Xen,
            World::Embedded(_) => Kind::Embedded,
        }
    }

    /// A descriptor for grants, to be used by one thread (see [`Kind::grants`]). `own` is this domain.
    ///
    /// # Errors
    /// What the kernel or the host says.
    pub fn open_grants(&self, own: DomId) -> io::Result<OwnedFd> {
        match self {
            World::Xen => Gntdev::open(),
            World::Embedded(dir) => embedded::connect(dir, own),
        }
    }

    /// A descriptor for event channels, to be used by one thread (see [`Kind::events`]).
    ///
    /// # Errors
    /// What the kernel or the host says.
    pub fn open_events(&self, own: DomId) -> io::Result<OwnedFd> {
        match self {
            World::Xen => Evtchn::open(),
            World::Embedded(dir) => embedded::connect(dir, own),
        }
    }

    /// A way to grant pages of ours, and event channels to go with them; `memory` is what they are of in the embedded
    /// world.
    ///
    /// # Errors
    /// What the kernel or the host says.
    pub fn open_access(
        &self,
        own: DomId,
        memory: Option<OwnedFd>,
    ) -> io::Result<(Box<dyn GrantAccess>, Box<dyn EventChannel>)> {
        let events = self.open_events(own)?;
        Ok(match self {
            World::Xen => (Box::new(Gntalloc::new(Gntalloc::open()?)), Box::new(Evtchn::new(events)?)),
            World::Embedded(_) => {
                let memory = memory.ok_or_else(|| io::Error::other("this domain has no memory to grant"))?;
                (Box::new(GuestMemory::reopen(memory)?), Box::new(Ports::new(events)?))
            }
        })
    }

    /// Whether an I/O may go straight to a guest's pages: never in a PV domain, which would lose those grants for
    /// good if a worker died under it (DESIGN, "Zero copy is for PVH").
    pub fn allows_zero_copy(&self) -> bool {
        match self {
            World::Embedded(_) => true,
            World::Xen => std::fs::read_to_string("/sys/hypervisor/guest_type")
                .is_ok_and(|kind| matches!(kind.trim(), "PVH" | "HVM")),
        }
    }
}

//! `windsor detach` in the embedded world: takes a device away from a guest.

use std::time::{Duration, Instant};

use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error, Store};

use super::domain::{self, Domain};
use super::look::Seen;
use super::{Paths, Refusal};
use crate::device::Device;
use crate::store::Nodes;

/// Of the watch on a backend.
pub const TOKEN: &str = "windsor-detach";

/// The device to take away.
#[derive(Clone, Debug)]
pub struct Found {
    /// Whose.
    pub guest: Domain,
    /// Which.
    pub device: Device,
    /// Where.
    pub paths: Paths,
}

/// Finds a device of a guest.
///
/// # Errors
/// [`Refusal::NotFound`] with the devices of its kind there are.
pub fn find(store: &mut Client, guest: &str, device: Device) -> Result<Found, Refusal> {
    let guest = domain::find(store, guest, "guest")?;
    let root = format!("/local/domain/{}/device/{}", guest.domid, device.class());
    let backend = store.text(&format!("{root}/{}/backend", device.devid()))?;
    // `/local/domain/SERVICE/backend/vbd/...`: the guest could have written anything into its own copy.
    let libxl = store.text(&format!("/libxl/{}/device/{}/{}/backend", guest.domid, device.class(), device.devid()))?;
    let service =
        libxl.or(backend).and_then(|path| path.strip_prefix("/local/domain/")?.split_once('/')?.0.parse::<u16>().ok());
    let Some(service) = service else {
        let mut there = store.list(&root)?;
        there.sort();
        let name = |devid: &String| Some(Device::new(device.class(), devid.parse().ok()?)?.to_string());
        let there: Vec<String> = there.iter().filter_map(name).collect();
        let there: Vec<&str> = there.iter().map(String::as_str).collect();
        return Err(Refusal::NotFound(format!(
            "{} has no {} {device} (it has: {})",
            guest.name,
            device.kind(),
            domain::or_none(&there)
        )));
    };
    let paths = Paths::new(guest.domid, service, device);
    Ok(Found { guest, device, paths })
}

/// Asks both sides to close, or takes the guest's side away, and waits until the backend is gone.
///
/// # Errors
/// [`Refusal::TimedOut`] when one of them does not.
pub fn run(store: &mut Client, found: &Found, force: bool, limit: Duration) -> Result<(), Refusal> {
    let asked = store.transaction(|tx| ask(tx, &found.paths, force))?;
    if asked {
        wait(store, found, limit)?;
    }
    // Nobody's backend any more: only our own nodes are left.
    remove(store, &found.paths)?;
    Ok(())
}

/// Asks the backend to close, within a transaction; with `force` the guest's side is gone with the same stroke. False
/// when there is no backend any more.
///
/// # Errors
/// When the store does not answer.
pub fn ask(store: &mut impl Store, paths: &Paths, force: bool) -> Result<bool, Error> {
    let Paths { frontend, backend, .. } = paths;
    if store.read_optional(&format!("{backend}/state"))?.is_none() {
        return Ok(false);
    }
    if force {
        store.rm(frontend)?;
    }
    store.write(&format!("{backend}/online"), b"0")?;
    store.write(&format!("{backend}/state"), b"5")?;
    Ok(true)
}

/// Waits until the backend is gone.
///
/// # Errors
/// [`Refusal::TimedOut`] with both states.
pub fn wait(store: &mut Client, found: &Found, limit: Duration) -> Result<(), Refusal> {
    let Found { guest, device, paths } = found;
    let deadline = Instant::now() + limit;
    store.watch(&paths.backend, TOKEN)?;
    loop {
        if store.read_optional(&format!("{}/state", paths.backend))?.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        if now >= deadline {
            let seen = Seen::read(store, paths)?;
            let hint = match seen.frontend {
                XenbusState::Unknown => "the service VM has not let go of it".to_owned(),
                _ => format!("is it in use in {}? --force takes it away regardless", guest.name),
            };
            return Err(Refusal::TimedOut(format!(
                "{device} of {} is not gone after {} s: {}; {hint}",
                guest.name,
                limit.as_secs(),
                seen.describe()
            )));
        }
        store.next_event(Some(deadline - now))?;
    }
}

/// Removes what is left of a device, as libxl does when the backend is gone.
///
/// # Errors
/// When the store does not answer.
pub fn remove(store: &mut Client, paths: &Paths) -> Result<(), Error> {
    let Paths { frontend, backend, libxl, .. } = paths;
    store.transaction(|tx| {
        for path in [frontend, libxl, backend] {
            tx.rm(path)?;
        }
        // Empty parents: device/vbd and device, backend/vbd/GUEST, backend/vbd.
        for path in [frontend, libxl, backend] {
            let mut parent = path.as_str();
            for _ in 0..2 {
                let Some((up, _)) = parent.rsplit_once('/') else { break };
                if !up.contains(&format!("/{}", paths.device.class())) || !tx.list(up)?.is_empty() {
                    break;
                }
                tx.rm(up)?;
                parent = up;
            }
        }
        Ok(())
    })
}

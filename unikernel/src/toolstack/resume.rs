//! `windsor resume`: tells a service VM that a volume is well again.

use std::time::{Duration, Instant};

use xenstore::{Client, Store};

use super::{Refusal, detach, domain};
use crate::device::Device;
use crate::publish;
use crate::store::Nodes;
use crate::vdev::Vdev;

/// How long the service VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is well again.
#[derive(Clone, Debug)]
pub enum Target<'a> {
    /// A disk of a guest.
    Disk(&'a str, Vdev),
    /// A volume of a service VM, for all that use it.
    Volume(&'a str, &'a str),
}

/// Asks for it and waits for the answer: the disks that were told, as `vbd-GUEST-DEVID`.
///
/// # Errors
/// [`Refusal::NotFound`] when there is no such disk or volume, [`Refusal::TimedOut`] when the service VM does not answer.
pub fn run(store: &mut Client, target: &Target<'_>) -> Result<Vec<String>, Refusal> {
    let (service, what) = match target {
        Target::Disk(guest, vdev) => {
            let found = detach::find(store, guest, Device::Disk(*vdev))?;
            (found.paths.service, format!("vbd-{}-{}", found.paths.guest, found.paths.device.devid()))
        }
        Target::Volume(service, volume) => {
            let service = domain::find(store, service, "service VM")?;
            let volumes = store.transaction(|tx| publish::read_volumes(tx, service.domid))?;
            if !volumes.contains_key(*volume) {
                let names: Vec<&str> = volumes.keys().map(String::as_str).collect();
                return Err(Refusal::NotFound(format!(
                    "{} has no volume named \"{}\" (it has: {})",
                    service.name,
                    volume.escape_debug(),
                    domain::or_none(&names)
                )));
            }
            (service.domid, (*volume).to_owned())
        }
    };
    let root = format!("/local/domain/{service}/{}", publish::ROOT);
    if store.text(&format!("{root}/ready"))?.as_deref() != Some("1") {
        return Err(Refusal::NotFound(format!("domain {service} is no service VM that is ready")));
    }
    let token = format!("{:016x}", fastrand::u64(..));
    store.write(&format!("{root}/resume"), format!("{token} {what}").as_bytes())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = store.text(&format!("{root}/resumed"))?.unwrap_or_default();
        let mut words = answer.split(' ').map(str::to_owned);
        if words.next() == Some(token.clone()) {
            return Ok(words.collect());
        }
        if Instant::now() >= deadline {
            return Err(Refusal::TimedOut(format!(
                "domain {service} has not answered after {} s: is its daemon running?",
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! `windsor attach` of a network card: the nodes that libxl writes for one (net.md A5), and the wait for its backend.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netback::config::Rate;
use netback::packet::Mac;
use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error};

use super::domain::{self, Domain, or_none};
use super::look::{self, Seen};
use super::{Paths, Refusal, attach, detach};
use crate::config::DEFAULT_MTU;
use crate::device::Device;
use crate::publish::{self, NetworkNode, Phase};
use crate::store::Nodes;

/// Most cards of one guest.
const MOST: u32 = 256;
/// What Xen's addresses start with.
const PREFIX: [u8; 3] = [0x00, 0x16, 0x3E];

/// What to attach.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The guest's name or number.
    pub guest: &'a str,
    /// The service VM's name or number.
    pub service: &'a str,
    /// The network's name.
    pub network: &'a str,
    /// As which card; the first free one otherwise.
    pub devid: Option<u32>,
    /// Its address; one of Xen's otherwise, at random.
    pub mac: Option<Mac>,
    /// What it may use as source; none for any.
    pub addresses: &'a [IpAddr],
    /// How much it may send, and receive; as the network has it where nothing is said.
    pub rate: Option<Rate>,
    /// The largest payload of a frame; as the network has it where nothing is said.
    pub mtu: Option<u16>,
    /// How long the backend may take.
    pub wait: Duration,
}

/// Who is given what, once it is known that all of it exists and nothing is in the way.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The guest.
    pub guest: Domain,
    /// The service VM.
    pub service: Domain,
    /// As which card.
    pub device: Device,
    /// Its address.
    pub mac: Mac,
    /// The largest payload of its frames.
    pub mtu: u16,
    /// Its nodes.
    pub paths: Paths,
}

/// Whether a service VM has a network of that name. A domain that is none has none.
///
/// # Errors
/// [`Refusal`] when there is no such domain.
pub fn is_network(store: &mut Client, service: &str, name: &str) -> Result<bool, Refusal> {
    let service = domain::find(store, service, "service VM")?;
    Ok(networks(store, &service)?.contains_key(name))
}

fn networks(store: &mut Client, service: &Domain) -> Result<std::collections::BTreeMap<String, NetworkNode>, Error> {
    store.transaction(|tx| publish::read_networks(tx, service.domid))
}

/// Looks everything up.
///
/// # Errors
/// [`Refusal`] with what is missing or taken.
pub fn prepare(store: &mut Client, wanted: &Wanted<'_>) -> Result<Prepared, Refusal> {
    let guest = domain::find(store, wanted.guest, "guest")?;
    let service = domain::find(store, wanted.service, "service VM")?;
    attach::is_ready(store, &service)?;
    let networks = networks(store, &service)?;
    let Some(network) = networks.get(wanted.network) else {
        let names: Vec<&str> = networks.keys().map(String::as_str).collect();
        let (vm, asked, names) = (&service.name, wanted.network, or_none(&names));
        return Err(Refusal::NotFound(format!("{vm} has no network named \"{asked}\" (it has: {names})")));
    };
    if guest.domid == service.domid {
        return Err(Refusal::Failed(format!("{} cannot be its own guest", guest.name)));
    }
    let device = choose(store, &guest, wanted.devid)?;
    let paths = Paths::new(guest.domid, service.domid, device);
    if look::state(store, &paths.backend)? != XenbusState::Unknown {
        let (vm, name) = (&service.name, &guest.name);
        let text = format!("{vm} is still giving up {device} of {name}: try again, or see `windsor status`");
        return Err(Refusal::Busy(text));
    }
    let mac = wanted.mac.unwrap_or_else(random_address);
    let mtu = wanted.mtu.unwrap_or(network.mtu);
    Ok(Prepared { guest, service, device, mac, mtu, paths })
}

/// The wanted card if it is free, or the first free one.
fn choose(store: &mut Client, guest: &Domain, wanted: Option<u32>) -> Result<Device, Refusal> {
    let used = store.list(&format!("/local/domain/{}/device/vif", guest.domid))?;
    let free = |devid: u32| !used.iter().any(|used| *used == devid.to_string());
    let name = &guest.name;
    match wanted {
        Some(devid) if free(devid) => Ok(Device::Card(devid)),
        Some(devid) => {
            let text =
                format!("{name} has a card vif{devid} already: another --vif, or `windsor detach {name} vif{devid}`");
            Err(Refusal::Busy(text))
        }
        None => match (0..MOST).find(|&devid| free(devid)) {
            Some(devid) => Ok(Device::Card(devid)),
            None => Err(Refusal::Busy(format!("{name} has {MOST} cards already"))),
        },
    }
}

/// How long a guest that has a driver may take to connect a card that is offered: twice the backend's dwell, and some.
const TAKEN: Duration = Duration::from_secs(1);

/// One of the addresses that Xen gives away.
fn random_address() -> Mac {
    let [a, b, c] = PREFIX;
    Mac([a, b, c, fastrand::u8(..0x80), fastrand::u8(..), fastrand::u8(..)])
}

/// Writes the nodes and waits until the backend waits for the guest, as libxl does, and a moment for the guest.
///
/// # Errors
/// [`Refusal`]; a card that the service VM refused is taken away again.
pub fn run(store: &mut Client, wanted: &Wanted<'_>) -> Result<Device, Refusal> {
    let prepared = prepare(store, wanted)?;
    write(store, &prepared, wanted)?;
    match wait(store, &prepared, wanted.wait) {
        Ok(()) => Ok(prepared.device),
        Err(refusal) => {
            // As libxl does with a device that was never set up.
            detach::remove(store, &prepared.paths)?;
            Err(refusal)
        }
    }
}

/// One transaction, the keys that libxl writes.
fn write(store: &mut Client, prepared: &Prepared, wanted: &Wanted<'_>) -> Result<(), Error> {
    let Prepared { guest, service, device, mac, mtu, paths } = prepared;
    let of_frontend = [
        ("backend-id", service.domid.to_string()),
        ("state", "1".to_owned()),
        ("handle", device.devid().to_string()),
        ("mac", mac.to_string()),
        ("trusted", "1".to_owned()),
        ("mtu", mtu.to_string()),
    ];
    let mut of_backend = vec![
        ("frontend", paths.frontend.clone()),
        ("frontend-id", guest.domid.to_string()),
        ("online", "1".to_owned()),
        ("state", "1".to_owned()),
        ("script", "/etc/xen/scripts/vif-bridge".to_owned()),
        ("mac", mac.to_string()),
    ];
    if !wanted.addresses.is_empty() {
        let addresses: Vec<String> = wanted.addresses.iter().map(IpAddr::to_string).collect();
        of_backend.push(("ip", addresses.join(" ")));
    }
    of_backend.extend(wanted.rate.map(|rate| ("rate", rate.to_xenstore())));
    of_backend.extend([
        ("bridge", wanted.network.to_owned()),
        ("handle", device.devid().to_string()),
        ("type", "vif".to_owned()),
    ]);
    of_backend.extend((*mtu != DEFAULT_MTU).then(|| ("mtu", mtu.to_string())));
    of_backend.push(("hotplug-status", String::new()));
    attach::write_device(store, paths, &of_frontend, &of_backend)
}

/// Waits until the backend waits for the guest, or is further, or says that it will not be; then a moment for the guest
/// to take the card. A guest need not have a driver yet, so it is no error if it does not.
///
/// # Errors
/// [`Refusal`].
pub fn wait(store: &mut Client, prepared: &Prepared, limit: Duration) -> Result<(), Refusal> {
    let Prepared { guest, service, device, paths, .. } = prepared;
    let deadline = Instant::now() + limit;
    store.watch(&paths.backend, "windsor")?;
    store.watch(&paths.frontend, "windsor")?;
    let mut offered = None;
    loop {
        let seen = Seen::read(store, paths)?;
        match (seen.backend, seen.frontend) {
            (XenbusState::Connected | XenbusState::Reconfigured, XenbusState::Connected) => return Ok(()),
            (XenbusState::InitWait | XenbusState::Connected | XenbusState::Reconfigured, _) => {
                let moment = *offered.get_or_insert_with(Instant::now) + TAKEN;
                let now = Instant::now();
                if now >= moment {
                    return Ok(());
                }
                store.next_event(Some(moment - now))?;
                continue;
            }
            _ => {}
        }
        if seen.frontend == XenbusState::Unknown {
            let text = format!("{} ended, or somebody else took {device} away", guest.name);
            return Err(Refusal::Failed(text));
        }
        if let Some(why) = &seen.refused {
            let text = format!("{} refuses to serve {device} of {}: {why}", service.name, guest.name);
            return Err(match seen.own.phase == Phase::Busy.name() {
                true => Refusal::Busy(text),
                false => Refusal::Failed(text),
            });
        }
        if seen.own.phase == Phase::Failed.name() {
            return Err(Refusal::Failed(format!("{device} of {} failed: {}", guest.name, seen.describe())));
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Refusal::TimedOut(format!(
                "{device} of {} is not there after {} s: {}",
                guest.name,
                limit.as_secs(),
                seen.describe()
            )));
        }
        store.next_event(Some(deadline - now))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ours_is_one_station_of_xens() {
        for _ in 0..1000 {
            let mac = random_address();
            assert!(mac.0.starts_with(&PREFIX) && !mac.is_group() && mac.0[3] < 0x80, "{mac}");
        }
    }
}

//! A card's nodes: reading them as strictly as hostile input deserves, and writing our own.

use std::io;

use netback::config::{Negotiated, Offer, Rate, VifName};
use netback::keys::{self, KeyError, Toolstack};
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::{self, Seen};
use xenstore::{Client, Error, Store};

use crate::publish::{self, VifNode};
use crate::store::Nodes;
use crate::supervisor::nodes::Name;

/// Below the domain's own directory: the tree of cards.
pub const TREE: &str = "backend/vif";
/// A key of ours in each directory that has been offered or refused: libxl writes `hotplug-status` itself.
const MARK: &str = "feature-rx-copy";

/// From the two directory names; nothing but plain decimal numbers.
pub fn parse(guest: &str, devid: &str) -> Option<VifName> {
    Name::parse(guest, devid).map(|Name { guest, devid }| VifName { guest, devid })
}

/// Our directory, below the domain's own.
pub fn backend(name: VifName) -> String {
    format!("{TREE}/{}/{}", name.guest, name.devid)
}

/// The frontend's directory.
pub fn frontend(name: VifName) -> String {
    format!("/local/domain/{}/device/vif/{}", name.guest, name.devid)
}

/// What the toolstack wrote once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its keys.
    pub toolstack: Toolstack,
    /// `rate`, where it says anything: what may pass, or that everything may.
    pub rate: Option<Option<Rate>>,
}

impl Description {
    /// The network's name; empty or libxl's default where nobody said.
    pub fn bridge(&self) -> &str {
        self.toolstack.bridge.as_deref().unwrap_or_default()
    }
}

/// Reads what the toolstack wrote; the error is a sentence.
///
/// # Errors
/// The outer one when the store does not answer.
pub fn describe(store: &mut Client, name: VifName) -> Result<Result<Description, String>, Error> {
    let dir = backend(name);
    store.transaction(|tx| {
        let mut key =
            |key: &str| -> Result<String, Error> { Ok(tx.text(&format!("{dir}/{key}"))?.unwrap_or_default()) };
        let (theirs, id) = (key("frontend")?, key("frontend-id")?);
        if theirs != frontend(name) || id != name.guest.to_string() {
            return Ok(Err(format!(
                "frontend = {} and frontend-id = {} do not belong to this directory",
                keys::Excerpt::new(theirs.as_bytes()),
                keys::Excerpt::new(id.as_bytes())
            )));
        }
        Ok(with(tx, &dir, Toolstack::read)?.and_then(|toolstack| {
            let rate = toolstack.rate.as_deref().map(Rate::from_xenstore).transpose();
            Ok(Description { rate: rate.map_err(|error| error.to_string())?, toolstack })
        }))
    })
}

/// Reads keys of a directory: a failure of the store has to reach the transaction as what it is.
fn with<T>(
    tx: &mut impl Nodes,
    dir: &str,
    read: impl FnOnce(&mut keys::Lookup<'_>) -> Result<T, KeyError>,
) -> Result<Result<T, String>, Error> {
    let mut failure = None;
    let mut lookup = |key: &str| {
        tx.read_optional(&format!("{dir}/{key}")).map_err(|error| {
            let text = io::Error::other(error.to_string());
            failure = Some(error);
            text
        })
    };
    let read = read(&mut lookup);
    match failure {
        Some(error) => Err(error),
        None => Ok(read.map_err(|error| error.to_string())),
    }
}

/// Reads what may change, in one transaction.
///
/// # Errors
/// When the store does not answer.
pub fn look(store: &mut Client, name: VifName) -> Result<Seen, Error> {
    Seen::read(store, &backend(name), &frontend(name), MARK)
}

/// Publishes what the card can, and InitWait, in one transaction.
///
/// # Errors
/// When the store does not answer, or the directory is gone.
pub fn offer(store: &mut Client, name: VifName, offer: &Offer) -> Result<(), Error> {
    let dir = backend(name);
    let keys = keys::published(offer);
    let unsaid = keys::published(&Offer::default()).into_iter().map(|(key, _)| key);
    let unsaid: Vec<&str> = unsaid.filter(|key| keys.iter().all(|(said, _)| said != key)).collect();
    store.transaction(|tx| {
        tx.read(&format!("{dir}/state"))?;
        for (key, value) in &keys {
            tx.write(&format!("{dir}/{key}"), value.as_bytes())?;
        }
        for key in &unsaid {
            tx.rm(&format!("{dir}/{key}"))?;
        }
        // Nobody answers before it is Connected.
        tx.write(&format!("{dir}/carrier"), b"0")?;
        tx.write(&format!("{dir}/hotplug-status"), b"")?;
        tx.rm(&format!("{dir}/hotplug-error"))?;
        backend::write_state(tx, &dir, XenbusState::InitWait)
    })
}

/// Reads what the frontend chose, in one transaction.
///
/// # Errors
/// The outer one when the store does not answer.
pub fn negotiated(store: &mut Client, name: VifName, offer: &Offer) -> Result<Result<Negotiated, String>, Error> {
    store.transaction(|tx| with(tx, &frontend(name), |lookup| Negotiated::read(offer, lookup)))
}

/// Reads `request-multicast-control`, which a frontend may change at any time.
///
/// # Errors
/// The outer one when the store does not answer.
pub fn multicast(store: &mut Client, name: VifName) -> Result<Result<bool, String>, Error> {
    store.transaction(|tx| with(tx, &frontend(name), keys::multicast_control))
}

/// Reads `xdp-headroom`, which a frontend may change by way of Reconfiguring.
///
/// # Errors
/// The outer one when the store does not answer.
pub fn headroom(store: &mut Client, name: VifName) -> Result<Result<u16, String>, Error> {
    store.transaction(|tx| with(tx, &frontend(name), keys::headroom))
}

/// Says that the card is served and goes to Connected, in one transaction, unless somebody has changed our state.
///
/// # Errors
/// When the store does not answer, or the directory is gone.
pub fn announce(store: &mut Client, name: VifName) -> Result<bool, Error> {
    let dir = backend(name);
    store.transaction(|tx| {
        if XenbusState::parse(&tx.read(&format!("{dir}/state"))?) != XenbusState::InitWait {
            return Ok(false);
        }
        tx.write(&format!("{dir}/carrier"), b"1")?;
        tx.write(&format!("{dir}/hotplug-status"), b"connected")?;
        backend::write_state(tx, &dir, XenbusState::Connected)?;
        Ok(true)
    })
}

/// Goes from one state to another, unless somebody has changed ours.
///
/// # Errors
/// When the store does not answer.
pub fn step(store: &mut Client, name: VifName, from: XenbusState, to: XenbusState) -> Result<bool, Error> {
    let dir = backend(name);
    store.transaction(|tx| {
        let state = tx.read_optional(&format!("{dir}/state"))?;
        if state.is_none_or(|state| XenbusState::parse(&state) != from) {
            return Ok(false);
        }
        backend::write_state(tx, &dir, to)?;
        Ok(true)
    })
}

/// Tells the toolstack why a card is not served. False when xenstored had no node left for that.
///
/// # Errors
/// When the store does not answer.
pub fn refuse(store: &mut Client, name: VifName, why: &str, busy: bool) -> Result<bool, Error> {
    let dir = backend(name);
    let told = store.transaction(|tx| {
        if tx.read_optional(&format!("{dir}/state"))?.is_some() {
            tx.write(&format!("{dir}/{MARK}"), b"1")?;
            tx.write(&format!("{dir}/hotplug-error"), why.as_bytes())?;
            let status: &[u8] = if busy { b"busy" } else { b"error" };
            tx.write(&format!("{dir}/hotplug-status"), status)?;
        }
        Ok(())
    });
    match told {
        Err(error) if error.is_quota() => return Ok(false),
        other => other?,
    }
    match blame(store, name, why) {
        Err(error) if error.is_quota() => {}
        other => other?,
    }
    Ok(true)
}

/// Writes why a card is not served, where kernel backends put it.
///
/// # Errors
/// When the store does not answer.
pub fn blame(store: &mut Client, name: VifName, why: &str) -> Result<(), Error> {
    store.write(&format!("error/{}/error", backend(name)), why.as_bytes())
}

/// Reads what [`blame`] wrote last and nobody has taken back.
///
/// # Errors
/// When the store does not answer.
pub fn blamed(store: &mut Client, name: VifName) -> Result<Option<String>, Error> {
    store.text(&format!("error/{}/error", backend(name)))
}

/// Publishes where a card stands.
///
/// # Errors
/// When the store does not answer.
pub fn publish(store: &mut Client, name: VifName, node: &VifNode) -> Result<(), Error> {
    store.write(&publish::vif(name.guest, name.devid), node.text().as_bytes())
}

/// Removes our directory, which tells the toolstack that the card is gone, and what we published of it.
///
/// # Errors
/// When the store does not answer.
pub fn remove(store: &mut Client, name: VifName) -> Result<(), Error> {
    clean(store, name)?;
    store.rm(&backend(name))
}

/// Removes what we published of a card.
///
/// # Errors
/// When the store does not answer.
pub fn clean(store: &mut Client, name: VifName) -> Result<(), Error> {
    store.rm(&publish::vif(name.guest, name.devid))?;
    absolve(store, name)
}

/// Takes back what [`blame`] wrote.
///
/// # Errors
/// When the store does not answer.
pub fn absolve(store: &mut Client, name: VifName) -> Result<(), Error> {
    store.rm(&format!("error/{}", backend(name)))?;
    // Domain numbers never come back: the directories of guests must not pile up.
    let guest = format!("error/{TREE}/{}", name.guest);
    match store.read_optional(&guest)? {
        Some(_) if store.list(&guest)?.is_empty() => store.rm(&guest),
        _ => Ok(()),
    }
}

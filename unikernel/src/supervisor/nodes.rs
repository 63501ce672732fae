//! A device's nodes: reading them as strictly as hostile input deserves, and writing our own.

use blkback::config::{DiskParams, Negotiated, Offer};
use blkback::keys::{self, KeyError, Left};
use serde::{Deserialize, Serialize};
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::{self, Seen};
use xenstore::{Client, Error, Store};

use crate::publish::{self, DeviceNode};
use crate::store::Nodes;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The guest's domain.
    pub guest: u16,
    /// The device's number.
    pub devid: u32,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vbd-{}-{}", self.guest, self.devid)
    }
}

/// Below the domain's own directory: the tree of disks.
pub const TREE: &str = "backend/vbd";

impl Name {
    /// From the two directory names; nothing but plain decimal numbers.
    pub fn parse(guest: &str, devid: &str) -> Option<Name> {
        let plain = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits && (text == "0" || !text.starts_with('0'))
        };
        if !plain(guest) || !plain(devid) {
            return None;
        }
        let guest: u16 = guest.parse().ok()?;
        let devid: u32 = devid.parse().ok()?;
        // Reserved domids start at 0x7FF0, and a devid is signed in C.
        (guest < 0x7FF0 && devid < 1 << 31).then_some(Name { guest, devid })
    }

    /// Our directory, below the domain's own.
    pub fn backend(&self) -> String {
        format!("{TREE}/{}/{}", self.guest, self.devid)
    }

    /// The frontend's directory.
    pub fn frontend(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}", self.guest, self.devid)
    }
}

/// What the toolstack wrote once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The volume's name.
    pub volume: String,
    /// The guest may only read.
    pub read_only: bool,
    /// A CD-ROM, for `info`.
    pub cdrom: bool,
    /// `removable`, for `info`.
    pub removable: bool,
    /// `discard-enable`: the guest may discard.
    pub discard: bool,
}

/// Reads what the toolstack wrote; the error is a sentence.
///
/// # Errors
/// The outer one when the store does not answer.
pub fn describe(store: &mut Client, name: Name) -> Result<Result<Description, String>, Error> {
    let dir = name.backend();
    store.transaction(|tx| {
        let mut key =
            |key: &str| -> Result<String, Error> { Ok(tx.text(&format!("{dir}/{key}"))?.unwrap_or_default()) };
        let (frontend, id) = (key("frontend")?, key("frontend-id")?);
        if frontend != name.frontend() || id != name.guest.to_string() {
            return Ok(Err(format!(
                "frontend = {} and frontend-id = {} do not belong to this directory",
                keys::Excerpt::new(frontend.as_bytes()),
                keys::Excerpt::new(id.as_bytes())
            )));
        }
        let mode = key("mode")?;
        Ok(Ok(Description {
            volume: key("params")?,
            read_only: !mode.starts_with('w'),
            cdrom: key("device-type")? == "cdrom",
            removable: key("removable")? == "1",
            // A toolstack that does not say has nothing against it.
            discard: key("discard-enable")? != "0",
        }))
    })
}

/// Reads what may change, in one transaction.
///
/// # Errors
/// When the store does not answer.
pub fn look(store: &mut Client, name: Name) -> Result<Seen, Error> {
    Seen::read(store, &name.backend(), &name.frontend(), "hotplug-status")
}

/// Publishes what the disk is and can, and what a toolstack waits for. With `again` keys of an earlier offer go.
///
/// # Errors
/// When the store does not answer, or the directory is gone.
pub fn offer(
    store: &mut Client,
    name: Name,
    offer: &Offer,
    disk: &DiskParams,
    about: &Description,
    again: bool,
) -> Result<(), Error> {
    let dir = name.backend();
    let keys = keys::published(offer, disk, about.cdrom, about.removable);
    store.transaction(|tx| {
        tx.read(&format!("{dir}/state"))?;
        for (key, value) in &keys {
            tx.write(&format!("{dir}/{key}"), value.as_bytes())?;
        }
        for key in keys::OPTIONAL.iter().filter(|key| again && keys.iter().all(|(there, _)| there != *key)) {
            tx.rm(&format!("{dir}/{key}"))?;
        }
        tx.rm(&format!("{dir}/hotplug-error"))?;
        tx.write(&format!("{dir}/hotplug-status"), b"connected")
    })
}

/// Reads what the frontend chose, in one transaction; `left` is what it had chosen before, and becomes what it has chosen now.
///
/// # Errors
/// The outer one when the store does not answer.
pub fn negotiated(
    store: &mut Client,
    name: Name,
    offer: &Offer,
    left: &mut Left,
) -> Result<Result<Negotiated, KeyError>, Error> {
    let dir = name.frontend();
    let (read, now) = store.transaction(|tx| {
        let mut failure = None;
        let mut lookup = |key: &str| {
            tx.read_optional(&format!("{dir}/{key}")).map_err(|error| {
                let text = std::io::Error::other(error.to_string());
                failure = Some(error);
                text
            })
        };
        let read = Negotiated::read(offer, left, &mut lookup);
        let now = Left::read(&mut lookup).unwrap_or_default();
        match failure {
            // A conflict has to reach the transaction as what it is.
            Some(error) => Err(error),
            None => Ok((read, now)),
        }
    })?;
    *left = now;
    Ok(read)
}

/// Publishes the disk and goes to Connected, in one transaction, unless somebody has changed our state meanwhile.
///
/// # Errors
/// When the store does not answer, or the directory is gone.
pub fn announce(
    store: &mut Client,
    name: Name,
    offer: &Offer,
    disk: &DiskParams,
    about: &Description,
) -> Result<bool, Error> {
    let dir = name.backend();
    store.transaction(|tx| {
        if XenbusState::parse(&tx.read(&format!("{dir}/state"))?) != XenbusState::InitWait {
            return Ok(false);
        }
        for (key, value) in keys::published(offer, disk, about.cdrom, about.removable) {
            tx.write(&format!("{dir}/{key}"), value.as_bytes())?;
        }
        backend::write_state(tx, &dir, XenbusState::Connected)?;
        Ok(true)
    })
}

/// Publishes a new size, in one transaction with the state that makes the frontend look at it; false when the device is
/// not Connected any more.
///
/// # Errors
/// When the store does not answer.
pub fn resize(store: &mut Client, name: Name, sectors: u64) -> Result<bool, Error> {
    let dir = name.backend();
    store.transaction(|tx| {
        let state = tx.read_optional(&format!("{dir}/state"))?;
        if state.is_none_or(|state| XenbusState::parse(&state) != XenbusState::Connected) {
            return Ok(false);
        }
        tx.write(&format!("{dir}/sectors"), sectors.to_string().as_bytes())?;
        backend::write_state(tx, &dir, XenbusState::Connected)?;
        Ok(true)
    })
}

/// Tells the toolstack why a device is not served. False when xenstored had no node left for that: the device's
/// directory has no mark of ours then.
///
/// # Errors
/// When the store does not answer.
pub fn refuse(store: &mut Client, name: Name, why: &str, busy: bool) -> Result<bool, Error> {
    let dir = name.backend();
    let told = store.transaction(|tx| {
        if tx.read_optional(&format!("{dir}/state"))?.is_some() {
            tx.write(&format!("{dir}/hotplug-error"), why.as_bytes())?;
            let status: &[u8] = if busy { b"busy" } else { b"error" };
            tx.write(&format!("{dir}/hotplug-status"), status)?;
        }
        Ok(())
    });
    match told {
        Err(error) if error.is_quota() => {
            // There is no room for a word. Whoever waits here is woken, and finds it where it always fits.
            store.transaction(|tx| match tx.read_optional(&format!("{dir}/state"))? {
                Some(state) => tx.write(&format!("{dir}/state"), &state),
                None => Ok(()),
            })?;
            return Ok(false);
        }
        other => other?,
    }
    // Where kernel backends put it.
    match store.write(&error_node(name), why.as_bytes()) {
        Err(error) if error.is_quota() => {}
        other => other?,
    }
    Ok(true)
}

/// Writes why a device that was served is not any more, where kernel backends put it.
///
/// # Errors
/// When the store does not answer.
pub fn blame(store: &mut Client, name: Name, why: &str) -> Result<(), Error> {
    store.write(&error_node(name), why.as_bytes())
}

fn error_node(name: Name) -> String {
    format!("error/{}/error", name.backend())
}

/// Publishes where a device stands.
///
/// # Errors
/// When the store does not answer.
pub fn publish(store: &mut Client, name: Name, node: &DeviceNode) -> Result<(), Error> {
    store.write(&publish::device(name.guest, name.devid), node.text().as_bytes())
}

/// Removes our directory, which tells the toolstack that the device is gone, and what we published of it.
///
/// # Errors
/// When the store does not answer.
pub fn remove(store: &mut Client, name: Name) -> Result<(), Error> {
    clean(store, name)?;
    store.rm(&name.backend())
}

/// Removes what we published of a device.
///
/// # Errors
/// When the store does not answer.
pub fn clean(store: &mut Client, name: Name) -> Result<(), Error> {
    store.rm(&publish::device(name.guest, name.devid))?;
    store.rm(&format!("error/{}", name.backend()))?;
    // Domain numbers never come back: the directories of guests must not pile up.
    let guest = format!("error/{TREE}/{}", name.guest);
    match store.read_optional(&guest)? {
        Some(_) if store.list(&guest)?.is_empty() => store.rm(&guest),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_numbers_name_a_device() {
        assert_eq!(Name::parse("3", "51712"), Some(Name { guest: 3, devid: 51712 }));
        assert_eq!(Name::parse("0", "0"), Some(Name { guest: 0, devid: 0 }));
        for (guest, devid) in
            [("", "1"), ("1", ""), ("+1", "1"), ("01", "1"), ("1", "2147483648"), ("32752", "1"), ("1", "x")]
        {
            assert_eq!(Name::parse(guest, devid), None, "{guest} {devid}");
        }
    }
}

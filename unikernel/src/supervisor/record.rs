//! What the keeper remembers of a device: JSON in a memfd, which descriptors follow.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::Service;

/// Longest record, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// A record as a descriptor for the keeper.
///
/// # Errors
/// What the kernel says.
pub fn write(record: &impl Serialize) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"windsor-record", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(record)?)?;
    Ok(file.into())
}

/// The record behind the first of the keeper's descriptors.
///
/// # Errors
/// What the kernel says, and [`io::ErrorKind::InvalidData`] when it is none.
pub fn read<T: DeserializeOwned>(fd: OwnedFd) -> io::Result<T> {
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The next descriptor after a record.
///
/// # Errors
/// When there is none.
pub fn next(fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<OwnedFd> {
    fds.next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a descriptor is missing"))
}

/// A state by its number.
pub fn state(number: u8) -> XenbusState {
    XenbusState::parse(number.to_string().as_bytes())
}

/// A service by its number.
pub fn service(number: u8) -> Service {
    match number {
        1 => Service::Connecting,
        2 => Service::Connected,
        3 => Service::Draining,
        _ => Service::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_for_what_they_were_made_of() {
        for one in [Service::None, Service::Connecting, Service::Connected, Service::Draining] {
            assert_eq!(service(one as u8), one);
        }
        for one in [XenbusState::Initialising, XenbusState::Connected, XenbusState::Reconfigured] {
            assert_eq!(state(one as u8), one);
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert!(read::<Vec<u8>>(write(&"text").unwrap()).is_err());
        assert_eq!(read::<Vec<u8>>(write(&[1, 2]).unwrap()).unwrap(), [1, 2]);
        assert!(next(&mut std::iter::empty()).is_err());
    }
}

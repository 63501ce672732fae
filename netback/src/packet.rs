//! What a frame is called on its way through a network: addresses, and the work on it that was left to somebody else.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of an Ethernet header (`ETH_HLEN`, if_ether.h): no frame is shorter.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of an 802.1Q tag (`VLAN_HLEN`, if_vlan.h).
pub const VLAN_TAG: usize = 4;
/// Bytes at the beginning of each packet that are copied and looked at before anything is decided: what Linux's own backend takes
/// (`XEN_NETBACK_TX_COPY_LEN`), enough for Ethernet, a tag, IPv6 with extensions, and TCP with options.
pub const HEADERS: usize = 128;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xFF; 6]);

    /// For several stations, all of them included (the I/G bit of IEEE 802).
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not six bytes in hexadecimal with colons between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an Ethernet address is six bytes in hexadecimal, like 00:16:3e:01:02:03")]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Mac, NotAMac> {
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(NotAMac)?;
        }
        if parts.next().is_some() { Err(NotAMac) } else { Ok(Mac(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = NotAMac;

    fn try_from(text: String) -> Result<Mac, NotAMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

/// Where the transport checksum of a frame stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// In the frame, whole; nobody has looked at it.
    #[default]
    Whole,
    /// In the frame, whole, or known not to matter: somebody vouches for it (`NETTXF_data_validated`, `VIRTIO_NET_HDR_F_DATA_VALID`).
    Valid,
    /// Left to whoever sends it on (`NETTXF_csum_blank`, `VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Blank,
}

/// Which TCP a packet is that is to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// Over IPv4 (`XEN_NETIF_GSO_TYPE_TCPV4`).
    TcpV4,
    /// Over IPv6 (`XEN_NETIF_GSO_TYPE_TCPV6`).
    TcpV6,
}

/// A packet larger than the wire takes, to be cut by whoever needs it cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What it is.
    pub kind: GsoKind,
    /// Payload bytes of each segment; never 0.
    pub size: u16,
}

/// The work on a frame that is still to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum; [`Checksum::Blank`] whenever there is a `gso`.
    pub checksum: Checksum,
    /// Its segments.
    pub gso: Option<Gso>,
}

/// A hash that goes with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
    pub algorithm: u8,
    /// `_XEN_NETIF_CTRL_HASH_TYPE_*`, a bit number.
    pub kind: u8,
    /// The value.
    pub value: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly_and_written_as_they_were() {
        let mac: Mac = "00:16:3e:0A:ff:7f".parse().unwrap();
        assert_eq!(mac.to_string(), "00:16:3e:0a:ff:7f");
        assert!(!mac.is_group() && Mac::BROADCAST.is_group());
        for bad in
            ["", "0:16:3e:0a:ff:7f", "00:16:3e:0a:ff", "00:16:3e:0a:ff:7f:00", "+0:16:3e:0a:ff:7f", "001:6:3e:0a:ff:7f"]
        {
            assert_eq!(bad.parse::<Mac>(), Err(NotAMac), "{bad}");
        }
    }
}

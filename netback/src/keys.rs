//! The xenstore keys of a network card: what a backend publishes, what its frontend answers, and what the toolstack said
//! (net.md A5). Pure, as `blkback::keys`: the caller reads the store, in one transaction, and hands over a function that
//! looks a key up. Whoever wrote a value, an error never carries more than a few printable bytes of it.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::IpAddr;

use crate::config::{ControlKeys, Features, Negotiated, Offer, QueueKeys};
use crate::packet::Mac;
use crate::slots::MAX_HEADROOM;

/// `multi-queue-max-queues`, written by the backend.
pub const MAX_QUEUES: &str = "multi-queue-max-queues";
/// `multi-queue-num-queues`, written by the frontend.
pub const NUM_QUEUES: &str = "multi-queue-num-queues";
/// `request-multicast-control`, written by the frontend, at any time.
pub const MULTICAST_CONTROL: &str = "request-multicast-control";
/// `xdp-headroom`, written by the frontend before it goes to Reconfiguring.
pub const XDP_HEADROOM: &str = "xdp-headroom";

/// Longest value that any of a frontend's keys can need.
const MAX_VALUE: usize = 32;
/// Most addresses of one card.
const MAX_ADDRESSES: usize = 32;

/// Everything that a card publishes before InitWait.
pub fn published(offer: &Offer) -> Vec<(&'static str, String)> {
    let keys = [
        ("feature-rx-copy", 1),
        ("feature-rx-flip", 0),
        ("feature-sg", offer.scatter_gather.into()),
        ("feature-gso-tcpv4", offer.scatter_gather.into()),
        ("feature-gso-tcpv6", offer.scatter_gather.into()),
        ("feature-ipv6-csum-offload", 1),
        ("feature-split-event-channels", offer.split_event_channels.into()),
        ("feature-multicast-control", offer.multicast_control.into()),
        ("feature-dynamic-multicast-control", offer.multicast_control.into()),
        ("feature-xdp-headroom", offer.xdp_headroom.into()),
        ("feature-ctrl-ring", offer.control_ring.into()),
        (MAX_QUEUES, offer.queues.max(1)),
    ];
    // Without its key each is what a frontend takes for granted; only the first two are asked for by name.
    let needed = |key: &str, value: u16| value != 0 && (key != MAX_QUEUES || value > 1) || key == "feature-rx-flip";
    keys.into_iter().filter(|&(key, value)| needed(key, value)).map(|(key, value)| (key, value.to_string())).collect()
}

/// Why a card's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The store did not answer.
    #[error("reading the keys: {0}")]
    Store(#[from] io::Error),
    /// A key that must be there is not (or is empty, which means the same).
    #[error("there is no {0}")]
    Missing(String),
    /// A value that cannot be.
    #[error("{key} = {value}: {why}")]
    Bad {
        /// Which key.
        key: String,
        /// What it says, cut and made printable.
        value: Excerpt,
        /// What would have been right.
        why: String,
    },
    /// Two rings on the same page.
    #[error("the frontend gave grant reference {0} for two rings")]
    SamePage(u32),
    /// Two rings of different queues on the same event channel.
    #[error("the frontend gave event channel {0} for two queues")]
    SameChannel(u32),
}

/// A few bytes of something a peer wrote, safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(Vec<u8>);

impl Excerpt {
    /// Keeps the first bytes.
    pub fn new(value: &[u8]) -> Excerpt {
        Excerpt(value[..value.len().min(MAX_VALUE)].to_vec())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Looks a key up below a directory; `None` when there is no such key.
pub type Lookup<'a> = dyn FnMut(&str) -> io::Result<Option<Vec<u8>>> + 'a;

impl Negotiated {
    /// Reads and checks what a frontend chose within `offer`. All look-ups must belong to one transaction.
    ///
    /// # Errors
    /// [`KeyError`]; a conflict of the transaction comes back as [`KeyError::Store`] or when it is committed.
    pub fn read(offer: &Offer, lookup: &mut Lookup<'_>) -> Result<Negotiated, KeyError> {
        let mut keys = Keys { lookup };
        // The other way, flipping pages, has not been there since 2011; a frontend that does not say so would wait for it.
        if !keys.feature("request-rx-copy")? {
            return Err(KeyError::Missing("request-rx-copy = 1 (pages are copied, not flipped)".into()));
        }
        let count = keys.number(NUM_QUEUES, 1, offer.queues.max(1).into())?.unwrap_or(1);
        let mut queues = Vec::with_capacity(count as usize);
        for queue in 0..count {
            let prefix = if count == 1 { String::new() } else { format!("queue-{queue}/") };
            queues.push(keys.queue(&prefix, offer.split_event_channels)?);
        }
        let control = if offer.control_ring { keys.control()? } else { None };
        distinct(&queues, control.as_ref())?;
        let features = keys.features(offer)?;
        Ok(Negotiated { queues, control, features })
    }
}

/// The headroom that a frontend asks for, bytes; 0 without the key. More than leaves room for a header in a page is cut.
///
/// # Errors
/// What the store says, or a value that is no number.
pub fn headroom(lookup: &mut Lookup<'_>) -> Result<u16, KeyError> {
    // 0x7FFF is what netif.h's field holds; Linux takes it as it is, and would write beyond a page.
    let asked = Keys { lookup }.number(XDP_HEADROOM, 0, 0x7FFF)?.unwrap_or(0);
    Ok((asked as u16).min(MAX_HEADROOM))
}

/// Whether a frontend wants only the groups that it asks for.
///
/// # Errors
/// What the store says.
pub fn multicast_control(lookup: &mut Lookup<'_>) -> Result<bool, KeyError> {
    Keys { lookup }.feature(MULTICAST_CONTROL)
}

/// What the toolstack wrote into the backend's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolstack {
    /// `mac`.
    pub mac: Mac,
    /// `ip`: what the card may use as source; empty means any.
    pub addresses: Vec<IpAddr>,
    /// `bridge`: which network is meant.
    pub bridge: Option<String>,
    /// `rate`, as it stands there.
    pub rate: Option<String>,
    /// `mtu`, bytes.
    pub mtu: Option<u16>,
    /// `vlan`, a number.
    pub vlan: Option<u16>,
}

impl Toolstack {
    /// Reads and checks it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(lookup: &mut Lookup<'_>) -> Result<Toolstack, KeyError> {
        let mut keys = Keys { lookup };
        let bad = |key: &str, value: &str, why: &str| KeyError::Bad {
            key: key.into(),
            value: Excerpt::new(value.as_bytes()),
            why: why.into(),
        };
        let mac = keys.text("mac")?.ok_or_else(|| KeyError::Missing("mac".into()))?;
        let unicast = mac.parse::<Mac>().ok().filter(|mac| !mac.is_group());
        let unicast = unicast.ok_or_else(|| bad("mac", &mac, "not the Ethernet address of one station"))?;
        let mut addresses = Vec::new();
        if let Some(list) = keys.text("ip")? {
            for address in list.split([' ', ',']).filter(|address| !address.is_empty()) {
                let parsed = address.parse().map_err(|_| bad("ip", address, "not an IPv4 or IPv6 address"))?;
                if addresses.len() == MAX_ADDRESSES {
                    return Err(bad("ip", address, "too many addresses"));
                }
                addresses.push(parsed);
            }
        }
        Ok(Toolstack {
            mac: unicast,
            addresses,
            bridge: keys.text("bridge")?,
            rate: keys.text("rate")?,
            mtu: keys.number("mtu", 68, 65_521)?.map(|mtu| mtu as u16),
            vlan: keys.number("vlan", 1, 4094)?.map(|vlan| vlan as u16),
        })
    }
}

/// Rings that serve two masters would let the two corrupt each other.
fn distinct(queues: &[QueueKeys], control: Option<&ControlKeys>) -> Result<(), KeyError> {
    let (mut pages, mut channels) = (HashSet::new(), HashSet::new());
    let refs = queues.iter().flat_map(|queue| [queue.tx_ring_ref, queue.rx_ring_ref]);
    let ports = queues.iter().flat_map(|queue| [Some(queue.event_channel_tx), queue.event_channel_rx]).flatten();
    for page in refs.chain(control.map(|control| control.ring_ref)) {
        if !pages.insert(page) {
            return Err(KeyError::SamePage(page));
        }
    }
    for channel in ports.chain(control.map(|control| control.event_channel)) {
        if !channels.insert(channel) {
            return Err(KeyError::SameChannel(channel));
        }
    }
    Ok(())
}

/// Typed look-ups.
struct Keys<'a, 'b> {
    lookup: &'a mut Lookup<'b>,
}

impl Keys<'_, '_> {
    /// A value without the NUL that some C frontends count in; an empty one is as good as none.
    fn value(&mut self, key: &str) -> Result<Option<Vec<u8>>, KeyError> {
        let Some(mut value) = (self.lookup)(key)? else { return Ok(None) };
        if value.last() == Some(&0) {
            value.pop();
        }
        Ok((!value.is_empty()).then_some(value))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, KeyError> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        match String::from_utf8(value) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let value = Excerpt::new(error.as_bytes());
                Err(KeyError::Bad { key: key.into(), value, why: "not text".into() })
            }
        }
    }

    /// A decimal number within bounds.
    fn number(&mut self, key: &str, min: u32, max: u32) -> Result<Option<u32>, KeyError> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        match decimal(&value) {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => {
                let why = match max {
                    u32::MAX => format!("not a number from {min}"),
                    _ => format!("not a number from {min} to {max}"),
                };
                Err(KeyError::Bad { key: key.to_owned(), value: Excerpt::new(&value), why })
            }
        }
    }

    fn required(&mut self, key: &str, min: u32) -> Result<u32, KeyError> {
        self.number(key, min, u32::MAX)?.ok_or_else(|| KeyError::Missing(key.to_owned()))
    }

    /// A feature is on only for a plain number other than 0; to leave it off is always safe.
    fn feature(&mut self, key: &str) -> Result<bool, KeyError> {
        Ok(self.value(key)?.and_then(|value| decimal(&value)).is_some_and(|n| n != 0))
    }

    fn queue(&mut self, prefix: &str, split: bool) -> Result<QueueKeys, KeyError> {
        let tx_ring_ref = self.required(&format!("{prefix}tx-ring-ref"), 0)?;
        let rx_ring_ref = self.required(&format!("{prefix}rx-ring-ref"), 0)?;
        // Port 0 is never anybody's.
        let (tx, rx) = (format!("{prefix}event-channel-tx"), format!("{prefix}event-channel-rx"));
        let channels = if split { [self.number(&tx, 1, u32::MAX)?, self.number(&rx, 1, u32::MAX)?] } else { [None; 2] };
        let (event_channel_tx, event_channel_rx) = match channels {
            [Some(tx), Some(rx)] => (tx, Some(rx)),
            [None, None] => (self.required(&format!("{prefix}event-channel"), 1)?, None),
            [None, _] => return Err(KeyError::Missing(tx)),
            [_, None] => return Err(KeyError::Missing(rx)),
        };
        Ok(QueueKeys { tx_ring_ref, rx_ring_ref, event_channel_tx, event_channel_rx })
    }

    fn control(&mut self) -> Result<Option<ControlKeys>, KeyError> {
        let Some(ring_ref) = self.number("ctrl-ring-ref", 0, u32::MAX)? else { return Ok(None) };
        Ok(Some(ControlKeys { ring_ref, event_channel: self.required("event-channel-ctrl", 1)? }))
    }

    /// What was not offered does not count.
    fn features(&mut self, offer: &Offer) -> Result<Features, KeyError> {
        let sg = offer.scatter_gather && self.feature("feature-sg")?;
        Ok(Features {
            scatter_gather: sg,
            // Without fragments there is no place for what is larger than a page.
            gso_tcpv4: sg && self.feature("feature-gso-tcpv4")?,
            gso_tcpv6: sg && self.feature("feature-gso-tcpv6")?,
            checksum_ipv4: !self.feature("feature-no-csum-offload")?,
            checksum_ipv6: self.feature("feature-ipv6-csum-offload")?,
            rx_notify: self.feature("feature-rx-notify")?,
            multicast_control: offer.multicast_control && self.feature(MULTICAST_CONTROL)?,
            xdp_headroom: if offer.xdp_headroom { headroom(self.lookup)? } else { 0 },
        })
    }
}

/// Digits only: no sign, no space, no second meaning.
fn decimal(value: &[u8]) -> Option<u32> {
    if value.is_empty() || value.len() > 10 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;

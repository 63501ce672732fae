//! The keys of a card in xenstore (net.md A5): what its toolstack wrote, what we publish, what its frontend chose.

use std::io;
use std::net::IpAddr;

use netback::config::{ControlKeys, Features, Negotiated, Offer, QueueKeys, Rate};
use netback::packet::Mac;

use crate::config::MTU;

/// Reads a key of a directory; none when it is not there.
pub type Lookup<'a> = dyn FnMut(&str) -> io::Result<Option<Vec<u8>>> + 'a;

/// Most addresses that a card may have.
const MOST_ADDRESSES: usize = 64;
/// Most that a frontend may want to have left free in front of a packet, in bytes (net.md A5).
const MOST_HEADROOM: u16 = 0x7FFF;

/// What the toolstack wrote of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolstack {
    /// `mac`.
    pub mac: Mac,
    /// `ip`: addresses with spaces or commas between them; none means any.
    pub addresses: Vec<IpAddr>,
    /// `rate`: `BYTES,MICROSECONDS`.
    pub rate: Option<Rate>,
    /// `mtu`.
    pub mtu: Option<u16>,
    /// `vlan`.
    pub vlan: Option<u16>,
}

/// Reads what the toolstack wrote.
///
/// # Errors
/// A sentence with the key that makes no sense.
pub fn toolstack(lookup: &mut Lookup<'_>) -> Result<Toolstack, String> {
    let mac = text(lookup, "mac")?.unwrap_or_default();
    let mac = match mac.parse::<Mac>() {
        Ok(mac) if mac.is_group() => {
            return Err(format!("mac = {} is the address of a group", excerpt(&mac.to_string())));
        }
        other => other.map_err(|error| format!("mac = {}: {error}", excerpt(&mac)))?,
    };
    let ip = text(lookup, "ip")?.unwrap_or_default();
    let mut addresses = Vec::new();
    for word in ip.split([' ', ',']).filter(|word| !word.is_empty()).take(MOST_ADDRESSES + 1) {
        addresses.push(word.parse().map_err(|_| format!("ip = {} is no IP address", excerpt(word)))?);
    }
    if addresses.len() > MOST_ADDRESSES {
        return Err(format!("ip has more than {MOST_ADDRESSES} addresses"));
    }
    let rate = text(lookup, "rate")?.filter(|text| !text.is_empty());
    let rate = rate.map(|text| rate_of_store(&text)).transpose()?;
    let mut number = |key: &str, least: u16, most: u16| match text(lookup, key)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => match text.parse::<u16>() {
            Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
            _ => Err(format!("{key} = {}: {least} to {most}", excerpt(&text))),
        },
    };
    let mtu = number("mtu", *MTU.start(), *MTU.end())?;
    let vlan = number("vlan", 1, 4094)?;
    Ok(Toolstack { mac, addresses, rate, mtu, vlan })
}

/// `rate` as libxl writes it: `BYTES,MICROSECONDS`, so many bytes in each interval.
///
/// # Errors
/// A sentence.
pub fn rate_of_store(text: &str) -> Result<Rate, String> {
    let parsed = text.split_once(',').and_then(|(bytes, interval)| {
        let rate = Rate { bytes: bytes.parse().ok()?, interval_us: interval.parse().ok()?, packets: None };
        (rate.bytes > 0 && rate.interval_us > 0).then_some(rate)
    });
    parsed.ok_or_else(|| format!("rate = {}: so many bytes in so many microseconds, like 10240,20000", excerpt(text)))
}

/// `rate` as `xl` takes it: `RATE/s[@INTERVAL]`, such as `100Mb/s` (bits) or `1MB/s@20ms` (bytes); 50 ms where no
/// interval is given.
///
/// # Errors
/// A sentence.
pub fn rate_of_text(text: &str) -> Result<Rate, String> {
    let parsed = (|| {
        let (rate, interval) = text.split_once('@').map_or((text, "50ms"), |(rate, interval)| (rate, interval));
        let rate = rate.strip_suffix("/s")?;
        let (rate, bits) = match rate.strip_suffix('b') {
            Some(rate) => (rate, 8),
            None => (rate.strip_suffix('B')?, 1),
        };
        let (rate, unit) = match rate.char_indices().last()? {
            (at, 'K') => (rate.get(..at)?, 1_000),
            (at, 'M') => (rate.get(..at)?, 1_000_000),
            (at, 'G') => (rate.get(..at)?, 1_000_000_000),
            _ => (rate, 1u64),
        };
        let per_second = rate.parse::<u64>().ok()?.checked_mul(unit)? / bits;
        let at = interval.find(|c: char| !c.is_ascii_digit()).unwrap_or(interval.len());
        let (number, unit) = interval.split_at_checked(at)?;
        let unit = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            _ => return None,
        };
        let interval_us = number.parse::<u64>().ok()?.checked_mul(unit)?;
        let bytes = u64::try_from(u128::from(per_second) * u128::from(interval_us) / 1_000_000).ok()?;
        (bytes > 0 && interval_us > 0).then_some(Rate { bytes, interval_us, packets: None })
    })();
    parsed.ok_or_else(|| format!("rate = {}: like 100Mb/s or 1MB/s@20ms", excerpt(text)))
}

/// What a card publishes before InitWait.
pub fn published(offer: &Offer) -> Vec<(&'static str, String)> {
    let flag = |on: bool| u8::from(on).to_string();
    vec![
        ("feature-rx-copy", flag(true)),
        ("feature-rx-flip", flag(false)),
        ("feature-sg", flag(offer.scatter_gather)),
        ("feature-gso-tcpv4", flag(offer.scatter_gather)),
        ("feature-gso-tcpv6", flag(offer.scatter_gather)),
        ("feature-ipv6-csum-offload", flag(true)),
        ("feature-multicast-control", flag(offer.multicast_control)),
        ("feature-dynamic-multicast-control", flag(offer.multicast_control)),
        ("feature-xdp-headroom", flag(offer.xdp_headroom)),
        ("feature-split-event-channels", flag(offer.split_event_channels)),
        ("feature-ctrl-ring", flag(offer.control_ring)),
        ("multi-queue-max-queues", offer.queues.to_string()),
    ]
}

/// Reads what the frontend chose.
///
/// # Errors
/// A sentence with the key that is missing or makes no sense.
pub fn negotiated(offer: &Offer, lookup: &mut Lookup<'_>) -> Result<Negotiated, String> {
    if !flag(lookup, "request-rx-copy")? {
        return Err("the frontend does not ask for request-rx-copy, and nothing else is offered".into());
    }
    let count = number(lookup, "multi-queue-num-queues")?.unwrap_or(1);
    if !(1..=u32::from(offer.queues)).contains(&count) {
        return Err(format!("multi-queue-num-queues = {count}: 1 to {}", offer.queues));
    }
    let mut queues = Vec::new();
    for queue in 0..count {
        let dir = if count == 1 { String::new() } else { format!("queue-{queue}/") };
        let mut must = |key: &str| {
            let key = format!("{dir}{key}");
            number(lookup, &key)?.ok_or_else(|| format!("{key} is not there"))
        };
        let (tx_ring_ref, rx_ring_ref) = (must("tx-ring-ref")?, must("rx-ring-ref")?);
        let split = number(lookup, &format!("{dir}event-channel-tx"))?;
        let (event_channel_tx, event_channel_rx) = match split.filter(|_| offer.split_event_channels) {
            Some(tx) => {
                let key = format!("{dir}event-channel-rx");
                (tx, Some(number(lookup, &key)?.ok_or_else(|| format!("{key} is not there"))?))
            }
            None => {
                let key = format!("{dir}event-channel");
                (number(lookup, &key)?.ok_or_else(|| format!("{key} is not there"))?, None)
            }
        };
        queues.push(QueueKeys { tx_ring_ref, rx_ring_ref, event_channel_tx, event_channel_rx });
    }
    let control = match number(lookup, "ctrl-ring-ref")?.filter(|_| offer.control_ring) {
        None => None,
        Some(ring_ref) => {
            let event_channel = number(lookup, "event-channel-ctrl")?.ok_or("event-channel-ctrl is not there")?;
            Some(ControlKeys { ring_ref, event_channel })
        }
    };
    let features = Features {
        scatter_gather: flag(lookup, "feature-sg")?,
        gso_tcpv4: flag(lookup, "feature-gso-tcpv4")?,
        gso_tcpv6: flag(lookup, "feature-gso-tcpv6")?,
        checksum_ipv4: !flag(lookup, "feature-no-csum-offload")?,
        checksum_ipv6: flag(lookup, "feature-ipv6-csum-offload")?,
        rx_notify: flag(lookup, "feature-rx-notify")?,
        multicast_control: offer.multicast_control && multicast(lookup)?,
        xdp_headroom: if offer.xdp_headroom { headroom(lookup)? } else { 0 },
    };
    Ok(Negotiated { queues, control, features })
}

/// `request-multicast-control`, which may change.
///
/// # Errors
/// A sentence.
pub fn multicast(lookup: &mut Lookup<'_>) -> Result<bool, String> {
    flag(lookup, "request-multicast-control")
}

/// `xdp-headroom`, which may change: bytes.
///
/// # Errors
/// A sentence.
pub fn headroom(lookup: &mut Lookup<'_>) -> Result<u16, String> {
    match number(lookup, "xdp-headroom")?.unwrap_or(0).try_into() {
        Ok(bytes) if bytes <= MOST_HEADROOM => Ok(bytes),
        _ => Err(format!("xdp-headroom is more than {MOST_HEADROOM}")),
    }
}

fn flag(lookup: &mut Lookup<'_>, key: &str) -> Result<bool, String> {
    Ok(number(lookup, key)?.unwrap_or(0) != 0)
}

fn number(lookup: &mut Lookup<'_>, key: &str) -> Result<Option<u32>, String> {
    let Some(text) = text(lookup, key)? else { return Ok(None) };
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| plain);
    number.map(Some).ok_or_else(|| format!("{key} = {} is no number", excerpt(&text)))
}

fn text(lookup: &mut Lookup<'_>, key: &str) -> Result<Option<String>, String> {
    let value = lookup(key).map_err(|error| format!("{key}: {error}"))?;
    Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// What somebody wrote, as a log may show it.
fn excerpt(text: &str) -> String {
    format!("\"{}\"", text.escape_debug().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn from<'a>(keys: &'a [(&'a str, &'a str)]) -> impl FnMut(&str) -> io::Result<Option<Vec<u8>>> + 'a {
        let keys: HashMap<&str, &str> = keys.iter().copied().collect();
        move |key| Ok(keys.get(key).map(|value| value.as_bytes().to_vec()))
    }

    #[test]
    fn what_libxl_writes_is_read() {
        let keys = [
            ("mac", "00:16:3e:01:02:03"),
            ("ip", "10.0.0.1 fd00::1"),
            ("rate", "10240,20000"),
            ("mtu", "9000"),
            ("vlan", "7"),
        ];
        let read = toolstack(&mut from(&keys)).unwrap();
        assert_eq!(read.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(read.rate, Some(Rate { bytes: 10240, interval_us: 20000, packets: None }));
        assert_eq!((read.mtu, read.vlan), (Some(9000), Some(7)));
        let least = toolstack(&mut from(&[("mac", "00:16:3e:01:02:03"), ("ip", ""), ("rate", "")])).unwrap();
        assert_eq!(least, Toolstack { mac: read.mac, addresses: Vec::new(), rate: None, mtu: None, vlan: None });
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let mac = ("mac", "00:16:3e:01:02:03");
        for (keys, says) in [
            (vec![], "mac = \"\": an Ethernet"),
            (vec![("mac", "01:16:3e:01:02:03")], "mac = \"01:16:3e:01:02:03\" is the address of a group"),
            (vec![mac, ("ip", "10.0.0.1 x")], "ip = \"x\" is no"),
            (vec![mac, ("rate", "fast")], "rate = \"fast\": "),
            (vec![mac, ("rate", "1,0")], "rate = \"1,0\": "),
            (vec![mac, ("mtu", "67")], "mtu = \"67\": 68 to"),
            (vec![mac, ("vlan", "4095")], "vlan = \"4095\": 1 to 4094"),
        ] {
            let said = toolstack(&mut from(&keys)).unwrap_err();
            assert!(said.starts_with(says), "{said}");
        }
    }

    #[test]
    fn a_rate_is_what_xl_takes() {
        for (text, bytes, interval_us) in [
            ("100Mb/s", 625_000, 50_000),
            ("1MB/s@20ms", 20_000, 20_000),
            ("8000b/s@1s", 1000, 1_000_000),
            ("10GB/s@100us", 1_000_000, 100),
        ] {
            assert_eq!(rate_of_text(text), Ok(Rate { bytes, interval_us, packets: None }), "{text}");
        }
        for text in ["", "fast", "1MB", "1MB/s@", "1MB/s@0s", "1b/s", "-1B/s", "1MB/s@1h", "\u{e9}B/s"] {
            assert!(rate_of_text(text).unwrap_err().starts_with("rate = "), "{text}");
        }
    }

    const ONE: [(&str, &str); 4] =
        [("request-rx-copy", "1"), ("tx-ring-ref", "8"), ("rx-ring-ref", "9"), ("event-channel", "3")];

    #[test]
    fn one_queue_is_flat_and_more_have_directories() {
        let read = negotiated(&Offer::default(), &mut from(&ONE)).unwrap();
        let queue = QueueKeys { tx_ring_ref: 8, rx_ring_ref: 9, event_channel_tx: 3, event_channel_rx: None };
        assert_eq!((read.queues, read.control), (vec![queue], None));
        assert!(read.features.checksum_ipv4 && !read.features.scatter_gather);
        let mut keys = vec![("request-rx-copy", "1"), ("multi-queue-num-queues", "2")];
        keys.extend([("queue-0/tx-ring-ref", "1"), ("queue-0/rx-ring-ref", "2"), ("queue-0/event-channel", "3")]);
        keys.extend([("queue-1/tx-ring-ref", "4"), ("queue-1/rx-ring-ref", "5")]);
        keys.extend([("queue-1/event-channel-tx", "6"), ("queue-1/event-channel-rx", "7")]);
        keys.extend([("ctrl-ring-ref", "8"), ("event-channel-ctrl", "9"), ("xdp-headroom", "256")]);
        let read = negotiated(&Offer::default(), &mut from(&keys)).unwrap();
        let queue = QueueKeys { tx_ring_ref: 4, rx_ring_ref: 5, event_channel_tx: 6, event_channel_rx: Some(7) };
        assert_eq!(read.queues[1], queue);
        assert_eq!(read.control, Some(ControlKeys { ring_ref: 8, event_channel: 9 }));
        assert_eq!(read.features.xdp_headroom, 256);
    }

    #[test]
    fn a_frontend_that_makes_no_sense_is_told_which_key() {
        let with = |key: &'static str, value: &'static str| {
            let mut keys = ONE.to_vec();
            keys.retain(|(there, _)| *there != key);
            keys.extend((!value.is_empty()).then_some((key, value)));
            negotiated(&Offer::default(), &mut from(&keys)).unwrap_err()
        };
        for (key, value, says) in [
            ("request-rx-copy", "", "the frontend does not ask for request-rx-copy"),
            ("tx-ring-ref", "", "tx-ring-ref is not there"),
            ("rx-ring-ref", "+9", "rx-ring-ref = \"+9\" is no number"),
            ("rx-ring-ref", "4294967296", "rx-ring-ref = \"4294967296\" is no number"),
            ("event-channel", "", "event-channel is not there"),
            ("event-channel-tx", "4", "event-channel-rx is not there"),
            ("multi-queue-num-queues", "0", "multi-queue-num-queues = 0: 1 to 4"),
            ("multi-queue-num-queues", "5", "multi-queue-num-queues = 5: 1 to 4"),
            ("ctrl-ring-ref", "4", "event-channel-ctrl is not there"),
            ("xdp-headroom", "32768", "xdp-headroom is more than 32767"),
        ] {
            let said = with(key, value);
            assert!(said.starts_with(says), "{said}");
        }
    }
}

//! `[[network]]` of a configuration: what a guest can be given as a network card.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use netback::config::{Allow, Offer, Rate};
use serde::Deserialize;
use toml::Spanned;

use super::{Wrong, check_name, wrong};

/// Most networks of one VM: each has a worker process of its own.
pub(super) const MAX_NETWORKS: usize = 64;
/// What `mtu` is where nothing is said, bytes.
pub const DEFAULT_MTU: u16 = 1500;
/// What `mtu` may be, bytes: the least that IPv4 asks for (RFC 791), to the largest frame of a guest without its header.
pub const MTU: RangeInclusive<u16> = 68..=65521;
/// What a VLAN's number may be (IEEE 802.1Q).
const VLAN: RangeInclusive<u16> = 1..=4094;
/// Longest name of a Linux network interface (`IFNAMSIZ` without its NUL).
const LONGEST_INTERFACE: usize = 15;

/// `[[network]]`: something a guest can be given as a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name in `windsor attach GUEST VM:NAME`.
    pub name: String,
    /// What its cards reach beside each other.
    pub uplink: Uplink,
    /// The VLAN that its cards are in: tagged on the uplink, not tagged in the guests.
    pub vlan: Option<u16>,
    /// The largest payload of a frame, for a card whose toolstack does not say.
    pub mtu: u16,
    /// How much each card may send, and receive, where its toolstack does not say.
    pub rate: Option<Rate>,
    /// Queues of a card, 1 to 16.
    pub queues: u16,
    /// What its guests may say that others do not expect of a guest.
    pub allow: Allow,
}

impl Network {
    /// What its cards publish.
    pub fn offer(&self) -> Offer {
        Offer { queues: self.queues, ..Offer::default() }
    }
}

/// What is behind a network's switch.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Uplink {
    /// Nothing: its cards reach each other.
    Switch,
    /// A TAP of ours that joins this bridge.
    Bridge(String),
    /// This TAP.
    Tap(String),
}

impl Uplink {
    /// Whether the kernel takes this for the name of an interface (`dev_valid_name`) and a person can read it.
    ///
    /// # Errors
    /// The end of a sentence.
    pub(super) fn interface(name: &str) -> Result<(), String> {
        let fine = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
        match fine && !name.is_empty() && name.len() <= LONGEST_INTERFACE && name != "." && name != ".." {
            true => Ok(()),
            false => Err(format!("names no network interface: 1 to {LONGEST_INTERFACE} characters")),
        }
    }
}

impl TryFrom<String> for Uplink {
    type Error = String;

    fn try_from(text: String) -> Result<Uplink, String> {
        let named = |name: &str| match Uplink::interface(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(why) => Err(format!("uplink {text:?} {why}")),
        };
        match text.split_once(':') {
            None if text == "switch" => Ok(Uplink::Switch),
            Some(("bridge", name)) => named(name).map(Uplink::Bridge),
            Some(("tap", name)) => named(name).map(Uplink::Tap),
            _ => Err(format!("uplink {text:?} is none of \"switch\", \"bridge:br0\", \"tap:NAME\"")),
        }
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uplink::Switch => f.write_str("switch"),
            Uplink::Bridge(name) => write!(f, "bridge:{name}"),
            Uplink::Tap(name) => write!(f, "tap:{name}"),
        }
    }
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkTable {
    name: Spanned<String>,
    uplink: Option<Spanned<Uplink>>,
    vlan: Option<Spanned<u16>>,
    mtu: Option<Spanned<u16>>,
    rate: Option<Spanned<String>>,
    queues: Option<Spanned<u16>>,
    #[serde(default)]
    allow: Allow,
}

/// Checks one; with where its name stands.
pub(super) fn network(table: NetworkTable) -> Result<(Range<usize>, Network), Wrong> {
    let at = table.name.span();
    let name = table.name.into_inner();
    if let Err(why) = check_name(&name, "-_") {
        return Err(wrong(at, format!("network name {name:?}: {why}")));
    }
    let within = |value: Option<Spanned<u16>>, key: &str, allowed: RangeInclusive<u16>| match value {
        None => Ok(None),
        Some(value) if allowed.contains(value.get_ref()) => Ok(Some(value.into_inner())),
        Some(value) => {
            let (least, most) = (allowed.start(), allowed.end());
            Err(wrong(value.span(), format!("network \"{name}\": {key} = {}: {least} to {most}", value.get_ref())))
        }
    };
    let rate = match table.rate {
        None => None,
        Some(rate) => {
            let at = rate.span();
            let parsed = Rate::from_text(rate.get_ref());
            Some(parsed.map_err(|error| wrong(at, format!("network \"{name}\": {error}")))?)
        }
    };
    let network = Network {
        uplink: table.uplink.map_or(Uplink::Switch, Spanned::into_inner),
        vlan: within(table.vlan, "vlan", VLAN)?,
        mtu: within(table.mtu, "mtu", MTU)?.unwrap_or(DEFAULT_MTU),
        rate,
        queues: within(table.queues, "queues", 1..=16)?.unwrap_or(Offer::default().queues),
        allow: table.allow,
        name: name.clone(),
    };
    Ok((at, network))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::fails;
    use super::*;

    #[test]
    fn the_least_and_the_most() {
        let text = r#"
            [vm]
            name = "acme"
            [[network]]
            name = "lan"
            [[network]]
            name = "dmz"
            uplink = "bridge:br0"
            vlan = 7
            mtu = 9000
            rate = "100Mb/s"
            queues = 2
            allow = { any-source = true, router = true, dhcp-server = true }
        "#;
        let config = Config::parse(text).unwrap();
        let lan = config.network("lan").unwrap();
        assert_eq!((&lan.uplink, lan.vlan, lan.mtu, lan.queues), (&Uplink::Switch, None, 1500, 4));
        assert_eq!(lan.allow, Allow::default());
        let dmz = config.network("dmz").unwrap();
        assert_eq!((dmz.uplink.to_string().as_str(), dmz.vlan, dmz.mtu), ("bridge:br0", Some(7), 9000));
        assert!(dmz.allow.any_source && dmz.allow.router && dmz.allow.dhcp_server);
        let rate = Rate { bytes: 625_000, interval_us: 50_000, packets: None };
        assert_eq!((dmz.rate, dmz.offer().queues), (Some(rate), 2));
        assert!(config.network("wan").is_none());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let head = "[vm]\nname = 'acme'\n[[network]]\nname = 'lan'\n";
        for (text, says) in [
            (&format!("{head}uplink = 'br0'\n"), "5: uplink \"br0\" is none of"),
            (&format!("{head}uplink = 'bridge:'\n"), "5: uplink \"bridge:\" names no network interface"),
            (&format!("{head}uplink = 'tap:a/b'\n"), "5: uplink \"tap:a/b\" names no"),
            (&format!("{head}uplink = 'tap:a234567890123456'\n"), "5: uplink \"tap:a2345"),
            (&format!("{head}vlan = 0\n"), "5: network \"lan\": vlan = 0: 1 to 4094"),
            (&format!("{head}vlan = 4095\n"), "5: network \"lan\": vlan = 4095"),
            (&format!("{head}mtu = 67\n"), "5: network \"lan\": mtu = 67: 68 to 65521"),
            (&format!("{head}mtu = 70000\n"), "5: "),
            (&format!("{head}rate = 'fast'\n"), "5: network \"lan\": rate \"fast\" is not one: write it like"),
            (&format!("{head}queues = 0\n"), "5: network \"lan\": queues = 0: 1 to 16"),
            (&format!("{head}allow = {{ routers = true }}\n"), "5: unknown field `routers`"),
            (&format!("{head}bridge = 'br0'\n"), "5: unknown field `bridge`"),
            (&"[vm]\nname = 'acme'\n[[network]]\nname = 'a/b'\n".to_owned(), "4: network name \"a/b\""),
            (&format!("{head}[[network]]\nname = 'lan'\n"), "6: a second network named \"lan\""),
            (
                &"[vm]\nname='a'\n[[volume]]\nname='db'\npath='/x'\n[[network]]\nname='db'\n".to_owned(),
                "7: network \"db\" has the name of a volume",
            ),
        ] {
            let said = fails(text);
            assert!(said.starts_with(says), "{text}\n{said}");
        }
    }
}

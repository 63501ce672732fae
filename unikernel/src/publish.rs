//! What a service VM says of itself, below its own `data/windsor`: any toolstack can read it, and it needs no other
//! channel than the store.
//!
//! ```text
//! data/windsor/ready                     1 once devices are served
//!              name                      the VM's name
//!              volumes/PAGE              JSON: volumes by name, each with size, mode, used-by
//!              networks/PAGE             JSON: networks by name, each with uplink, mtu, vlan, used-by
//!              dev/SHELF/vbd-GUEST-DEVID JSON: phase, reason, path, and stats as of the last sample
//!              vif/SHELF/vif-GUEST-DEVID JSON: phase, reason, network, mac, ip, queues, features, and stats
//!              channel                   JSON: where dom0 can ask for more (see `channel`); empty where it cannot
//!              waiting-for               whom a VM waits for that is being shut down
//!              overflow                  JSON: the same of devices for which there was no node left
//!              sample                    dom0 writes a token here ...
//!              sampled                   ... and finds it here once all stats are fresh
//!              resume                    the same for "TOKEN WHAT": a device or a volume is well again ...
//!              resumed                   ... and the token, with the devices that were told
//! ```
//!
//! A node counts against the VM's quota (1,000 nodes) and holds 2,048 bytes with the names of its children. So a device
//! has one node, devices stand on shelves, volumes share nodes, and what must be said when the quota is used up has its
//! node from the start.

use std::collections::BTreeMap;
use std::net::IpAddr;

use blkback::stats::Stats;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xenstore::{Client, Error, Store};

use crate::store::Nodes;

/// Below the domain's own directory.
pub const ROOT: &str = "data/windsor";

/// Shelves that devices stand on: enough for 1,024 names below the limit of a node.
const SHELVES: u32 = 16;
/// Most bytes of a node of ours; permissions need a few more.
const MOST: usize = 1900;
/// Most bytes of a reason, and of what is wrong with a volume.
const LONGEST: usize = 400;
/// Most users of a volume that are named.
const USERS: usize = 16;
/// Most addresses of a card that are named.
const ADDRESSES: usize = 8;

/// The node of a device, below the domain's own directory.
pub fn device(guest: u16, devid: u32) -> String {
    let shelf = (devid / 16 + devid / 256 + u32::from(guest)) % SHELVES;
    format!("{ROOT}/dev/{shelf}/vbd-{guest}-{devid}")
}

/// The node of a card, below the domain's own directory.
pub fn vif(guest: u16, devid: u32) -> String {
    format!("{ROOT}/vif/{}/vif-{guest}-{devid}", devid.wrapping_add(u32::from(guest)) % SHELVES)
}

/// JSON, without the numbers of `stats` that are 0.
fn without_zeros(node: &impl Serialize) -> String {
    let mut value = serde_json::to_value(node).unwrap_or_default();
    if let Some(stats) = value.get_mut("stats").and_then(|stats| stats.as_object_mut()) {
        stats.retain(|_, number| *number != 0);
    }
    value.to_string()
}

/// The node with the devices that have none.
pub fn overflow() -> String {
    format!("{ROOT}/overflow")
}

/// What is published of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceNode {
    /// See [`Phase`].
    pub phase: String,
    /// Why it is not connected, or what is wrong with it.
    pub reason: String,
    /// Which data path.
    pub path: String,
    /// Its counters, as of the last sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

impl DeviceNode {
    /// As published: a reason that is too long is cut, numbers that are 0 are left out.
    pub fn text(&self) -> String {
        let node = DeviceNode { reason: cut(&self.reason), ..self.clone() };
        without_zeros(&node)
    }

    /// Reads a device's node, or what stands for it, as dom0; nothing is known of it otherwise.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn read(store: &mut impl Nodes, service: u16, guest: u16, devid: u32) -> Result<DeviceNode, Error> {
        let domain = format!("/local/domain/{service}");
        if let Some(text) = store.text(&format!("{domain}/{}", device(guest, devid)))? {
            return Ok(serde_json::from_str(&text).unwrap_or_default());
        }
        let text = store.text(&format!("{domain}/{}", overflow()))?.unwrap_or_default();
        let mut others: BTreeMap<String, DeviceNode> = serde_json::from_str(&text).unwrap_or_default();
        Ok(others.remove(&format!("vbd-{guest}-{devid}")).unwrap_or_default())
    }
}

/// What is published of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VifNode {
    /// See [`Phase`].
    pub phase: String,
    /// Why it is not connected, or what is wrong with it.
    pub reason: String,
    /// The network that it is in.
    pub network: String,
    /// The guest's address.
    pub mac: String,
    /// What it may use as source; the first few of many, none for any.
    pub ip: Vec<IpAddr>,
    /// Queues that the frontend chose; 0 while there is none.
    pub queues: usize,
    /// What the frontend chose.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Its counters, as of the last sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<netback::stats::Stats>,
}

impl VifNode {
    /// As published: what is too long is cut.
    pub fn text(&self) -> String {
        let mut node = VifNode { reason: cut(&self.reason), ..self.clone() };
        node.ip.truncate(ADDRESSES);
        without_zeros(&node)
    }

    /// What is known of it, as a disk's node has it.
    pub fn device(&self) -> DeviceNode {
        DeviceNode { phase: self.phase.clone(), reason: self.reason.clone(), ..DeviceNode::default() }
    }

    /// Reads a card's node, or what stands for it, as dom0; nothing is known of it otherwise.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn read(store: &mut impl Nodes, service: u16, guest: u16, devid: u32) -> Result<VifNode, Error> {
        let domain = format!("/local/domain/{service}");
        if let Some(text) = store.text(&format!("{domain}/{}", vif(guest, devid)))? {
            return Ok(serde_json::from_str(&text).unwrap_or_default());
        }
        let text = store.text(&format!("{domain}/{}", overflow()))?.unwrap_or_default();
        let mut others: BTreeMap<String, DeviceNode> = serde_json::from_str(&text).unwrap_or_default();
        let DeviceNode { phase, reason, .. } = others.remove(&format!("vif-{guest}-{devid}")).unwrap_or_default();
        Ok(VifNode { phase, reason, ..VifNode::default() })
    }
}

/// The text of [`overflow`]: as many devices as fit, the last ones.
pub fn overflow_text(devices: &BTreeMap<String, DeviceNode>) -> String {
    let mut entries = BTreeMap::new();
    let mut room = MOST;
    for (name, node) in devices.iter().rev() {
        let node = DeviceNode { reason: cut(&node.reason), stats: None, ..node.clone() };
        let size = name.len() + node.text().len() + 4;
        if size > room {
            break;
        }
        room -= size;
        entries.insert(name, node);
    }
    serde_json::to_string(&entries).unwrap_or_default()
}

/// What is published of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeNode {
    /// Bytes; 0 when the volume cannot be opened now.
    pub size: u64,
    /// `rw` or `ro`.
    pub mode: String,
    /// Devices that have it open, as `vbd-GUEST-DEVID`; the first few of many.
    #[serde(rename = "used-by")]
    pub used_by: Vec<String>,
    /// The source that it was found in; none for one that the configuration names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What is published of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkNode {
    /// As in the configuration: `switch`, `bridge:NAME`, `tap:NAME`.
    pub uplink: String,
    /// The largest payload of a frame, for a card whose toolstack does not say.
    pub mtu: u16,
    /// The VLAN that its cards are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Cards that are in it, as `vif-GUEST-DEVID`; the first few of many.
    #[serde(rename = "used-by")]
    pub used_by: Vec<String>,
    /// Why it has no uplink.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// The nodes of all volumes: page after page, in the order given.
pub fn volume_pages(volumes: impl Iterator<Item = (String, VolumeNode)>) -> Vec<String> {
    pages(volumes.map(|(name, mut node)| {
        node.error = cut(&node.error);
        node.used_by.truncate(USERS);
        (name, node)
    }))
}

/// The nodes of all networks: page after page, in the order given.
pub fn network_pages(networks: impl Iterator<Item = (String, NetworkNode)>) -> Vec<String> {
    pages(networks.map(|(name, mut node)| {
        node.error = cut(&node.error);
        node.used_by.truncate(USERS);
        (name, node)
    }))
}

fn pages<T: Serialize>(entries: impl Iterator<Item = (String, T)>) -> Vec<String> {
    let mut pages = Vec::new();
    let (mut page, mut size) = (BTreeMap::new(), 2);
    for (name, node) in entries {
        let entry = name.len() + serde_json::to_string(&node).unwrap_or_default().len() + 4;
        if size + entry > MOST && !page.is_empty() {
            pages.push(std::mem::take(&mut page));
            size = 2;
        }
        size += entry;
        page.insert(name, node);
    }
    if !page.is_empty() {
        pages.push(page);
    }
    pages.iter().map(|page| serde_json::to_string(page).unwrap_or_default()).collect()
}

/// Writes those of the pages below `what` that differ from what was written last, together: an entry may move from one
/// to another.
///
/// # Errors
/// When the store does not answer.
pub fn write_pages(store: &mut Client, what: &str, old: &[String], pages: &[String]) -> Result<(), Error> {
    if pages == old {
        return Ok(());
    }
    let dir = format!("{ROOT}/{what}");
    store.transaction(|tx| {
        for (number, page) in pages.iter().enumerate().filter(|(number, page)| old.get(*number) != Some(page)) {
            tx.write(&format!("{dir}/{number}"), page.as_bytes())?;
        }
        (pages.len()..old.len()).try_for_each(|number| tx.rm(&format!("{dir}/{number}")))
    })
}

/// Reads the volumes of a service VM, as dom0.
///
/// # Errors
/// When the store does not answer.
pub fn read_volumes(store: &mut impl Nodes, service: u16) -> Result<BTreeMap<String, VolumeNode>, Error> {
    read_pages(store, service, "volumes")
}

/// Reads the networks of a service VM, as dom0.
///
/// # Errors
/// When the store does not answer.
pub fn read_networks(store: &mut impl Nodes, service: u16) -> Result<BTreeMap<String, NetworkNode>, Error> {
    read_pages(store, service, "networks")
}

fn read_pages<T: DeserializeOwned>(
    store: &mut impl Nodes,
    service: u16,
    what: &str,
) -> Result<BTreeMap<String, T>, Error> {
    let dir = format!("/local/domain/{service}/{ROOT}/{what}");
    let mut entries = BTreeMap::new();
    for page in store.list(&dir)? {
        let text = store.text(&format!("{dir}/{page}"))?.unwrap_or_default();
        entries.extend(serde_json::from_str::<BTreeMap<String, T>>(&text).unwrap_or_default());
    }
    Ok(entries)
}

/// At most [`LONGEST`] bytes of a text.
fn cut(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// Where a device stands, for people and scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The volume is not open yet: another device is giving it up.
    Waiting,
    /// The volume is open; the guest has not answered.
    Ready,
    /// The worker takes it over.
    Connecting,
    /// Requests are served.
    Connected,
    /// It is being closed; requests may still be in flight.
    Closing,
    /// Nothing of the guest's is in use.
    Closed,
    /// It cannot be served; see the reason.
    Failed,
    /// Its volume is in use elsewhere; see the reason.
    Busy,
    /// The kernel does not end its I/O: the volume stays locked.
    Held,
}

impl Phase {
    /// As published.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Ready => "ready",
            Phase::Connecting => "connecting",
            Phase::Connected => "connected",
            Phase::Closing => "closing",
            Phase::Closed => "closed",
            Phase::Failed => "failed",
            Phase::Busy => "busy",
            Phase::Held => "held",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_spread_over_the_shelves() {
        // The first 1,024 disks of xvda and on, of one guest and of one guest each.
        let devid = |n: u32| if n < 16 { 202 << 8 | n << 4 } else { 1 << 28 | n << 8 };
        let of_one = (0..1024).map(|n| device(7, devid(n)));
        let of_many = (0..1024).map(|n| device(n, devid(0)));
        for names in [of_one.collect::<Vec<_>>(), of_many.collect()] {
            let mut shelves: BTreeMap<&str, usize> = BTreeMap::new();
            for name in &names {
                let (shelf, name) = name.rsplit_once('/').unwrap();
                *shelves.entry(shelf).or_default() += name.len() + 1;
            }
            assert!(shelves.len() == 16 && shelves.values().all(|bytes| *bytes < MOST), "{shelves:?}");
        }
    }

    #[test]
    fn the_node_of_a_card_has_a_bound() {
        let mut stats = serde_json::to_value(netback::stats::Stats::default()).unwrap();
        for number in stats.as_object_mut().unwrap().values_mut() {
            *number = u64::MAX.into();
        }
        let node = VifNode {
            phase: "connected".into(),
            reason: "\u{e9}".repeat(1000),
            network: "n".repeat(64),
            mac: "00:16:3e:01:02:03".into(),
            ip: vec!["2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap(); 32],
            queues: 16,
            features: ["multicast", "split-events"].map(|it| it.repeat(4)).into(),
            stats: serde_json::from_value(stats).unwrap(),
        };
        assert!(node.text().len() < MOST, "{}", node.text().len());
        let read: VifNode = serde_json::from_str(&node.text()).unwrap();
        assert!(read.ip.len() == ADDRESSES && read.stats == node.stats);
        // 1,024 cards of one guest, and of one guest each.
        for name in [|n: u32| vif(7, n), |n: u32| vif(n as u16, 0)] {
            let mut shelves: BTreeMap<String, usize> = BTreeMap::new();
            for path in (0..1024).map(name) {
                let (shelf, name) = path.rsplit_once('/').unwrap();
                *shelves.entry(shelf.to_owned()).or_default() += name.len() + 1;
            }
            assert!(shelves.len() == 16 && shelves.values().all(|bytes| *bytes < MOST), "{shelves:?}");
        }
    }

    #[test]
    fn volumes_share_nodes_and_no_node_is_too_large() {
        let node = |n: usize| VolumeNode {
            size: u64::MAX,
            mode: "rw".into(),
            used_by: vec!["vbd-12345-268435456".into(); if n == 5 { 300 } else { 1 }],
            source: "images".into(),
            error: if n == 7 { "x".repeat(3000) } else { String::new() },
        };
        let pages = volume_pages((0..100).map(|n| (format!("{n:064}"), node(n))));
        assert!(pages.iter().all(|page| page.len() <= MOST), "{:?}", pages.iter().map(String::len).collect::<Vec<_>>());
        assert!(pages.len() < 20);
        let all: usize =
            pages.iter().map(|page| serde_json::from_str::<BTreeMap<String, VolumeNode>>(page).unwrap().len()).sum();
        assert_eq!(all, 100);
    }

    #[test]
    fn the_node_of_a_device_has_a_bound() {
        let mut stats = serde_json::to_value(Stats::default()).unwrap();
        for number in stats.as_object_mut().unwrap().values_mut() {
            *number = u64::MAX.into();
        }
        let stats = serde_json::from_value(stats).unwrap();
        let node =
            DeviceNode { reason: "\u{e9}".repeat(1000), path: "arena, memcpy".into(), phase: "held".into(), stats };
        assert!(node.text().len() < MOST, "{}", node.text().len());
        let read: DeviceNode = serde_json::from_str(&node.text()).unwrap();
        assert!(read.reason.ends_with("...") && read.stats == node.stats);
        let many = (0..50).map(|n| (format!("vbd-2-{n}"), node.clone())).collect();
        let text = overflow_text(&many);
        assert!(text.len() <= MOST && text.contains("vbd-2-9\""), "{}", text.len());
    }
}

//! What a card offers, what its frontend chose, and the description a worker gets. The supervisor reads and checks all of it once,
//! before Connected; it is frozen from then on, except what the protocol makes live (DESIGN, rule 7).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::packet::Mac;

/// What a backend publishes before InitWait (net.md A5). Only what is finished is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// `multi-queue-max-queues`, 1..=16.
    pub queues: u16,
    /// `feature-sg`, and with it `feature-gso-tcpv4` and `feature-gso-tcpv6`.
    pub scatter_gather: bool,
    /// `feature-split-event-channels`.
    pub split_event_channels: bool,
    /// `feature-ctrl-ring`.
    pub control_ring: bool,
    /// `feature-multicast-control` and `feature-dynamic-multicast-control`.
    pub multicast_control: bool,
    /// `feature-xdp-headroom`.
    pub xdp_headroom: bool,
}

impl Default for Offer {
    fn default() -> Offer {
        Offer {
            queues: 4,
            scatter_gather: true,
            split_event_channels: true,
            control_ring: true,
            multicast_control: true,
            xdp_headroom: true,
        }
    }
}

/// One queue's keys, as the frontend wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueKeys {
    /// `tx-ring-ref`: packets from the guest.
    pub tx_ring_ref: u32,
    /// `rx-ring-ref`: packets to it.
    pub rx_ring_ref: u32,
    /// `event-channel-tx`, or `event-channel` for both rings.
    pub event_channel_tx: u32,
    /// `event-channel-rx`; none when both rings share one.
    pub event_channel_rx: Option<u32>,
}

/// The control ring's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlKeys {
    /// `ctrl-ring-ref`.
    pub ring_ref: u32,
    /// `event-channel-ctrl`.
    pub event_channel: u32,
}

/// What the frontend can take, and asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// `feature-sg`: a packet may use more than one slot.
    pub scatter_gather: bool,
    /// `feature-gso-tcpv4`.
    pub gso_tcpv4: bool,
    /// `feature-gso-tcpv6`.
    pub gso_tcpv6: bool,
    /// Not `feature-no-csum-offload`: it takes IPv4 packets with a blank checksum.
    pub checksum_ipv4: bool,
    /// `feature-ipv6-csum-offload`: the same for IPv6.
    pub checksum_ipv6: bool,
    /// `feature-rx-notify`: it tells when it has posted buffers; else they have to be looked for.
    pub rx_notify: bool,
    /// `request-multicast-control`: it wants only the groups it has asked for. Live.
    pub multicast_control: bool,
    /// `xdp-headroom`: bytes to leave free in front of each packet. Live, by way of Reconfiguring.
    pub xdp_headroom: u16,
}

/// Everything a frontend negotiated, checked; frozen at Connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// One entry per queue.
    pub queues: Vec<QueueKeys>,
    /// The control ring, when it has one.
    pub control: Option<ControlKeys>,
    /// Its features.
    pub features: Features,
}

/// How much may pass in a direction: `bytes` in each `interval_us`, and `packets` per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes per interval.
    pub bytes: u64,
    /// Microseconds of an interval, never 0.
    pub interval_us: u64,
    /// Packets per second; none without a limit.
    pub packets: Option<u64>,
}

/// What a guest may say that others do not expect of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Allow {
    /// Any source address (Ethernet, IPv4, IPv6): it is a bridge or a router.
    pub any_source: bool,
    /// Router advertisements and redirects.
    pub router: bool,
    /// Answers of a DHCP or DHCPv6 server.
    pub dhcp_server: bool,
}

/// One card as its network sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VifParams {
    /// `mac`: the guest's address.
    pub mac: Mac,
    /// `ip`: what it may use as source; empty means any.
    pub addresses: Vec<IpAddr>,
    /// The VLAN it is in, 1..=4094: its frames carry no tag, the uplink's do.
    pub vlan: Option<u16>,
    /// `mtu`: the largest payload of a frame, 68..=65521.
    pub mtu: u16,
    /// `rate`: each direction's. Live.
    pub rate: Option<Rate>,
    /// What it may do.
    pub allow: Allow,
}

/// Which card: those of several guests are served together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VifName {
    /// The frontend's domain.
    pub guest: u16,
    /// Device number (the directory's name).
    pub devid: u32,
}

impl fmt::Display for VifName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vif-{}-{}", self.guest, self.devid)
    }
}

/// One card for one guest, as the supervisor hands it to a network's worker.
///
/// Descriptors that travel with it, in this order: the meter, event channels of the guest, then one grant descriptor for
/// each queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Which card.
    pub vif: VifName,
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What the network is to know of it.
    pub params: VifParams,
}

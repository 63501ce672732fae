//! One card: which parts it holds, and what is published of it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use grant::meter::Meter;
use netback::config::{Negotiated, Rate};
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::{Parts, Service};

use super::nodes::Description;
use super::takeover::Record;
use crate::publish::{Phase, VifNode};
use crate::supervisor::device::{DRAIN_PATIENCE, ROOM_RETRY, WorkerId};

/// How long a card may wait for its address: `xl reboot` attaches anew while the old domain's card is being closed.
pub const ADDRESS_PATIENCE: Duration = Duration::from_secs(8);
/// How long an address in good use is waited for: its user may be about to close, and we have not read of it yet.
pub const USED_PATIENCE: Duration = Duration::from_millis(300);
/// How often an address that is in use is tried again.
pub const ADDRESS_RETRY: Duration = Duration::from_millis(50);

/// How far a change of `xdp-headroom` has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headroom {
    /// Nothing is being changed.
    #[default]
    Settled,
    /// The worker was told.
    Asked,
    /// The worker has done it; the frontend is to be told.
    Done,
    /// Our state says Reconfigured; the frontend goes back to Connected.
    Told,
}

/// What has to be read again while the card is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// `rate`, the toolstack's.
    pub rate: bool,
    /// `request-multicast-control`, the frontend's.
    pub multicast: bool,
}

/// One card.
pub struct Vif {
    /// What the toolstack wrote; none when it makes no sense.
    pub about: Option<Description>,
    /// The network it belongs to, while it has a place there.
    pub network: Option<String>,
    /// The state we wrote last.
    pub state: XenbusState,
    /// What the worker does.
    pub service: Service,
    /// Since when its address is waited for.
    pub waiting: Option<Instant>,
    /// Since when it is being disconnected.
    pub draining: Option<Instant>,
    /// The worker that serves it, or served it and is not fenced.
    pub worker: Option<WorkerId>,
    /// Its counters, and the descriptor behind them.
    pub meter: Option<(OwnedFd, Meter)>,
    /// What its frontend chose last.
    pub negotiated: Option<Negotiated>,
    /// What the worker was told of its rate last.
    pub rate: Option<Rate>,
    /// What is to be read again.
    pub changed: Changed,
    /// How far a change of `xdp-headroom` has got.
    pub headroom: Headroom,
    /// A state that the toolstack must have time to see, InitWait or the last Closed, is kept up until then.
    pub dwell: Option<Instant>,
    /// The toolstack has asked for its end.
    pub unwanted: bool,
    /// This directory has been in InitWait before.
    pub offered: bool,
    /// It will not be served as it is.
    pub refused: bool,
    /// Its address is in use elsewhere.
    pub busy: bool,
    /// It was refused because its network's uplink is not there.
    pub for_uplink: bool,
    /// What its dead worker used is still in use.
    pub held: bool,
    /// Why it is not served.
    pub reason: String,
    /// What is wrong with it though it is served.
    pub trouble: String,
    /// When to look at it again without an event.
    pub timer: Option<Instant>,
    /// It found no room in the store, and is tried again then.
    pub retry: Option<Instant>,
    /// What was published last.
    pub published: Option<VifNode>,
    /// What the keeper has.
    pub kept: Option<Record>,
}

impl Vif {
    /// A card as found in the store, in whatever state somebody before us left it.
    pub fn found(state: XenbusState) -> Vif {
        let mut vif = Vif {
            about: None,
            network: None,
            state: XenbusState::Initialising,
            service: Service::None,
            waiting: None,
            draining: None,
            worker: None,
            meter: None,
            negotiated: None,
            rate: None,
            changed: Changed::default(),
            headroom: Headroom::default(),
            dwell: None,
            unwanted: false,
            offered: state != XenbusState::Initialising,
            refused: false,
            busy: false,
            for_uplink: false,
            held: false,
            reason: String::new(),
            trouble: String::new(),
            timer: None,
            retry: None,
            published: None,
            kept: None,
        };
        match state {
            XenbusState::Closed => vif.state = XenbusState::Closed,
            XenbusState::Initialising | XenbusState::InitWait | XenbusState::Unknown => {}
            // Somebody before us shared something with the guest.
            _ => {
                vif.state = XenbusState::Connected;
                vif.reason = "the service VM's daemon was started anew; the guest has to connect again".into();
            }
        }
        vif
    }

    /// What decisions are made from.
    pub fn parts(&self, stopping: bool) -> Parts {
        Parts {
            state: self.state,
            prepared: self.network.is_some(),
            refused: self.refused,
            service: self.service,
            dwell: self.dwell,
            stopping,
        }
    }

    /// Is it served, and does its frontend know it?
    pub fn is_served(&self) -> bool {
        self.state == XenbusState::Connected && self.service == Service::Connected
    }

    /// Gives up on it, with a reason.
    pub fn refuse(&mut self, why: impl Into<String>) {
        self.refused = true;
        self.reason = why.into();
    }

    /// Tries again after a while what the store had no room for.
    pub fn retry_later(&mut self) {
        let at = Instant::now() + ROOM_RETRY;
        self.retry = Some(at);
        self.timer = Some(at);
    }

    /// Nothing of an earlier connection holds any more.
    pub fn let_go(&mut self) {
        self.service = Service::None;
        self.draining = None;
        self.headroom = Headroom::Settled;
        self.trouble.clear();
    }

    /// Does it wait for its guest, or is it used by it?
    pub fn is_open(&self) -> bool {
        matches!(self.state, XenbusState::InitWait | XenbusState::Connected | XenbusState::Closing)
    }

    /// Is it on its way out, so that its address will be free?
    pub fn is_leaving(&self) -> bool {
        self.service == Service::Draining || matches!(self.state, XenbusState::Closing | XenbusState::Closed)
    }

    /// Where it stands, for people.
    pub fn phase(&self, now: Instant) -> Phase {
        let slow = self.draining.is_some_and(|since| now.duration_since(since) >= DRAIN_PATIENCE);
        match (self.state, self.service) {
            _ if self.held || slow => Phase::Held,
            _ if self.busy => Phase::Busy,
            _ if self.refused || !self.reason.is_empty() => Phase::Failed,
            (_, Service::Draining) => Phase::Closing,
            (XenbusState::Closed, _) => Phase::Closed,
            (XenbusState::Closing, _) => Phase::Closing,
            (XenbusState::Connected, _) => Phase::Connected,
            (_, Service::Connecting | Service::Connected) => Phase::Connecting,
            (XenbusState::InitWait, _) => Phase::Ready,
            _ => Phase::Waiting,
        }
    }

    /// What is published of it; `lost` is what its network's uplink lacks.
    pub fn node(&self, now: Instant, lost: Option<&str>) -> VifNode {
        let phase = self.phase(now);
        let uplink = lost.map(|why| format!("its network has no uplink: {why}"));
        let reason = match phase {
            Phase::Connected | Phase::Ready | Phase::Connecting => {
                let troubles = [Some(self.trouble.clone()).filter(|text| !text.is_empty()), uplink];
                troubles.into_iter().flatten().collect::<Vec<_>>().join("; ")
            }
            Phase::Held if self.reason.is_empty() => {
                format!("its worker has not let go after {} s", DRAIN_PATIENCE.as_secs())
            }
            Phase::Held => format!("{}; it has not let go", self.reason),
            Phase::Waiting if self.waiting.is_some() => "its address is being given up by another card".into(),
            _ => self.reason.clone(),
        };
        let about = self.about.as_ref();
        VifNode {
            phase: phase.name().to_owned(),
            reason,
            network: self.network.clone().unwrap_or_default(),
            mac: about.map(|about| about.toolstack.mac.to_string()).unwrap_or_default(),
            ip: about.map(|about| about.toolstack.addresses.clone()).unwrap_or_default(),
            queues: self.negotiated.as_ref().map_or(0, |chosen| chosen.queues.len()),
            features: self.negotiated.as_ref().map(super::features).unwrap_or_default(),
            stats: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_was_shared_before_us_has_to_connect_again() {
        for state in [XenbusState::Connected, XenbusState::Closing, XenbusState::Reconfigured] {
            let vif = Vif::found(state);
            assert!(vif.state == XenbusState::Connected && vif.phase(Instant::now()) == Phase::Failed, "{state}");
        }
        assert_eq!(Vif::found(XenbusState::InitWait).state, XenbusState::Initialising);
    }

    #[test]
    fn a_lost_uplink_is_told_of_a_card_that_is_served_all_the_same() {
        let mut vif = Vif::found(XenbusState::Initialising);
        (vif.state, vif.service) = (XenbusState::Connected, Service::Connected);
        let node = vif.node(Instant::now(), Some("there is no bridge br7"));
        assert_eq!(node.phase, "connected");
        assert_eq!(node.reason, "its network has no uplink: there is no bridge br7");
        assert_eq!(vif.node(Instant::now(), None).reason, "");
    }
}

//! One device: which parts it holds, and what is published of it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use blkback::keys::Left;
use blkback::limit::{Need, Width};
use grant::meter::Meter;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::{Parts, Service};

use super::grow::Change;
use super::nodes::Description;
use super::takeover::Record;
use super::volume::Opened;
use crate::publish::{DeviceNode, Phase};

/// How long a device may wait for its volume: `xl reboot` attaches anew while the old domain's last I/O ends. A
/// toolstack waits 10 s.
pub const VOLUME_PATIENCE: Duration = Duration::from_secs(8);
/// How long a volume in good use is waited for: its user may be about to close, and we have not read of it yet.
pub const BUSY_PATIENCE: Duration = Duration::from_millis(300);
/// How often a volume that is in use is tried again.
pub const VOLUME_RETRY: Duration = Duration::from_millis(50);
/// How long the last I/O may take before it is called held.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How often a device for which the store has no room is tried again: the quota may have been raised, or a disk gone.
pub const ROOM_RETRY: Duration = Duration::from_secs(2);

/// A number for each worker there ever was.
pub type WorkerId = u64;

/// One device.
pub struct Device {
    /// What the toolstack wrote; none when it makes no sense.
    pub about: Option<Description>,
    /// The state we wrote last.
    pub state: XenbusState,
    /// The open volume.
    pub volume: Option<Opened>,
    /// Since when the volume is waited for.
    pub waiting: Option<Instant>,
    /// What the worker does.
    pub service: Service,
    /// Since when it is being disconnected.
    pub draining: Option<Instant>,
    /// The worker that serves it, or served it and is not fenced.
    pub worker: Option<WorkerId>,
    /// Its counters, and the descriptor behind them.
    pub meter: Option<(OwnedFd, Meter)>,
    /// Copies of its queues' journals, for whoever comes after its worker.
    pub journals: Vec<OwnedFd>,
    /// A state that the toolstack must have time to see, InitWait or the last Closed, is kept up until then.
    pub dwell: Option<Instant>,
    /// The toolstack has asked for its end.
    pub unwanted: bool,
    /// This directory has been in InitWait before.
    pub offered: bool,
    /// It will not be served as it is.
    pub refused: bool,
    /// Its volume is in use elsewhere.
    pub busy: bool,
    /// The I/O of its dead worker does not end.
    pub held: bool,
    /// What the volume said while the guest waits for it (`on-error = "hold"`).
    pub holding: Option<String>,
    /// Failed flushes, as its counters have them, that the operator has forgiven.
    pub forgiven: u64,
    /// How the size of its volume changes.
    pub size: Change,
    /// Why it is not served.
    pub reason: String,
    /// The data path.
    pub path: String,
    /// When to look at it again without an event.
    pub timer: Option<Instant>,
    /// It found no room in the store, and is tried again then.
    pub retry: Option<Instant>,
    /// How wide it may be; none while it needs nothing.
    pub width: Option<Width>,
    /// What is set aside for it.
    pub need: Need,
    /// The keys with which its frontend connected last.
    pub left: Left,
    /// What was published last.
    pub published: Option<DeviceNode>,
    /// What the keeper has.
    pub kept: Option<Record>,
}

impl Device {
    /// A device as found in the store, in whatever state somebody before us left it.
    pub fn found(state: XenbusState) -> Device {
        let mut device = Device {
            about: None,
            state: XenbusState::Initialising,
            volume: None,
            waiting: None,
            service: Service::None,
            draining: None,
            worker: None,
            meter: None,
            journals: Vec::new(),
            dwell: None,
            unwanted: false,
            offered: state != XenbusState::Initialising,
            refused: false,
            busy: false,
            held: false,
            holding: None,
            forgiven: 0,
            size: Change::default(),
            reason: String::new(),
            path: String::new(),
            timer: None,
            retry: None,
            width: None,
            need: Need::default(),
            left: Left::default(),
            published: None,
            kept: None,
        };
        match state {
            XenbusState::Closed => device.state = XenbusState::Closed,
            XenbusState::Initialised | XenbusState::Connected | XenbusState::Closing => {
                device.state = XenbusState::Connected;
                device.reason = "the service VM's daemon was started anew; the guest has to connect again".into();
            }
            // Nothing is shared yet: as good as new.
            _ => {}
        }
        device
    }

    /// What decisions are made from.
    pub fn parts(&self, stopping: bool) -> Parts {
        Parts {
            state: self.state,
            prepared: self.volume.is_some(),
            refused: self.refused,
            service: self.service,
            dwell: self.dwell,
            stopping,
        }
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

    /// Does it wait for its guest, or is it used by it?
    pub fn is_open(&self) -> bool {
        matches!(self.state, XenbusState::InitWait | XenbusState::Connected | XenbusState::Closing)
    }

    /// Is it on its way out, so that its volume will be free?
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
            (XenbusState::Connected, _) if self.holding.is_some() => Phase::Held,
            (XenbusState::Connected, _) => Phase::Connected,
            (_, Service::Connecting | Service::Connected) => Phase::Connecting,
            (XenbusState::InitWait, _) => Phase::Ready,
            _ => Phase::Waiting,
        }
    }

    /// How many flushes have failed since it was connected.
    pub fn flush_failures(&self) -> u64 {
        self.meter.as_ref().map_or(0, |(_, meter)| blkback::stats::snapshot(meter).flush_failures)
    }

    /// Notices a failed flush of which its worker could not tell any more.
    pub fn inherit_flush_failure(&mut self) {
        let failed = self.flush_failures() > self.forgiven;
        if let Some(volume) = self.volume.as_mut().filter(|_| failed) {
            volume.disk.flush_failed = true;
        }
    }

    /// What is wrong with a disk that is served all the same.
    fn trouble(&self) -> String {
        let mut troubles = Vec::new();
        if let Some(why) = &self.holding {
            troubles.push(format!("held: {why}; the guest waits until its volume is well again, or is resumed"));
        }
        let Some(volume) = &self.volume else { return troubles.join("; ") };
        if volume.disk.flush_failed {
            troubles.push("flush failed: every flush fails until the disk is detached and attached, or resumed".into());
        }
        if let Some(bytes) = self.size.shrunk {
            let old = volume.disk.sectors * 512;
            troubles.push(format!(
                "its volume has shrunk to {bytes} bytes, the guest still has {old}: what lies behind the end fails"
            ));
        }
        troubles.join("; ")
    }

    /// The reason that goes with the phase.
    pub fn published_reason(&self, phase: Phase) -> String {
        match phase {
            Phase::Connected | Phase::Held if self.service == Service::Connected => self.trouble(),
            Phase::Held if self.reason.is_empty() => {
                format!("its last I/O has not ended after {} s", DRAIN_PATIENCE.as_secs())
            }
            Phase::Held => format!("{}; its last I/O has not ended", self.reason),
            Phase::Waiting if self.waiting.is_some() => "its volume is being given up by another device".into(),
            _ => self.reason.clone(),
        }
    }
}

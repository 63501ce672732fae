//! One card: what it negotiated, its queues, and what it may send and be given.

use std::time::{Duration, Instant};

use grant::SharedMemory;
use grant::exchange::PeerId;
use grant::meter::Block;
use grant::reactor::{Channel, SourceId};
use grant::ring::BackRing;

use crate::backlog::{Backlog, Waiting};
use crate::config::{Features, VifName, VifParams};
use crate::control::Control;
use crate::hash::Steering;
use crate::headers::Headers;
use crate::limit::Bucket;
use crate::multicast::Groups;
use crate::packet::{Checksum, GsoKind, Hash, Offload};
use crate::policy::Policy;
use crate::proto::MAX_TX_SIZE;
use crate::receive::Receive;
use crate::slots::Outgoing;
use crate::stats::Counter;

/// Is what has waited since then too old?
pub fn is_stale(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= STALE
}

/// A card of the network.
pub struct Vif {
    /// Which.
    pub name: VifName,
    /// What the network knows of it.
    pub params: VifParams,
    /// What its frontend can take.
    pub features: Features,
    /// What it may send.
    pub policy: Policy,
    /// Its queues; none where one is not attached any more.
    pub queues: Vec<Option<VifQueue>>,
    /// Its control ring, when it has one.
    pub control: Option<Control>,
    /// Which of its queues is for which packets.
    pub steering: Steering,
    /// How much it may send.
    pub sending: Option<Bucket>,
    /// How much it may be given.
    pub receiving: Option<Bucket>,
    /// The groups it has asked for.
    pub groups: Groups,
    /// Its guest, in the exchange.
    pub peer: PeerId,
    /// Its guest's event channels.
    pub source: SourceId,
    /// It broke the protocol, or is on its way out: nothing is taken from it or given to it.
    pub closed: bool,
}

/// How often the ring of a frontend that does not tell of new buffers is looked at while something waits for them.
const LOOK: Duration = Duration::from_millis(30);
/// What nobody has taken for so long is dropped: the guest has stopped.
const STALE: Duration = Duration::from_secs(1);

/// Where a packet goes within a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// The receive queue.
    pub queue: usize,
    /// The hash that the frontend wants with it.
    pub hash: Option<Hash>,
}

/// One queue of a card.
pub struct VifQueue {
    /// From the guest.
    pub tx: BackRing,
    /// To tell the guest of answers in it.
    pub tx_channel: Channel,
    /// To the guest.
    pub rx: Receive,
    /// What waits for buffers of the guest.
    pub backlog: Backlog,
    /// Until when nothing is taken, because the card has used up its rate.
    pub limited: Option<Instant>,
    /// Some of this turn's packets for it are still being worked on: those that come after wait too.
    pub behind: bool,
    /// When its ring was looked at last.
    pub looked: Instant,
    /// Its counters.
    pub meter: Block,
    /// The rings.
    pub memory: Vec<SharedMemory>,
}

impl VifQueue {
    /// Its event channels, each once.
    pub fn channels(&self) -> Vec<Channel> {
        let (tx, rx) = (self.tx_channel, self.rx.channel());
        if tx == rx { vec![tx] } else { vec![tx, rx] }
    }

    /// Counts.
    #[inline]
    pub fn count(&self, counter: Counter, n: u64) {
        self.meter.add(counter as usize, n);
    }
}

impl VifQueue {
    /// Buffers that the first of what waits takes; none while nothing waits.
    pub fn wanted(&mut self, headroom: u16, now: Instant) -> Option<u32> {
        let mut dropped = 0;
        let first = self.backlog.first(now, &mut dropped);
        self.count(Counter::DroppedNoRoom, dropped);
        let Waiting { len, offload, hash, .. } = first?;
        Some(Outgoing { len: len as u32, offload, hash, headroom }.count())
    }
}

impl Vif {
    /// When a queue is to be looked at, whatever happens or not.
    pub fn deadline(&self, number: usize, now: Instant) -> Option<Instant> {
        // Nobody serves it any more, so nothing would ever come of the moment.
        let queue = self.queues.get(number).filter(|_| !self.closed)?.as_ref()?;
        let waits = !queue.backlog.is_empty();
        let look = (waits && !self.features.rx_notify).then(|| queue.looked + LOOK);
        let credit = self.receiving.as_ref().filter(|_| waits).map(Bucket::ready_at).filter(|&at| at > now);
        // What waits for credit is not old by the guest's fault, and is not dropped for it.
        let stale = queue.backlog.waits_since().filter(|_| credit.is_none()).map(|since| since + STALE);
        [queue.limited, look, credit, stale].into_iter().flatten().min()
    }

    /// Can its frontend take a packet with this work left to do? `v6` says which IP it is.
    pub fn takes(&self, offload: &Offload, v6: bool, len: u32) -> bool {
        let features = &self.features;
        let segments = match offload.gso.map(|gso| gso.kind) {
            None => true,
            Some(GsoKind::TcpV4) => features.gso_tcpv4,
            Some(GsoKind::TcpV6) => features.gso_tcpv6,
        };
        let sums = if v6 { features.checksum_ipv6 } else { features.checksum_ipv4 };
        segments && (sums || offload.checksum != Checksum::Blank) && self.holds(len)
    }

    /// Does a packet of this many bytes fit into what its frontend can take?
    pub fn holds(&self, len: u32) -> bool {
        let page = grant::PAGE_SIZE as u32 - u32::from(self.features.xdp_headroom);
        // A tag that is put in must not make it larger than packets are.
        if self.features.scatter_gather { len <= MAX_TX_SIZE as u32 } else { len <= page }
    }

    /// The receive queue for packets of this flow, when the frontend has not said which.
    pub fn queue_for(&self, flow: usize) -> usize {
        flow % self.queues.len().max(1)
    }

    /// Where a packet of this flow goes.
    #[inline]
    pub fn lane(&self, flow: usize, headers: &Headers) -> Lane {
        match self.steering.steer(headers) {
            Some((queue, hash)) => Lane { queue, hash },
            None => Lane { queue: self.queue_for(flow), hash: None },
        }
    }
}

//! The one thread of a network: attaching cards to its reactor, and taking them apart when they are drained.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use grant::meter::Meter;
use grant::reactor::{Channel, Control, Core, Inbox, Outbox, Reactor, SourceId};
use grant::ring::BackRing;
use grant::uring::Uring;
use grant::{Access, DomId, GrantRef, Port as EventPort, SharedMemory, tap};

use crate::backlog::{self, Backlog};
use crate::config::{Connect, ControlKeys, QueueKeys, Rate, VifName};
use crate::control::{self, Control as ControlRing, ControlQueue};
use crate::device::{Report, ThreadParts, VifParts};
use crate::fabric::Fabric;
use crate::frame::ARENA_PAGES;
use crate::hash::Steering;
use crate::limit::Bucket;
use crate::multicast::Groups;
use crate::policy::Policy;
use crate::proto::{NetifRxRequest, NetifTxRequest};
use crate::queue::{CardQueue, Port};
use crate::receive::Receive;
use crate::slots::MAX_HEADROOM;
use crate::stats::Counter;
use crate::switch::{Member, PortId};
use crate::uplink::Uplink;
use crate::vif::{Vif, VifQueue};

pub(crate) enum Message {
    Attach(Box<(Connect, VifParts)>),
    Detach { vif: VifName },
    Rate { vif: VifName, rate: Option<Rate> },
    Multicast { vif: VifName, control: bool },
    Headroom { vif: VifName, headroom: u16 },
    Uplink(Option<OwnedFd>),
    Stop,
}

pub(crate) struct FromThread(pub(crate) Report);

/// The thread's life: its ring, then messages until the last.
pub(crate) fn run(
    uplink: Option<OwnedFd>,
    parts: ThreadParts,
    inbox: &Inbox<Message>,
    outbox: Outbox<FromThread>,
    ready: &crossbeam::channel::Sender<io::Result<()>>,
) {
    let started = start(parts, outbox);
    let (mut reactor, mut station) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let joined = uplink.map_or(Ok(()), |uplink| station.uplink(&mut reactor, uplink));
    if ready.send(joined).is_ok() {
        reactor.run(inbox, &mut station);
    }
}

fn start(parts: ThreadParts, outbox: Outbox<FromThread>) -> io::Result<(Reactor<Port>, Station)> {
    let mut ring = Uring::new(Some(parts.fence))?;
    ring.open_arena(ARENA_PAGES, false)?;
    let memory = ring.open_memory(0);
    let local = ring.memory(memory).pages(grant::memory::RegionId::ARENA).cloned();
    let local = local.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let fabric = Rc::new(RefCell::new(Fabric::new(parts.exchange, local, outbox.clone())));
    Ok((Reactor::new(ring), Station { fabric, outbox }))
}

/// The control half of the thread.
struct Station {
    fabric: Rc<RefCell<Fabric>>,
    outbox: Outbox<FromThread>,
}

impl Control<Port> for Station {
    type Message = Message;

    fn message(&mut self, reactor: &mut Reactor<Port>, message: Message) -> bool {
        match message {
            Message::Attach(attach) => {
                let (connect, parts) = *attach;
                let vif = connect.vif;
                let report = match self.attach(reactor, connect, parts) {
                    Ok(()) => Report::Connected { vif },
                    Err(reason) => Report::Failed { vif, reason },
                };
                self.report(report);
            }
            Message::Detach { vif } => self.detach(reactor, vif),
            Message::Rate { vif, rate } => self.with(reactor, vif, |card| {
                let bucket = || rate.map(|rate| Bucket::new(rate, Instant::now()));
                (card.sending, card.receiving) = (bucket(), bucket());
                for queue in card.queues.iter_mut().flatten() {
                    queue.limited = None;
                }
            }),
            Message::Multicast { vif, control } => self.with(reactor, vif, |card| card.groups.control(control)),
            Message::Headroom { vif, headroom } => {
                let headroom = headroom.min(MAX_HEADROOM);
                self.with(reactor, vif, |card| {
                    card.features.xdp_headroom = headroom;
                    // What waits was measured with the old one, and must fit into a page.
                    if !card.features.scatter_gather {
                        for queue in card.queues.iter_mut().flatten() {
                            let dropped = queue.backlog.clear();
                            queue.count(Counter::DroppedUnfit, dropped as u64);
                        }
                    }
                });
                self.report(Report::Reconfigured { vif, headroom });
            }
            Message::Uplink(uplink) => {
                reactor.each(|queue, core| {
                    if let Port::Uplink(uplink) = queue {
                        uplink.drain(core);
                    }
                });
                if let Some(uplink) = uplink
                    && let Err(error) = self.uplink(reactor, uplink)
                {
                    self.report(Report::UplinkLost { reason: error.to_string() });
                }
            }
            Message::Stop => return false,
        }
        true
    }

    fn drained(&mut self, core: &mut Core, queue: Port) {
        match queue {
            Port::Card(queue) => self.taken_apart(core, &queue),
            Port::Control(queue) => self.control_taken_apart(core, &queue),
            Port::Uplink(uplink) => {
                let (file, memory) = uplink.remains();
                let results = [core.ring.unregister_file(file), core.ring.close_memory(memory)];
                for error in results.into_iter().filter_map(Result::err) {
                    tracing::error!(%error, "closing an uplink failed");
                }
            }
        }
    }

    fn broken(&mut self, queue: &Port, reason: String) {
        match queue {
            Port::Card(CardQueue { vif, .. }) | Port::Control(ControlQueue { vif, .. }) => {
                self.fabric.borrow_mut().broken(*vif, reason);
            }
            Port::Uplink(_) => {}
        }
    }
}

impl Station {
    fn report(&self, report: Report) {
        self.outbox.send(FromThread(report));
    }

    /// Changes something of a card, and has its queues looked at.
    fn with(&mut self, reactor: &mut Reactor<Port>, vif: VifName, change: impl FnOnce(&mut Vif)) {
        let mut fabric = self.fabric.borrow_mut();
        if let Some(at) = fabric.find(vif)
            && let Some(card) = fabric.vifs.get_mut(at).and_then(Option::as_mut)
        {
            change(card);
        }
        reactor.queues().for_each(drop);
    }

    fn uplink(&mut self, reactor: &mut Reactor<Port>, uplink: OwnedFd) -> io::Result<()> {
        let ring = &mut reactor.core.ring;
        let file = ring.register_file(uplink.as_fd())?;
        let memory = ring.open_memory(crate::frame::FRAMES);
        let by_hand = (!tap::knows_nowait(&uplink)).then_some(uplink);
        let uplink = Uplink::new(Rc::clone(&self.fabric), file, memory, by_hand);
        reactor.add(memory, Vec::new(), Port::Uplink(Box::new(uplink)));
        Ok(())
    }

    fn detach(&mut self, reactor: &mut Reactor<Port>, vif: VifName) {
        let mut fabric = self.fabric.borrow_mut();
        let at = fabric.find(vif);
        match at.and_then(|at| fabric.vifs[at].as_mut()) {
            Some(card) => card.closed = true,
            None => return self.report(Report::Closed { vif }),
        }
        drop(fabric);
        for queue in reactor.queues() {
            match queue {
                Port::Card(CardQueue { name, draining, .. }) | Port::Control(ControlQueue { name, draining, .. })
                    if *name == vif =>
                {
                    *draining = true;
                }
                _ => {}
            }
        }
    }

    /// Takes a card in: all of its queues, or nothing.
    fn attach(&mut self, reactor: &mut Reactor<Port>, connect: Connect, parts: VifParts) -> Result<(), String> {
        let Connect { vif: name, negotiated, params } = connect;
        let guest = DomId(name.guest);
        let meter = Meter::open(parts.meter).map_err(|error| format!("meter: {error}"))?;
        if meter.queues() < negotiated.queues.len() {
            return Err("the meter has too few blocks".into());
        }
        let mut fabric = self.fabric.borrow_mut();
        let at = fabric.vifs.iter().position(Option::is_none).unwrap_or(fabric.vifs.len());
        let port = PortId(u16::try_from(at).map_err(|error| error.to_string())?);
        let member = Member { mac: params.mac, vlan: params.vlan, any_source: params.allow.any_source };
        let peer = fabric.exchange.join(parts.grants, guest).map_err(|error| format!("grants: {error}"))?;
        let core = &mut reactor.core;
        let source = core.listen(parts.events);
        let mut queues = Vec::with_capacity(negotiated.queues.len());
        let mut whole = fabric.switch.add(port, member).map_err(|taken| taken.to_string());
        if whole.is_ok() {
            for (index, keys) in negotiated.queues.iter().enumerate() {
                let rings = map_rings(&mut fabric, peer, keys).map_err(|reason| format!("queue {index}: {reason}"));
                let block = meter.block(index).ok_or_else(|| "meter".to_owned());
                let queue = rings.and_then(|rings| {
                    let channels = bind(core, source, guest, keys);
                    let channels = channels.map_err(|reason| format!("queue {index}: {reason}"))?;
                    Ok(queue(peer, negotiated.queues.len(), rings, channels, block?))
                });
                match queue {
                    Ok(queue) => queues.push(queue),
                    Err(reason) => {
                        whole = Err(reason);
                        break;
                    }
                }
            }
        }
        let mut control = None;
        if let (Ok(()), Some(keys)) = (&whole, &negotiated.control) {
            match map_control(&mut fabric, core, (peer, source, guest), keys) {
                Ok(ring) => control = Some(ring),
                Err(reason) => whole = Err(reason),
            }
        }
        if let Err(reason) = whole {
            fabric.switch.remove(port);
            for (_, channels) in queues {
                channels.into_iter().for_each(|channel| drop(core.unbind(channel)));
            }
            core.hang_up(source);
            fabric.exchange.leave(peer);
            return Err(reason);
        }
        let mut groups = Groups::default();
        groups.control(negotiated.features.multicast_control);
        let bucket = || params.rate.map(|rate| Bucket::new(rate, Instant::now()));
        let (queues, channels): (Vec<_>, Vec<_>) =
            queues.into_iter().map(|(queue, channels)| (Some(queue), channels)).unzip();
        let vif = Vif {
            name,
            policy: Policy::new(&params),
            steering: Steering::new(queues.len() as u16),
            control,
            features: negotiated.features,
            queues,
            sending: bucket(),
            receiving: bucket(),
            groups,
            peer,
            source,
            closed: false,
            params,
        };
        if at == fabric.vifs.len() {
            fabric.vifs.push(None);
        }
        fabric.vifs[at] = Some(vif);
        let control = fabric.vifs[at].as_ref().and_then(|card| Some(card.control.as_ref()?.channel));
        drop(fabric);
        if let Some(channel) = control {
            let memory = reactor.core.ring.open_memory(0);
            let queue = ControlQueue { fabric: Rc::clone(&self.fabric), name, vif: at, memory, draining: false };
            reactor.add(memory, vec![channel], Port::Control(queue));
        }
        for (number, channels) in channels.into_iter().enumerate() {
            let memory = reactor.core.ring.open_memory(0);
            let queue = CardQueue::new(Rc::clone(&self.fabric), name, at, number, memory);
            reactor.add(memory, channels, Port::Card(queue));
        }
        Ok(())
    }

    /// A queue is drained; with the last of them its card is gone.
    fn taken_apart(&mut self, core: &mut Core, queue: &CardQueue) {
        if let Err(error) = core.ring.close_memory(queue.memory) {
            tracing::error!(vif = %queue.name, %error, "closing a queue failed");
        }
        let mut fabric = self.fabric.borrow_mut();
        let Some(card) = fabric.vifs.get_mut(queue.vif).and_then(Option::as_mut) else { return };
        if let Some(gone) = card.queues.get_mut(queue.number).and_then(Option::take) {
            for channel in gone.channels() {
                if let Err(error) = core.unbind(channel) {
                    tracing::error!(vif = %queue.name, %error, "closing an event channel failed");
                }
            }
            let VifQueue { memory, tx, rx, .. } = gone;
            drop((tx, rx));
            for error in memory.into_iter().map(SharedMemory::unmap).filter_map(Result::err) {
                tracing::error!(vif = %queue.name, %error, "unmapping a ring failed");
            }
        }
        drop(fabric);
        self.gone(core, queue.vif);
    }

    /// The control ring of a card is drained.
    fn control_taken_apart(&mut self, core: &mut Core, queue: &ControlQueue) {
        if let Err(error) = core.ring.close_memory(queue.memory) {
            tracing::error!(vif = %queue.name, %error, "closing a control ring failed");
        }
        let mut fabric = self.fabric.borrow_mut();
        let card = fabric.vifs.get_mut(queue.vif).and_then(Option::as_mut);
        if let Some(ControlRing { ring, channel, memory }) = card.and_then(|card| card.control.take()) {
            drop(ring);
            for error in [core.unbind(channel), memory.unmap()].into_iter().filter_map(Result::err) {
                tracing::error!(vif = %queue.name, %error, "letting go of a control ring failed");
            }
        }
        drop(fabric);
        self.gone(core, queue.vif);
    }

    /// With the last of its rings a card is gone.
    fn gone(&mut self, core: &mut Core, vif: usize) {
        let mut fabric = self.fabric.borrow_mut();
        let Some(card) = fabric.vifs.get(vif).and_then(Option::as_ref) else { return };
        if card.control.is_none() && card.queues.iter().all(Option::is_none) {
            let (name, peer, source) = (card.name, card.peer, card.source);
            fabric.vifs[vif] = None;
            fabric.switch.remove(PortId(vif as u16));
            fabric.exchange.leave(peer);
            core.hang_up(source);
            self.report(Report::Closed { vif: name });
        }
    }
}

/// Both rings of a queue.
type Rings = [(BackRing, SharedMemory); 2];

fn map_rings(fabric: &mut Fabric, peer: grant::exchange::PeerId, keys: &QueueKeys) -> Result<Rings, String> {
    let mut map = |gref: u32, name: &str, slot: usize| {
        let memory = fabric.exchange.map(peer, &[GrantRef(gref)], Access::ReadWrite);
        let memory = memory.map_err(|error| format!("mapping the {name} ring (grant {gref}) failed: {error}"))?;
        let ring = BackRing::attach(memory.pages(), slot).map_err(|broken| format!("{name} ring: {broken}"))?;
        Ok::<_, String>((ring, memory))
    };
    let tx = map(keys.tx_ring_ref, "transmit", size_of::<NetifTxRequest>())?;
    let rx = map(keys.rx_ring_ref, "receive", size_of::<NetifRxRequest>())?;
    Ok([tx, rx])
}

fn map_control(
    fabric: &mut Fabric,
    core: &mut Core,
    (peer, source, guest): (grant::exchange::PeerId, SourceId, DomId),
    keys: &ControlKeys,
) -> Result<ControlRing, String> {
    let memory = fabric.exchange.map(peer, &[GrantRef(keys.ring_ref)], Access::ReadWrite);
    let memory =
        memory.map_err(|error| format!("mapping the control ring (grant {}) failed: {error}", keys.ring_ref))?;
    let ring = BackRing::attach(memory.pages(), control::SLOT).map_err(|broken| format!("control ring: {broken}"))?;
    let channel = core.bind(source, guest, EventPort(keys.event_channel));
    let channel = channel.map_err(|error| format!("event channel {}: {error}", keys.event_channel))?;
    Ok(ControlRing { ring, channel, memory })
}

fn bind(core: &mut Core, source: SourceId, guest: DomId, keys: &QueueKeys) -> Result<Vec<Channel>, String> {
    let mut channels = Vec::with_capacity(2);
    for remote in [Some(keys.event_channel_tx), keys.event_channel_rx].into_iter().flatten() {
        match core.bind(source, guest, EventPort(remote)) {
            Ok(channel) => channels.push(channel),
            Err(error) => {
                channels.into_iter().for_each(|channel| drop(core.unbind(channel)));
                return Err(format!("event channel {remote}: {error}"));
            }
        }
    }
    Ok(channels)
}

fn queue(
    peer: grant::exchange::PeerId,
    count: usize,
    [(tx, tx_memory), (rx, rx_memory)]: Rings,
    channels: Vec<Channel>,
    meter: grant::meter::Block,
) -> (VifQueue, Vec<Channel>) {
    // One for both, or one for each.
    let (tx_channel, rx_channel) = (channels[0], channels[channels.len() - 1]);
    let queue = VifQueue {
        tx,
        tx_channel,
        rx: Receive::new(rx, peer, rx_channel),
        backlog: Backlog::new(backlog::share(count)),
        limited: None,
        behind: false,
        looked: Instant::now(),
        meter,
        memory: vec![tx_memory, rx_memory],
    };
    (queue, channels)
}

//! One queue thread of a worker: attaching queues to its reactor, and taking them apart when they are drained.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use grant::journal::Journal;
use grant::meter::Block;
use grant::reactor::{Channel, Control, Core, Inbox, Outbox, Reactor, SourceId};
use grant::ring::BackRing;
use grant::uring::{FileSlot, Uring};
use grant::{Access, DomId, GrantRef, Grants, Port, SharedMemory};

use crate::config::{Connect, Transient};
use crate::data::{Data, Setup};
use crate::device::{QueueParts, ThreadParts};
use crate::disk::{Disk, Erased, Eraser, Open};
use crate::gate::{Gate, Pass};
use crate::hold::{Hold, Trouble};
use crate::proto::MAX_SEGMENTS;
use crate::queue::{BlkQueue, Parts};
use crate::request::Limits;

/// Pages of a thread's arena, for all its queues: 32 requests of 128 KiB.
pub(crate) const ARENA_PAGES: usize = 1024;

pub(crate) struct Attach {
    pub(crate) connect: Arc<Connect>,
    pub(crate) index: usize,
    pub(crate) volume: Option<Arc<OwnedFd>>,
    pub(crate) meter: Block,
    pub(crate) parts: QueueParts,
    pub(crate) shared: Shared,
}

/// What the queues of one disk share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) flush_failed: Arc<AtomicBool>,
}

pub(crate) enum Message {
    Attach(Box<Attach>),
    Drain { devid: u32 },
    Resume { devid: u32 },
    Resize { devid: u32, sectors: u64 },
    Wake { devid: u32, index: usize },
    Poll { budget: Duration },
    Erased { devid: u32, index: usize, erased: Erased },
    Stop,
}

pub(crate) enum FromThread {
    Trouble { devid: u32, trouble: Trouble },
    Attached { devid: u32, path: String },
    Failed { devid: u32, reason: String },
    Broken { devid: u32, reason: String },
    Resized { devid: u32, sectors: u64, queues: usize },
    Drained { devid: u32 },
}

/// A thread's life: its ring, then messages until the last.
pub(crate) fn run(
    guest: DomId,
    (parts, open): (ThreadParts, Open),
    inbox: &Inbox<Message>,
    (own, outbox): (Outbox<Message>, Outbox<FromThread>),
    ready: &crossbeam::channel::Sender<io::Result<()>>,
) {
    let uring = match Uring::new(Some(parts.fence)) {
        Ok(uring) => uring,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut reactor = Reactor::new(uring);
    let events = reactor.core.listen(parts.events);
    reactor.run(inbox, &mut Station { guest, events, open, own, outbox, files: HashMap::new() });
}

/// The control half of a thread.
struct Station {
    guest: DomId,
    events: SourceId,
    open: Open,
    /// To this thread itself.
    own: Outbox<Message>,
    outbox: Outbox<FromThread>,
    /// Volumes in the ring's table, with the number of queues that use each.
    files: HashMap<u32, (FileSlot, usize)>,
}

impl Control<BlkQueue> for Station {
    type Message = Message;

    fn message(&mut self, reactor: &mut Reactor<BlkQueue>, message: Message) -> bool {
        match message {
            Message::Attach(attach) => {
                let devid = attach.connect.devid;
                let report = match self.attach(reactor, *attach) {
                    Ok(path) => FromThread::Attached { devid, path },
                    Err(reason) => FromThread::Failed { devid, reason },
                };
                self.outbox.send(report);
            }
            Message::Drain { devid } => {
                reactor.queues().filter(|queue| queue.name().0 == devid).for_each(BlkQueue::drain);
            }
            Message::Resume { devid } => {
                reactor.each(|queue, core| {
                    if queue.name().0 == devid {
                        queue.resume(core)
                    }
                });
            }
            Message::Resize { devid, sectors } => {
                let queues = reactor.queues().filter(|queue| queue.name().0 == devid);
                let queues = queues.map(|queue| queue.resize(sectors)).count();
                self.outbox.send(FromThread::Resized { devid, sectors, queues });
            }
            Message::Wake { devid, index } => {
                reactor.queues().filter(|queue| queue.name() == (devid, index)).for_each(BlkQueue::wake);
            }
            Message::Erased { devid, index, erased } => {
                reactor.each(|queue, core| {
                    if queue.name() == (devid, index) {
                        queue.erased(erased, core)
                    }
                });
            }
            Message::Poll { budget } => reactor.poll_for(budget),
            Message::Stop => return false,
        }
        true
    }

    fn drained(&mut self, core: &mut Core, queue: BlkQueue) {
        let (devid, index) = queue.name();
        let channel = queue.channel();
        let (memory, ring_memory) = queue.into_remains();
        let results = [core.ring.close_memory(memory), ring_memory.unmap(), core.unbind(channel)];
        for error in results.into_iter().filter_map(Result::err) {
            tracing::error!(devid, index, %error, "closing a queue failed");
        }
        self.release_file(core, devid);
        self.outbox.send(FromThread::Drained { devid });
    }

    fn broken(&mut self, queue: &BlkQueue, reason: String) {
        let (devid, index) = queue.name();
        self.outbox.send(FromThread::Broken { devid, reason: format!("queue {index}: {reason}") });
    }
}

impl Station {
    fn attach(&mut self, reactor: &mut Reactor<BlkQueue>, attach: Attach) -> Result<String, String> {
        let Attach { connect, index, volume, meter, mut parts, shared } = attach;
        let devid = connect.devid;
        let keys = &connect.negotiated.queues[index];
        let core = &mut reactor.core;
        let refs: Vec<GrantRef> = keys.ring_refs.iter().copied().map(GrantRef).collect();
        let ring_memory = parts
            .grants
            .map(&refs, Access::ReadWrite)
            .map_err(|error| format!("queue {index}: mapping the ring (grants {refs:?}) failed: {error}"))?;
        let ring = BackRing::attach(ring_memory.pages(), connect.negotiated.abi.slot_size())
            .map_err(|error| format!("queue {index}: {error}"))?;
        let journal = Journal::open(parts.journal).map_err(|error| format!("queue {index}: journal: {error}"))?;
        if journal.slots() != ring.entries() {
            return Err(format!(
                "queue {index}: the journal has {} slots, the ring {}",
                journal.slots(),
                ring.entries()
            ));
        }
        let file = self.acquire_file(core, devid, volume.as_deref()).map_err(|error| format!("volume: {error}"))?;
        let volume = volume.filter(|_| connect.disk.discard.is_some_and(|discard| discard.device));
        let built = self.open_disk(&connect, index, file, volume).and_then(|disk| {
            self.build(core, &connect, index, meter, parts.grants, (ring, ring_memory, journal), disk, shared)
        });
        match built {
            Ok((channel, queue, path)) => {
                reactor.add(queue.memory(), vec![channel], queue);
                Ok(path)
            }
            Err(reason) => {
                self.release_file(core, devid);
                Err(format!("queue {index}: {reason}"))
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one call, the parts of one queue")]
    fn build(
        &self,
        core: &mut Core,
        connect: &Connect,
        index: usize,
        meter: Block,
        grants: Box<dyn Grants>,
        (ring, ring_memory, journal): (BackRing, SharedMemory, Journal),
        disk: Box<dyn Disk>,
        shared: Shared,
    ) -> Result<(Channel, BlkQueue, String), String> {
        let negotiated = &connect.negotiated;
        let zero_copy = connect.zero_copy && negotiated.persistent;
        let fixed_mapping = connect.fixed_buffers && zero_copy && core.ring.takes_fixed(&ring_memory.pages());
        let slots = ring.entries() as usize;
        // With zero copy the arena is the exception: registering would only pin it.
        let arena = core.ring.open_arena(ARENA_PAGES, connect.fixed_buffers && !zero_copy);
        arena.map_err(|error| format!("an arena: {error}"))?;
        let memory = core.ring.open_memory(slots * disk.limits().operations);
        let setup = Setup {
            grants,
            memory,
            slots,
            segments: usize::from(negotiated.max_indirect).max(MAX_SEGMENTS),
            max_persistent: if negotiated.persistent { connect.max_persistent as usize } else { 0 },
            zero_copy,
            transient: (connect.zero_copy && !negotiated.persistent).then_some(connect.transient),
            fixed: connect.fixed_buffers && (!zero_copy || fixed_mapping),
        };
        let data = Data::new(setup).map_err(|error| format!("memory: {error}"));
        let channel = data.and_then(|data| {
            let remote = Port(negotiated.queues[index].event_channel);
            let bound = core.bind(self.events, self.guest, remote);
            bound.map(|channel| (data, channel)).map_err(|error| format!("event channel {remote}: {error}"))
        });
        let (data, channel) = match channel {
            Ok(both) => both,
            Err(reason) => {
                let closed = core.ring.close_memory(memory);
                return Err(closed.err().map_or(reason.clone(), |error| format!("{reason}; {error}")));
            }
        };
        let fixed = if zero_copy { fixed_mapping } else { data.arena_is_fixed(&core.ring) };
        let path = path(connect, fixed);
        let limits = Limits {
            abi: negotiated.abi,
            max_indirect: negotiated.max_indirect,
            read_only: disk.limits().read_only,
            flush: disk.limits().flush,
            barrier: disk.limits().flush && connect.disk.barrier,
            discard: disk.limits().discard,
        };
        let devid = connect.devid;
        let pass = shared.gate.map(|gate| Pass::new(gate, index));
        let outbox = self.outbox.clone();
        let tell = Box::new(move |trouble| {
            outbox.send(FromThread::Trouble { devid, trouble });
        });
        let hold = Hold::new(connect.disk.on_error, shared.flush_failed, slots, tell);
        let parts =
            Parts { devid, index, channel, ring, ring_memory, journal, meter, limits, memory, data, disk, pass, hold };
        Ok((channel, BlkQueue::new(parts), path))
    }

    /// The disk behind one queue, with a thread for discards where the volume, a block device, needs one.
    fn open_disk(
        &self,
        connect: &Connect,
        index: usize,
        file: Option<FileSlot>,
        device: Option<Arc<OwnedFd>>,
    ) -> Result<Box<dyn Disk>, String> {
        let (own, devid) = (self.own.clone(), connect.devid);
        let tell = move |erased| {
            own.send(Message::Erased { devid, index, erased });
        };
        let eraser = device.map(|device| Eraser::start(device, tell)).transpose();
        let eraser = eraser.map_err(|error| format!("a thread for discards: {error}"))?;
        (self.open)(&connect.disk, file, eraser).ok_or_else(|| "the volume's descriptor is missing".into())
    }

    fn acquire_file(&mut self, core: &mut Core, devid: u32, volume: Option<&OwnedFd>) -> io::Result<Option<FileSlot>> {
        let Some(volume) = volume else { return Ok(None) };
        if let Some((slot, users)) = self.files.get_mut(&devid) {
            *users += 1;
            return Ok(Some(*slot));
        }
        let slot = core.ring.register_file(volume.as_fd())?;
        self.files.insert(devid, (slot, 1));
        Ok(Some(slot))
    }

    fn release_file(&mut self, core: &mut Core, devid: u32) {
        let Some((slot, users)) = self.files.get_mut(&devid) else { return };
        *users -= 1;
        if *users == 0 {
            if let Err(error) = core.ring.unregister_file(*slot) {
                tracing::error!(devid, %error, "a volume could not be taken out of the ring");
            }
            self.files.remove(&devid);
        }
    }
}

/// The data path in words.
fn path(connect: &Connect, fixed: bool) -> String {
    let path = match (connect.zero_copy, connect.negotiated.persistent, connect.transient) {
        (true, true, _) => "zero copy",
        (true, false, Transient::Map) => "zero copy, mapped for each request",
        (true, false, Transient::Auto) => "arena, grant copy or mapped for each request",
        (false, true, _) => "arena, memcpy",
        (_, false, _) => "arena, grant copy",
    };
    format!("{path}{}", if fixed { ", fixed buffers" } else { "" })
}

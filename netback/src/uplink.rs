//! The way out: a TAP with a virtio header before each frame (`IFF_VNET_HDR`, linux/if_tun.h).
//!
//! Frames are read when the kernel says that there are some, many at a time: nothing is waited for, so the reads of one
//! submission run in their order, and those that find nothing end at once. After them the kernel is asked to say when
//! there is more, in the same submission. Frames are written from where they lie, and their memory is free when the
//! write has ended. A kernel whose TAPs io_uring cannot use that way (before 6.4) is asked frame by frame.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use grant::memory::{RegionId, Span};
use grant::reactor::Core;
use grant::tap;
use grant::uring::{Completion, Direction, FileSlot, MemoryId, Operation, Owner, Transfer};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::Report;
use crate::fabric::{Body, Fabric, Packet, tagged_len};
use crate::frame::{FRAMES, FrameId};
use crate::headers::Headers;
use crate::offload::{VNET_HEADER, VnetHeader, from_vnet, to_vnet};
use crate::packet::{HEADERS, VLAN_TAG};
use crate::proto::MAX_TX_SIZE;
use crate::station::FromThread;
use crate::switch::{PortId, Tag};

/// Frames that are read at a time, at most: as many as came the last time, twice that where there were more.
const READS: usize = 16;
/// ... and at least: a read that finds nothing is not free.
const FEWEST: usize = 2;
/// Bytes of the largest frame that is read, with a tag.
const LARGEST: usize = MAX_TX_SIZE + VLAN_TAG;

/// What is on its way out.
pub struct Outbound {
    file: FileSlot,
    memory: MemoryId,
    /// The frame of each write that has not ended, by its slot, and whose it is: an uplink that was replaced may still
    /// have some.
    writing: Vec<Option<(MemoryId, FrameId)>>,
    /// The TAP, where it is read and written without the ring.
    by_hand: Option<OwnedFd>,
    /// What is to be written to it: where, and how many bytes. It may take the whole way through the kernel at once, so it
    /// waits until the guest has its answer.
    ready: Vec<(FrameId, usize, usize)>,
    /// Frames that did not get out.
    pub dropped: u64,
}

/// The reactor's half of the uplink.
pub struct Uplink {
    fabric: Rc<RefCell<Fabric>>,
    file: FileSlot,
    memory: MemoryId,
    /// The frame of each read that has not ended.
    reading: Vec<Option<FrameId>>,
    /// Frames that have come, with their bytes, virtio header included.
    come: Vec<(FrameId, usize)>,
    /// Operations in flight.
    flying: usize,
    /// Frames that are read the next time.
    reads: usize,
    /// The kernel has been asked to say when there is something.
    asked: bool,
    /// There is something.
    more: bool,
    lost: bool,
    draining: bool,
}

/// Slots of writes follow those of reads.
fn is_write(slot: u16) -> Option<usize> {
    usize::from(slot).checked_sub(READS)
}

impl Uplink {
    /// The uplink of a network; `by_hand` where the ring cannot read and write its file.
    pub fn new(fabric: Rc<RefCell<Fabric>>, file: FileSlot, memory: MemoryId, by_hand: Option<OwnedFd>) -> Uplink {
        {
            let mut fabric = fabric.borrow_mut();
            let new = || Outbound {
                file,
                memory,
                writing: Vec::new(),
                by_hand: None,
                ready: Vec::with_capacity(FRAMES),
                dropped: 0,
            };
            let outbound = fabric.outbound.get_or_insert_with(new);
            (outbound.file, outbound.memory, outbound.by_hand) = (file, memory, by_hand);
            fabric.switch.uplink(true);
        }
        Uplink {
            fabric,
            file,
            memory,
            reading: std::iter::repeat_with(|| None).take(READS).collect(),
            come: Vec::with_capacity(READS),
            flying: 0,
            reads: FEWEST,
            asked: false,
            more: false,
            lost: false,
            draining: false,
        }
    }

    /// Its file and memory, to be taken out of the ring. Nothing else keeps the TAP open after that.
    pub fn remains(&self) -> (FileSlot, MemoryId) {
        if let Some(outbound) = self.fabric.borrow_mut().outbound.as_mut().filter(|it| it.memory == self.memory) {
            outbound.by_hand = None;
        }
        (self.file, self.memory)
    }

    /// Takes nothing more.
    pub fn drain(&mut self, core: &mut Core) {
        self.draining = true;
        self.fabric.borrow_mut().switch.uplink(false);
        if self.asked {
            core.ring.cancel_readable(self.memory);
        }
    }

    /// True when it takes nothing more and nothing is in flight.
    pub fn is_drained(&self) -> bool {
        let writes = |outbound: &Outbound| outbound.writing.iter().flatten().any(|(memory, _)| *memory == self.memory);
        self.draining && self.flying == 0 && !self.asked && !self.fabric.borrow().outbound.as_ref().is_some_and(writes)
    }

    /// Asks for frames when there are some; true when it did.
    pub fn turn(&mut self, core: &mut Core) -> bool {
        if self.draining || self.lost || self.flying > 0 {
            return false;
        }
        if !std::mem::take(&mut self.more) {
            self.ask(core);
            return false;
        }
        if self.read_by_hand(core) {
            // Also where there was none: the kernel is asked again by the next turn.
            return true;
        }
        let mut fabric = self.fabric.borrow_mut();
        for (slot, place) in self.reading.iter_mut().enumerate().take(self.reads) {
            let Some(frame) = fabric.frames.take() else { break };
            let span = span(frame.at() - VNET_HEADER, VNET_HEADER + LARGEST);
            *place = Some(frame);
            let owner = Owner { memory: self.memory, slot: slot as u16 };
            let transfer = Transfer { direction: Direction::ReadNow, file: self.file, at: 0, start: 0, len: span.len };
            core.ring.transfer(owner, transfer, &[span], u32::MAX);
            self.flying += 1;
        }
        drop(fabric);
        self.ask(core);
        true
    }

    /// Has the kernel say when there is something, unless it will.
    fn ask(&mut self, core: &mut Core) {
        if !std::mem::replace(&mut self.asked, true) {
            core.ring.readable(Owner { memory: self.memory, slot: 0 }, self.file);
        }
    }

    /// Reads a batch of frames without the ring; false when that is not how.
    fn read_by_hand(&mut self, core: &mut Core) -> bool {
        let mut shared = self.fabric.borrow_mut();
        let fabric = &mut *shared;
        let Some(tap) = fabric.outbound.as_ref().and_then(|outbound| outbound.by_hand.as_ref()) else { return false };
        let mut ended = None;
        while self.come.len() < READS
            && ended.is_none()
            && let Some(frame) = fabric.frames.take()
        {
            core.called(1);
            match tap::read(tap, &fabric.local, frame.at() - VNET_HEADER, VNET_HEADER + LARGEST) {
                Ok(len) => self.come.push((frame, len)),
                Err(error) => {
                    fabric.frames.give(frame);
                    ended = error.raw_os_error();
                }
            }
        }
        self.more = self.come.len() == READS;
        drop(shared);
        self.look(ended);
        true
    }

    /// True when frames can be read at once.
    pub fn has_work(&self) -> bool {
        self.more && !self.draining && !self.lost
    }

    /// One of its operations has ended.
    pub fn complete(&mut self, completion: &Completion) {
        if let Operation::Readable(_) = completion.operation {
            (self.asked, self.more) = (false, true);
            return;
        }
        let slot = completion.owner.slot;
        let mut shared = self.fabric.borrow_mut();
        let fabric = &mut *shared;
        if let Some(write) = is_write(slot) {
            if let Some(outbound) = &mut fabric.outbound {
                if let Some((_, frame)) = outbound.writing.get_mut(write).and_then(Option::take) {
                    fabric.frames.give(frame);
                }
                outbound.dropped += u64::from(completion.result < 0);
            }
        } else {
            self.flying -= 1;
            let Some(frame) = self.reading.get_mut(usize::from(slot)).and_then(Option::take) else { return };
            match usize::try_from(completion.result) {
                Ok(len) if len > 0 => self.come.push((frame, len)),
                _ => fabric.frames.give(frame),
            }
        }
        drop(shared);
        self.look(completion.result.checked_neg());
    }

    /// Looks at an error. EBADFD: the interface was deleted under the descriptor. EIO, while it is down, passes.
    fn look(&mut self, error: Option<i32>) {
        if error == Some(EBADFD) && !self.draining && !std::mem::replace(&mut self.lost, true) {
            let mut fabric = self.fabric.borrow_mut();
            fabric.switch.uplink(false);
            let reason = io::Error::from_raw_os_error(EBADFD).to_string();
            fabric.outbox.send(FromThread(Report::UplinkLost { reason }));
        }
    }

    /// Carries what has come to whom it is for.
    pub fn settle(&mut self, core: &mut Core) {
        if self.come.is_empty() || self.flying > 0 {
            return;
        }
        let come = self.come.len();
        self.reads = if come < self.reads { come.next_power_of_two().max(FEWEST) } else { (2 * come).min(READS) };
        let mut fabric = self.fabric.borrow_mut();
        for (number, (frame, len)) in self.come.drain(..).enumerate() {
            fabric.come_up(number, &frame, len, core);
            fabric.held.push(frame);
        }
        fabric.copy_inward();
        fabric.work(core, |_| {});
        fabric.deliver(core);
        fabric.ask(core);
    }
}

const EBADFD: i32 = rustix::io::Errno::BADFD.raw_os_error();

fn span(at: usize, len: usize) -> Span {
    Span { region: RegionId::ARENA, offset: at as u32, len: len as u32 }
}

impl Fabric {
    /// A frame has come by the uplink, with a virtio header before it.
    fn come_up(&mut self, number: usize, frame: &FrameId, len: usize, core: &Core) {
        let (at, Some(len)) = (frame.at(), len.checked_sub(VNET_HEADER)) else { return };
        let mut header = [0; VNET_HEADER];
        self.local.read(at - VNET_HEADER, &mut header);
        let mut first = [0; HEADERS];
        let first = &mut first[..len.min(HEADERS)];
        self.local.read(at, first);
        let Ok(vnet) = VnetHeader::read_from_bytes(&header) else { return };
        let (Ok(offload), Some(headers)) = (from_vnet(&vnet), Headers::parse(first)) else { return };
        let packet = Packet {
            number,
            from: PortId::UPLINK,
            flow: self.flow(&headers),
            head: at,
            tag: at,
            len: len as u32,
            offload,
            body: Body::Ours,
            v6: headers.is_v6(),
        };
        self.route(&packet, &headers, &[], core);
    }

    /// Sends a packet out by the uplink. It lies in `frame`, which is free when it is out.
    pub fn send_up(&mut self, packet: &Packet, tag: Tag, frame: FrameId, core: &mut Core) {
        let len = tagged_len(packet.len, tag) as usize;
        let start = match tag {
            Tag::AsIs => packet.head,
            Tag::Strip => packet.head + VLAN_TAG,
            Tag::Insert(_) => packet.head - VLAN_TAG,
        };
        if start != packet.head {
            // The two addresses move, and make room for a tag or fill its place.
            let mut addresses = [0; 12];
            self.local.read(packet.head, &mut addresses);
            self.local.write(start, &addresses);
        }
        if let Tag::Insert(number) = tag {
            let [high, low] = number.to_be_bytes();
            self.local.write(start + 12, &[0x81, 0, high, low]);
        }
        let mut first = [0; HEADERS];
        let first = &mut first[..len.min(HEADERS)];
        self.local.read(start, first);
        let vnet = to_vnet(&packet.offload, first, len);
        let Some(outbound) = &mut self.outbound else { return self.frames.give(frame) };
        let Ok(vnet) = vnet else {
            outbound.dropped += 1;
            return self.frames.give(frame);
        };
        self.local.write(start, first);
        self.local.write(start - VNET_HEADER, vnet.as_bytes());
        if outbound.by_hand.is_some() {
            return outbound.ready.push((frame, start - VNET_HEADER, VNET_HEADER + len));
        }
        let slot = outbound.writing.iter().position(Option::is_none).unwrap_or_else(|| {
            outbound.writing.push(None);
            outbound.writing.len() - 1
        });
        outbound.writing[slot] = Some((outbound.memory, frame));
        let span = span(start - VNET_HEADER, VNET_HEADER + len);
        let owner = Owner { memory: outbound.memory, slot: (READS + slot) as u16 };
        let transfer = Transfer { direction: Direction::Write, file: outbound.file, at: 0, start: 0, len: span.len };
        core.ring.transfer(owner, transfer, &[span], u32::MAX);
    }

    /// Writes what is ready where the ring does not.
    pub fn write_by_hand(&mut self, core: &mut Core) {
        let Some(outbound) = &mut self.outbound else { return };
        for (frame, at, len) in outbound.ready.drain(..) {
            core.called(1);
            // One that is gone shows when it is read.
            let written = outbound.by_hand.as_ref().map(|tap| tap::write(tap, &self.local, at, len));
            outbound.dropped += u64::from(!matches!(written, Some(Ok(()))));
            self.frames.give(frame);
        }
    }
}

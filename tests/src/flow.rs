//! A stream of packets from one guest to another, by hand: neither end allocates, copies a byte or makes a call besides
//! its notifications and waits, so that whatever is counted is the backend's.

use std::time::Duration;

use frontend::netfront::Options;
use grant::{Access, Granted, PAGE_SIZE, Port};
use netback::proto::{
    self, EXTRA_FLAG_MORE, EXTRA_TYPE_GSO, GSO_TYPE_TCPV4, NETRXF_EXTRA_INFO, NETRXF_MORE_DATA, NETTXF_CSUM_BLANK,
    NETTXF_DATA_VALIDATED, NETTXF_EXTRA_INFO, NETTXF_MORE_DATA, NetifExtraInfo, NetifRxRequest, NetifRxResponse,
    NetifTxRequest, NetifTxResponse,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::{FromBytes, IntoBytes};

use crate::network::{Card, Hostile, Network};

/// What the packets are like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes, headers included; at least 60.
    pub len: usize,
    /// Bytes of a segment, for TCP that is to be cut; 0 for a packet with nothing left to do.
    pub segment: u16,
    /// The receiver takes neither segments nor blank checksums: they are worked out in software.
    pub plain: bool,
}

/// The end that sends.
pub struct Sender {
    /// Its card.
    pub card: Hostile,
    _pages: Granted,
    packet: Vec<[u8; 12]>,
    masked: Vec<Port>,
    out: usize,
}

/// The end that receives.
pub struct Receiver {
    /// Its card.
    pub card: Hostile,
    pages: Granted,
    masked: Vec<Port>,
    posted: usize,
    extras: bool,
    more: bool,
}

/// Two guests of a network: whoever sends the packets, and whoever gets them.
pub fn flow(network: &mut Network, shape: Shape) -> (Sender, Receiver) {
    let takes = !shape.plain;
    let options = Options {
        gso_tcpv4: takes,
        gso_tcpv6: takes,
        checksum_ipv4: takes,
        checksum_ipv6: takes,
        ..Options::default()
    };
    let mut receiving = network.hostile(&Card { options, mtu: 65_521, ..Card::default() }).unwrap();
    let pages = receiving.pages(256, Access::ReadWrite);
    let to = receiving.mac;
    let mut receiver =
        Receiver { card: receiving, pages, masked: Vec::with_capacity(64), posted: 0, extras: false, more: false };
    receiver.post(256);
    let mut card = network.hostile(&Card { mtu: 65_521, ..Card::default() }).unwrap();
    let pages = card.pages(shape.len.div_ceil(PAGE_SIZE), Access::ReadOnly);
    pages.memory.pages().write(0, &frame(&card, to, shape));
    let packet = slots(&pages, shape);
    (Sender { card, _pages: pages, packet, masked: Vec::with_capacity(64), out: 0 }, receiver)
}

/// TCP over IPv4; its checksum is left to do where its segments are.
fn frame(from: &Hostile, to: netback::packet::Mac, shape: Shape) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.mac.0[..], &[8, 0, 0x45, 0]].concat();
    frame.extend(((shape.len - 14) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0]);
    frame.resize(shape.len, 0x55);
    frame
}

/// The slots of one packet; ids are put in as they are sent.
fn slots(pages: &Granted, shape: Shape) -> Vec<[u8; 12]> {
    let mut slots = Vec::new();
    for (at, gref) in pages.refs.iter().enumerate() {
        let left = shape.len - at * PAGE_SIZE;
        let mut flags = if left > PAGE_SIZE { NETTXF_MORE_DATA } else { 0 };
        let size = if at == 0 { shape.len } else { left.min(PAGE_SIZE) } as u16;
        if at == 0 && shape.segment > 0 {
            flags |= NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED | NETTXF_EXTRA_INFO;
        }
        let request = NetifTxRequest { gref: gref.0, offset: 0, flags, id: at as u16, size };
        slots.push(zerocopy::transmute!(request));
        if at == 0 && shape.segment > 0 {
            let [low, high] = shape.segment.to_le_bytes();
            let gso = NetifExtraInfo { kind: EXTRA_TYPE_GSO, flags: 0, body: [low, high, GSO_TYPE_TCPV4, 0, 0, 0] };
            let mut slot = [0; 12];
            slot[..8].copy_from_slice(gso.as_bytes());
            slots.push(slot);
        }
    }
    slots
}

impl Sender {
    /// Slots of each packet.
    pub fn slots(&self) -> usize {
        self.packet.len()
    }

    /// Puts as many packets as have room, at most `most`, and tells the backend if it wants to be told; how many.
    pub fn put(&mut self, most: usize) -> usize {
        let count = (self.card.queue.tx.ring.free() as usize / self.packet.len()).min(most);
        for _ in 0..count {
            self.packet.iter().for_each(|slot| self.card.queue.tx.ring.put(slot));
        }
        self.out += count * self.packet.len();
        if count > 0 && self.card.queue.tx.ring.push() {
            self.card.queue.notify().unwrap();
        }
        count
    }

    /// Takes all answers.
    ///
    /// # Panics
    /// When one is an error.
    pub fn reap(&mut self) {
        let waiting = self.card.queue.tx.ring.unconsumed().unwrap();
        for _ in 0..waiting {
            let mut bytes = [0; size_of::<NetifTxResponse>()];
            self.card.queue.tx.ring.take(&mut bytes);
            let response: NetifTxResponse = zerocopy::transmute!(bytes);
            assert!(response.status >= proto::NETIF_RSP_OKAY, "{response:?}");
        }
        self.out -= waiting as usize;
    }

    /// Asks to be told of the next answer.
    ///
    /// # Panics
    /// When there is one already.
    pub fn arm(&mut self) {
        assert!(!self.card.queue.tx.ring.final_check().unwrap(), "an answer waits");
    }

    /// Slots that are not answered.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Waits until something was answered, for a while.
    pub fn wait(&mut self) {
        if !self.card.queue.tx.ring.final_check().unwrap() {
            wait(&mut self.card, &mut self.masked);
        }
    }
}

impl Receiver {
    fn post(&mut self, count: usize) {
        for _ in 0..count {
            let page = self.posted % self.pages.refs.len();
            let request = NetifRxRequest { id: page as u16, pad: 0, gref: self.pages.refs[page].0 };
            self.card.queue.rx.ring.put(request.as_bytes());
            self.posted += 1;
        }
        if count > 0 && self.card.queue.rx.ring.push() {
            self.card.queue.notify().unwrap();
        }
    }

    /// Takes all packets that have come and posts their buffers again: how many, and their bytes.
    ///
    /// # Panics
    /// When one is an error.
    pub fn take(&mut self) -> (usize, usize) {
        let waiting = self.card.queue.rx.ring.unconsumed().unwrap();
        let (mut packets, mut bytes) = (0, 0);
        for _ in 0..waiting {
            let mut slot = [0; size_of::<NetifRxResponse>()];
            self.card.queue.rx.ring.take(&mut slot);
            if self.extras {
                let extra = NetifExtraInfo::read_from_bytes(&slot).unwrap();
                self.extras = extra.flags & EXTRA_FLAG_MORE != 0;
            } else {
                let response: NetifRxResponse = zerocopy::transmute!(slot);
                assert!(response.status > 0, "{response:?}");
                bytes += response.status as usize;
                self.extras = response.flags & NETRXF_EXTRA_INFO != 0;
                self.more = response.flags & NETRXF_MORE_DATA != 0;
            }
            packets += usize::from(!self.extras && !self.more);
        }
        self.post(waiting as usize);
        (packets, bytes)
    }

    /// Asks to be told of the next packet.
    ///
    /// # Panics
    /// When there is one already.
    pub fn arm(&mut self) {
        assert!(!self.card.queue.rx.ring.final_check().unwrap(), "a packet waits");
    }

    /// Waits until something has come, for a while.
    pub fn wait(&mut self) {
        if !self.card.queue.rx.ring.final_check().unwrap() {
            wait(&mut self.card, &mut self.masked);
        }
    }
}

fn wait(card: &mut Hostile, masked: &mut Vec<Port>) {
    card.queue.events.unmask(masked).unwrap();
    masked.clear();
    let timeout = Duration::from_millis(100);
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
    let mut fds = [PollFd::from_borrowed_fd(card.queue.events.fd(), PollFlags::IN)];
    if poll(&mut fds, Some(&timeout)).unwrap() > 0 {
        card.queue.events.pending(masked).unwrap();
    }
}

//! One ring, by hand.

use std::io;

use blkback::proto::{Abi, BlkifRequestSegment};
use grant::ring::{FrontRing, SLOTS_AT};
use grant::{DomId, EventChannel, GrantAccess, Granted, Pages, Port};
use zerocopy::IntoBytes;

use crate::blkfront::Options;
use crate::blkfront::wiring::Wiring;

/// The shared indexes of a ring (`struct xxx_sring`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// Ours to write.
    ReqProd,
    /// The backend's to write.
    ReqEvent,
    /// The backend's to write.
    RspProd,
    /// Ours to write.
    RspEvent,
}

impl Index {
    /// All of them.
    pub const ALL: [Index; 4] = [Index::ReqProd, Index::ReqEvent, Index::RspProd, Index::RspEvent];

    pub(super) fn at(self) -> usize {
        match self {
            Index::ReqProd => 0,
            Index::ReqEvent => 4,
            Index::RspProd => 8,
            Index::RspEvent => 12,
        }
    }
}

/// A queue whose every part is within reach.
pub struct Queue {
    /// The backend.
    pub peer: DomId,
    /// The layout of the ring.
    pub abi: Abi,
    /// Our half of the ring.
    pub ring: FrontRing,
    /// Its pages.
    pub ring_grant: Granted,
    /// Our pages.
    pub grants: Box<dyn GrantAccess>,
    /// Our event channels.
    pub events: Box<dyn EventChannel>,
    /// The ring's port.
    pub port: Port,
}

impl Queue {
    /// Lays a ring of `options` out and takes a port.
    ///
    /// # Errors
    /// The domain has no pages or ports left.
    pub fn new(
        grants: Box<dyn GrantAccess>,
        events: Box<dyn EventChannel>,
        peer: DomId,
        options: &Options,
    ) -> io::Result<Queue> {
        let wiring = Wiring::new(grants, events, peer, options, options.ring_order)?;
        let Wiring { peer, ring_memory, ring, grants, events, port } = wiring;
        Ok(Queue { peer, abi: options.abi, ring, ring_grant: ring_memory, grants, events, port })
    }

    /// The ring's pages as bytes.
    pub fn pages(&self) -> Pages {
        self.ring_grant.memory.pages()
    }

    /// What stands in a shared index.
    pub fn index(&self, index: Index) -> u32 {
        self.pages().load_acquire(index.at())
    }

    /// Writes a shared index, whoever owns it.
    pub fn set_index(&self, index: Index, value: u32) {
        self.pages().store_release(index.at(), value);
    }

    /// The bytes of the slot that `index` falls into.
    pub fn slot(&self, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.abi.slot_size()];
        self.pages().read(self.slot_at(index), &mut bytes);
        bytes
    }

    /// Writes into the slot that `index` falls into, `offset` bytes from its start.
    pub fn set_slot(&self, index: u32, offset: usize, bytes: &[u8]) {
        self.pages().write(self.slot_at(index) + offset, bytes);
    }

    fn slot_at(&self, index: u32) -> usize {
        SLOTS_AT + (index & (self.ring.entries() - 1)) as usize * self.abi.slot_size()
    }

    /// Puts slots into the ring, byte by byte as they are, and says whether the backend wants to be told.
    pub fn put_bytes<'a>(&mut self, slots: impl IntoIterator<Item = &'a [u8]>) -> bool {
        slots.into_iter().for_each(|slot| self.ring.put(slot));
        self.ring.push()
    }

    /// Tells the backend, asked or not.
    ///
    /// # Errors
    /// When the port is closed.
    pub fn notify(&mut self) -> io::Result<()> {
        self.events.notify(self.port)
    }
}

/// Writes segments to a page of segments of an indirect request, from entry `first` on.
pub fn write_segments(page: &Pages, first: usize, segments: &[BlkifRequestSegment]) {
    page.write(first * size_of::<BlkifRequestSegment>(), segments.as_bytes());
}

//! A network card's queue, by hand: both rings, whose every slot and index may be what no driver would make it.

use std::io;

use grant::ring::{FrontRing, SLOTS_AT};
use grant::{Access, DomId, EventChannel, GrantAccess, Granted, Port};
use netback::proto::{NetifRxRequest, NetifTxRequest};

use super::queue::Index;
use crate::netfront::RingKeys;

/// One ring and its page.
pub struct Ring {
    /// Our half.
    pub ring: FrontRing,
    /// Its page.
    pub memory: Granted,
    slot: usize,
}

/// A queue whose every part is within reach.
pub struct CardQueue {
    /// Packets to the backend.
    pub tx: Ring,
    /// Packets from it.
    pub rx: Ring,
    /// Our pages.
    pub grants: Box<dyn GrantAccess>,
    /// Our event channels.
    pub events: Box<dyn EventChannel>,
    /// The port of both rings.
    pub port: Port,
}

impl Ring {
    fn new(grants: &mut dyn GrantAccess, peer: DomId, slot: usize) -> io::Result<Ring> {
        let memory = grants.grant(peer, 1, Access::ReadWrite)?;
        Ok(Ring { ring: FrontRing::new(memory.memory.pages(), slot), memory, slot })
    }

    /// What stands in a shared index.
    pub fn index(&self, index: Index) -> u32 {
        self.memory.memory.pages().load_acquire(index.at())
    }

    /// Writes a shared index, whoever owns it.
    pub fn set_index(&self, index: Index, value: u32) {
        self.memory.memory.pages().store_release(index.at(), value);
    }

    /// Writes into the slot that `index` falls into.
    pub fn set_slot(&self, index: u32, bytes: &[u8]) {
        let at = SLOTS_AT + (index & (self.ring.entries() - 1)) as usize * self.slot;
        self.memory.memory.pages().write(at, bytes);
    }

    /// The bytes of the slot that `index` falls into.
    pub fn slot(&self, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.slot];
        let at = SLOTS_AT + (index & (self.ring.entries() - 1)) as usize * self.slot;
        self.memory.memory.pages().read(at, &mut bytes);
        bytes
    }

    /// Puts slots, byte by byte as they are; true when the backend wants to be told.
    pub fn put<'a>(&mut self, slots: impl IntoIterator<Item = &'a [u8]>) -> bool {
        slots.into_iter().for_each(|slot| self.ring.put(slot));
        self.ring.push()
    }
}

impl CardQueue {
    /// Lays the rings out and takes a port.
    ///
    /// # Errors
    /// The domain has no pages or ports left.
    pub fn new(
        mut grants: Box<dyn GrantAccess>,
        mut events: Box<dyn EventChannel>,
        peer: DomId,
    ) -> io::Result<CardQueue> {
        let tx = Ring::new(&mut *grants, peer, size_of::<NetifTxRequest>())?;
        let rx = Ring::new(&mut *grants, peer, size_of::<NetifRxRequest>())?;
        let port = events.alloc_unbound(peer)?;
        Ok(CardQueue { tx, rx, grants, events, port })
    }

    /// What the backend must be told.
    pub fn keys(&self) -> RingKeys {
        let gref = |ring: &Ring| ring.memory.refs[0].0;
        RingKeys { tx_ring_ref: gref(&self.tx), rx_ring_ref: gref(&self.rx), tx_port: self.port.0, rx_port: None }
    }

    /// Tells the backend, asked or not.
    ///
    /// # Errors
    /// When the port is closed.
    pub fn notify(&mut self) -> io::Result<()> {
        self.events.notify(self.port)
    }
}

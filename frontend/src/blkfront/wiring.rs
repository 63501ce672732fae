//! A ring and its event channel while nothing but their addresses is known to the backend.

use std::io;

use grant::ring::FrontRing;
use grant::{Access, DomId, EventChannel, GrantAccess, Granted, Port};

use super::negotiate::RingKeys;
use super::options::Options;

/// What a queue stands on.
pub struct Wiring {
    pub peer: DomId,
    pub ring_memory: Granted,
    pub ring: FrontRing,
    pub grants: Box<dyn GrantAccess>,
    pub events: Box<dyn EventChannel>,
    pub port: Port,
}

impl Wiring {
    /// Lays a ring out and takes a port.
    ///
    /// # Errors
    /// The domain has no pages or ports left; what was taken is given back.
    pub fn new(
        mut grants: Box<dyn GrantAccess>,
        mut events: Box<dyn EventChannel>,
        peer: DomId,
        options: &Options,
        order: u8,
    ) -> io::Result<Wiring> {
        let ring_memory = grants.grant(peer, 1 << order, Access::ReadWrite)?;
        let ring = FrontRing::new_at(ring_memory.memory.pages(), options.abi.slot_size(), options.first_index);
        match events.alloc_unbound(peer) {
            Ok(port) => Ok(Wiring { peer, ring_memory, ring, grants, events, port }),
            Err(error) => {
                drop(ring);
                // Nobody has heard of the ring yet, so nobody can have it mapped.
                let ended = grants.end(ring_memory);
                debug_assert!(ended.is_ok(), "a ring that nobody knows of is mapped");
                Err(error)
            }
        }
    }

    /// What the backend must be told.
    pub fn keys(&self) -> RingKeys {
        let refs = self.ring_memory.refs.iter().map(|gref| gref.0).collect();
        RingKeys { refs, port: self.port.0 }
    }

    /// Closes the port and ends the ring's grants; returns what the backend still has mapped.
    pub fn close(mut self) -> Option<Granted> {
        self.close_port();
        drop(self.ring);
        self.grants.end(self.ring_memory).err().map(|refused| refused.0)
    }

    /// Closes the port.
    pub fn close_port(&mut self) {
        if let Err(error) = self.events.unbind(self.port) {
            tracing::warn!(%error, port = self.port.0, "closing an event channel failed");
        }
    }
}

//! A store that was away: the client has registered all watches again, what happened meanwhile is ours to find out.

use std::io;
use std::time::Duration;

use xenstore::Store;

use super::{Supervisor, SupervisorError};
use crate::publish;
use crate::store::Nodes;
use crate::world::World;

/// How long the store may be away. Guests' I/O goes on meanwhile, but nobody is attached or detached.
pub fn patience(world: &World) -> Duration {
    match world {
        // Until dom0 has started its daemon anew.
        World::Xen => Duration::from_secs(30),
        // A host ends with its store: only the connection may be new.
        World::Embedded(_) => Duration::from_secs(10),
    }
}

impl Supervisor {
    /// Looks at everything again if the store was away.
    pub(super) fn returned(&mut self) -> Result<(), SupervisorError> {
        let generation = self.store.generation();
        if generation == self.generation {
            return Ok(());
        }
        self.generation = generation;
        let node = format!("{}/name", publish::ROOT);
        if self.store.text(&node)?.as_deref() != Some(self.config.vm.name.as_str()) {
            if let World::Embedded(dir) = &self.world {
                let text =
                    format!("the host at {} was started anew: this service VM is no domain of it", dir.display());
                return Err(io::Error::other(text).into());
            }
            // dom0's daemon has forgotten everything.
            self.store.write(&node, self.config.vm.name.as_bytes())?;
            self.pages.clear();
            self.announce_channel()?;
            self.make_room()?;
            self.publish_volumes()?;
            self.vifs.start_over();
            self.store.write(&format!("{}/ready", publish::ROOT), b"1")?;
        }
        tracing::warn!(devices = self.devices.len(), "xenstored was away: looking at everything again");
        self.dirty.extend(self.devices.keys().copied());
        self.vifs.touch_all();
        self.walk()
    }
}

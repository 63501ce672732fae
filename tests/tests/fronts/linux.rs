//! A stock Linux: `frontend::blkfront`, which does what xen-blkfront does.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use frontend::blkfront::{Blkfront, Event, Machine, Options, Properties, Queue, connect};
use grant::embedded::{self, GuestMemory, Ports};
use grant::{DomId, EventChannel, GrantAccess};
use xenstore::xenbus::XenbusState;

use crate::ring::pattern;
use crate::scene::Scene;

struct Cpu {
    dir: PathBuf,
    domid: DomId,
    memory: GuestMemory,
}

impl Machine for Cpu {
    fn grant_access(&self) -> io::Result<Box<dyn GrantAccess>> {
        Ok(Box::new(self.memory.clone()))
    }

    fn event_channel(&self) -> io::Result<Box<dyn EventChannel>> {
        Ok(Box::new(Ports::new(embedded::connect(&self.dir, self.domid)?)?))
    }
}

/// A Linux with its disk.
pub struct Linux {
    front: Blkfront,
    pub properties: Properties,
    pub queues: Vec<Queue>,
}

impl Linux {
    /// Boots: its frontend finds the disk in state Initialising and connects it.
    #[track_caller]
    pub fn boot(scene: &mut Scene, options: &Options) -> Linux {
        let cpu = Cpu { dir: scene.rig.dir(), domid: scene.domain.domid, memory: scene.memory.clone() };
        // A connection of its own: the scene's is for whoever looks on.
        let mut store = scene.rig.store_of(scene.domain.domid.0);
        let connected = connect(&mut store, Arc::new(cpu), options, 51712, Duration::from_secs(30));
        match connected {
            Ok((front, properties, queues)) => Linux { front, properties, queues },
            Err(error) => panic!("{error}\n{}", scene.log()),
        }
    }

    /// Writes and reads over each of its queues; what was written stands in the volume.
    #[track_caller]
    pub fn works(&mut self, scene: &Scene) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            // More than fits in one request without indirect segments.
            let at = (index as u64 + 2) << 20;
            let data = pattern(at, 200 << 10);
            queue.write_at(at, &data).unwrap();
            queue.flush().unwrap();
            let mut read = vec![0; data.len()];
            queue.read_at(at, &mut read).unwrap();
            assert!(read == data, "what queue {index} has written it does not read");
            assert!(scene.volume(at, data.len()) == data, "what queue {index} has written is not in the volume");
        }
    }

    /// Lets go of its disk, as when its driver is unloaded: Closing, then Closed, then the backend's Closed.
    #[track_caller]
    pub fn close(mut self, scene: &mut Scene) {
        let mut store = scene.rig.store_of(scene.domain.domid.0);
        self.front.leave(&mut store).unwrap();
        scene.wait(XenbusState::Closing);
        self.closed(scene);
    }

    /// Its answer to a backend that is Closing.
    #[track_caller]
    pub fn closed(mut self, scene: &mut Scene) {
        let mut store = scene.rig.store_of(scene.domain.domid.0);
        let queues = std::mem::take(&mut self.queues);
        self.front.closed(&mut store, queues).unwrap();
        scene.wait_until("closed or gone", |state| matches!(state, XenbusState::Closed | XenbusState::Unknown));
        // Every grant is free by then, which is when a guest uses the pages again.
        assert_eq!(scene.usage().active_grants, 0);
        while !matches!(self.front.turn(&mut store).unwrap(), Event::Finished | Event::Gone) {}
        assert!(self.front.release(&mut store).is_empty(), "pages that the backend has still mapped");
    }

    /// Gone from one moment to the next. What it shared stays shared.
    pub fn crash(self) -> Crashed {
        Crashed { front: self.front, queues: self.queues }
    }
}

/// A Linux that runs no more: its memory.
pub struct Crashed {
    front: Blkfront,
    queues: Vec<Queue>,
}

impl Crashed {
    /// Takes all of it back once its disk is gone.
    #[track_caller]
    pub fn bury(mut self, scene: &Scene) {
        let mut store = scene.rig.store_of(scene.domain.domid.0);
        // Its directory is gone, so it writes nothing into it.
        self.front.closed(&mut store, self.queues).unwrap();
        assert!(self.front.release(&mut store).is_empty(), "pages that the backend has still mapped");
    }
}

//! A guest with pages to read into and write from, and its end of a disk of several queues.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blkback::config::{Connect, Negotiated, QueueKeys};
use blkback::device::{QueueParts, Report, ThreadParts, Worker, create_journal};
use blkback::disk::{self, Open};
use frontend::blkfront::Options;
use frontend::hostile::Queue;
use grant::embedded::{self, Domain, Foreign, GuestMemory};
use grant::meter::Meter;
use grant::{Access, DomId, GrantAccess, Granted, Pages};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tests::world::{World, wait_report};

use crate::features::Features;
use crate::reference::SECTOR;
use crate::wire::{Response, offsets, response};

/// Pages of data that the backend may write to.
pub const WRITABLE: usize = 508;
/// Pages of data that it may only read.
pub const READ_ONLY: usize = 4;
/// All pages of data.
pub const PAGES: usize = WRITABLE + READ_ONLY;
/// Pages with segments of indirect requests.
pub const LISTS: usize = 96;

pub const PAGE: usize = 4096;
const DEVID: u32 = 51712;
/// No request takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What stands in a page that nobody may touch.
const GUARD: [u8; PAGE] = [0x5A; PAGE];

/// One life of a guest. Before and behind each page that it gives to the backend stands a guard page.
pub struct Guest {
    pub domid: DomId,
    /// Its life.
    domain: Option<Domain>,
    memory: GuestMemory,
    data: Vec<Granted>,
    lists: Vec<Granted>,
    guards: Vec<Granted>,
    by_gref: HashMap<u32, usize>,
}

impl Guest {
    pub fn new(world: &World, name: &str) -> Guest {
        let (domain, mut memory) = world.another_guest(name);
        let service = world.service.domid;
        let mut guards = Vec::new();
        let mut fenced = |access| {
            // To dom0, which has no use for it.
            guards.push(memory.grant(DomId(0), 1, Access::ReadWrite).unwrap());
            memory.grant(service, 1, access).unwrap()
        };
        let access = |page| if page < WRITABLE { Access::ReadWrite } else { Access::ReadOnly };
        let data: Vec<Granted> = (0..PAGES).map(|page| fenced(access(page))).collect();
        // Linux grants these read-write as well when grants are persistent.
        let lists = (0..LISTS).map(|_| fenced(Access::ReadWrite)).collect();
        guards.push(memory.grant(DomId(0), 1, Access::ReadWrite).unwrap());
        guards.iter().for_each(|guard| guard.memory.pages().write(0, &GUARD));
        let by_gref = data.iter().enumerate().map(|(page, granted)| (granted.refs[0].0, page)).collect();
        Guest { domid: domain.domid, domain: Some(domain), memory, data, lists, guards, by_gref }
    }

    /// The domain is destroyed; its pages stay as long as somebody has them mapped.
    pub fn die(&mut self) {
        self.domain = None;
    }

    /// The reference of a page of data.
    pub fn gref(&self, page: usize) -> u32 {
        self.data[page].refs[0].0
    }

    /// The page behind a reference.
    pub fn page_of(&self, gref: u32) -> Option<usize> {
        self.by_gref.get(&gref).copied()
    }

    pub fn read_sector(&self, sector: usize, to: &mut [u8; SECTOR]) {
        self.data[sector / 8].memory.pages().read(sector % 8 * SECTOR, to);
    }

    pub fn write_sector(&self, sector: usize, from: &[u8]) {
        self.data[sector / 8].memory.pages().write(sector % 8 * SECTOR, from);
    }

    /// The reference of a page of segments.
    pub fn list_gref(&self, list: usize) -> u32 {
        self.lists[list].refs[0].0
    }

    /// A page of segments.
    pub fn list(&self, list: usize) -> Pages {
        self.lists[list].memory.pages()
    }

    /// All pages of data.
    pub fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGES * PAGE];
        bytes.chunks_mut(PAGE).zip(&self.data).for_each(|(page, granted)| granted.memory.pages().read(0, page));
        bytes
    }

    pub fn fill(&self, content: &[u8]) {
        content.chunks(PAGE).zip(&self.data).for_each(|(page, granted)| granted.memory.pages().write(0, page));
    }

    /// The first guard page that was touched.
    pub fn touched_guard(&self) -> Option<usize> {
        let mut page = [0; PAGE];
        self.guards.iter().position(|guard| {
            guard.memory.pages().read(0, &mut page);
            page != GUARD
        })
    }

    /// Ends all grants, which is refused while the backend has one mapped.
    pub fn end_grants(mut self) -> Result<(), String> {
        for granted in self.data.into_iter().chain(self.lists).chain(self.guards) {
            self.memory.end(granted).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// A disk with a worker of its own.
pub struct Attached {
    worker: Worker,
    _fence: Vec<OwnedFd>,
    pub queues: Vec<Queue>,
}

impl Attached {
    pub fn connect(world: &World, guest: &Guest, features: &Features, volume: &OwnedFd) -> Attached {
        Attached::connect_with(world, guest, features, volume, |_| Arc::new(disk::open))
    }

    /// With another way to open disks, made from the journals of the queues.
    pub fn connect_with(
        world: &World,
        guest: &Guest,
        features: &Features,
        volume: &OwnedFd,
        open: impl FnOnce(Vec<OwnedFd>) -> Open,
    ) -> Attached {
        let service = world.service.domid;
        let queues: Vec<Queue> = (0..features.queues)
            .map(|_| {
                let options = Options {
                    ring_order: features.ring_order,
                    abi: features.abi,
                    first_index: features.first_index,
                    ..Options::default()
                };
                let events = Box::new(world.ports(guest.domid));
                Queue::new(Box::new(guest.memory.clone()), events, service, &options).unwrap()
            })
            .collect();
        let keys = |queue: &Queue| QueueKeys {
            ring_refs: queue.ring_grant.refs.iter().map(|gref| gref.0).collect(),
            event_channel: queue.port.0,
        };
        let connect = Connect {
            guest: guest.domid.0,
            devid: DEVID,
            negotiated: Negotiated {
                abi: features.abi,
                persistent: features.persistent,
                max_indirect: features.max_indirect,
                queues: queues.iter().map(keys).collect(),
            },
            disk: features.disk(),
            max_persistent: features.max_persistent,
            fixed_buffers: features.fixed,
            zero_copy: features.zero_copy,
            transient: features.transient,
        };
        let (fence, threads) = (0..features.threads)
            .map(|_| {
                let (fence, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
                (fence, ThreadParts { events: Box::new(world.ports(service)), fence: write_end })
            })
            .unzip();
        let journals: Vec<OwnedFd> = (0..queues.len()).map(|index| create_journal(&connect, index).unwrap()).collect();
        let open = open(journals.iter().map(|journal| journal.try_clone().unwrap()).collect());
        let parts = journals.into_iter().map(|journal| {
            let connection = embedded::connect(world.dir.path(), service).unwrap();
            QueueParts { journal, grants: Box::new(Foreign::new(connection, guest.domid).unwrap()) }
        });
        let (parts, meter) = (parts.collect(), Meter::create(queues.len()).unwrap());
        let mut worker = Worker::start_with(guest.domid, threads, open).unwrap();
        worker.connect(connect, Some(volume.try_clone().unwrap()), meter, parts).unwrap();
        match wait_report(&mut worker) {
            Report::Connected { .. } => Attached { worker, _fence: fence, queues },
            other => panic!("{other:?} with {features:?}"),
        }
    }

    /// Waits until a queue has responses, and takes all of it.
    pub fn responses(&mut self, features: &Features) -> Result<Vec<(usize, Response)>, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut taken = Vec::new();
            for (index, queue) in self.queues.iter_mut().enumerate() {
                while queue.ring.final_check().map_err(|error| error.to_string())? {
                    let mut bytes = vec![0; offsets(features.abi).response];
                    queue.ring.take(&mut bytes);
                    taken.push((index, response(features.abi, &bytes)));
                }
            }
            if !taken.is_empty() {
                return Ok(taken);
            }
            if let Some(report) = self.worker.next_report() {
                return Err(format!("{report:?}"));
            }
            if Instant::now() > deadline {
                return Err("no response".into());
            }
            self.wait().map_err(|error| error.to_string())?;
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> =
            self.queues.iter().map(|queue| PollFd::from_borrowed_fd(queue.events.fd(), PollFlags::IN)).collect();
        fds.push(PollFd::from_borrowed_fd(self.worker.fd(), PollFlags::IN));
        poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }))?;
        for queue in &mut self.queues {
            let mut ports = Vec::new();
            queue.events.pending(&mut ports)?;
            queue.events.unmask(&ports)?;
        }
        Ok(())
    }

    /// Has the backend let go of everything; what it answered meanwhile comes back.
    pub fn close(mut self, features: &Features) -> Result<Vec<(usize, Response)>, String> {
        self.worker.disconnect(DEVID);
        match wait_report(&mut self.worker) {
            Report::Closed { .. } => {}
            other => return Err(format!("{other:?} instead of closed")),
        }
        let mut taken = Vec::new();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            while queue.ring.unconsumed().map_err(|error| error.to_string())? > 0 {
                let mut bytes = vec![0; offsets(features.abi).response];
                queue.ring.take(&mut bytes);
                taken.push((index, response(features.abi, &bytes)));
            }
        }
        self.end_rings()?;
        Ok(taken)
    }

    /// The same for a guest that may have broken its rings: what is in them does not matter.
    pub fn abandon(mut self) -> Result<(), String> {
        self.worker.disconnect(DEVID);
        loop {
            match wait_report(&mut self.worker) {
                Report::Closed { .. } => return self.end_rings(),
                Report::Broken { .. } => {}
                other => return Err(format!("{other:?} instead of closed")),
            }
        }
    }

    fn end_rings(self) -> Result<(), String> {
        for mut queue in self.queues {
            // The port of a guest that died is gone with it.
            let _ = queue.events.unbind(queue.port);
            drop(queue.ring);
            queue.grants.end(queue.ring_grant).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

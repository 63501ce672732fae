//! An embedded world inside one test process: a host, a service VM, a guest, and a worker of the real backend. The
//! guest's side is raw on purpose: slots are put into the ring byte by byte, so that a test can put anything.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use blkback::config::{Connect, DiskParams, Negotiated, OnError, QueueKeys};
use blkback::device::{QueueParts, Report, ThreadParts, Worker, create_journal};
use blkback::proto::{Abi, BlkifRequest64, BlkifRequestSegment, BlkifResponse64};
use blkback::stats::{Stats, snapshot};
use grant::embedded::{self, Domain, Foreign, GuestMemory, Host, Lifecycle, Ports, Stop};
use grant::meter::Meter;
use grant::ring::FrontRing;
use grant::{Access, DomId, EventChannel, GrantAccess, Granted, Port};
use rustix::event::{PollFd, PollFlags, poll};
use zerocopy::{FromBytes, IntoBytes};

struct Quiet;

impl Lifecycle for Quiet {
    fn introduced(&mut self, _: DomId, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn released(&mut self, _: DomId, _: &str) {}
}

/// A host and two domains.
pub struct World {
    /// The host's directory.
    pub dir: tempfile::TempDir,
    stop: Stop,
    thread: Option<std::thread::JoinHandle<io::Result<()>>>,
    /// The service VM.
    pub service: Domain,
    /// The guest.
    pub guest: Domain,
    /// Its memory.
    pub memory: GuestMemory,
}

impl World {
    /// A guest with 64 MiB.
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), Quiet).unwrap();
        let stop = host.stopper();
        let thread = Some(std::thread::spawn(move || host.run()));
        let memory = GuestMemory::new(64 << 20).unwrap();
        let service = embedded::register(dir.path(), "acme", None).unwrap();
        let guest = embedded::register(dir.path(), "guest", Some(&memory)).unwrap();
        World { dir, stop, thread, service, guest, memory }
    }

    /// Grants of the guest's that the backend has mapped.
    pub fn active_grants(&self) -> u32 {
        embedded::usage(self.dir.path(), self.guest.domid).unwrap().active_grants
    }

    /// Event channels of domain `domid`.
    pub fn ports(&self, domid: DomId) -> Ports {
        Ports::new(embedded::connect(self.dir.path(), domid).unwrap()).unwrap()
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// Which backend a [`Disk`] gets.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// `ring-page-order`.
    pub ring_order: u8,
    /// Persistent grants on both sides.
    pub persistent: bool,
    /// Zero copy allowed.
    pub zero_copy: bool,
    /// Fixed buffers wanted.
    pub fixed: bool,
    /// Persistent grants at most.
    pub max_persistent: u32,
    /// Wrap the disk.
    pub fault: Option<blkback::config::FaultParams>,
    /// Refuse writes.
    pub read_only: bool,
    /// Offer discards.
    pub discard: Option<blkback::config::Discard>,
    /// Offer barriers.
    pub barrier: bool,
    /// What happens when the volume fails.
    pub on_error: OnError,
    /// A flush failed earlier.
    pub flush_failed: bool,
    /// The smallest piece that the medium takes.
    pub unit: u32,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            ring_order: 0,
            persistent: true,
            zero_copy: true,
            fixed: true,
            max_persistent: 1056,
            fault: None,
            read_only: false,
            discard: None,
            barrier: false,
            on_error: OnError::Report,
            flush_failed: false,
            unit: 512,
        }
    }
}

/// A disk of one queue, served by a real worker, with the guest's end in hand.
pub struct Disk {
    /// The backend.
    pub worker: Worker,
    /// The guest's half of the ring.
    pub ring: FrontRing,
    /// The ring's pages.
    pub ring_grant: Granted,
    events: Ports,
    port: Port,
    meter: Meter,
    /// Which path the worker reported.
    pub path: String,
    /// Read end of the worker's fence.
    pub fence: OwnedFd,
}

impl Disk {
    /// Connects a disk over `volume`.
    pub fn connect(world: &mut World, volume: &File, shape: Shape) -> Disk {
        let (guest, service) = (world.guest.domid, world.service.domid);
        let pages = 1usize << shape.ring_order;
        let ring_grant = world.memory.grant(service, pages, Access::ReadWrite).unwrap();
        let ring = FrontRing::new(ring_grant.memory.pages(), size_of::<BlkifRequest64>());
        let mut events = world.ports(guest);
        let port = events.alloc_unbound(service).unwrap();
        let keys = QueueKeys { ring_refs: ring_grant.refs.iter().map(|gref| gref.0).collect(), event_channel: port.0 };
        let connect = Connect {
            guest: guest.0,
            devid: 51712,
            negotiated: Negotiated {
                abi: Abi::X86_64,
                persistent: shape.persistent,
                max_indirect: 256,
                queues: vec![keys],
            },
            disk: DiskParams {
                physical_sector_size: 4096,
                logical_sector_size: shape.unit,
                read_only: shape.read_only,
                discard: shape.discard,
                barrier: shape.barrier,
                on_error: shape.on_error,
                flush_failed: shape.flush_failed,
                fault: shape.fault,
                ..DiskParams::plain(volume.metadata().unwrap().len() / 512)
            },
            max_persistent: shape.max_persistent,
            fixed_buffers: shape.fixed,
            zero_copy: shape.zero_copy,
        };
        let (fence, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let threads = vec![ThreadParts { events: Box::new(world.ports(service)), fence: write_end }];
        let mut worker = Worker::start(guest, threads).unwrap();
        let journal = create_journal(&connect, 0).unwrap();
        let connection = embedded::connect(world.dir.path(), service).unwrap();
        let grants = Box::new(Foreign::new(connection, guest).unwrap());
        let meter = Meter::create(1).unwrap();
        let volume = volume.try_clone().unwrap().into();
        let queues = vec![QueueParts { journal, grants }];
        worker.connect(connect, Some(volume), meter.try_clone().unwrap(), queues).unwrap();
        let report = wait_report(&mut worker);
        let Report::Connected { path, .. } = report else { panic!("{report:?}") };
        Disk { worker, ring, ring_grant, events, port, meter: Meter::open(meter).unwrap(), path, fence }
    }

    /// Puts slots into the ring and tells the backend if it wants to be told.
    pub fn put(&mut self, slots: &[BlkifRequest64]) {
        slots.iter().for_each(|slot| self.ring.put(slot.as_bytes()));
        if self.ring.push() {
            self.notify();
        }
    }

    /// Tells the backend.
    pub fn notify(&mut self) {
        self.events.notify(self.port).unwrap();
    }

    /// Waits for `count` responses.
    pub fn responses(&mut self, count: usize) -> Vec<BlkifResponse64> {
        let mut responses = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while responses.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} responses", responses.len());
            if self.ring.final_check().unwrap() {
                while self.ring.unconsumed().unwrap() > 0 {
                    let mut bytes = [0; 16];
                    self.ring.take(&mut bytes);
                    responses.push(BlkifResponse64::read_from_bytes(&bytes).unwrap());
                }
                continue;
            }
            let mut ports = Vec::new();
            wait(self.events.fd(), 1000);
            self.events.pending(&mut ports).unwrap();
            self.events.unmask(&ports).unwrap();
        }
        responses
    }

    /// Takes `count` responses, all of which must be good, without allocating.
    pub fn drain(&mut self, count: usize, ports: &mut Vec<Port>) {
        let mut seen = 0;
        while seen < count {
            if !self.ring.final_check().unwrap() {
                wait(self.events.fd(), 1000);
                ports.clear();
                self.events.pending(ports).unwrap();
                self.events.unmask(ports).unwrap();
                continue;
            }
            while self.ring.unconsumed().unwrap() > 0 {
                let mut bytes = [0; 16];
                self.ring.take(&mut bytes);
                assert_eq!(bytes[10..12], [0, 0]);
                seen += 1;
            }
        }
    }

    /// The backend's numbers.
    pub fn stats(&self) -> Stats {
        snapshot(&self.meter)
    }

    /// The same once the backend has nothing left to count: it publishes a response before it counts what that cost.
    pub fn settled_stats(&self) -> Stats {
        let mut last = self.stats();
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.stats();
            if now == last {
                return now;
            }
            last = now;
        }
    }

    /// Disconnects and waits until it is done.
    pub fn close(&mut self) {
        self.worker.disconnect(51712);
        assert_eq!(wait_report(&mut self.worker), Report::Closed { devid: 51712 });
    }
}

/// The worker's next report.
pub fn wait_report(worker: &mut Worker) -> Report {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(report) = worker.next_report() {
            return report;
        }
        assert!(Instant::now() < deadline, "no report");
        wait(worker.fd(), 1000);
    }
}

fn wait(fd: impl AsFd, timeout_ms: i64) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
    poll(&mut fds, Some(&timeout)).unwrap();
}

/// A read or write of whole pages.
pub fn rw(operation: u8, id: u64, sector: u64, pages: &[grant::GrantRef]) -> BlkifRequest64 {
    let mut seg = [BlkifRequestSegment::default(); 11];
    for (to, gref) in seg.iter_mut().zip(pages) {
        *to = BlkifRequestSegment { gref: gref.0, first_sect: 0, last_sect: 7, pad: 0 };
    }
    let nr_segments = pages.len() as u8;
    BlkifRequest64 { operation, nr_segments, id, sector_number: sector, seg, ..Default::default() }
}

//! An embedded world inside one test process: a host, a service VM, a guest, and a worker of the real backend. The
//! guest's side is raw on purpose: slots are put into the ring byte by byte, so that a test can put anything.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use blkback::config::{Connect, DiskParams, Negotiated, OnError, QueueKeys, Transient};
use blkback::device::{QueueParts, Report, ThreadParts, Worker, create_journal};
use blkback::proto::{Abi, BlkifRequest64, BlkifRequestSegment, BlkifResponse64};
use blkback::stats::{Stats, snapshot};
use frontend::blkfront::Options;
use frontend::hostile::Queue;
use grant::embedded::{self, Domain, Foreign, GuestMemory, Host, Lifecycle, Ports, Stop};
use grant::meter::Meter;
use grant::{DomId, EventChannel, Grants, Port};
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

    /// One more guest, with 16 MiB.
    pub fn another_guest(&self, name: &str) -> (Domain, GuestMemory) {
        let memory = GuestMemory::new(16 << 20).unwrap();
        (embedded::register(self.dir.path(), name, Some(&memory)).unwrap(), memory)
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
    /// Without persistent grants, with zero copy allowed.
    pub transient: Transient,
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
    /// Size in sectors, where it is not the volume's.
    pub sectors: Option<u64>,
    /// Where the ring's indexes start.
    pub first_index: u32,
    /// Layout of the ring.
    pub abi: Abi,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            ring_order: 0,
            persistent: true,
            zero_copy: true,
            fixed: true,
            transient: Transient::Copy,
            max_persistent: 1056,
            fault: None,
            read_only: false,
            discard: None,
            barrier: false,
            on_error: OnError::Report,
            flush_failed: false,
            unit: 512,
            sectors: None,
            first_index: 0,
            abi: Abi::X86_64,
        }
    }
}

/// A disk of one queue, served by a real worker of its own, with the guest's end in hand.
pub struct Disk {
    /// The backend.
    pub worker: Worker,
    /// Read end of the worker's fence.
    pub fence: OwnedFd,
    /// The guest's end.
    pub lane: Lane,
}

/// The guest's end of a disk of one queue; [`Queue`] is its ring.
pub struct Lane {
    /// Device number.
    pub devid: u32,
    /// The ring.
    pub queue: Queue,
    /// Which path the worker reported.
    pub path: String,
    meter: Meter,
}

/// A worker of one thread for `guest`, and the read end of its fence.
pub fn start_worker(guest: DomId, events: Box<dyn EventChannel>) -> (Worker, OwnedFd) {
    let (fence, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let threads = vec![ThreadParts { events, fence: write_end }];
    (Worker::start(guest, threads).unwrap(), fence)
}

impl Disk {
    /// Connects a disk over `volume`.
    pub fn connect(world: &mut World, volume: &File, shape: Shape) -> Disk {
        Disk::connect_as(world, (world.guest.domid, world.memory.clone()), volume, shape)
    }

    /// The same for any guest.
    pub fn connect_as(world: &World, guest: (DomId, GuestMemory), volume: &File, shape: Shape) -> Disk {
        let (mut worker, fence) = start_worker(guest.0, Box::new(world.ports(world.service.domid)));
        let lane = Lane::connect(world, &mut worker, guest, 51712, volume, shape, |grants| grants).unwrap();
        Disk { worker, fence, lane }
    }

    /// Disconnects and waits until it is done; what the disk had to say before is passed over.
    pub fn close(&mut self) {
        self.worker.disconnect(51712);
        while !matches!(wait_report(&mut self.worker), Report::Closed { devid: 51712 }) {}
    }
}

impl Deref for Disk {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        &self.lane
    }
}

impl DerefMut for Disk {
    fn deref_mut(&mut self) -> &mut Lane {
        &mut self.lane
    }
}

impl Deref for Lane {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl DerefMut for Lane {
    fn deref_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

impl Lane {
    /// Connects one more disk of a worker.
    ///
    /// # Errors
    /// With the worker's reason, when it cannot be served.
    pub fn connect(
        world: &World,
        worker: &mut Worker,
        (guest, memory): (DomId, GuestMemory),
        devid: u32,
        volume: &File,
        shape: Shape,
        wrap: impl FnOnce(Box<dyn Grants>) -> Box<dyn Grants>,
    ) -> Result<Lane, String> {
        let (queue, connect) = lay_out(world, (guest, memory), devid, volume, shape);
        let journal = create_journal(&connect, 0).unwrap();
        let connection = embedded::connect(world.dir.path(), world.service.domid).unwrap();
        let grants = wrap(Box::new(Foreign::new(connection, guest).unwrap()));
        let meter = Meter::create(1).unwrap();
        let volume = volume.try_clone().unwrap().into();
        let queues = vec![QueueParts { journal, grants }];
        worker.connect(connect, Some(volume), meter.try_clone().unwrap(), queues).unwrap();
        match wait_report(worker) {
            Report::Connected { path, .. } => Ok(Lane::new(devid, queue, path, meter)),
            Report::Failed { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// The guest's end of a disk that somebody serves and counts in `meter`.
    pub fn new(devid: u32, queue: Queue, path: String, meter: OwnedFd) -> Lane {
        Lane { devid, queue, path, meter: Meter::open(meter).unwrap() }
    }

    /// Puts slots into the ring and tells the backend if it wants to be told.
    pub fn put(&mut self, slots: &[BlkifRequest64]) {
        if self.queue.put_bytes(slots.iter().map(IntoBytes::as_bytes)) {
            self.notify();
        }
    }

    /// Tells the backend.
    pub fn notify(&mut self) {
        self.queue.notify().unwrap();
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
}

/// Lays a ring out, and describes the disk on it as its worker will be told.
pub fn lay_out(
    world: &World,
    (guest, memory): (DomId, GuestMemory),
    devid: u32,
    volume: &File,
    shape: Shape,
) -> (Queue, Connect) {
    let Shape { ring_order, first_index, abi, .. } = shape;
    let options = Options { ring_order, first_index, abi, ..Options::default() };
    let (grants, events) = (Box::new(memory), Box::new(world.ports(guest)));
    let queue = Queue::new(grants, events, world.service.domid, &options).unwrap();
    let ring_refs = queue.ring_grant.refs.iter().map(|gref| gref.0).collect();
    let connect = Connect {
        guest: guest.0,
        devid,
        negotiated: Negotiated {
            abi: queue.abi,
            persistent: shape.persistent,
            max_indirect: 256,
            queues: vec![QueueKeys { ring_refs, event_channel: queue.port.0 }],
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
            ..DiskParams::plain(shape.sectors.unwrap_or(volume.metadata().unwrap().len() / 512))
        },
        max_persistent: shape.max_persistent,
        fixed_buffers: shape.fixed,
        transient: shape.transient,
        zero_copy: shape.zero_copy,
    };
    (queue, connect)
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

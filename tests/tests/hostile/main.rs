//! Frontends that mean harm, against the real backend. One named test for each advisory that concerns a block backend
//! (`xsa_155_...`) and for each case of the catalogue (`t08_...`); `docs/blkback-security.md` is the table of them.
//!
//! After each case the backend serves everybody else as before, and holds what it held before: see [`Case`].

mod faults;
mod grants;
mod lives;
mod neighbour;
mod requests;
#[path = "../rig/mod.rs"]
mod rig;
mod rings;
mod storms;
mod supervised;
mod table;
mod tamper;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE, BlkifRequest64, BlkifRequestSegment};
use grant::embedded::{self, Domain, GuestMemory};
use grant::{Access, DomId, GrantAccess, GrantRef, Granted, PAGE_SIZE};
use tests::world::{Disk, Lane, Shape, World, rw};

/// A tenth of what is said with `WINDSOR_LONG`.
fn long(count: usize) -> usize {
    if std::env::var_os("WINDSOR_LONG").is_some() { count } else { count / 10 }
}

/// Descriptors and lines of log belong to the process, so cases take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines of log since the process began.
static LINES: AtomicUsize = AtomicUsize::new(0);

struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.fetch_add(bytes.iter().filter(|byte| **byte == b'\n').count(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lines of log that one guest may cause in a minute, and so in one case.
const MOST_LINES: usize = 100;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until something is so.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A volume in a file, with random content.
fn image(bytes: usize) -> (File, Vec<u8>) {
    let mut file = tempfile::tempfile_in(".").unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let content: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
    file.write_all(&content).unwrap();
    (file, content)
}

fn content(file: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

/// Every way that data takes.
fn shapes() -> [Shape; 4] {
    let base = Shape::default();
    [base, Shape { zero_copy: false, ..base }, Shape { persistent: false, ..base }, Shape { max_persistent: 8, ..base }]
}

/// One segment.
fn segment(gref: GrantRef, first_sect: u8, last_sect: u8) -> BlkifRequestSegment {
    BlkifRequestSegment { gref: gref.0, first_sect, last_sect, pad: 0xFFFF }
}

/// A request of these segments; more than eleven are cut.
fn request(operation: u8, id: u64, sector_number: u64, segments: &[BlkifRequestSegment]) -> BlkifRequest64 {
    let mut slot = rw(operation, id, sector_number, &[]);
    slot.nr_segments = segments.len() as u8;
    for (to, from) in slot.seg.iter_mut().zip(segments) {
        *to = *from;
    }
    slot
}

/// A read or write whose segments stand on `list`.
fn indirect(operation: u8, id: u64, sector_number: u64, nr_segments: u16, list: GrantRef) -> BlkifRequest64 {
    let encoder = frontend::blkfront::Encoder { abi: blkback::proto::Abi::X86_64, handle: 0xCA00 };
    let encoded = encoder.indirect(operation, id, sector_number, nr_segments, [list.0; 8]);
    let mut bytes = [0xEE; size_of::<BlkifRequest64>()];
    bytes[..encoded.bytes().len()].copy_from_slice(encoded.bytes());
    zerocopy::FromBytes::read_from_bytes(&bytes).unwrap()
}

/// Puts slots in and waits for as many answers: what each id got, in the order of the slots.
fn statuses(lane: &mut Lane, slots: &[BlkifRequest64]) -> Vec<i16> {
    lane.put(slots);
    let responses = lane.responses(slots.len());
    let status = |slot: &BlkifRequest64| responses.iter().find(|response| response.id == slot.id).unwrap().status;
    slots.iter().map(status).collect()
}

/// A disk that behaves, of whoever must not notice anything.
struct Witness {
    disk: Disk,
    data: Granted,
    round: u64,
    _domain: Domain,
}

impl Witness {
    fn new(world: &World) -> Witness {
        let (domain, mut memory) = world.another_guest("witness");
        let (volume, _) = image(1 << 20);
        let data = memory.grant(world.service.domid, 2, Access::ReadWrite).unwrap();
        let disk = Disk::connect_as(world, (domain.domid, memory), &volume, Shape::default());
        Witness { disk, data, round: 0, _domain: domain }
    }

    /// What it writes it reads.
    fn is_served(&mut self) {
        self.round += 1;
        let mut pages = self.data.memory.pages();
        is_served(&mut self.disk, &mut pages, &self.data.refs, self.round);
    }
}

/// What is written to this disk is read.
fn is_served(lane: &mut Lane, pages: &mut grant::Pages, refs: &[GrantRef], round: u64) {
    pages.write(0, &[round as u8; PAGE_SIZE]);
    let sector = round % 128 * 8;
    assert_eq!(statuses(lane, &[rw(BLKIF_OP_WRITE, 1, sector, &refs[..1])]), [0]);
    assert_eq!(statuses(lane, &[rw(BLKIF_OP_READ, 2, sector, &refs[1..2])]), [0]);
    let mut read = [0; PAGE_SIZE];
    pages.read(PAGE_SIZE, &mut read);
    assert_eq!(read, [round as u8; PAGE_SIZE]);
}

/// A world with a witness in it.
struct Case {
    world: World,
    witness: Witness,
    /// The hostile guest's pages, for data.
    memory: GuestMemory,
    guest: DomId,
    service: DomId,
    descriptors: usize,
    ports: [u32; 2],
    lines: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Case {
    fn new() -> Case {
        static LOG: Once = Once::new();
        let alone = alone();
        LOG.call_once(|| {
            let level = tracing_subscriber::filter::LevelFilter::INFO;
            tracing_subscriber::fmt().with_max_level(level).with_writer(|| Lines).init();
        });
        let world = World::new();
        let mut witness = Witness::new(&world);
        witness.is_served();
        let (memory, guest, service) = (world.memory.clone(), world.guest.domid, world.service.domid);
        let lines = LINES.load(Ordering::Relaxed);
        let mut case =
            Case { world, witness, memory, guest, service, descriptors: 0, ports: [0; 2], lines, _alone: alone };
        // What set it up closes at the host's leisure.
        let mut before = usize::MAX;
        eventually("descriptors settle", || std::mem::replace(&mut before, descriptors()) == before);
        case.descriptors = before;
        case.ports = case.open_ports();
        case
    }

    fn open_ports(&self) -> [u32; 2] {
        [self.guest, self.service].map(|domid| embedded::usage(self.world.dir.path(), domid).unwrap().ports)
    }

    /// Pages for the service VM.
    fn pages(&mut self, count: usize) -> Granted {
        self.memory.grant(self.service, count, Access::ReadWrite).unwrap()
    }

    /// A volume that stays open to the end of the case, and its content.
    fn image(&mut self, bytes: usize) -> (File, Vec<u8>) {
        self.descriptors += 1;
        image(bytes)
    }

    /// Takes pages back, which nobody may have mapped.
    fn end(&mut self, pages: impl IntoIterator<Item = Granted>) {
        pages.into_iter().for_each(|granted| self.memory.end(granted).unwrap());
    }

    /// A disk of the hostile guest.
    fn disk(&mut self, volume: &File, shape: Shape) -> Disk {
        Disk::connect(&mut self.world, volume, shape)
    }

    /// The case is over: its disk goes, and everything is as it was.
    fn over(&mut self, mut disk: Disk) {
        self.witness.is_served();
        disk.close();
        assert_eq!(self.world.active_grants(), 0, "everything is unmapped");
        self.forget(disk);
        self.settled();
    }

    /// Ends the ring's grants and the port.
    fn forget(&mut self, disk: Disk) {
        let Disk { worker, mut lane, .. } = disk;
        drop(worker);
        lane.queue.grants.end(lane.queue.ring_grant).map_err(|_| "mapped").unwrap();
    }

    /// Nothing is held that was not held before, nobody was hurt, and the log is short.
    fn settled(&mut self) {
        self.witness.is_served();
        eventually("descriptors are back at their base", || descriptors() <= self.descriptors);
        let ports = self.ports;
        eventually("ports are back at their base", || self.open_ports() == ports);
        let lines = LINES.load(Ordering::Relaxed) - self.lines;
        assert!(lines <= MOST_LINES, "{lines} lines of log");
    }
}

/// Takes bytes out of a file of the guest's memory or a volume, as a hole.
fn punch(fd: impl AsFd, offset: u64, len: u64) {
    use rustix::fs::FallocateFlags;
    rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).unwrap();
}

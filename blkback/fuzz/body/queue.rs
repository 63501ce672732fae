//! A queue in a real worker: whatever stands in its ring and on its pages of segments, each request is answered as the
//! header's validator says, executed as it says, and nothing stays mapped.

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blkback::config::{Connect, DiskKind, DiskParams, Negotiated, QueueKeys, Transient};
use blkback::device::{QueueParts, Report, ThreadParts, Worker, create_journal};
use blkback::disk;
use blkback::proto::Abi;
use grant::heap::{Heap, HeapPorts};
use grant::meter::Meter;
use grant::ring::{SLOTS_AT, entries};
use grant::{Access, DomId, EventChannel, GrantAccess, Granted, PAGE_SIZE, Port};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Input;
use super::recorder::{Log, Recorder};
use super::validator::{Judged, Offered, Verdict, judge};
use super::wire::{ERROR, INDIRECT, OKAY, READ, offsets, response};

const BACKEND: DomId = DomId(1);
const GUEST: DomId = DomId(2);
const DEVID: u32 = 5;
const SECTORS: u64 = 1000;
/// Nothing takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// Pages that the backend may write to, only read, and find segments on.
const WRITABLE: usize = 16;
const READ_ONLY: usize = 2;
const LISTS: usize = 3;

fn wait(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    // libFuzzer has signals of its own.
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
}

/// A worker that outlives inputs, and what its next disk is wrapped in.
struct Rig {
    heap: Heap,
    worker: Worker,
    _fence: OwnedFd,
    ports: HeapPorts,
    next: Arc<Mutex<Option<Recorded>>>,
}

/// What a [`Recorder`] needs.
struct Recorded {
    journal: OwnedFd,
    offered: Offered,
    log: Arc<Mutex<Log>>,
}

impl Rig {
    fn new() -> Rig {
        let heap = Heap::new(64);
        let (fence, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let threads = vec![ThreadParts { events: Box::new(heap.ports(BACKEND).unwrap()), fence: write_end }];
        let next: Arc<Mutex<Option<Recorded>>> = Arc::default();
        let wanted = Arc::clone(&next);
        let open: disk::Open = Arc::new(move |params, file, eraser| {
            let inner = disk::open(params, file, eraser)?;
            let Recorded { journal, offered, log } = wanted.lock().unwrap().take()?;
            Some(Box::new(Recorder { inner, journal: Recorder::journal(journal), offered, log }))
        });
        let worker = Worker::start_with(GUEST, threads, open).unwrap();
        let ports = heap.ports(GUEST).unwrap();
        Rig { heap, worker, _fence: fence, ports, next }
    }

    fn report(&mut self) -> Report {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = self.worker.next_report() {
                return report;
            }
            assert!(Instant::now() < deadline, "no report");
            wait(self.worker.fd());
        }
    }
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

pub fn queue(input: &[u8]) {
    RIG.with_borrow_mut(|rig| {
        // One that was left in the middle of something is of no more use.
        let mut taken = rig.take().unwrap_or_else(Rig::new);
        play(&mut taken, Input(input));
        *rig = Some(taken);
    });
}

/// The frontend's side of one disk.
struct Guest {
    offered: Offered,
    ring: Granted,
    writable: Granted,
    read_only: Granted,
    lists: Granted,
    port: Port,
    entries: u32,
    /// The next request's index.
    req_prod: u32,
    /// Up to here everything is answered.
    rsp_cons: u32,
    expected: Vec<(u64, u8, i16)>,
}

fn play(rig: &mut Rig, mut input: Input<'_>) {
    let (flags, sizes) = (input.byte(), input.byte());
    let abi = if flags & 1 == 0 { Abi::X86_64 } else { Abi::X86_32 };
    let offered = Offered {
        abi,
        sectors: SECTORS,
        max_indirect: [0, 11, 32, 256][usize::from(sizes & 3)],
        read_only: flags & 2 != 0,
        barrier: flags & 4 != 0 && flags & 2 == 0,
        discard: None,
    };
    let start = if sizes & 4 == 0 { 0 } else { u32::MAX - u32::from(input.byte()) };
    let mut access = rig.heap.access();
    let mut grant = |count, how| access.grant(BACKEND, count, how).unwrap();
    let mut guest = Guest {
        offered,
        ring: grant(1 << (sizes >> 3 & 1), Access::ReadWrite),
        writable: grant(WRITABLE, Access::ReadWrite),
        read_only: grant(READ_ONLY, Access::ReadOnly),
        lists: grant(LISTS, Access::ReadWrite),
        port: rig.ports.alloc_unbound(BACKEND).unwrap(),
        entries: entries(1 << (sizes >> 3 & 1), abi.slot_size()),
        req_prod: start,
        rsp_cons: start,
        expected: Vec::new(),
    };
    let pages = guest.ring.memory.pages();
    [REQ_PROD, RSP_PROD].iter().for_each(|&at| pages.store_release(at, start));
    [REQ_PROD + 4, RSP_EVENT].iter().for_each(|&at| pages.store_release(at, start.wrapping_add(1)));
    let connect = Connect {
        guest: GUEST.0,
        devid: DEVID,
        negotiated: Negotiated {
            abi,
            persistent: flags & 8 != 0,
            max_indirect: offered.max_indirect,
            queues: vec![QueueKeys {
                ring_refs: guest.ring.refs.iter().map(|gref| gref.0).collect(),
                event_channel: guest.port.0,
            }],
        },
        disk: DiskParams {
            kind: DiskKind::Null,
            read_only: offered.read_only,
            barrier: offered.barrier,
            ..DiskParams::plain(SECTORS)
        },
        max_persistent: if flags & 16 == 0 { 1056 } else { 4 },
        fixed_buffers: false,
        transient: if flags & 32 == 0 { Transient::Copy } else { Transient::Map },
        zero_copy: flags & 64 == 0,
    };
    let journal = create_journal(&connect, 0).unwrap();
    let log: Arc<Mutex<Log>> = Arc::default();
    let recorded = Recorded { journal: journal.try_clone().unwrap(), offered, log: Arc::clone(&log) };
    *rig.next.lock().unwrap() = Some(recorded);
    let parts = vec![QueueParts { journal, grants: Box::new(rig.heap.grants(BACKEND)) }];
    rig.worker.connect(connect, None, Meter::create(1).unwrap(), parts).unwrap();
    match rig.report() {
        Report::Connected { .. } => {}
        other => panic!("{other:?}"),
    }
    let whole = guest.commands(rig, &mut input);
    if !whole {
        let report = rig.report();
        assert!(matches!(report, Report::Broken { .. }), "{report:?}");
    }
    rig.worker.disconnect(DEVID);
    assert_eq!(rig.report(), Report::Closed { devid: DEVID });
    assert_eq!(log.lock().unwrap().complaint, None);
    rig.ports.unbind(guest.port).unwrap();
    drop(pages);
    for granted in [guest.ring, guest.writable, guest.read_only, guest.lists] {
        access.end(granted).expect("nothing is mapped");
    }
}

impl Guest {
    /// Does what the input says. False when the ring is broken.
    fn commands(&mut self, rig: &mut Rig, input: &mut Input<'_>) -> bool {
        let size = self.offered.abi.slot_size();
        while !input.is_empty() {
            match input.byte() % 4 {
                0 => {
                    if self.req_prod.wrapping_sub(self.rsp_cons) == self.entries {
                        self.settle(rig);
                    }
                    let slot = input.bytes(size);
                    let at = self.slot_at(self.req_prod);
                    self.ring.memory.pages().write(at, &slot);
                    if self.expect(&slot) {
                        self.req_prod = self.req_prod.wrapping_add(1);
                    }
                }
                1 => {
                    // Pages of segments change only while nobody reads them.
                    self.settle(rig);
                    let (at, count) = (usize::from(input.byte()) * 8, usize::from(input.byte() % 32) * 8);
                    let bytes = input.bytes(count);
                    let list = at % LISTS * PAGE_SIZE + at;
                    let room = (self.lists.memory.len() - list).min(count);
                    self.lists.memory.pages().write(list, &bytes[..room]);
                }
                2 => self.settle(rig),
                _ => {
                    self.settle(rig);
                    let word = input.word();
                    let target = if word & 1 == 0 { word } else { self.rsp_cons.wrapping_add(word >> 1 & 511) };
                    if target.wrapping_sub(self.rsp_cons) > self.entries {
                        self.ring.memory.pages().store_release(REQ_PROD, target);
                        rig.ports.notify(self.port).unwrap();
                        return false;
                    }
                    // Whatever is left in the slots counts as requests, as far as that does no harm to the ring.
                    while self.req_prod != target {
                        let mut slot = vec![0; size];
                        self.ring.memory.pages().read(self.slot_at(self.req_prod), &mut slot);
                        if !self.expect(&slot) {
                            break;
                        }
                        self.req_prod = self.req_prod.wrapping_add(1);
                    }
                }
            }
        }
        self.settle(rig);
        true
    }

    fn slot_at(&self, index: u32) -> usize {
        SLOTS_AT + (index % self.entries) as usize * self.offered.abi.slot_size()
    }

    /// Notes how a slot must be answered; false for one that would have the backend overwrite the ring or the segments.
    fn expect(&mut self, slot: &[u8]) -> bool {
        let list = |gref: u32| {
            let mut page = vec![0; PAGE_SIZE];
            let of = [&self.lists, &self.writable, &self.read_only, &self.ring];
            let (granted, at) = of
                .iter()
                .find_map(|granted| Some((granted, granted.refs.iter().position(|known| known.0 == gref)?)))?;
            granted.memory.pages().read(at * PAGE_SIZE, &mut page);
            Some(page)
        };
        let Judged { id, operation, verdict } = judge(&self.offered, slot, list);
        let has = |granted: &Granted, gref: u32| granted.refs.iter().any(|known| known.0 == gref);
        // Segments that a read or the backend's answers could change meanwhile.
        if self.offered.max_indirect > 0 && slot[0] == INDIRECT {
            let start = offsets(self.offered.abi).indirect_grefs;
            let gref = u32::from_le_bytes(slot[start..start + 4].try_into().expect("four bytes"));
            if has(&self.ring, gref) || has(&self.writable, gref) {
                return false;
            }
        }
        let status = match verdict {
            Verdict::Refuse(status) => status,
            Verdict::Execute(work) => {
                let grefs = || work.segments.iter().map(|segment| segment.gref);
                let reads = work.operation == READ;
                if reads && grefs().any(|gref| has(&self.ring, gref) || has(&self.lists, gref)) {
                    return false;
                }
                let may = |gref| {
                    has(&self.writable, gref)
                        || !reads && (has(&self.read_only, gref) || has(&self.lists, gref) || has(&self.ring, gref))
                };
                if grefs().all(may) { OKAY } else { ERROR }
            }
        };
        self.expected.push((id, operation, status));
        true
    }

    /// Has everything answered.
    fn settle(&mut self, rig: &mut Rig) {
        let pages = self.ring.memory.pages();
        pages.store_release(REQ_PROD, self.req_prod);
        // For the last one.
        pages.store_release(RSP_EVENT, self.req_prod);
        if self.req_prod == self.rsp_cons {
            return;
        }
        rig.ports.notify(self.port).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while pages.load_acquire(RSP_PROD) != self.req_prod {
            assert!(Instant::now() < deadline, "no response; {:?}", rig.worker.next_report());
            wait(rig.ports.fd());
            let mut ports = Vec::new();
            rig.ports.pending(&mut ports).unwrap();
            rig.ports.unmask(&ports).unwrap();
        }
        let mut answers = Vec::new();
        while self.rsp_cons != self.req_prod {
            let mut bytes = vec![0; offsets(self.offered.abi).response];
            pages.read(self.slot_at(self.rsp_cons), &mut bytes);
            let response = response(self.offered.abi, &bytes);
            assert_eq!(response.padding, 0);
            answers.push((response.id, response.operation, response.status));
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
        }
        // The order is the backend's.
        answers.sort_unstable();
        self.expected.sort_unstable();
        assert_eq!(answers, std::mem::take(&mut self.expected));
    }
}

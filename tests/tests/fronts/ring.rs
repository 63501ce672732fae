//! Requests by hand, the way the simplest drivers make them: pages are granted for one request and taken back with its
//! answer, which shows that the backend has let go of them by then.

use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE, BlkifRequestSegment};
use frontend::blkfront::{Encoded, Encoder, Response};
use frontend::hostile::{Queue, write_segments};
use grant::embedded::GuestMemory;
use grant::{Access, GrantAccess, Granted, PAGE_SIZE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::scene::SERVICE;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A ring and what is needed to talk over it.
pub struct Ring {
    pub queue: Queue,
    pub encoder: Encoder,
    /// The next request's.
    id: u64,
}

impl Ring {
    pub fn new(queue: Queue) -> Ring {
        let encoder = Encoder { abi: queue.abi, handle: 51712 };
        // More than 32 bits of it, as where it is a pointer.
        Ring { queue, encoder, id: 0xFFFF_8880_0000_1000 }
    }

    fn next_id(&mut self) -> u64 {
        self.id += 0x40;
        self.id
    }

    /// Puts a request in, and tells the backend if it wants to be told.
    pub fn submit(&mut self, request: &Encoded) {
        if self.queue.put_bytes([request.bytes()]) {
            self.queue.notify().unwrap();
        }
    }

    /// The next response. Waits for the backend's event, never for a time.
    #[track_caller]
    pub fn answer(&mut self) -> Response {
        while !self.queue.ring.final_check().unwrap() {
            let fd = self.queue.events.fd();
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
            assert!(poll(&mut fds, Some(&patience)).unwrap() > 0, "no answer");
            let mut ports = Vec::new();
            self.queue.events.pending(&mut ports).unwrap();
            self.queue.events.unmask(&ports).unwrap();
        }
        let mut bytes = [0; Response::LEN];
        self.queue.ring.take(&mut bytes);
        Response::parse(&bytes)
    }

    /// One request and its answer, which must be this request's.
    #[track_caller]
    pub fn perform(&mut self, operation: u8, make: impl FnOnce(Encoder, u64) -> Encoded) -> i16 {
        let id = self.next_id();
        let request = make(self.encoder, id);
        self.submit(&request);
        let response = self.answer();
        assert_eq!((response.id, response.operation), (id, operation));
        response.status
    }

    /// An operation without data.
    #[track_caller]
    pub fn plain(&mut self, operation: u8) -> i16 {
        self.perform(operation, |encoder, id| encoder.direct(operation, id, 0, &[]))
    }

    /// Writes `data` from `sector` on, out of memory that begins `first_sect` sectors into a page and that the backend may
    /// only read.
    #[track_caller]
    pub fn write(&mut self, memory: &mut GuestMemory, sector: u64, first_sect: u8, data: &[u8]) {
        self.transfer(memory, BLKIF_OP_WRITE, sector, first_sect, &mut data.to_vec());
    }

    /// Reads `len` bytes from `sector` on.
    #[track_caller]
    pub fn read(&mut self, memory: &mut GuestMemory, sector: u64, first_sect: u8, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.transfer(memory, BLKIF_OP_READ, sector, first_sect, &mut data);
        data
    }

    #[track_caller]
    fn transfer(&mut self, memory: &mut GuestMemory, operation: u8, sector: u64, first_sect: u8, data: &mut [u8]) {
        let skew = usize::from(first_sect) * SECTOR;
        let access = if operation == BLKIF_OP_WRITE { Access::ReadOnly } else { Access::ReadWrite };
        let granted = memory.grant(SERVICE, (skew + data.len()).div_ceil(PAGE_SIZE), access).unwrap();
        let segments = segments(&granted, skew, data.len());
        if operation == BLKIF_OP_WRITE {
            granted.memory.pages().write(skew, data);
        }
        let mut list = None;
        let status = match segments.len() {
            0..=11 => self.perform(operation, |encoder, id| encoder.direct(operation, id, sector, &segments)),
            count => {
                let page = memory.grant(SERVICE, 1, Access::ReadOnly).unwrap();
                write_segments(&page.memory.pages(), 0, &segments);
                let grefs = [page.refs[0].0, 0, 0, 0, 0, 0, 0, 0];
                list = Some(page);
                self.perform(operation, |encoder, id| encoder.indirect(operation, id, sector, count as u16, grefs))
            }
        };
        assert_eq!(status, 0, "{operation} of {} bytes at sector {sector}", data.len());
        if operation == BLKIF_OP_READ {
            granted.memory.pages().read(skew, data);
        }
        for granted in list.into_iter().chain([granted]) {
            assert!(memory.end(granted).is_ok(), "a page of an answered request is still mapped");
        }
    }
}

/// All of `len` bytes from `skew` on, page by page.
pub fn segments(granted: &Granted, skew: usize, len: usize) -> Vec<BlkifRequestSegment> {
    let last = skew + len - SECTOR;
    let sect = |byte: usize| (byte % PAGE_SIZE / SECTOR) as u8;
    let segment = |(page, gref): (usize, &grant::GrantRef)| BlkifRequestSegment {
        gref: gref.0,
        first_sect: if page == 0 { sect(skew) } else { 0 },
        last_sect: if page == last / PAGE_SIZE { sect(last) } else { 7 },
        pad: 0,
    };
    granted.refs.iter().enumerate().map(segment).collect()
}

/// Bytes that are nobody else's: of this test's data number `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

//! A tiny backend for the tests of this module: it answers what is in the ring, from a disk in memory, when told to.

use std::collections::BTreeMap;

use blkback::proto::{
    Abi, BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER, BlkifRequest32, BlkifRequest64, BlkifRequestDiscard32, BlkifRequestDiscard64,
    BlkifRequestIndirect32, BlkifRequestIndirect64, BlkifRequestSegment, SEGMENTS_PER_PAGE, response,
};
use grant::heap::{Heap, HeapGrants, HeapPorts};
use grant::ring::BackRing;
use grant::{Access, DomId, EventChannel, GrantRef, Grants, PAGE_SIZE, Port, SharedMemory};
use zerocopy::{FromBytes, IntoBytes};

pub const FRONT: DomId = DomId(7);
pub const BACK: DomId = DomId(3);

/// A request as this backend understood it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub operation: u8,
    pub indirect: bool,
    pub id: u64,
    pub sector: u64,
    pub segments: Vec<BlkifRequestSegment>,
    pub discard: (u64, bool),
    pub handle: u16,
}

pub struct Backend {
    abi: Abi,
    pub ring: BackRing,
    grants: HeapGrants,
    pub events: HeapPorts,
    pub port: Port,
    pub disk: Vec<u8>,
    pub seen: Vec<Seen>,
    /// Keeps data pages mapped for ever.
    pub hoard: bool,
    mapped: BTreeMap<u32, SharedMemory>,
}

impl Backend {
    pub fn new(heap: &Heap, abi: Abi, ring_refs: &[u32], port: u32, disk: usize) -> Backend {
        let mut grants = heap.grants(BACK);
        let refs: Vec<_> = ring_refs.iter().copied().map(GrantRef).collect();
        let ring = grants.map(&refs, Access::ReadWrite).unwrap();
        let ring = BackRing::attach(ring.pages(), abi.slot_size()).unwrap();
        let mut events = heap.ports(BACK).unwrap();
        let port = events.bind(FRONT, Port(port)).unwrap();
        let disk = (0..disk).map(|at| (at / 512) as u8).collect();
        let (seen, mapped) = (Vec::new(), BTreeMap::new());
        Backend { abi, ring, grants, events, port, disk, seen, hoard: false, mapped }
    }

    fn with<T>(&mut self, gref: u32, act: impl FnOnce(&grant::Pages) -> T) -> T {
        let grants = &mut self.grants;
        let mut map = || grants.map(&[GrantRef(gref)], Access::ReadOnly).unwrap();
        if self.hoard {
            return act(&self.mapped.entry(gref).or_insert_with(map).pages());
        }
        let memory = map();
        act(&memory.pages())
    }

    /// Takes every request that is in the ring; answers none.
    pub fn take(&mut self) -> Vec<Seen> {
        let mut taken = Vec::new();
        for _ in 0..self.ring.unconsumed().unwrap() {
            let mut slot = [0; 112];
            self.ring.take(&mut slot);
            let seen = self.parse(&slot);
            taken.push(seen);
        }
        self.seen.extend(taken.iter().cloned());
        taken
    }

    fn parse(&mut self, slot: &[u8; 112]) -> Seen {
        let join = |[low, high]: [u32; 2]| u64::from(low) | u64::from(high) << 32;
        let mut seen = Seen {
            operation: slot[0],
            indirect: slot[0] == BLKIF_OP_INDIRECT,
            id: 0,
            sector: 0,
            segments: Vec::new(),
            discard: (0, false),
            handle: 0,
        };
        if seen.indirect {
            seen.operation = slot[1];
            let (count, grefs);
            (seen.id, seen.sector, seen.handle, count, grefs) = match self.abi {
                Abi::X86_64 => {
                    let it = BlkifRequestIndirect64::read_from_prefix(slot).unwrap().0;
                    (it.id, it.sector_number, it.handle, it.nr_segments, it.indirect_grefs)
                }
                Abi::X86_32 => {
                    let it = BlkifRequestIndirect32::read_from_prefix(slot).unwrap().0;
                    (join(it.id), join(it.sector_number), it.handle, it.nr_segments, it.indirect_grefs)
                }
            };
            for (page, gref) in grefs.iter().take(usize::from(count).div_ceil(SEGMENTS_PER_PAGE)).enumerate() {
                let left = usize::from(count) - page * SEGMENTS_PER_PAGE;
                let mut segments = vec![BlkifRequestSegment::default(); left.min(SEGMENTS_PER_PAGE)];
                self.with(*gref, |memory| memory.read(0, segments.as_mut_bytes()));
                seen.segments.extend(segments);
            }
            return seen;
        }
        if seen.operation == BLKIF_OP_DISCARD {
            let (count, flag);
            (seen.id, seen.sector, seen.handle, count, flag) = match self.abi {
                Abi::X86_64 => {
                    let it = BlkifRequestDiscard64::read_from_prefix(slot).unwrap().0;
                    (it.id, it.sector_number, it.handle, it.nr_sectors, it.flag)
                }
                Abi::X86_32 => {
                    let it = BlkifRequestDiscard32::read_from_prefix(slot).unwrap().0;
                    (join(it.id), join(it.sector_number), it.handle, join(it.nr_sectors), it.flag)
                }
            };
            seen.discard = (count, flag == 1);
            return seen;
        }
        let (count, seg);
        (seen.id, seen.sector, seen.handle, count, seg) = match self.abi {
            Abi::X86_64 => {
                let it = BlkifRequest64::read_from_prefix(slot).unwrap().0;
                (it.id, it.sector_number, it.handle, it.nr_segments, it.seg)
            }
            Abi::X86_32 => {
                let it = BlkifRequest32::read_from_prefix(slot).unwrap().0;
                (join(it.id), join(it.sector_number), it.handle, it.nr_segments, it.seg)
            }
        };
        seen.segments.extend(&seg[..usize::from(count)]);
        seen
    }

    /// Does what a request asks for and answers it.
    pub fn serve(&mut self, seen: &Seen) {
        let mut at = seen.sector as usize * 512;
        for segment in &seen.segments {
            let offset = usize::from(segment.first_sect) * 512;
            let len = usize::from(segment.last_sect - segment.first_sect + 1) * 512;
            assert!(offset + len <= PAGE_SIZE);
            let mut data = self.disk[at..at + len].to_vec();
            match seen.operation {
                BLKIF_OP_READ => self.with(segment.gref, |memory| memory.write(offset, &data)),
                BLKIF_OP_WRITE | BLKIF_OP_WRITE_BARRIER => {
                    self.with(segment.gref, |memory| memory.read(offset, &mut data));
                    self.disk[at..at + len].copy_from_slice(&data);
                }
                other => assert_eq!(other, BLKIF_OP_FLUSH_DISKCACHE, "with segments"),
            }
            at += len;
        }
        self.answer(seen.id, seen.operation, 0);
    }

    /// Answers whatever is wanted.
    pub fn answer(&mut self, id: u64, operation: u8, status: i16) {
        let words = response(id, operation, status);
        self.ring.respond_words(words, self.abi.response_len());
    }

    /// Shows the answers; true when the frontend was told.
    pub fn publish(&mut self) -> bool {
        let notify = self.ring.publish();
        if notify {
            self.events.notify(self.port).unwrap();
        }
        notify
    }

    /// Serves everything there is.
    pub fn turn(&mut self) {
        for seen in self.take() {
            self.serve(&seen);
        }
        self.publish();
        self.ring.final_check().unwrap();
    }
}

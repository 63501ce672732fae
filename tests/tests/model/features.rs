//! What a disk and its frontend agree on: any mixture that the backend offers.

use blkback::config::{Discard, DiskParams, FaultParams, Transient};
use blkback::proto::Abi;
use fastrand::Rng;

use crate::validator::Offered;

/// Sectors of the file behind every disk. A disk is smaller: what is behind its end must never change.
pub const FILE_SECTORS: u64 = 4096;

#[derive(Clone, Debug)]
pub struct Features {
    pub abi: Abi,
    pub ring_order: u8,
    pub first_index: u32,
    pub queues: usize,
    pub threads: usize,
    pub persistent: bool,
    pub max_persistent: u32,
    pub zero_copy: bool,
    /// For frontends that are not persistent.
    pub transient: Transient,
    pub fixed: bool,
    pub max_indirect: u16,
    /// Bytes in a sector of the medium.
    pub unit: u32,
    pub read_only: bool,
    pub barrier: bool,
    /// In units of the medium.
    pub discard: Option<u32>,
    pub shorten: Option<u32>,
    pub delay_ms: u64,
    /// Direct I/O to a real medium. It stays as it is when the disk is connected anew.
    pub direct: bool,
}

impl Features {
    /// Any.
    pub fn random(random: &mut Rng) -> Features {
        let queues = random.usize(1..=4);
        let unit = if random.u8(..4) == 0 { 4096 } else { 512 };
        Features {
            abi: if random.bool() { Abi::X86_64 } else { Abi::X86_32 },
            ring_order: random.u8(0..=4),
            first_index: [0, 7, u32::MAX - 20, random.u32(..)][random.usize(..4)],
            queues,
            threads: random.usize(1..=queues),
            persistent: random.u8(..3) > 0,
            max_persistent: [1, 8, 64, 1056][random.usize(..4)],
            zero_copy: random.u8(..3) > 0,
            transient: [Transient::Auto, Transient::Copy, Transient::Map][random.usize(..3)],
            fixed: random.bool(),
            max_indirect: [0, 11, 32, 256][random.usize(..4)],
            unit,
            read_only: random.u8(..20) == 0,
            barrier: random.bool(),
            discard: random.bool().then(|| [1, 8][random.usize(..2)]),
            shorten: (random.u8(..4) == 0).then(|| unit * random.u32(1..=9)),
            delay_ms: u64::from(random.u8(..12) == 0),
            direct: random.u8(..8) == 0,
        }
    }

    pub fn offered(&self) -> Offered {
        Offered {
            abi: self.abi,
            sectors: self.sectors(),
            max_indirect: self.max_indirect,
            read_only: self.read_only,
            barrier: self.barrier,
            discard: self.discard.map(|units| u64::from(units * self.unit / 512)),
        }
    }

    fn sectors(&self) -> u64 {
        // A medium ends with a whole sector.
        if self.unit == 4096 { FILE_SECTORS - 16 } else { FILE_SECTORS - 5 }
    }

    pub fn disk(&self) -> DiskParams {
        let discard = self.discard.map(|units| Discard {
            granularity: units * self.unit,
            alignment: 0,
            secure: false,
            device: false,
        });
        let fault = FaultParams { shorten: self.shorten, delay_ms: self.delay_ms, ..FaultParams::default() };
        DiskParams {
            logical_sector_size: self.unit,
            read_only: self.read_only,
            discard,
            barrier: self.barrier,
            fault: (self.shorten.is_some() || self.delay_ms > 0).then_some(fault),
            ..DiskParams::plain(self.sectors())
        }
    }
}

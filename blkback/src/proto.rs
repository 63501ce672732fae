//! The wire format of Xen's public `io/blkif.h`: both guest ABIs, sizes and offsets as the C compiler lays them out
//! (checked against the headers by the ABI test).
//!
//! The two ABIs differ because `uint64_t` is aligned to 4 bytes on i386: everything from `id` on moves.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `BLKIF_OP_READ`.
pub const BLKIF_OP_READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const BLKIF_OP_WRITE: u8 = 1;
/// `BLKIF_OP_WRITE_BARRIER`.
pub const BLKIF_OP_WRITE_BARRIER: u8 = 2;
/// `BLKIF_OP_FLUSH_DISKCACHE`.
pub const BLKIF_OP_FLUSH_DISKCACHE: u8 = 3;
/// `BLKIF_OP_DISCARD`.
pub const BLKIF_OP_DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`.
pub const BLKIF_OP_INDIRECT: u8 = 6;

/// `BLKIF_DISCARD_SECURE`, in `flag` of a discard.
pub const BLKIF_DISCARD_SECURE: u8 = 1;

/// `BLKIF_RSP_OKAY`.
pub const BLKIF_RSP_OKAY: i16 = 0;
/// `BLKIF_RSP_ERROR`.
pub const BLKIF_RSP_ERROR: i16 = -1;
/// `BLKIF_RSP_EOPNOTSUPP`.
pub const BLKIF_RSP_EOPNOTSUPP: i16 = -2;

/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const MAX_SEGMENTS: usize = 11;
/// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Segments in one indirect page.
pub const SEGMENTS_PER_PAGE: usize = grant::PAGE_SIZE / size_of::<BlkifRequestSegment>();
/// Bytes in a sector on the wire, whatever the medium (blkif.h, since xen 221f2748e8).
pub const SECTOR_SIZE: u64 = 512;
/// Sectors in a page: `first_sect` and `last_sect` are below this.
pub const SECTORS_PER_PAGE: u8 = 8;
/// `VDISK_CDROM` in the `info` key.
pub const VDISK_CDROM: u32 = 1;
/// `VDISK_REMOVABLE` in the `info` key.
pub const VDISK_REMOVABLE: u32 = 2;
/// `VDISK_READONLY` in the `info` key.
pub const VDISK_READONLY: u32 = 4;

/// `struct blkif_request_segment`: sectors `first_sect..=last_sect` of one granted page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequestSegment {
    /// The page.
    pub gref: u32,
    /// First 512-byte sector in it, 0..=7.
    pub first_sect: u8,
    /// Last sector in it, inclusive.
    pub last_sect: u8,
    /// Unused.
    pub pad: u16,
}

/// `struct blkif_request` for 64-bit guests.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequest64 {
    /// `BLKIF_OP_*`.
    pub operation: u8,
    /// Valid entries of `seg`.
    pub nr_segments: u8,
    /// `virtual-device` of the frontend.
    pub handle: u16,
    /// Unused.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector on the disk, in 512-byte units.
    pub sector_number: u64,
    /// The pages.
    pub seg: [BlkifRequestSegment; MAX_SEGMENTS],
}

/// `struct blkif_request` for 32-bit x86 guests; `id` and `sector_number` stand in halves, low first.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequest32 {
    /// `BLKIF_OP_*`.
    pub operation: u8,
    /// Valid entries of `seg`.
    pub nr_segments: u8,
    /// `virtual-device` of the frontend.
    pub handle: u16,
    /// Echoed in the response.
    pub id: [u32; 2],
    /// First sector on the disk, in 512-byte units.
    pub sector_number: [u32; 2],
    /// The pages.
    pub seg: [BlkifRequestSegment; MAX_SEGMENTS],
}

/// `struct blkif_request_discard` for 64-bit guests.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequestDiscard64 {
    /// `BLKIF_OP_DISCARD`.
    pub operation: u8,
    /// Bit 0: secure.
    pub flag: u8,
    /// `virtual-device` of the frontend.
    pub handle: u16,
    /// Unused.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector.
    pub sector_number: u64,
    /// Sectors.
    pub nr_sectors: u64,
}

/// `struct blkif_request_discard` for 32-bit x86 guests.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequestDiscard32 {
    /// `BLKIF_OP_DISCARD`.
    pub operation: u8,
    /// Bit 0: secure.
    pub flag: u8,
    /// `virtual-device` of the frontend.
    pub handle: u16,
    /// Echoed in the response.
    pub id: [u32; 2],
    /// First sector.
    pub sector_number: [u32; 2],
    /// Sectors.
    pub nr_sectors: [u32; 2],
}

/// `struct blkif_request_indirect` for 64-bit guests.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequestIndirect64 {
    /// `BLKIF_OP_INDIRECT`.
    pub operation: u8,
    /// `BLKIF_OP_READ` or `BLKIF_OP_WRITE`.
    pub indirect_op: u8,
    /// Segments, on all indirect pages together.
    pub nr_segments: u16,
    /// Unused.
    pub pad: u32,
    /// Echoed in the response.
    pub id: u64,
    /// First sector on the disk.
    pub sector_number: u64,
    /// `virtual-device` of the frontend.
    pub handle: u16,
    /// Unused.
    pub pad2: u16,
    /// Pages full of [`BlkifRequestSegment`].
    pub indirect_grefs: [u32; MAX_INDIRECT_PAGES],
    /// To the alignment of the union.
    pub pad3: u32,
}

/// `struct blkif_request_indirect` for 32-bit x86 guests.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifRequestIndirect32 {
    /// `BLKIF_OP_INDIRECT`.
    pub operation: u8,
    /// `BLKIF_OP_READ` or `BLKIF_OP_WRITE`.
    pub indirect_op: u8,
    /// Segments, on all indirect pages together.
    pub nr_segments: u16,
    /// Echoed in the response.
    pub id: [u32; 2],
    /// First sector on the disk.
    pub sector_number: [u32; 2],
    /// `virtual-device` of the frontend.
    pub handle: u16,
    /// Unused.
    pub pad: u16,
    /// Pages full of [`BlkifRequestSegment`].
    pub indirect_grefs: [u32; MAX_INDIRECT_PAGES],
}

/// `struct blkif_response` for 64-bit guests; the padding is a field, so that it goes out as zeros (XSA-216).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifResponse64 {
    /// From the request.
    pub id: u64,
    /// The operation; for an indirect request the inner one.
    pub operation: u8,
    /// Zero.
    pub pad: u8,
    /// `BLKIF_RSP_*`.
    pub status: i16,
    /// Zero.
    pub pad2: u32,
}

/// `struct blkif_response` for 32-bit x86 guests.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkifResponse32 {
    /// From the request, in halves, low first.
    pub id: [u32; 2],
    /// The operation; for an indirect request the inner one.
    pub operation: u8,
    /// Zero.
    pub pad: u8,
    /// `BLKIF_RSP_*`.
    pub status: i16,
}

const _: () = assert!(size_of::<BlkifRequestSegment>() == 8);
const _: () = assert!(size_of::<BlkifRequest64>() == 112 && size_of::<BlkifRequest32>() == 108);
const _: () = assert!(size_of::<BlkifRequestDiscard64>() == 32 && size_of::<BlkifRequestDiscard32>() == 28);
const _: () = assert!(size_of::<BlkifRequestIndirect64>() == 64 && size_of::<BlkifRequestIndirect32>() == 56);
const _: () = assert!(size_of::<BlkifResponse64>() == 16 && size_of::<BlkifResponse32>() == 12);

/// A guest's layout, from its `protocol` key (`io/protocols.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Abi {
    /// `x86_64-abi`.
    X86_64,
    /// `x86_32-abi`, and what a missing key means.
    X86_32,
}

impl Abi {
    /// The value of the `protocol` key.
    pub fn protocol(self) -> &'static str {
        match self {
            Abi::X86_64 => "x86_64-abi",
            Abi::X86_32 => "x86_32-abi",
        }
    }

    /// From the value of the `protocol` key.
    pub fn from_protocol(protocol: &str) -> Option<Abi> {
        match protocol {
            "x86_64-abi" => Some(Abi::X86_64),
            "x86_32-abi" => Some(Abi::X86_32),
            _ => None,
        }
    }

    /// Bytes in a ring slot: the larger of request and response.
    pub fn slot_size(self) -> usize {
        match self {
            Abi::X86_64 => size_of::<BlkifRequest64>(),
            Abi::X86_32 => size_of::<BlkifRequest32>(),
        }
    }

    /// Bytes of a response in this layout.
    pub fn response_len(self) -> usize {
        match self {
            Abi::X86_64 => size_of::<BlkifResponse64>(),
            Abi::X86_32 => size_of::<BlkifResponse32>(),
        }
    }
}

/// A response as words; the first [`Abi::response_len`] bytes of it count.
#[inline]
pub fn response(id: u64, operation: u8, status: i16) -> [u64; 2] {
    [id, u64::from(operation) | u64::from(status as u16) << 16]
}

//! What goes into a ring slot and what comes out of it, in both ABIs. Nothing here is checked: a frontend may say
//! what it likes, and the hostile tests do.

use blkback::proto::{
    Abi, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, BlkifRequest32, BlkifRequest64, BlkifRequestDiscard32,
    BlkifRequestDiscard64, BlkifRequestIndirect32, BlkifRequestIndirect64, BlkifRequestSegment, MAX_INDIRECT_PAGES,
    MAX_SEGMENTS,
};
use zerocopy::IntoBytes;

/// Bytes of the largest request.
const LARGEST: usize = size_of::<BlkifRequest64>();

/// The bytes of one ring slot.
#[derive(Clone, Copy)]
pub struct Encoded {
    bytes: [u8; LARGEST],
    len: usize,
}

impl Encoded {
    fn new(request: &(impl IntoBytes + zerocopy::Immutable)) -> Encoded {
        let from = request.as_bytes();
        let mut bytes = [0; LARGEST];
        bytes[..from.len()].copy_from_slice(from);
        Encoded { bytes, len: from.len() }
    }

    /// As long as the structure is in its ABI.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Puts requests into the words of one frontend.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    /// The layout.
    pub abi: Abi,
    /// `handle` of every request.
    pub handle: u16,
}

impl Encoder {
    /// A request with its segments in the slot: read, write, barrier or flush. Segments past the eleventh are cut.
    pub fn direct(self, operation: u8, id: u64, sector: u64, segments: &[BlkifRequestSegment]) -> Encoded {
        let count = segments.len().min(MAX_SEGMENTS);
        let mut seg = [BlkifRequestSegment::default(); MAX_SEGMENTS];
        seg[..count].copy_from_slice(&segments[..count]);
        let (nr_segments, handle) = (count as u8, self.handle);
        match self.abi {
            Abi::X86_64 => {
                Encoded::new(&BlkifRequest64 { operation, nr_segments, handle, pad: 0, id, sector_number: sector, seg })
            }
            Abi::X86_32 => Encoded::new(&BlkifRequest32 {
                operation,
                nr_segments,
                handle,
                id: halves(id),
                sector_number: halves(sector),
                seg,
            }),
        }
    }

    /// A read or write whose `nr_segments` segments stand in pages of their own.
    pub fn indirect(
        self,
        indirect_op: u8,
        id: u64,
        sector: u64,
        nr_segments: u16,
        indirect_grefs: [u32; MAX_INDIRECT_PAGES],
    ) -> Encoded {
        let (operation, handle) = (BLKIF_OP_INDIRECT, self.handle);
        match self.abi {
            Abi::X86_64 => Encoded::new(&BlkifRequestIndirect64 {
                operation,
                indirect_op,
                nr_segments,
                pad: 0,
                id,
                sector_number: sector,
                handle,
                pad2: 0,
                indirect_grefs,
                pad3: 0,
            }),
            Abi::X86_32 => Encoded::new(&BlkifRequestIndirect32 {
                operation,
                indirect_op,
                nr_segments,
                id: halves(id),
                sector_number: halves(sector),
                handle,
                pad: 0,
                indirect_grefs,
            }),
        }
    }

    /// A discard of `sectors` sectors.
    pub fn discard(self, id: u64, sector: u64, sectors: u64, secure: bool) -> Encoded {
        let (operation, flag, handle) = (BLKIF_OP_DISCARD, u8::from(secure), self.handle);
        match self.abi {
            Abi::X86_64 => Encoded::new(&BlkifRequestDiscard64 {
                operation,
                flag,
                handle,
                pad: 0,
                id,
                sector_number: sector,
                nr_sectors: sectors,
            }),
            Abi::X86_32 => Encoded::new(&BlkifRequestDiscard32 {
                operation,
                flag,
                handle,
                id: halves(id),
                sector_number: halves(sector),
                nr_sectors: halves(sectors),
            }),
        }
    }
}

/// Low half first.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// A response as the backend wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// From the request.
    pub id: u64,
    /// `BLKIF_OP_*`; of an indirect request the inner one.
    pub operation: u8,
    /// `BLKIF_RSP_*`.
    pub status: i16,
}

impl Response {
    /// Bytes that count, in both ABIs; what follows in the longer one is padding.
    pub const LEN: usize = 12;

    /// Takes the fields out: they stand at the same places in both ABIs.
    pub fn parse(bytes: &[u8; Response::LEN]) -> Response {
        let [a, b, c, d, e, f, g, h, operation, _, low, high] = *bytes;
        Response {
            id: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            operation,
            status: i16::from_le_bytes([low, high]),
        }
    }
}

#[cfg(test)]
mod tests {
    use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE};

    use super::*;

    const ID: u64 = 0x1122_3344_5566_7788;
    const SECTOR: u64 = 0x0102_0304_0506_0708;

    fn segments(count: u32) -> Vec<BlkifRequestSegment> {
        let segment = |gref| BlkifRequestSegment { gref, first_sect: 1, last_sect: 6, pad: 0 };
        (0..count).map(segment).collect()
    }

    fn encoder(abi: Abi) -> Encoder {
        Encoder { abi, handle: 0xCA00 }
    }

    #[test]
    fn a_read_has_its_fields_where_the_header_says() {
        for (abi, len, id, sector, seg) in [(Abi::X86_64, 112, 8, 16, 24), (Abi::X86_32, 108, 4, 12, 20)] {
            let encoded = encoder(abi).direct(BLKIF_OP_READ, ID, SECTOR, &segments(2));
            let bytes = encoded.bytes();
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes[..4], [BLKIF_OP_READ, 2, 0x00, 0xCA]);
            assert_eq!(bytes[id..id + 8], ID.to_le_bytes());
            assert_eq!(bytes[sector..sector + 8], SECTOR.to_le_bytes());
            assert_eq!(bytes[seg + 8..seg + 16], [1, 0, 0, 0, 1, 6, 0, 0]);
        }
    }

    #[test]
    fn an_indirect_write_has_its_fields_where_the_header_says() {
        for (abi, len, id, handle) in [(Abi::X86_64, 64, 8, 24), (Abi::X86_32, 56, 4, 20)] {
            let encoded = encoder(abi).indirect(BLKIF_OP_WRITE, ID, SECTOR, 0x0203, [9; 8]);
            let bytes = encoded.bytes();
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes[..4], [BLKIF_OP_INDIRECT, BLKIF_OP_WRITE, 0x03, 0x02]);
            assert_eq!(bytes[id..id + 8], ID.to_le_bytes());
            assert_eq!(bytes[handle..handle + 2], [0x00, 0xCA]);
            assert_eq!(bytes[handle + 4..handle + 8], [9, 0, 0, 0]);
        }
    }

    #[test]
    fn a_discard_has_its_fields_where_the_header_says() {
        for (abi, len, id, count) in [(Abi::X86_64, 32, 8, 24), (Abi::X86_32, 28, 4, 20)] {
            let encoded = encoder(abi).discard(ID, SECTOR, 77, true);
            let bytes = encoded.bytes();
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes[..4], [BLKIF_OP_DISCARD, 1, 0x00, 0xCA]);
            assert_eq!(bytes[id..id + 8], ID.to_le_bytes());
            assert_eq!(bytes[count..count + 8], 77u64.to_le_bytes());
        }
    }

    #[test]
    fn a_response_is_read_in_both_layouts() {
        let words = blkback::proto::response(ID, BLKIF_OP_WRITE, -2);
        let mut short = [0; Response::LEN];
        short.copy_from_slice(&words.as_bytes()[..Response::LEN]);
        let expected = Response { id: ID, operation: BLKIF_OP_WRITE, status: -2 };
        assert_eq!(Response::parse(&short), expected);
    }
}

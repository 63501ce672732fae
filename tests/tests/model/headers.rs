//! `wire.rs` against the header itself.

use blkback::proto::Abi;
use tests::headers::{Layout, Probe};

use crate::wire::{
    BARRIER, DIRECT, DISCARD, ERROR, FLUSH, INDIRECT, OKAY, READ, SEGMENT, Segment, UNSUPPORTED, WRITE, offsets,
};

#[test]
fn the_offsets_and_numbers_are_the_header_s() {
    const HEADERS: [&str; 4] = ["xen/xen.h", "xen/grant_table.h", "xen/io/ring.h", "xen/io/blkif.h"];
    for (abi, layout) in [(Abi::X86_64, Layout::Native), (Abi::X86_32, Layout::I386)] {
        let mut probe = Probe::new(layout, &HEADERS);
        let offsets = offsets(abi);
        probe.size("struct blkif_request", offsets.slot);
        for of in ["struct blkif_request", "struct blkif_request_discard", "struct blkif_request_indirect"] {
            probe.offset(of, "operation", 0);
            probe.offset(of, "id", offsets.id);
            probe.offset(of, "sector_number", offsets.sector);
        }
        probe.offset("struct blkif_request", "nr_segments", 1);
        probe.offset("struct blkif_request", "seg", offsets.rest);
        probe.offset("struct blkif_request_discard", "nr_sectors", offsets.rest);
        probe.offset("struct blkif_request_indirect", "indirect_op", 1);
        probe.offset("struct blkif_request_indirect", "nr_segments", 2);
        probe.offset("struct blkif_request_indirect", "indirect_grefs", offsets.indirect_grefs);
        probe.size("struct blkif_response", offsets.response);
        probe.offset("struct blkif_response", "operation", 8);
        probe.offset("struct blkif_response", "status", 10);
        let segment = "struct blkif_request_segment";
        probe.size(segment, SEGMENT);
        probe.bytes(segment, "it.gref = 0x1234; it.first_sect = 5; it.last_sect = 6;", &{
            Segment { gref: 0x1234, first: 5, last: 6 }.bytes()
        });
        probe.value("BLKIF_MAX_SEGMENTS_PER_REQUEST", DIRECT as i128);
        for (name, ours) in [
            ("READ", READ),
            ("WRITE", WRITE),
            ("WRITE_BARRIER", BARRIER),
            ("FLUSH_DISKCACHE", FLUSH),
            ("DISCARD", DISCARD),
            ("INDIRECT", INDIRECT),
        ] {
            probe.value(&format!("BLKIF_OP_{name}"), ours);
        }
        for (name, ours) in [("OKAY", OKAY), ("ERROR", ERROR), ("EOPNOTSUPP", UNSUPPORTED)] {
            probe.value(&format!("BLKIF_RSP_{name}"), ours);
        }
        probe.check();
    }
}

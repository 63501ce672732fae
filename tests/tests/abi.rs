//! Our numbers and layouts are those of the C headers (DESIGN, rule 13): linux-libc-dev for the ioctls, libxen-dev
//! for what is shared with other domains, both ABIs.

use std::mem::offset_of;

use blkback::proto;
use grant::ring;
use grant::xen::abi::{self, PlainIoctl};
use tests::headers::{Layout, Probe};
use zerocopy::IntoBytes;

/// Compares a structure: its size, and the offset of each field (C's name => ours).
macro_rules! structure {
    ($probe:expr, $c:literal, $ours:ty, { $($c_field:literal => $field:ident),* $(,)? }) => {
        $probe.size($c, size_of::<$ours>());
        $($probe.offset($c, $c_field, offset_of!($ours, $field));)*
    };
}

/// Linux' headers need Xen's types first.
const DEVICES: [&str; 6] =
    ["xen/event_channel.h", "xen/xen.h", "xen/grant_table.h", "xen/gntdev.h", "xen/gntalloc.h", "xen/evtchn.h"];

#[test]
fn gntdev_is_what_the_header_says() {
    let mut probe = Probe::new(Layout::Native, &DEVICES);
    probe.value("IOCTL_GNTDEV_MAP_GRANT_REF", abi::GNTDEV_MAP_GRANT_REF);
    probe.value("IOCTL_GNTDEV_UNMAP_GRANT_REF", abi::GntdevUnmapGrantRef::NUMBER);
    probe.value("IOCTL_GNTDEV_GRANT_COPY", abi::GNTDEV_GRANT_COPY);
    structure!(probe, "struct ioctl_gntdev_grant_ref", abi::GntdevGrantRef, {
        "domid" => domid, "ref" => gref,
    });
    structure!(probe, "struct ioctl_gntdev_map_grant_ref", abi::GntdevMapGrantRef<1>, {
        "count" => count, "index" => index, "refs" => refs,
    });
    structure!(probe, "struct ioctl_gntdev_unmap_grant_ref", abi::GntdevUnmapGrantRef, {
        "index" => index, "count" => count,
    });
    structure!(probe, "struct ioctl_gntdev_grant_copy", abi::GntdevGrantCopy, {
        "count" => count, "segments" => segments,
    });
    structure!(probe, "struct gntdev_grant_copy_segment", abi::GntdevGrantCopySegment, {
        "source" => source, "dest" => dest, "len" => len, "flags" => flags, "status" => status,
    });
    let foreign = [
        ("ref", offset_of!(abi::GntdevForeign, gref)),
        ("offset", offset_of!(abi::GntdevForeign, offset)),
        ("domid", offset_of!(abi::GntdevForeign, domid)),
    ];
    for (field, ours) in foreign {
        let at = offset_of!(abi::GntdevGrantCopySegment, dest) + ours;
        probe.offset("struct gntdev_grant_copy_segment", &format!("dest.foreign.{field}"), at);
    }
    probe.value("GNTCOPY_source_gref", abi::GNTCOPY_SOURCE_GREF);
    probe.value("GNTCOPY_dest_gref", abi::GNTCOPY_DEST_GREF);
    probe.check();
}

#[test]
fn discards_of_block_devices_are_what_the_header_says() {
    let mut probe = Probe::new(Layout::Native, &["linux/fs.h"]);
    probe.value("BLKDISCARD", grant::blockdev::BLKDISCARD);
    probe.value("BLKSECDISCARD", grant::blockdev::BLKSECDISCARD);
    probe.check();
}

#[test]
fn gntalloc_is_what_the_header_says() {
    let mut probe = Probe::new(Layout::Native, &DEVICES);
    probe.value("IOCTL_GNTALLOC_ALLOC_GREF", abi::GNTALLOC_ALLOC_GREF);
    probe.value("IOCTL_GNTALLOC_DEALLOC_GREF", abi::GntallocDeallocGref::NUMBER);
    probe.value("GNTALLOC_FLAG_WRITABLE", abi::GNTALLOC_FLAG_WRITABLE);
    structure!(probe, "struct ioctl_gntalloc_alloc_gref", abi::GntallocAllocGref<1>, {
        "domid" => domid, "flags" => flags, "count" => count, "index" => index, "gref_ids" => gref_ids,
    });
    structure!(probe, "struct ioctl_gntalloc_dealloc_gref", abi::GntallocDeallocGref, {
        "index" => index, "count" => count,
    });
    probe.check();
}

#[test]
fn evtchn_is_what_the_header_says() {
    let mut probe = Probe::new(Layout::Native, &DEVICES);
    probe.value("IOCTL_EVTCHN_BIND_INTERDOMAIN", abi::EvtchnBindInterdomain::NUMBER);
    probe.value("IOCTL_EVTCHN_BIND_UNBOUND_PORT", abi::EvtchnBindUnboundPort::NUMBER);
    probe.value("IOCTL_EVTCHN_UNBIND", abi::EvtchnUnbind::NUMBER);
    probe.value("IOCTL_EVTCHN_NOTIFY", abi::EvtchnNotify::NUMBER);
    probe.value("IOCTL_EVTCHN_RESTRICT_DOMID", abi::EvtchnRestrictDomid::NUMBER);
    structure!(probe, "struct ioctl_evtchn_bind_interdomain", abi::EvtchnBindInterdomain, {
        "remote_domain" => remote_domain, "remote_port" => remote_port,
    });
    structure!(probe, "struct ioctl_evtchn_bind_unbound_port", abi::EvtchnBindUnboundPort, {
        "remote_domain" => remote_domain,
    });
    structure!(probe, "struct ioctl_evtchn_unbind", abi::EvtchnUnbind, { "port" => port });
    structure!(probe, "struct ioctl_evtchn_notify", abi::EvtchnNotify, { "port" => port });
    structure!(probe, "struct ioctl_evtchn_restrict_domid", abi::EvtchnRestrictDomid, { "domid" => domid });
    probe.size("evtchn_port_t", size_of::<grant::Port>());
    probe.size("domid_t", size_of::<grant::DomId>());
    probe.size("grant_ref_t", size_of::<grant::GrantRef>());
    probe.check();
}

#[test]
fn grant_tables_are_what_the_header_says() {
    for layout in [Layout::Native, Layout::I386] {
        let mut probe = Probe::new(layout, &["xen/xen.h", "xen/grant_table.h"]);
        structure!(probe, "struct grant_entry_v1", abi::GrantEntryV1, {
            "flags" => flags, "domid" => domid, "frame" => frame,
        });
        probe.value("GTF_permit_access", abi::GTF_PERMIT_ACCESS);
        probe.value("GTF_type_mask", abi::GTF_TYPE_MASK);
        probe.value("GTF_readonly", abi::GTF_READONLY);
        probe.value("GTF_reading", abi::GTF_READING);
        probe.value("GTF_writing", abi::GTF_WRITING);
        probe.value("GNTTAB_NR_RESERVED_ENTRIES", abi::GNTTAB_NR_RESERVED_ENTRIES);
        probe.value("GNTST_okay", grant::GrantStatus::OKAY.0);
        probe.value("GNTST_general_error", grant::GrantStatus::GENERAL_ERROR.0);
        probe.value("GNTST_bad_gntref", grant::GrantStatus::BAD_GNTREF.0);
        probe.value("GNTST_permission_denied", grant::GrantStatus::PERMISSION_DENIED.0);
        probe.check();
    }
}

const BLKIF: [&str; 6] =
    ["xen/xen.h", "xen/grant_table.h", "xen/io/ring.h", "xen/io/blkif.h", "xen/io/protocols.h", "xen/io/xenbus.h"];

#[test]
fn blkif_constants_are_what_the_header_says() {
    let mut probe = Probe::new(Layout::Native, &BLKIF);
    probe.value("BLKIF_OP_READ", proto::BLKIF_OP_READ);
    probe.value("BLKIF_OP_WRITE", proto::BLKIF_OP_WRITE);
    probe.value("BLKIF_OP_WRITE_BARRIER", proto::BLKIF_OP_WRITE_BARRIER);
    probe.value("BLKIF_OP_FLUSH_DISKCACHE", proto::BLKIF_OP_FLUSH_DISKCACHE);
    probe.value("BLKIF_OP_DISCARD", proto::BLKIF_OP_DISCARD);
    probe.value("BLKIF_OP_INDIRECT", proto::BLKIF_OP_INDIRECT);
    probe.value("BLKIF_DISCARD_SECURE", proto::BLKIF_DISCARD_SECURE);
    probe.value("BLKIF_RSP_OKAY", proto::BLKIF_RSP_OKAY);
    probe.value("BLKIF_RSP_ERROR", proto::BLKIF_RSP_ERROR);
    probe.value("BLKIF_RSP_EOPNOTSUPP", proto::BLKIF_RSP_EOPNOTSUPP);
    probe.value("BLKIF_MAX_SEGMENTS_PER_REQUEST", proto::MAX_SEGMENTS as i128);
    probe.value("BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST", proto::MAX_INDIRECT_PAGES as i128);
    probe.value("VDISK_CDROM", proto::VDISK_CDROM);
    probe.value("VDISK_REMOVABLE", proto::VDISK_REMOVABLE);
    probe.value("VDISK_READONLY", proto::VDISK_READONLY);
    probe.text("XEN_IO_PROTO_ABI_X86_64", proto::Abi::X86_64.protocol());
    probe.text("XEN_IO_PROTO_ABI_X86_32", proto::Abi::X86_32.protocol());
    probe.check();
}

#[test]
fn blkif_of_64_bit_guests_is_what_the_header_says() {
    let mut probe = Probe::new(Layout::Native, &BLKIF);
    structure!(probe, "struct blkif_request_segment", proto::BlkifRequestSegment, {
        "gref" => gref, "first_sect" => first_sect, "last_sect" => last_sect,
    });
    structure!(probe, "struct blkif_request", proto::BlkifRequest64, {
        "operation" => operation, "nr_segments" => nr_segments, "handle" => handle, "id" => id,
        "sector_number" => sector_number, "seg" => seg,
    });
    structure!(probe, "struct blkif_request_discard", proto::BlkifRequestDiscard64, {
        "operation" => operation, "flag" => flag, "handle" => handle, "id" => id,
        "sector_number" => sector_number, "nr_sectors" => nr_sectors,
    });
    structure!(probe, "struct blkif_request_indirect", proto::BlkifRequestIndirect64, {
        "operation" => operation, "indirect_op" => indirect_op, "nr_segments" => nr_segments, "id" => id,
        "sector_number" => sector_number, "handle" => handle, "indirect_grefs" => indirect_grefs,
    });
    structure!(probe, "struct blkif_response", proto::BlkifResponse64, {
        "id" => id, "operation" => operation, "status" => status,
    });
    ring_is_what_the_header_says(&mut probe, proto::Abi::X86_64);
    golden_blkif_bytes(&mut probe, proto::Abi::X86_64);
    probe.check();
}

#[test]
fn blkif_of_32_bit_guests_is_what_the_header_says() {
    let mut probe = Probe::new(Layout::I386, &BLKIF);
    structure!(probe, "struct blkif_request", proto::BlkifRequest32, {
        "operation" => operation, "nr_segments" => nr_segments, "handle" => handle, "id" => id,
        "sector_number" => sector_number, "seg" => seg,
    });
    structure!(probe, "struct blkif_request_discard", proto::BlkifRequestDiscard32, {
        "operation" => operation, "flag" => flag, "handle" => handle, "id" => id,
        "sector_number" => sector_number, "nr_sectors" => nr_sectors,
    });
    // A real i386 compiler adds 8 bytes of padding at the end, which nobody reads and no slot is sized by.
    structure!(probe, "struct blkif_request_indirect", proto::BlkifRequestIndirect32, {
        "operation" => operation, "indirect_op" => indirect_op, "nr_segments" => nr_segments, "id" => id,
        "sector_number" => sector_number, "handle" => handle, "indirect_grefs" => indirect_grefs,
    });
    structure!(probe, "struct blkif_response", proto::BlkifResponse32, {
        "id" => id, "operation" => operation, "status" => status,
    });
    ring_is_what_the_header_says(&mut probe, proto::Abi::X86_32);
    golden_blkif_bytes(&mut probe, proto::Abi::X86_32);
    probe.check();
}

/// The ring's head, its slots, and how many of them each order has.
fn ring_is_what_the_header_says(probe: &mut Probe, abi: proto::Abi) {
    for (field, ours) in [("req_prod", 0), ("req_event", 4), ("rsp_prod", 8), ("rsp_event", 12)] {
        probe.offset("struct blkif_sring", field, ours);
    }
    probe.offset("struct blkif_sring", "ring", ring::SLOTS_AT);
    probe.size("union blkif_sring_entry", abi.slot_size());
    for order in 0..=4 {
        let pages = 1 << order;
        let c = format!("__CONST_RING_SIZE(blkif, {})", pages * grant::PAGE_SIZE);
        probe.value(&c, ring::entries(pages, abi.slot_size()));
    }
}

/// Every message with every field set, byte by byte.
fn golden_blkif_bytes(probe: &mut Probe, abi: proto::Abi) {
    const ID: u64 = 0x8877_6655_4433_2211;
    const SECTOR: u64 = 0x0102_0304_0506_0708;
    let halves = |value: u64| [value as u32, (value >> 32) as u32];
    let segment = |gref: u32| proto::BlkifRequestSegment { gref, first_sect: 1, last_sect: 7, pad: 0 };
    let seg: [_; proto::MAX_SEGMENTS] = std::array::from_fn(|index| segment(0x1000 + index as u32));
    let indirect_grefs: [u32; proto::MAX_INDIRECT_PAGES] = std::array::from_fn(|index| 0x2000 + index as u32);

    let request = "it.operation = BLKIF_OP_WRITE; it.nr_segments = 11; it.handle = 0xca00; \
        it.id = 0x8877665544332211; it.sector_number = 0x0102030405060708; \
        for (int s = 0; s < 11; s++) { it.seg[s].gref = 0x1000 + s; it.seg[s].first_sect = 1; it.seg[s].last_sect = 7; }";
    let discard = "it.operation = BLKIF_OP_DISCARD; it.flag = BLKIF_DISCARD_SECURE; it.handle = 0xca00; \
        it.id = 0x8877665544332211; it.sector_number = 0x0102030405060708; it.nr_sectors = 0x0102030405060708;";
    let indirect = "it.operation = BLKIF_OP_INDIRECT; it.indirect_op = BLKIF_OP_READ; it.nr_segments = 4096; \
        it.handle = 0xca00; it.id = 0x8877665544332211; it.sector_number = 0x0102030405060708; \
        for (int s = 0; s < 8; s++) it.indirect_grefs[s] = 0x2000 + s;";
    let response = "it.id = 0x8877665544332211; it.operation = BLKIF_OP_WRITE; it.status = BLKIF_RSP_EOPNOTSUPP;";

    let (operation, handle) = (proto::BLKIF_OP_WRITE, 0xca00);
    let ours: [Vec<u8>; 3] = match abi {
        proto::Abi::X86_64 => [
            proto::BlkifRequest64 { operation, nr_segments: 11, handle, pad: 0, id: ID, sector_number: SECTOR, seg }
                .as_bytes()
                .to_vec(),
            proto::BlkifRequestDiscard64 {
                operation: proto::BLKIF_OP_DISCARD,
                flag: 1,
                handle,
                pad: 0,
                id: ID,
                sector_number: SECTOR,
                nr_sectors: SECTOR,
            }
            .as_bytes()
            .to_vec(),
            proto::BlkifRequestIndirect64 {
                operation: proto::BLKIF_OP_INDIRECT,
                indirect_op: proto::BLKIF_OP_READ,
                nr_segments: 4096,
                id: ID,
                sector_number: SECTOR,
                handle,
                indirect_grefs,
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
        ],
        proto::Abi::X86_32 => [
            proto::BlkifRequest32 {
                operation,
                nr_segments: 11,
                handle,
                id: halves(ID),
                sector_number: halves(SECTOR),
                seg,
            }
            .as_bytes()
            .to_vec(),
            proto::BlkifRequestDiscard32 {
                operation: proto::BLKIF_OP_DISCARD,
                flag: 1,
                handle,
                id: halves(ID),
                sector_number: halves(SECTOR),
                nr_sectors: halves(SECTOR),
            }
            .as_bytes()
            .to_vec(),
            proto::BlkifRequestIndirect32 {
                operation: proto::BLKIF_OP_INDIRECT,
                indirect_op: proto::BLKIF_OP_READ,
                nr_segments: 4096,
                id: halves(ID),
                sector_number: halves(SECTOR),
                handle,
                indirect_grefs,
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
        ],
    };
    probe.bytes("struct blkif_request", request, &ours[0]);
    probe.bytes("struct blkif_request_discard", discard, &ours[1]);
    probe.bytes("struct blkif_request_indirect", indirect, &ours[2]);
    let words = proto::response(ID, operation, proto::BLKIF_RSP_EOPNOTSUPP);
    probe.bytes("struct blkif_response", response, &words.as_bytes()[..abi.response_len()]);
}

#[test]
#[should_panic(expected = "the header says 1, we say 2")]
fn difference_is_found_and_named() {
    let mut probe = Probe::new(Layout::Native, &BLKIF);
    probe.value("BLKIF_OP_WRITE", 2);
    probe.check();
}

#[test]
#[should_panic(expected = "apt-get install")]
fn missing_header_says_what_to_install() {
    let mut probe = Probe::new(Layout::Native, &["xen/no-such-header.h"]);
    probe.value("1", 1);
    probe.check();
}

#[test]
fn netif_is_what_the_header_says() {
    use netback::proto as net;
    let mut probe =
        Probe::new(Layout::Native, &["xen/xen.h", "xen/event_channel.h", "xen/grant_table.h", "xen/io/netif.h"]);
    structure!(probe, "struct netif_tx_request", net::NetifTxRequest, {
        "gref" => gref, "offset" => offset, "flags" => flags, "id" => id, "size" => size,
    });
    structure!(probe, "struct netif_extra_info", net::NetifExtraInfo, { "type" => kind, "flags" => flags, "u" => body });
    structure!(probe, "struct netif_tx_response", net::NetifTxResponse, { "id" => id, "status" => status });
    structure!(probe, "struct netif_rx_request", net::NetifRxRequest, { "id" => id, "gref" => gref });
    structure!(probe, "struct netif_rx_response", net::NetifRxResponse, {
        "id" => id, "offset" => offset, "flags" => flags, "status" => status,
    });
    structure!(probe, "struct xen_netif_ctrl_request", net::NetifCtrlRequest, { "id" => id, "type" => kind, "data" => data });
    structure!(probe, "struct xen_netif_ctrl_response", net::NetifCtrlResponse, {
        "id" => id, "type" => kind, "status" => status, "data" => data,
    });
    for (name, ours) in [
        ("XEN_NETIF_NR_SLOTS_MIN", net::NR_SLOTS_MIN as i128),
        ("XEN_NETIF_MAX_TX_SIZE", net::MAX_TX_SIZE as i128),
        ("NETTXF_csum_blank", net::NETTXF_CSUM_BLANK.into()),
        ("NETTXF_data_validated", net::NETTXF_DATA_VALIDATED.into()),
        ("NETTXF_more_data", net::NETTXF_MORE_DATA.into()),
        ("NETTXF_extra_info", net::NETTXF_EXTRA_INFO.into()),
        ("NETRXF_csum_blank", net::NETRXF_CSUM_BLANK.into()),
        ("NETRXF_data_validated", net::NETRXF_DATA_VALIDATED.into()),
        ("NETRXF_more_data", net::NETRXF_MORE_DATA.into()),
        ("NETRXF_extra_info", net::NETRXF_EXTRA_INFO.into()),
        ("XEN_NETIF_EXTRA_TYPE_GSO", net::EXTRA_TYPE_GSO.into()),
        ("XEN_NETIF_EXTRA_TYPE_MCAST_ADD", net::EXTRA_TYPE_MCAST_ADD.into()),
        ("XEN_NETIF_EXTRA_TYPE_MCAST_DEL", net::EXTRA_TYPE_MCAST_DEL.into()),
        ("XEN_NETIF_EXTRA_TYPE_HASH", net::EXTRA_TYPE_HASH.into()),
        ("XEN_NETIF_EXTRA_FLAG_MORE", net::EXTRA_FLAG_MORE.into()),
        ("XEN_NETIF_GSO_TYPE_TCPV4", net::GSO_TYPE_TCPV4.into()),
        ("XEN_NETIF_GSO_TYPE_TCPV6", net::GSO_TYPE_TCPV6.into()),
        ("XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS", net::CTRL_TYPE_GET_HASH_FLAGS.into()),
        ("XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS", net::CTRL_TYPE_SET_HASH_FLAGS.into()),
        ("XEN_NETIF_CTRL_TYPE_SET_HASH_KEY", net::CTRL_TYPE_SET_HASH_KEY.into()),
        ("XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE", net::CTRL_TYPE_GET_HASH_MAPPING_SIZE.into()),
        ("XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE", net::CTRL_TYPE_SET_HASH_MAPPING_SIZE.into()),
        ("XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING", net::CTRL_TYPE_SET_HASH_MAPPING.into()),
        ("XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM", net::CTRL_TYPE_SET_HASH_ALGORITHM.into()),
        ("XEN_NETIF_CTRL_STATUS_SUCCESS", net::CTRL_STATUS_SUCCESS.into()),
        ("XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED", net::CTRL_STATUS_NOT_SUPPORTED.into()),
        ("XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER", net::CTRL_STATUS_INVALID_PARAMETER.into()),
        ("XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW", net::CTRL_STATUS_BUFFER_OVERFLOW.into()),
        ("XEN_NETIF_CTRL_HASH_ALGORITHM_NONE", net::CTRL_HASH_ALGORITHM_NONE.into()),
        ("XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ", net::CTRL_HASH_ALGORITHM_TOEPLITZ.into()),
        ("_XEN_NETIF_CTRL_HASH_TYPE_IPV4", net::CTRL_HASH_TYPE_IPV4.into()),
        ("_XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP", net::CTRL_HASH_TYPE_IPV4_TCP.into()),
        ("_XEN_NETIF_CTRL_HASH_TYPE_IPV6", net::CTRL_HASH_TYPE_IPV6.into()),
        ("_XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP", net::CTRL_HASH_TYPE_IPV6_TCP.into()),
        ("NETIF_RSP_DROPPED", i128::from(net::NETIF_RSP_DROPPED)),
        ("NETIF_RSP_ERROR", net::NETIF_RSP_ERROR.into()),
        ("NETIF_RSP_OKAY", net::NETIF_RSP_OKAY.into()),
        ("NETIF_RSP_NULL", net::NETIF_RSP_NULL.into()),
    ] {
        probe.value(name, ours);
    }
    probe.check();
}

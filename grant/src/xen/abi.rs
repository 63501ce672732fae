//! Numbers and layouts of the Xen devices' ioctls, from Linux `include/uapi/xen/{gntdev,gntalloc,evtchn}.h` and
//! Xen `public/{grant_table,event_channel}.h`. `tests/tests/abi.rs` compares every one of them with the C headers.

use std::mem::size_of;

/// `_IOC(_IOC_NONE, kind, number, size)` (asm-generic/ioctl.h).
const fn ioc(kind: u8, number: u8, size: usize) -> u32 {
    ((size as u32) << 16) | ((kind as u32) << 8) | number as u32
}

/// An ioctl argument without pointers and without a variable tail.
pub trait PlainIoctl {
    /// The request number that takes this structure.
    const NUMBER: u32;
}

macro_rules! plain_ioctl {
    ($kind:literal, $number:literal, $name:ident, $size:literal) => {
        impl PlainIoctl for $name {
            const NUMBER: u32 = ioc($kind, $number, size_of::<$name>());
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

// gntdev.h

/// `struct ioctl_gntdev_grant_ref`: one grant to map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GntdevGrantRef {
    /// Who granted.
    pub domid: u32,
    /// What.
    pub gref: u32,
}

/// `struct ioctl_gntdev_map_grant_ref` with room for `N` references (the header says 1 and means `count`).
#[repr(C)]
#[derive(Clone, Debug)]
pub struct GntdevMapGrantRef<const N: usize> {
    /// References that follow.
    pub count: u32,
    /// Unused.
    pub pad: u32,
    /// Out: the offset for mmap.
    pub index: u64,
    /// In: what to map, in the order of the mapping.
    pub refs: [GntdevGrantRef; N],
}

/// `IOCTL_GNTDEV_MAP_GRANT_REF`.
pub const GNTDEV_MAP_GRANT_REF: u32 = ioc(b'G', 0, size_of::<GntdevMapGrantRef<1>>());
const _: () = assert!(size_of::<GntdevMapGrantRef<1>>() == 24);

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GntdevUnmapGrantRef {
    /// The offset that mapping returned.
    pub index: u64,
    /// Pages, exactly as many as were mapped.
    pub count: u32,
    /// Unused.
    pub pad: u32,
}
plain_ioctl!(b'G', 1, GntdevUnmapGrantRef, 16);

/// The foreign side of a grant copy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GntdevForeign {
    /// The peer's page.
    pub gref: u32,
    /// First byte in it.
    pub offset: u16,
    /// The peer.
    pub domid: u16,
}

/// One side of a grant copy: an address of ours or a place in a peer's page.
#[repr(C)]
#[derive(Clone, Copy)]
pub union GntdevCopySide {
    /// Local memory.
    pub virt: *mut libc::c_void,
    /// The peer's.
    pub foreign: GntdevForeign,
}

/// `struct gntdev_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GntdevGrantCopySegment {
    /// Where from.
    pub source: GntdevCopySide,
    /// Where to.
    pub dest: GntdevCopySide,
    /// Bytes.
    pub len: u16,
    /// [`GNTCOPY_SOURCE_GREF`] or [`GNTCOPY_DEST_GREF`].
    pub flags: u16,
    /// Out: `GNTST_*`.
    pub status: i16,
}
const _: () = assert!(size_of::<GntdevGrantCopySegment>() == 24);

/// `struct ioctl_gntdev_grant_copy`.
#[repr(C)]
pub struct GntdevGrantCopy {
    /// Segments.
    pub count: u32,
    /// The first of them.
    pub segments: *mut GntdevGrantCopySegment,
}

/// `IOCTL_GNTDEV_GRANT_COPY`.
pub const GNTDEV_GRANT_COPY: u32 = ioc(b'G', 8, size_of::<GntdevGrantCopy>());
const _: () = assert!(size_of::<GntdevGrantCopy>() == 16);

/// `GNTCOPY_source_gref` (grant_table.h): the source is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1;
/// `GNTCOPY_dest_gref`: the destination is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 2;

// gntalloc.h

/// `struct ioctl_gntalloc_alloc_gref` with room for `N` references (the header says 1 and means `count`).
#[repr(C)]
#[derive(Clone, Debug)]
pub struct GntallocAllocGref<const N: usize> {
    /// Who gets access.
    pub domid: u16,
    /// [`GNTALLOC_FLAG_WRITABLE`] or 0.
    pub flags: u16,
    /// Pages.
    pub count: u32,
    /// Out: the offset for mmap.
    pub index: u64,
    /// Out: one reference per page.
    pub gref_ids: [u32; N],
}

/// `IOCTL_GNTALLOC_ALLOC_GREF`.
pub const GNTALLOC_ALLOC_GREF: u32 = ioc(b'G', 5, size_of::<GntallocAllocGref<1>>());
const _: () = assert!(size_of::<GntallocAllocGref<1>>() == 24);

/// `GNTALLOC_FLAG_WRITABLE`: the peer may write.
pub const GNTALLOC_FLAG_WRITABLE: u16 = 1;

/// `struct ioctl_gntalloc_dealloc_gref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GntallocDeallocGref {
    /// The offset that allocating returned.
    pub index: u64,
    /// Pages.
    pub count: u32,
}
plain_ioctl!(b'G', 6, GntallocDeallocGref, 16);

// evtchn.h

/// `struct ioctl_evtchn_bind_interdomain`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EvtchnBindInterdomain {
    /// The peer.
    pub remote_domain: u32,
    /// The port that it allocated for us.
    pub remote_port: u32,
}
plain_ioctl!(b'E', 1, EvtchnBindInterdomain, 8);

/// `struct ioctl_evtchn_bind_unbound_port`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EvtchnBindUnboundPort {
    /// Who may bind to the new port.
    pub remote_domain: u32,
}
plain_ioctl!(b'E', 2, EvtchnBindUnboundPort, 4);

/// `struct ioctl_evtchn_unbind`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EvtchnUnbind {
    /// A port of ours.
    pub port: u32,
}
plain_ioctl!(b'E', 3, EvtchnUnbind, 4);

/// `struct ioctl_evtchn_notify`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EvtchnNotify {
    /// A port of ours.
    pub port: u32,
}
plain_ioctl!(b'E', 4, EvtchnNotify, 4);

/// `struct ioctl_evtchn_restrict_domid`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EvtchnRestrictDomid {
    /// The only domain this descriptor may bind to from now on.
    pub domid: u16,
}
plain_ioctl!(b'E', 6, EvtchnRestrictDomid, 2);

// grant_table.h, version 1: also the layout of the embedded world's grant tables.

/// `GTF_permit_access`: the only entry type we use.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// `GTF_type_mask`.
pub const GTF_TYPE_MASK: u16 = 3;
/// `GTF_readonly`: the peer may not write.
pub const GTF_READONLY: u16 = 1 << 2;
/// `GTF_reading`: somebody has it mapped.
pub const GTF_READING: u16 = 1 << 3;
/// `GTF_writing`: somebody has it mapped for writing.
pub const GTF_WRITING: u16 = 1 << 4;

/// `struct grant_entry_v1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GrantEntryV1 {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may use it.
    pub domid: u16,
    /// Which page.
    pub frame: u32,
}
const _: () = assert!(size_of::<GrantEntryV1>() == 8);

/// `GNTTAB_NR_RESERVED_ENTRIES`: the first references belong to the console and the store.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;

//! What a Xen backend or frontend shares with somebody else: pages, rings, event channels, and the
//! io_uring loop over them. The only crate of the workspace in which `unsafe` may stand.
//!
//! Two worlds give the same three traits their meaning, and nothing above this crate can tell which one
//! it runs on: [`xen`] speaks to gntdev, gntalloc and evtchn; [`embedded`] lets memfds and eventfds stand
//! in for them on any Linux machine. [`heap`] keeps everything in one process for unit tests and Miri.
//!
//! Rules of the crate (DESIGN, "Rules"):
//! 1. no Rust reference to memory a peer can write: [`pages::Pages`] copies plain data in and out;
//! 2. a request is copied once and the copy is validated;
//! 3. whoever submits owns: [`uring`] keeps memory mapped while the kernel may touch it.

pub mod arena;
pub mod blockdev;
pub mod caps;
pub mod embedded;
pub mod exchange;
pub mod heap;
pub mod journal;
pub mod memfd;
pub mod memory;
pub mod meter;
pub mod pages;
pub mod persistent;
pub mod reactor;
pub mod ring;
pub mod tap;
pub mod uring;
pub mod xen;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

pub use pages::{Pages, SharedMemory};

/// Bytes in a page: grants, rings and segments are counted in these (`XEN_PAGE_SIZE`, grant_table.h).
pub const PAGE_SIZE: usize = 4096;

/// A domain's number (`domid_t`, xen.h); 0 is dom0, values from 0x7FF0 are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomId(pub u16);

/// A grant reference (`grant_ref_t`, grant_table.h): an index into the granting domain's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, zerocopy::FromZeros)]
#[repr(transparent)]
pub struct GrantRef(pub u32);

/// An event channel port (`evtchn_port_t`, event_channel.h), local to one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u32);

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the holder of a grant may do with the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only (`GTF_readonly`, `GNTMAP_readonly`).
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Result of one element of a grant operation (`GNTST_*`, grant_table.h); 0 is success, the rest negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// `GNTST_okay`.
    pub const OKAY: GrantStatus = GrantStatus(0);
    /// `GNTST_general_error`.
    pub const GENERAL_ERROR: GrantStatus = GrantStatus(-1);
    /// `GNTST_bad_gntref`: no such grant, or not for us.
    pub const BAD_GNTREF: GrantStatus = GrantStatus(-3);
    /// `GNTST_permission_denied`: a write through a read-only grant.
    pub const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);

    /// True for `GNTST_okay`.
    pub fn is_okay(self) -> bool {
        self.0 == 0
    }
}

/// One element of a batched grant copy (`struct gntdev_grant_copy_segment`, gntdev.h).
///
/// The local side is given by region and offset, never by address, so that safe code cannot name memory it
/// does not own. A copy never crosses a page of the peer: `offset + len <= PAGE_SIZE`.
#[derive(Clone, Copy, Debug)]
pub struct CopySegment {
    /// The peer's page.
    pub gref: GrantRef,
    /// First byte in the peer's page.
    pub offset: u16,
    /// Bytes to copy, 1..=4096.
    pub len: u16,
    /// First byte in the local memory given to [`Grants::copy`].
    pub local: usize,
    /// Filled in by the call.
    pub status: GrantStatus,
}

/// Which way a batch of grant copies goes. One batch has one direction: gntdev keeps a single "writeable" mark
/// per batch (block.md F4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// From the peer's pages to ours (a guest's write).
    FromPeer,
    /// From ours to the peer's (a guest's read).
    ToPeer,
}

/// What a world counts as Xen would see it, whatever it really does: one per ioctl, plus what it carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantCounts {
    /// Calls that mapped (`IOCTL_GNTDEV_MAP_GRANT_REF` and its mmap).
    pub map_calls: u64,
    /// Pages mapped by them.
    pub pages_mapped: u64,
    /// Calls that unmapped.
    pub unmap_calls: u64,
    /// Pages unmapped.
    pub pages_unmapped: u64,
    /// Calls of `IOCTL_GNTDEV_GRANT_COPY`.
    pub copy_calls: u64,
    /// Segments they carried.
    pub segments_copied: u64,
}

/// Refuses a batch of copies that names bytes outside of a page of the peer or outside of `local`: gntdev fails
/// such a batch as a whole, so every world does.
pub(crate) fn check_copy(local: &Pages, segments: &[CopySegment]) -> io::Result<()> {
    let fits = |segment: &CopySegment| {
        let len = usize::from(segment.len);
        len != 0
            && usize::from(segment.offset) + len <= PAGE_SIZE
            && segment.local.checked_add(len).is_some_and(|end| end <= local.len())
    };
    if segments.iter().all(fits) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// A backend's way to the pages one peer granted to it. One value per peer and thread (one gntdev fd, so that
/// the kernel's per-fd lock and list stay short: block.md F3).
pub trait Grants: Send {
    /// Maps `refs` (at least 1, at most [`MAX_MAP`]) as one region whose pages stand in the order of `refs`.
    /// The region is unmapped when the value is dropped, or by [`SharedMemory::unmap`], which tells errors.
    ///
    /// # Errors
    /// One bad reference fails the whole call (gntdev does the same, block.md F2) and leaves nothing mapped.
    fn map(&mut self, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory>;

    /// Copies between `local` and the peer's pages; each segment gets its own status.
    ///
    /// # Errors
    /// `Err` means that every status is undefined and everything in the batch failed.
    fn copy(&mut self, direction: CopyDirection, local: &Pages, segments: &mut [CopySegment]) -> io::Result<()>;

    /// Counted since the value was made.
    fn counts(&self) -> GrantCounts;
}

/// Most references one [`Grants::map`] takes: a slab of the persistent-grant table, or the largest ring.
pub const MAX_MAP: usize = 256;

/// A frontend's way to give pages to a peer: on Xen through gntalloc, embedded from the guest's own memory.
pub trait GrantAccess: Send {
    /// Takes `count` zeroed pages and grants each of them to `peer`. `refs[i]` names page `i` of the memory.
    ///
    /// # Errors
    /// `ENOSPC` when the grant table or the memory is used up.
    fn grant(&mut self, peer: DomId, count: usize, access: Access) -> io::Result<Granted>;

    /// Ends the grants and takes the pages back.
    ///
    /// # Errors
    /// [`StillMapped`] with the grants when the peer still has any page mapped: nothing was ended, and the
    /// refusal is counted (a stock frontend without persistent grants gives up its disk over this).
    fn end(&mut self, granted: Granted) -> Result<(), StillMapped>;

    /// How often [`GrantAccess::end`] was refused.
    fn refusals(&self) -> u64;
}

/// Pages that we gave to a peer.
#[derive(Debug)]
pub struct Granted {
    /// One reference per page.
    pub refs: Vec<GrantRef>,
    /// The pages, mapped read-write here.
    pub memory: SharedMemory,
}

/// The peer still has a page of these grants mapped.
#[derive(Debug, thiserror::Error)]
#[error("the peer still maps one of {} granted pages", .0.refs.len())]
pub struct StillMapped(pub Granted);

/// Event channels of one thread: one file descriptor, many ports (`/dev/xen/evtchn`, evtchn.h).
///
/// A port that [`EventChannel::pending`] reported stays masked until it is given to
/// [`EventChannel::unmask`]; leaving it masked while busy is a free polling mode (block.md F10).
pub trait EventChannel: Send {
    /// Binds to `remote`, which the peer allocated for us; a bound port is pending once, so that nothing is missed.
    fn bind(&mut self, peer: DomId, remote: Port) -> io::Result<Port>;
    /// Allocates a port that `peer` may bind to.
    fn alloc_unbound(&mut self, peer: DomId) -> io::Result<Port>;
    /// Closes a port of ours.
    fn unbind(&mut self, port: Port) -> io::Result<()>;
    /// Tells the peer: one `EVTCHNOP_send`, never blocks.
    fn notify(&mut self, port: Port) -> io::Result<()>;
    /// Appends the ports that are pending now, at most [`MAX_PENDING`] a call; never waits.
    fn pending(&mut self, ports: &mut Vec<Port>) -> io::Result<()>;
    /// Lets the ports report again; one that was notified meanwhile is pending at once.
    fn unmask(&mut self, ports: &[Port]) -> io::Result<()>;
    /// Readable when a port is pending: for poll and `IORING_OP_POLL_ADD`.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Reading from [`EventChannel::fd`] is [`EventChannel::pending`], and writing to it [`EventChannel::unmask`], with
    /// ports of 32 bits (evtchn.h), neither of which blocks: a ring can do both on its way.
    fn is_device(&self) -> bool {
        false
    }
}

/// Most ports one [`EventChannel::pending`] call reports.
pub const MAX_PENDING: usize = 64;

//! The embedded gntdev: pages of one peer, mapped one by one in the order asked for, or copied.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::IntoBytes;

use super::frames;
use super::table::{Table, table_frames};
use super::wire::{self, Answer, Link, Request};
use crate::pages::Release;
use crate::{
    Access, CopyDirection, CopySegment, DomId, GrantCounts, GrantRef, GrantStatus, Grants, MAX_MAP, PAGE_SIZE, Pages,
    SharedMemory,
};

/// One connection of one thread, used for one peer.
pub struct Foreign {
    session: Arc<Session>,
    table: Table,
    peer: DomId,
    /// Who we are: grants must be for us.
    domid: DomId,
    counts: GrantCounts,
}

/// What mappings need as long as they live: the pins belong to the connection.
struct Session {
    link: Mutex<Link>,
    memory: OwnedFd,
    unmap_calls: AtomicU64,
    pages_unmapped: AtomicU64,
}

impl Session {
    fn call(&self, request: &Request, body: &[u8], out: &mut [u8]) -> io::Result<Answer> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.call(request, body, &[], out)
    }
}

impl Foreign {
    /// Uses a connection (see [`super::connect`]) for grants of `peer`.
    ///
    /// # Errors
    /// `ESRCH` when there is no such domain, `ENXIO` when it has no memory to grant.
    pub fn new(connection: OwnedFd, peer: DomId) -> io::Result<Foreign> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let mut link = Link::new(connection)?;
        let request = Request { op: wire::MEMORY, domid: peer.0.into(), value: 0, flags: 0 };
        let mut answer = link.call(&request, &[], &[], &mut [])?;
        let memory = answer.fds[0].take().ok_or_else(invalid)?;
        let size = answer.reply.value;
        let domid = u16::try_from(answer.reply.extra).map(DomId).map_err(|_| invalid())?;
        let table = frames::map_first(&memory, table_frames(size), false)?;
        let session = Session {
            link: Mutex::new(link),
            memory,
            unmap_calls: AtomicU64::new(0),
            pages_unmapped: AtomicU64::new(0),
        };
        Ok(Foreign {
            session: Arc::new(session),
            table: Table::new(table.pages(), size),
            peer,
            domid,
            counts: GrantCounts::default(),
        })
    }

    /// Where a page is in the peer's memory, if we may use it so.
    fn at(&self, gref: GrantRef, offset: u16, write: bool) -> Result<i64, GrantStatus> {
        let frame = self.table.check(gref, self.domid, write)?;
        Ok(i64::from(frame) * PAGE_SIZE as i64 + i64::from(offset))
    }

    /// Copies from the peer's page to our memory.
    pub(super) fn copy_to_ours(
        &self,
        gref: GrantRef,
        offset: u16,
        local: &Pages,
        to: usize,
        len: usize,
    ) -> io::Result<GrantStatus> {
        let at = match self.at(gref, offset, false) {
            Ok(at) => at,
            Err(status) => return Ok(status),
        };
        let address = local.address(to, len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: `local` keeps `len` bytes mapped there, which only raw copies ever touch.
        moved(unsafe { libc::pread(self.session.memory.as_raw_fd(), address.as_ptr().cast(), len, at) }, len)
    }

    /// Copies from our memory to the peer's page.
    pub(super) fn copy_from_ours(
        &self,
        gref: GrantRef,
        offset: u16,
        local: &Pages,
        from: usize,
        len: usize,
    ) -> io::Result<GrantStatus> {
        let at = match self.at(gref, offset, true) {
            Ok(at) => at,
            Err(status) => return Ok(status),
        };
        let address = local.address(from, len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: `local` keeps `len` bytes mapped there; the kernel only reads them.
        moved(unsafe { libc::pwrite(self.session.memory.as_raw_fd(), address.as_ptr().cast(), len, at) }, len)
    }

    /// Reads from the peer's page.
    pub(super) fn read(&self, gref: GrantRef, offset: u16, to: &mut [u8]) -> io::Result<GrantStatus> {
        match self.at(gref, offset, false) {
            Ok(at) => {
                moved(nix::sys::uio::pread(&self.session.memory, to, at).map_or(-1, usize::cast_signed), to.len())
            }
            Err(status) => Ok(status),
        }
    }

    /// Writes to the peer's page.
    pub(super) fn write(&self, gref: GrantRef, offset: u16, from: &[u8]) -> io::Result<GrantStatus> {
        match self.at(gref, offset, true) {
            Ok(at) => {
                moved(nix::sys::uio::pwrite(&self.session.memory, from, at).map_or(-1, usize::cast_signed), from.len())
            }
            Err(status) => Ok(status),
        }
    }

    fn copy_one(&self, direction: CopyDirection, local: &Pages, segment: &CopySegment) -> io::Result<GrantStatus> {
        let len = usize::from(segment.len);
        match direction {
            CopyDirection::FromPeer => self.copy_to_ours(segment.gref, segment.offset, local, segment.local, len),
            CopyDirection::ToPeer => self.copy_from_ours(segment.gref, segment.offset, local, segment.local, len),
        }
    }
}

/// What a read or write of `len` bytes of a peer's memory means.
fn moved(done: isize, len: usize) -> io::Result<GrantStatus> {
    match usize::try_from(done) {
        Ok(done) if done == len => Ok(GrantStatus::OKAY),
        // A sealed memory has all its bytes, so a short copy is as wrong as an error.
        Ok(_) => Ok(GrantStatus::GENERAL_ERROR),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

impl Grants for Foreign {
    fn map(&mut self, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory> {
        if refs.is_empty() || refs.len() > MAX_MAP {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let count = refs.len();
        let mut words = [0u32; MAX_MAP];
        for (word, gref) in words.iter_mut().zip(refs) {
            *word = gref.0;
        }
        let writable = access == Access::ReadWrite;
        let request = Request { op: wire::MAP, domid: self.peer.0.into(), value: 0, flags: writable.into() };
        self.counts.map_calls += 1;
        let mut frames = [0u32; MAX_MAP];
        let answer = self.session.call(&request, words[..count].as_bytes(), frames[..count].as_mut_bytes())?;
        let mut unpin = Unpin { session: Arc::clone(&self.session), handle: answer.reply.value, pages: count as u64 };
        let address = match frames::map(self.session.memory.as_fd(), &frames[..count], writable) {
            Ok(address) => address,
            Err(error) => {
                unpin.forget()?;
                return Err(error);
            }
        };
        self.counts.pages_mapped += count as u64;
        // SAFETY: the pages were just mapped at `address`, nobody else knows them, and only `unpin` takes them away.
        Ok(unsafe { SharedMemory::new(address, count * PAGE_SIZE, access, Box::new(unpin)) })
    }

    fn copy(&mut self, direction: CopyDirection, local: &Pages, segments: &mut [CopySegment]) -> io::Result<()> {
        crate::check_copy(local, segments)?;
        self.counts.copy_calls += 1;
        self.counts.segments_copied += segments.len() as u64;
        for segment in segments {
            segment.status = self.copy_one(direction, local, segment)?;
        }
        Ok(())
    }

    fn counts(&self) -> GrantCounts {
        GrantCounts {
            unmap_calls: self.session.unmap_calls.load(Ordering::Relaxed),
            pages_unmapped: self.session.pages_unmapped.load(Ordering::Relaxed),
            ..self.counts
        }
    }
}

/// Gives one mapping back: munmap, then the host drops its pins.
struct Unpin {
    session: Arc<Session>,
    handle: u32,
    pages: u64,
}

impl Unpin {
    fn forget(&mut self) -> io::Result<()> {
        let request = Request { op: wire::UNMAP, domid: 0, value: self.handle, flags: 0 };
        self.session.call(&request, &[], &mut []).map(drop)
    }
}

impl Release for Unpin {
    fn release(&mut self, address: NonNull<u8>, len: usize) -> io::Result<()> {
        self.session.unmap_calls.fetch_add(1, Ordering::Relaxed);
        self.session.pages_unmapped.fetch_add(self.pages, Ordering::Relaxed);
        // SAFETY: the range came from frames::map, and the owner of the mapping calls this last.
        let unmapped = unsafe { frames::unmap(address, len) };
        self.forget().and(unmapped)
    }
}

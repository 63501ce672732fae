//! What a domain's connection may ask the hypervisor for, and how an answer goes out.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::SendFlags;
use zerocopy::IntoBytes;

use super::registry::{Ends, Mapped, Owner, Registry};
use super::wire::{self, Reply, Request};
use crate::{DomId, GrantRef, MAX_MAP};

/// An answer on its way: the head, words of the body, descriptors.
pub(super) struct Outgoing<'a> {
    reply: Reply,
    pub words: &'a [u32],
    /// Of an event channel: goes first.
    wait: Option<OwnedFd>,
    fd: Option<BorrowedFd<'a>>,
}

impl Outgoing<'_> {
    pub fn plain(value: u32, extra: u32) -> Outgoing<'static> {
        Outgoing { reply: Reply { value, extra, ..Reply::default() }, words: &[], wait: None, fd: None }
    }

    pub fn refusal(error: &io::Error) -> Outgoing<'static> {
        let errno = error.raw_os_error().unwrap_or(libc::EIO) as u32;
        Outgoing { reply: Reply { errno, ..Reply::default() }, words: &[], wait: None, fd: None }
    }

    fn port(ends: Ends<'_>) -> Outgoing<'_> {
        let reply = Reply { value: ends.port, ..Reply::default() };
        Outgoing { reply, words: &[], wait: Some(ends.wait), fd: Some(ends.notify) }
    }

    /// Never waits: a client that lets its answers pile up is not served any more.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut fds = Vec::with_capacity(wire::MAX_FDS);
        fds.extend(self.wait.as_ref().map(AsFd::as_fd));
        fds.extend(self.fd);
        wire::send(socket, self.reply.as_bytes(), self.words.as_bytes(), &fds, SendFlags::DONTWAIT)
    }
}

/// One domain's connection while it is served.
pub(super) struct Caller<'a> {
    pub domid: DomId,
    pub owner: Owner,
    pub only: &'a mut Option<DomId>,
    pub maps: &'a mut HashMap<u32, Mapped>,
    pub next: &'a mut u32,
}

impl Caller<'_> {
    /// Carries out what a domain asks the hypervisor for; `None` for what no client of ours ever sends.
    pub fn perform<'r>(
        self,
        registry: &'r mut Registry,
        request: &Request,
        body: &[u8],
        frames: &mut Vec<u32>,
    ) -> io::Result<Option<Outgoing<'r>>> {
        let refuse = |code| Err(io::Error::from_raw_os_error(code));
        let domid = self.domid;
        Ok(Some(match request.op {
            wire::MEMORY => {
                let (memory, frames) = registry.memory(domain_id(request.domid)?)?;
                let mut outgoing = Outgoing::plain(frames, domid.0.into());
                outgoing.fd = Some(memory);
                outgoing
            }
            wire::MAP => {
                let Some(refs) = grant_refs(body) else {
                    return Ok(None);
                };
                let (peer, write) = (domain_id(request.domid)?, request.flags & 1 != 0);
                while self.maps.contains_key(self.next) {
                    *self.next = self.next.wrapping_add(1);
                }
                let mapped = registry.map(domid, peer, refs, write, frames)?;
                self.maps.insert(*self.next, mapped);
                Outgoing::plain(*self.next, 0)
            }
            wire::UNMAP => match self.maps.remove(&request.value) {
                Some(mapped) => {
                    registry.unmap(mapped);
                    Outgoing::plain(0, 0)
                }
                None => return refuse(libc::ENOENT),
            },
            wire::BIND => {
                let peer = domain_id(request.domid)?;
                if self.only.is_some_and(|only| only != peer) {
                    return refuse(libc::EACCES);
                }
                Outgoing::port(registry.bind(domid, peer, request.value, self.owner)?)
            }
            wire::ALLOC_UNBOUND => {
                if self.only.is_some() {
                    return refuse(libc::EACCES);
                }
                Outgoing::port(registry.alloc_unbound(domid, domain_id(request.domid)?, self.owner)?)
            }
            wire::UNBIND => {
                registry.unbind(domid, request.value, self.owner)?;
                Outgoing::plain(0, 0)
            }
            wire::RESTRICT => {
                if self.only.is_some() {
                    return refuse(libc::EACCES);
                }
                match domain_id(request.domid)? {
                    // As the device has it.
                    DomId(0) => return refuse(libc::EINVAL),
                    peer => *self.only = Some(peer),
                }
                Outgoing::plain(0, 0)
            }
            _ => return Ok(None),
        }))
    }
}

pub(super) fn domain_id(word: u32) -> io::Result<DomId> {
    u16::try_from(word).map(DomId).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))
}

/// The references of a map request: 1 to [`MAX_MAP`] whole words.
fn grant_refs(body: &[u8]) -> Option<Vec<GrantRef>> {
    let (words, rest) = body.as_chunks::<4>();
    let refs = words.iter().map(|&word| GrantRef(u32::from_ne_bytes(word)));
    (rest.is_empty() && (1..=MAX_MAP).contains(&words.len())).then(|| refs.collect())
}

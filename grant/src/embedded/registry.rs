//! What the host knows: domains, which of their grants are mapped by whom, and their event channels.
//!
//! Pure bookkeeping, as Xen keeps it; sockets are in [`super::host`]. Errors are errno values for the client.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::evtchn::hush;
use super::frames;
use super::table::{Table, table_frames};
use crate::{DomId, GrantRef, GrantStatus};

/// Most live domains at once: bounds descriptors.
const MAX_DOMAINS: usize = 1024;
/// First reserved domid (`DOMID_FIRST_RESERVED`, xen.h).
const FIRST_RESERVED: u16 = 0x7FF0;
/// Event channels of one domain: `max_event_channels` as xl sets it, port 0 excluded.
const MAX_PORTS: u32 = 1023;
/// Pages one domain may have mapped of all others together: Xen's default maptrack size.
const MAX_MAPPED: usize = 262_144;

/// Which connection made something; it goes with the connection.
pub(super) type Owner = u64;

/// A guest's memory as the host knows it.
pub(super) struct Memory {
    fd: OwnedFd,
    frames: u32,
    table: Table,
}

impl Memory {
    /// Checks and takes a memory; its grant table gets mapped.
    pub fn new(fd: OwnedFd) -> io::Result<Memory> {
        let frames = frames::inspect(fd.as_fd())?;
        let table = frames::map_first(&fd, table_frames(frames), true)?;
        Ok(Memory { fd, frames, table: Table::new(table.pages(), frames) })
    }
}

/// A grant that is mapped: its frame is fixed from the first mapping to the last.
struct Pin {
    by: DomId,
    frame: u32,
    readers: u32,
    writers: u32,
}

/// One mapping call, to be undone as a whole.
pub(super) struct Mapped {
    owner: DomId,
    by: DomId,
    refs: Vec<GrantRef>,
    write: bool,
}

/// The two eventfds of a channel. They stay the same for as long as one of its ends is open, so that an end can be
/// bound again without telling the other.
///
/// Whoever holds an eventfd can fill its counter and make it blocking for all who hold it. So an eventfd is given to
/// the end that writes it and to nobody else; the end that it wakes gets a [`bell`]. The host never writes one either.
struct Wires {
    /// Wakes the end that was allocated unbound.
    first: OwnedFd,
    /// Wakes the end that binds to it.
    second: OwnedFd,
}

/// What a client needs to use a port.
pub(super) struct Ends<'a> {
    /// Our port.
    pub port: u32,
    /// Readable when it is pending.
    pub wait: OwnedFd,
    /// Written to notify the peer.
    pub notify: BorrowedFd<'a>,
}

struct Channel {
    wires: Arc<Wires>,
    /// This end is the one that `wires.first` wakes.
    first: bool,
    owner: Owner,
    state: State,
}

/// `ECS_UNBOUND` and `ECS_INTERDOMAIN`.
#[derive(Clone, Copy)]
enum State {
    Unbound { peer: DomId },
    Bound { peer: DomId, port: u32 },
}

struct DomainState {
    name: String,
    /// False for a domain that ended while others still map its pages.
    alive: bool,
    memory: Option<Arc<Memory>>,
    pins: BTreeMap<u32, Pin>,
    /// Pages of others that it has mapped.
    mapped: usize,
    /// Index is port - 1.
    ports: Vec<Option<Channel>>,
}

/// All domains of one host.
#[derive(Default)]
pub(super) struct Registry {
    domains: BTreeMap<DomId, DomainState>,
    last: u16,
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Registry {
    /// Takes a new domain in.
    ///
    /// # Errors
    /// `EEXIST` name taken, `ENOSPC` too many domains.
    pub fn introduce(&mut self, name: String, memory: Option<Memory>) -> io::Result<DomId> {
        let mut living = self.domains.values().filter(|domain| domain.alive);
        if living.any(|domain| domain.name == name) {
            return Err(errno(libc::EEXIST));
        }
        let next = self.last + 1;
        if self.domains.len() > MAX_DOMAINS || next >= FIRST_RESERVED {
            return Err(errno(libc::ENOSPC));
        }
        self.last = next;
        let memory = memory.map(Arc::new);
        let domain = DomainState { name, alive: true, memory, pins: BTreeMap::new(), mapped: 0, ports: Vec::new() };
        self.domains.insert(DomId(next), domain);
        Ok(DomId(next))
    }

    /// dom0, which is there before anybody else.
    pub fn introduce_dom0(&mut self) {
        let (name, ports) = ("Domain-0".to_owned(), Vec::new());
        let domain = DomainState { name, alive: true, memory: None, pins: BTreeMap::new(), mapped: 0, ports };
        self.domains.insert(DomId(0), domain);
    }

    /// Ends a domain: its ports close, its pages stay with whoever has them mapped.
    pub fn release(&mut self, domid: DomId) {
        let Some(domain) = self.domains.get_mut(&domid) else {
            return;
        };
        domain.alive = false;
        let ports: Vec<u32> = (1..).take(domain.ports.len()).collect();
        for port in ports {
            self.close(domid, port);
        }
        self.bury(domid);
    }

    /// Forgets a domain that has ended and of which nothing is mapped any more.
    fn bury(&mut self, domid: DomId) {
        if self.domains.get(&domid).is_some_and(|domain| !domain.alive && domain.pins.is_empty()) {
            self.domains.remove(&domid);
        }
    }

    fn living(&mut self, domid: DomId) -> io::Result<&mut DomainState> {
        self.domains.get_mut(&domid).filter(|domain| domain.alive).ok_or_else(|| errno(libc::ESRCH))
    }

    /// Active grants and open ports of a domain, alive or not.
    pub fn usage(&self, domid: DomId) -> io::Result<(u32, u32)> {
        let domain = self.domains.get(&domid).ok_or_else(|| errno(libc::ESRCH))?;
        let ports = domain.ports.iter().flatten().count();
        Ok((domain.pins.len() as u32, ports as u32))
    }

    /// The memory of a living domain: its descriptor and its size in pages.
    pub fn memory(&mut self, domid: DomId) -> io::Result<(BorrowedFd<'_>, u32)> {
        let memory = self.living(domid)?.memory.as_ref().ok_or_else(|| errno(libc::ENXIO))?;
        Ok((memory.fd.as_fd(), memory.frames))
    }

    /// Maps grants of `owner` for `by`: all of `refs` or none. Appends a frame for each.
    ///
    /// # Errors
    /// `EINVAL` a bad reference (as gntdev's mmap), `ESRCH` no such domain, `ENOSPC` too much mapped.
    pub fn map(
        &mut self,
        by: DomId,
        owner: DomId,
        refs: Vec<GrantRef>,
        write: bool,
        frames: &mut Vec<u32>,
    ) -> io::Result<Mapped> {
        let mapper = self.living(by)?;
        if mapper.mapped + refs.len() > MAX_MAPPED {
            return Err(errno(libc::ENOSPC));
        }
        let granter = self.living(owner)?;
        let memory = Arc::clone(granter.memory.as_ref().ok_or_else(|| errno(libc::ENXIO))?);
        for (done, &gref) in refs.iter().enumerate() {
            match granter.pin(&memory.table, gref, by, write) {
                Ok(frame) => frames.push(frame),
                Err(status) => {
                    for &gref in refs[..done].iter().rev() {
                        granter.unpin(&memory.table, gref, write);
                    }
                    tracing::debug!(%owner, %by, %gref, status = status.0, "grant refused");
                    return Err(errno(libc::EINVAL));
                }
            }
        }
        self.living(by)?.mapped += refs.len();
        Ok(Mapped { owner, by, refs, write })
    }

    /// Undoes one [`Registry::map`].
    pub fn unmap(&mut self, mapped: Mapped) {
        if let Some(granter) = self.domains.get_mut(&mapped.owner)
            && let Some(memory) = granter.memory.clone()
        {
            for &gref in &mapped.refs {
                granter.unpin(&memory.table, gref, mapped.write);
            }
        }
        if let Some(mapper) = self.domains.get_mut(&mapped.by) {
            mapper.mapped -= mapped.refs.len();
        }
        self.bury(mapped.owner);
    }

    /// Makes a port of `domid` that `peer` may bind to.
    pub fn alloc_unbound(&mut self, domid: DomId, peer: DomId, owner: Owner) -> io::Result<Ends<'_>> {
        // Never read, and never zero: a bell that is made from it is pending once.
        let eventfd = || rustix::event::eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wires = Arc::new(Wires { first: eventfd()?, second: eventfd()? });
        let wait = bell(&wires.first)?;
        hush(&wait)?;
        let channel = Channel { wires, first: true, owner, state: State::Unbound { peer } };
        self.living(domid)?.open(channel, wait)
    }

    /// Binds a new port of `domid` to port `remote` of `peer`, which was made or left unbound for `domid`. It is
    /// pending once: whatever was sent before there was a port to receive it must not be missed.
    ///
    /// # Errors
    /// `EINVAL` when `remote` is not for us.
    pub fn bind(&mut self, domid: DomId, peer: DomId, remote: u32, owner: Owner) -> io::Result<Ends<'_>> {
        let theirs = self.living(peer)?.channel(remote).ok_or_else(|| errno(libc::EINVAL))?;
        if !matches!(theirs.state, State::Unbound { peer } if peer == domid) {
            return Err(errno(libc::EINVAL));
        }
        let (wires, first) = (Arc::clone(&theirs.wires), !theirs.first);
        let wait = bell(if first { &wires.first } else { &wires.second })?;
        let state = State::Bound { peer, port: remote };
        let port = self.living(domid)?.place()?;
        if let Some(theirs) = self.living(peer)?.channel(remote) {
            theirs.state = State::Bound { peer: domid, port };
        }
        self.living(domid)?.open(Channel { wires, first, owner, state }, wait)
    }

    /// Closes port `port` of `domid` for the connection that made it.
    pub fn unbind(&mut self, domid: DomId, port: u32, owner: Owner) -> io::Result<()> {
        match self.living(domid)?.channel(port) {
            Some(channel) if channel.owner == owner => {
                self.close(domid, port);
                Ok(())
            }
            _ => Err(errno(libc::ENOTCONN)),
        }
    }

    /// Closes all ports that a connection made.
    pub fn close_all(&mut self, domid: DomId, owner: Owner) {
        let Some(domain) = self.domains.get(&domid) else {
            return;
        };
        let of_owner = |channel: &Option<Channel>| channel.as_ref().is_some_and(|it| it.owner == owner);
        let ports = (1..).zip(&domain.ports).filter(|(_, channel)| of_owner(channel));
        let ports: Vec<u32> = ports.map(|(port, _)| port).collect();
        for port in ports {
            self.close(domid, port);
        }
    }

    /// Frees a port; the other end, if there is one, is unbound again and waits for us.
    fn close(&mut self, domid: DomId, port: u32) {
        let Some(domain) = self.domains.get_mut(&domid) else {
            return;
        };
        let slot = index(port).and_then(|index| domain.ports.get_mut(index));
        let Some(channel) = slot.and_then(Option::take) else {
            return;
        };
        if let State::Bound { peer, port } = channel.state
            && let Some(theirs) = self.domains.get_mut(&peer).and_then(|domain| domain.channel(port))
        {
            theirs.state = State::Unbound { peer: domid };
        }
    }
}

fn index(port: u32) -> Option<usize> {
    port.checked_sub(1).map(|index| index as usize)
}

/// What stands for an eventfd at the end that it wakes: readable after each write to it, until it is hushed, whatever
/// its counter says. Nothing can be done to the eventfd through it.
fn bell(eventfd: &OwnedFd) -> io::Result<OwnedFd> {
    let bell = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&bell, eventfd, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
    Ok(bell)
}

impl DomainState {
    /// Counts one more mapping of a grant, as `map_grant_ref` does.
    fn pin(&mut self, table: &Table, gref: GrantRef, by: DomId, write: bool) -> Result<u32, GrantStatus> {
        if let Some(pin) = self.pins.get_mut(&gref.0) {
            if pin.by != by {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            if write && pin.writers == 0 {
                table.pin(gref, by, true)?;
            }
            pin.readers += 1;
            pin.writers += u32::from(write);
            return Ok(pin.frame);
        }
        table.pin(gref, by, write)?;
        let frame = table.frame(gref).inspect_err(|_| table.unpin(gref, true, true))?;
        self.pins.insert(gref.0, Pin { by, frame, readers: 1, writers: u32::from(write) });
        Ok(frame)
    }

    fn unpin(&mut self, table: &Table, gref: GrantRef, write: bool) {
        let Some(pin) = self.pins.get_mut(&gref.0) else {
            return;
        };
        pin.readers -= 1;
        pin.writers -= u32::from(write);
        let last = pin.readers == 0;
        table.unpin(gref, pin.writers == 0, last);
        if last {
            self.pins.remove(&gref.0);
        }
    }

    fn channel(&mut self, port: u32) -> Option<&mut Channel> {
        index(port).and_then(|index| self.ports.get_mut(index)).and_then(Option::as_mut)
    }

    /// The lowest free port.
    fn place(&self) -> io::Result<u32> {
        let free = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len()) as u32;
        if free < MAX_PORTS { Ok(free + 1) } else { Err(errno(libc::ENOSPC)) }
    }

    /// Puts a channel at the lowest free port.
    fn open(&mut self, channel: Channel, wait: OwnedFd) -> io::Result<Ends<'_>> {
        let port = self.place()?;
        let free = port as usize - 1;
        if free == self.ports.len() {
            self.ports.push(None);
        }
        let notify = self.ports[free].insert(channel).notifies();
        Ok(Ends { port, wait, notify })
    }
}

impl Channel {
    /// What this end writes.
    fn notifies(&self) -> BorrowedFd<'_> {
        if self.first { self.wires.second.as_fd() } else { self.wires.first.as_fd() }
    }
}

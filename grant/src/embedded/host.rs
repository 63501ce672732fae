//! The embedded host's "hypervisor": one thread, one epoll loop, one request per ready connection and round.
//!
//! It trusts no client. Whatever a message says is checked and bounded; a client that breaks the protocol, or does
//! not take its answers, is hung up on; a connection that ends, for whatever reason, loses its pins and its ports.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zerocopy::FromBytes;

use super::calls::{Caller, Outgoing, domain_id};
use super::registry::{Mapped, Memory, Owner, Registry};
use super::wire::{self, Received, Request};
use super::{address, domain_dir, host_path, socket};
use crate::DomId;

/// Most connections at once, of everybody and of one domain.
const MAX_CONNECTIONS: usize = 8192;
const MAX_CONNECTIONS_OF_DOMAIN: usize = 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// Ready descriptors looked at per round.
const ROUND: usize = 64;

/// What the host's user does when domains come and go: xenstore nodes, more sockets in the domain's directory. Called
/// in the host's thread, which serves nobody meanwhile: a call must not wait for this host.
pub trait Lifecycle: Send {
    /// A domain has its number and its directory ([`domain_dir`]); its process learns of it after this.
    ///
    /// # Errors
    /// Refuses the domain; [`Lifecycle::released`] is not called for it.
    fn introduced(&mut self, domid: DomId, name: &str) -> io::Result<()>;
    /// A domain is gone: its connection at `DIR/host` was closed. Its directory is removed after this, if it is empty.
    fn released(&mut self, domid: DomId, name: &str);
}

/// Ends [`Host::run`] from another thread.
#[derive(Clone)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Asks the host to end; all domains are released first.
    pub fn stop(&self) {
        if let Err(error) = rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the embedded host could not be told to stop");
        }
    }
}

/// The host of one directory.
pub struct Host<L: Lifecycle> {
    dir: PathBuf,
    /// Held locked: one host per directory.
    _lock: File,
    lifecycle: L,
    epoll: OwnedFd,
    stop: Stop,
    listener: OwnedFd,
    /// Given up for a moment when there are no descriptors left to accept, and hang up, a connection.
    spare: Option<OwnedFd>,
    domains: BTreeMap<DomId, Served>,
    connections: HashMap<Owner, Connection>,
    next: Owner,
    registry: Registry,
    complaints: Complaints,
}

/// Keeps what clients can cause from filling the log: one line a second.
#[derive(Default)]
struct Complaints(Option<Instant>);

impl Complaints {
    fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.0.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1));
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// A domain's socket.
struct Served {
    name: String,
    listener: OwnedFd,
    connections: usize,
}

struct Connection {
    socket: OwnedFd,
    role: Role,
}

enum Role {
    /// At `DIR/host`: a domain's life once it is registered.
    Control { domain: Option<DomId> },
    /// At a domain's `hypervisor` socket: acts as that domain.
    Domain { domid: DomId, only: Option<DomId>, maps: HashMap<u32, Mapped>, next: u32 },
}

/// What epoll's token names.
enum Token {
    Stop,
    Host,
    Domain(DomId),
    Connection(Owner),
}

/// The token of `DIR/host`.
const HOST: u64 = u64::MAX - 1;

impl Token {
    /// Connections are numbered from here on.
    const FIRST_OWNER: Owner = 1 << 32;

    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Token::Stop => u64::MAX,
            Token::Host => HOST,
            Token::Domain(domid) => domid.0.into(),
            Token::Connection(owner) => owner,
        })
    }

    fn parse(data: EventData) -> Token {
        match data.u64() {
            u64::MAX => Token::Stop,
            HOST => Token::Host,
            owner if owner >= Token::FIRST_OWNER => Token::Connection(owner),
            domid => Token::Domain(DomId(domid as u16)),
        }
    }
}

impl<L: Lifecycle> Host<L> {
    /// Takes `dir` (made if it is not there, for this user alone) and listens at `dir/host`. The process may open as
    /// many descriptors as its hard limit allows from then on: each event channel takes two, each connection one.
    ///
    /// # Errors
    /// `AddrInUse` when another host has the directory.
    pub fn new(dir: &Path, lifecycle: L) -> io::Result<Host<L>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = File::open(dir)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => {
                let text = format!("another embedded host serves {}", dir.display());
                io::Error::new(io::ErrorKind::AddrInUse, text)
            }
            error => error.into(),
        })?;
        clear(dir)?;
        raise_descriptor_limit();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &stop, Token::Stop.data(), EventFlags::IN)?;
        let listener = listen(&host_path(dir))?;
        epoll::add(&epoll, &listener, Token::Host.data(), EventFlags::IN)?;
        let mut host = Host {
            dir: dir.to_owned(),
            _lock: lock,
            lifecycle,
            epoll,
            stop: Stop(Arc::new(stop)),
            listener,
            spare: spare(),
            domains: BTreeMap::new(),
            connections: HashMap::new(),
            next: Token::FIRST_OWNER,
            registry: Registry::default(),
            complaints: Complaints::default(),
        };
        // dom0: always there, and its user makes nothing for it. It has no memory to show, but may map and bind.
        host.registry.introduce_dom0();
        let listener = host.listen_for(DomId(0))?;
        host.domains.insert(DomId(0), Served { name: "Domain-0".into(), listener, connections: 0 });
        Ok(host)
    }

    /// A way to end [`Host::run`].
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// Only what makes serving impossible; nothing that a client does.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let mut events = [MaybeUninit::<epoll::Event>::uninit(); ROUND];
            let events = match epoll::wait(&self.epoll, &mut events, None) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events {
                match Token::parse(event.data) {
                    Token::Stop => {
                        self.shut_down();
                        return Ok(());
                    }
                    Token::Host => self.accept(None),
                    Token::Domain(domid) => self.accept(Some(domid)),
                    Token::Connection(owner) => self.serve(owner),
                }
            }
        }
    }

    fn shut_down(&mut self) {
        let domains: Vec<DomId> = self.domains.keys().copied().collect();
        for domid in domains {
            self.release(domid);
        }
        if let Err(error) = clear(&self.dir) {
            tracing::warn!(%error, "the embedded host left sockets behind");
        }
    }

    /// Accepts one connection at the host's socket or at a domain's.
    fn accept(&mut self, domid: Option<DomId>) {
        let listener = match domid {
            None => &self.listener,
            Some(domid) => match self.domains.get(&domid) {
                Some(served) => &served.listener,
                // Released earlier in this round.
                None => return,
            },
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => {
                // Left waiting it would wake us for ever; hung up on, its owner at least learns of it.
                self.spare = None;
                if rustix::net::accept_with(listener, flags).is_err() {
                    // Another thread was faster. Others are served meanwhile, but nobody at full speed.
                    std::thread::sleep(Duration::from_millis(5));
                }
                self.spare = spare();
                if self.complaints.due() {
                    tracing::error!("the embedded host has no file descriptor left for connections");
                }
                return;
            }
            // It went away again, or there is no memory: the next round tries anew.
            Err(_) => return,
        };
        let role = match domid {
            None => Role::Control { domain: None },
            Some(domid) => Role::Domain { domid, only: None, maps: HashMap::new(), next: 1 },
        };
        let of_domain = domid.and_then(|domid| self.domains.get_mut(&domid));
        if self.connections.len() >= MAX_CONNECTIONS
            || of_domain.as_ref().is_some_and(|served| served.connections >= MAX_CONNECTIONS_OF_DOMAIN)
        {
            if self.complaints.due() {
                tracing::warn!(?domid, "too many connections to the embedded host");
            }
            return;
        }
        let owner = self.next;
        if let Err(error) = epoll::add(&self.epoll, &socket, Token::Connection(owner).data(), EventFlags::IN) {
            return tracing::error!(%error, "a connection to the embedded host could not be watched");
        }
        if let Some(served) = of_domain {
            served.connections += 1;
        }
        self.next += 1;
        self.connections.insert(owner, Connection { socket, role });
    }

    /// Answers one request.
    fn serve(&mut self, owner: Owner) {
        // Taken out while it is served; hung up on earlier in this round it is not there any more.
        let Some(mut connection) = self.connections.remove(&owner) else {
            return;
        };
        let mut buffer = [0; wire::MAX_MESSAGE];
        let alive = match wire::receive(connection.socket.as_fd(), &mut buffer) {
            Ok(Received::Nothing) => true,
            Ok(Received::Message(len, fds)) => match Request::read_from_prefix(&buffer[..len]) {
                Ok((request, body)) => self.answer(owner, &mut connection, &request, body, fds),
                Err(_) => false,
            },
            Ok(Received::Closed | Received::Malformed) | Err(_) => false,
        };
        if alive {
            self.connections.insert(owner, connection);
        } else {
            self.hang_up(owner, connection);
        }
    }

    /// Carries out one request; false when the connection is to be closed.
    fn answer(
        &mut self,
        owner: Owner,
        connection: &mut Connection,
        request: &Request,
        body: &[u8],
        mut fds: wire::Fds,
    ) -> bool {
        let socket = connection.socket.as_fd();
        let sent = match &mut connection.role {
            Role::Control { domain } => {
                let result = match request.op {
                    wire::REGISTER => self.register(domain, request, body, fds[0].take()),
                    wire::USAGE => domain_id(request.domid).and_then(|domid| self.registry.usage(domid)),
                    _ => return false,
                };
                match result {
                    Ok((value, extra)) => Outgoing::plain(value, extra).send(socket),
                    Err(error) => Outgoing::refusal(&error).send(socket),
                }
            }
            Role::Domain { domid, only, maps, next } => {
                let mut frames = Vec::new();
                let caller = Caller { domid: *domid, owner, only, maps, next };
                match caller.perform(&mut self.registry, request, body, &mut frames) {
                    Ok(Some(mut outgoing)) => {
                        outgoing.words = &frames;
                        outgoing.send(socket)
                    }
                    Ok(None) => return false,
                    Err(error) => Outgoing::refusal(&error).send(socket),
                }
            }
        };
        sent.is_ok()
    }

    /// Makes a domain whose life is the connection it was asked for on.
    fn register(
        &mut self,
        domain: &mut Option<DomId>,
        request: &Request,
        body: &[u8],
        memory: Option<OwnedFd>,
    ) -> io::Result<(u32, u32)> {
        let errno = io::Error::from_raw_os_error;
        if request.value != wire::VERSION {
            return Err(errno(libc::EPROTONOSUPPORT));
        }
        if domain.is_some() || !wire::is_name(body) {
            return Err(errno(libc::EINVAL));
        }
        let name = String::from_utf8_lossy(body).into_owned();
        let memory = memory.map(Memory::new).transpose()?;
        let domid = self.registry.introduce(name.clone(), memory)?;
        let served = self.listen_for(domid).and_then(|listener| {
            self.domains.insert(domid, Served { name: name.clone(), listener, connections: 0 });
            self.lifecycle.introduced(domid, &name)
        });
        if let Err(error) = served {
            tracing::error!(%error, %domid, name, "the embedded host could not set a domain up");
            self.discard(domid);
            return Err(error);
        }
        *domain = Some(domid);
        tracing::info!(%domid, name, "domain introduced");
        Ok((domid.0.into(), 0))
    }

    fn listen_for(&mut self, domid: DomId) -> io::Result<OwnedFd> {
        let dir = domain_dir(&self.dir, domid);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let listener = listen(&dir.join("hypervisor"))?;
        epoll::add(&self.epoll, &listener, Token::Domain(domid).data(), EventFlags::IN)?;
        Ok(listener)
    }

    /// Drops what a connection held.
    fn hang_up(&mut self, owner: Owner, connection: Connection) {
        match connection.role {
            Role::Control { domain } => {
                if let Some(domid) = domain {
                    self.release(domid);
                }
            }
            Role::Domain { domid, maps, .. } => {
                for mapped in maps.into_values() {
                    self.registry.unmap(mapped);
                }
                self.registry.close_all(domid, owner);
                if let Some(served) = self.domains.get_mut(&domid) {
                    served.connections -= 1;
                }
            }
        }
    }

    /// Ends a domain: whoever acts as it is hung up on, then its user is told.
    fn release(&mut self, domid: DomId) {
        let acts = |role: &Role| matches!(role, Role::Domain { domid: it, .. } if *it == domid);
        let gone: Vec<Owner> = self.connections.iter().filter(|(_, it)| acts(&it.role)).map(|(&it, _)| it).collect();
        for owner in gone {
            if let Some(connection) = self.connections.remove(&owner) {
                self.hang_up(owner, connection);
            }
        }
        let guest = self.domains.get(&domid).filter(|_| domid != DomId(0));
        if let Some(name) = guest.map(|served| served.name.clone()) {
            self.lifecycle.released(domid, &name);
            tracing::info!(%domid, name, "domain released");
        }
        self.discard(domid);
    }

    /// Takes a domain's socket away and forgets it.
    fn discard(&mut self, domid: DomId) {
        self.registry.release(domid);
        self.domains.remove(&domid);
        let dir = domain_dir(&self.dir, domid);
        let removed = std::fs::remove_file(dir.join("hypervisor")).and_then(|()| std::fs::remove_dir(&dir));
        if let Err(error) = removed {
            tracing::warn!(%error, dir = %dir.display(), "a domain's directory stays");
        }
    }
}

fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the embedded host keeps its limit of file descriptors");
    }
}

fn spare() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    let listener = socket()?;
    rustix::fs::fcntl_setfl(&listener, rustix::fs::OFlags::NONBLOCK)?;
    rustix::net::bind(&listener, &address(path)?)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Takes away the sockets of a host that was here before; touches nothing that such a host does not make.
fn clear(dir: &Path) -> io::Result<()> {
    let remove_socket = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    remove_socket(&host_path(dir))?;
    let domains = match std::fs::read_dir(dir.join("domains")) {
        Ok(domains) => domains,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for domain in domains {
        let path = domain?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u16>().is_ok()) {
            for entry in std::fs::read_dir(&path)? {
                remove_socket(&entry?.path())?;
            }
            std::fs::remove_dir(&path)?;
        }
    }
    Ok(())
}

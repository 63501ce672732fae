//! The world without Xen: a host process stands in for the hypervisor, sealed memfds for guest memory, eventfds
//! for event channels. Any Linux machine will do.
//!
//! | on Xen | here |
//! | --- | --- |
//! | a domain | a name registered at `DIR/host`; it lives as long as that connection ([`register`]) |
//! | its memory | a sealed memfd with a version 1 grant table in its first pages ([`GuestMemory`]) |
//! | gntdev | a connection to `DIR/domains/DOMID/hypervisor`; mapping pins entries there ([`Foreign`]) |
//! | evtchn | another such connection; the host makes a pair of eventfds per channel, one for each side to write ([`Ports`]) |
//! | the hypervisor | [`Host`], one thread that trusts no client |
//!
//! What this world cannot model, so that nobody reads more into a number or a passed test than there is:
//! - **Cost.** No hypercalls, no TLB flushes, no IPIs: mapping is cheap here and dear on Xen. Operations are counted
//!   as Xen would see them ([`crate::GrantCounts`]), times are not comparable.
//! - **Walls.** Whoever maps one page of a guest holds the descriptor of all its memory, and could map the rest or
//!   write through a read-only grant; the code here never does. A peer that closed its port keeps the eventfd
//!   it notifies with until it drops it. Connections are told apart by the socket they were made on, so the host's
//!   directory is the only secret.
//! - **Pins of the kernel.** A process that dies with I/O in flight loses its pins at once, although the kernel may
//!   still write to the pages; on Xen (PVH) such grants stay busy until the I/O has ended. The fence covers both.
//! - **A copy in flight** does not mark the grant as busy, and a guest may end it meanwhile; Xen has it busy for the
//!   length of the hypercall.
//! - Transitive and sub-page grants, version 2 tables, paged-out guests (`GNTST_eagain`), masked-by-guest event
//!   channels, priorities of events.

mod calls;
mod evtchn;
mod exchange;
mod foreign;
mod frames;
mod guest;
mod host;
mod registry;
mod table;
mod wire;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub use evtchn::Ports;
pub use exchange::ForeignExchange;
pub use foreign::Foreign;
pub use guest::GuestMemory;
pub use host::{Host, Lifecycle, Stop};

use crate::DomId;
use wire::{Link, Request};

/// A domain of ours: it lives as long as `connection` is open in any process.
#[derive(Debug)]
pub struct Domain {
    /// The number the host chose; never used again while this host runs.
    pub domid: DomId,
    /// The domain's life. Nothing is ever sent over it again.
    pub connection: OwnedFd,
}

/// Why a domain could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No host answers.
    #[error("no embedded host in {0}: {1} (start one with `windsor host --dir {0}`)", .dir.display(), .source)]
    NoHost {
        /// Where it was looked for.
        dir: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// Another domain has this name.
    #[error("a domain named {0} exists already")]
    NameTaken(String),
    /// Not 1 to 64 letters, digits, `.`, `_`, `-`.
    #[error("{0:?} is no name for a domain: 1 to 64 letters, digits, '.', '_' or '-'")]
    BadName(String),
    /// The memory is not a sealed memfd of whole pages.
    #[error("the host refused the memory: it must be a memfd of whole pages with its size sealed")]
    BadMemory,
    /// The host has as many domains as it takes.
    #[error("the host takes no more domains")]
    Full,
    /// Anything else.
    #[error("registering with the embedded host failed: {0}")]
    Io(#[from] io::Error),
}

/// Makes a domain known to the host of `dir`; a guest brings its memory, a service VM has none to show.
pub fn register(dir: &Path, name: &str, memory: Option<&GuestMemory>) -> Result<Domain, RegisterError> {
    if !wire::is_name(name.as_bytes()) {
        return Err(RegisterError::BadName(name.to_owned()));
    }
    register_raw(dir, name, memory.map(|memory| memory.fd()))
}

/// [`register`] for any descriptor and any name; the host does the checking.
fn register_raw(dir: &Path, name: &str, memory: Option<std::os::fd::BorrowedFd<'_>>) -> Result<Domain, RegisterError> {
    let no_host = |source| RegisterError::NoHost { dir: dir.to_owned(), source };
    let mut link = Link::new(dial(&host_path(dir)).map_err(no_host)?)?;
    let request = Request { op: wire::REGISTER, domid: 0, value: wire::VERSION, flags: 0 };
    let answer = link.call(&request, name.as_bytes(), memory.as_slice(), &mut []);
    let answer = answer.map_err(|error| match error.raw_os_error() {
        Some(libc::EEXIST) => RegisterError::NameTaken(name.to_owned()),
        Some(libc::EINVAL) => RegisterError::BadName(name.to_owned()),
        Some(libc::EBADF) => RegisterError::BadMemory,
        Some(libc::ENOSPC) => RegisterError::Full,
        _ => RegisterError::Io(error),
    })?;
    let domid = u16::try_from(answer.reply.value).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Domain { domid: DomId(domid), connection: link.into_fd() })
}

/// A connection that acts as domain `domid`: for one [`Foreign`] or one [`Ports`].
pub fn connect(dir: &Path, domid: DomId) -> io::Result<OwnedFd> {
    dial(&domain_dir(dir, domid).join("hypervisor"))
}

/// What the host sees of a domain, like the hypervisor's debug keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Entries of the domain's grant table that somebody has mapped.
    pub active_grants: u32,
    /// Open event channel ports of the domain.
    pub ports: u32,
}

/// Asks the host what is active of `domid`; a domain that ended but still has pages mapped is counted too.
///
/// # Errors
/// `ESRCH` when there is nothing left of it.
pub fn usage(dir: &Path, domid: DomId) -> io::Result<Usage> {
    let mut link = Link::new(dial(&host_path(dir))?)?;
    let request = Request { op: wire::USAGE, domid: domid.0.into(), value: 0, flags: 0 };
    let answer = link.call(&request, &[], &[], &mut [])?;
    Ok(Usage { active_grants: answer.reply.value, ports: answer.reply.extra })
}

fn host_path(dir: &Path) -> PathBuf {
    dir.join("host")
}

/// Where the sockets of one domain stand: the host's own `hypervisor` and whatever the host's user adds.
pub fn domain_dir(dir: &Path, domid: DomId) -> PathBuf {
    dir.join("domains").join(domid.0.to_string())
}

fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let too_long = |_| {
        let text = format!("{}: a socket's path has at most 107 bytes", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    SocketAddrUnix::new(path).map_err(too_long)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::connect(socket.as_fd(), &address(path)?)?;
    Ok(socket)
}

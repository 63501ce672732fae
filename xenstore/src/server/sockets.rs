//! Listening, as dom0 and as the domains, and the coming and going of both clients and domains.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, socketpair,
};

use super::connection::Connection;
use super::dispatch::{OK, reset};
use super::operations::{Caller, rm};
use super::perms::Who;
use super::serve::Server;
use super::special::{INTRODUCED, RELEASED};
use super::transaction::{Inside, Order, Overlay};
use crate::wire::ErrorName;

/// A socket that clients connect to.
pub(super) struct Listener {
    pub fd: OwnedFd,
    pub domid: u16,
    pub path: PathBuf,
}

impl Server {
    /// Listens as dom0. Domains that dom0 introduces by message get `domain-NUMBER` beside it.
    ///
    /// # Errors
    /// What binding said.
    pub fn listen(&mut self, path: &Path) -> io::Result<()> {
        self.listen_as(path, 0)?;
        self.beside = path.to_owned();
        Ok(())
    }

    fn listen_as(&mut self, path: &Path, domid: u16) -> io::Result<u64> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&fd, &SocketAddrUnix::new(path)?)?;
        listen(&fd, 128)?;
        let number = self.number();
        epoll::add(&self.epoll, &fd, EventData::new_u64(number), EventFlags::IN)?;
        self.listeners.insert(number, Listener { fd, domid, path: path.to_owned() });
        Ok(number)
    }

    /// A connection as a domain that is there, or as dom0, without a socket in the file system.
    ///
    /// # Errors
    /// `ENOENT` for a domain that is not there; what the kernel says.
    pub fn connect(&mut self, domid: u16) -> io::Result<OwnedFd> {
        if !self.state.domains.contains(domid) {
            return Err(Errno::NOENT.into());
        }
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        self.admit(theirs, domid)?;
        Ok(ours)
    }

    /// A domain comes, with a socket of its own; `@introduceDomain` fires.
    ///
    /// # Errors
    /// What binding said; `EEXIST` for a domain that is there.
    pub fn introduce(&mut self, domid: u16, path: &Path) -> io::Result<()> {
        if self.state.domains.contains(domid) {
            return Err(Errno::EXIST.into());
        }
        let listener = self.listen_as(path, domid)?;
        self.state.domains.insert(domid, listener, Instant::now());
        self.fire_special(INTRODUCED);
        Ok(())
    }

    /// INTRODUCE: one that is there begins anew with what it had registered.
    pub(super) fn introduce_by_message(&mut self, domid: u16) -> Result<Vec<u8>, ErrorName> {
        if let Some(domain) = self.state.domains.get(domid) {
            for number in domain.connections.clone() {
                if let Some(client) = self.clients.get_mut(&number) {
                    self.state.domains.rates.transactions -= client.transactions.len();
                    reset(&mut self.state.watches, client);
                }
            }
            return Ok(OK.to_vec());
        }
        if domid == 0 {
            return Ok(OK.to_vec());
        }
        let socket = self.beside.with_file_name(format!("domain-{domid}"));
        self.introduce(domid, &socket).map(|()| OK.to_vec()).map_err(|error| {
            tracing::warn!(%error, domid, path = %socket.display(), "a domain could not be introduced");
            ErrorName::Eio
        })
    }

    /// A domain goes: its connections, its socket, its nodes and what others have granted to it.
    pub(super) fn release(&mut self, domid: u16) -> io::Result<()> {
        let Some(domain) = self.state.domains.get(domid) else { return Err(Errno::NOENT.into()) };
        let (connections, listener) = (domain.connections.clone(), domain.listener);
        connections.into_iter().for_each(|number| self.forget(number));
        if let Some(listener) = self.listeners.remove(&listener) {
            self.unlisten(&listener);
        }
        let caller = Caller { who: Who::DOM0, limits: self.state.domains.limits };
        for root in self.state.tree.roots_owned_by(domid) {
            let (mut overlay, tree) = (Overlay::default(), &mut self.state.tree);
            // One may have gone with another: nothing to remove then, and nothing that changes.
            let removed = rm(&mut Inside { overlay: &mut overlay, tree }, &root, &caller);
            match removed.and_then(|()| overlay.commit(tree, &caller, Order::Done)) {
                Ok(changes) => self.fire(&changes, None),
                Err(error) => tracing::debug!(%error, root, "went with another node"),
            }
        }
        self.state.tree.forget_domain(domid);
        self.state.specials.forget_domain(domid);
        // Who acts for it has heard of all that by its rights, and from now on has none of them.
        self.state.domains.remove(domid);
        self.fire_special(RELEASED);
        Ok(())
    }

    fn unlisten(&self, listener: &Listener) {
        let removed = epoll::delete(&self.epoll, &listener.fd).map_err(io::Error::from);
        if let Err(error) = removed.and(std::fs::remove_file(&listener.path)) {
            tracing::warn!(%error, path = %listener.path.display(), "closing a socket");
        }
    }

    /// Somebody connects. Who is one too many, of its domain or of all that this process can have, is let go at once.
    pub(super) fn accept(&mut self, number: u64) {
        let Some(listener) = self.listeners.get(&number) else { return };
        let domid = listener.domid;
        match accept_with(&listener.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => {
                let theirs = self.state.domains.get(domid).map_or(0, |domain| domain.connections.len());
                if theirs >= self.state.domains.limits(domid).connections {
                    tracing::debug!(domid, "too many connections");
                } else if let Err(error) = self.admit(fd, domid) {
                    tracing::debug!(%error, domid, "a client could not be admitted");
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                // It would stay at the door, and we would be called again and again: the descriptor that is kept for
                // this takes it in and sends it away.
                tracing::debug!(%error, domid, "no descriptor for a client");
                self.spare = None;
                let sent_away = accept_with(&listener.fd, SocketFlags::CLOEXEC);
                drop(sent_away);
                self.spare = eventfd(0, EventfdFlags::CLOEXEC).ok();
            }
        }
    }

    pub(super) fn admit(&mut self, fd: OwnedFd, domid: u16) -> io::Result<()> {
        let number = self.number();
        epoll::add(&self.epoll, &fd, EventData::new_u64(number), EventFlags::IN)?;
        self.clients.insert(number, Connection::new(fd, number, domid));
        if let Some(domain) = self.state.domains.get_mut(domid) {
            domain.connections.insert(number);
        }
        Ok(())
    }

    /// A client is gone, and all that it had.
    pub(super) fn forget(&mut self, number: u64) {
        let Some(client) = self.clients.remove(&number) else { return };
        self.state.watches.clear(number);
        self.state.domains.rates.transactions -= client.transactions.len();
        self.held.remove(&number);
        if let Some(domain) = self.state.domains.get_mut(client.domid) {
            domain.connections.remove(&number);
        }
        if let Err(error) = epoll::delete(&self.epoll, &client.fd) {
            tracing::warn!(%error, "forgetting a client");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let listeners = std::mem::take(&mut self.listeners);
        listeners.values().for_each(|listener| self.unlisten(listener));
    }
}

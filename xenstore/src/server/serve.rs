//! The daemon's one thread: sockets, clients, and the commands of the host that runs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, socketpair,
};

use super::connection::{Connection, Gone};
use super::dispatch::{State, Usage, dispatch};
use super::operations::{Caller, rm};
use super::quota::Limits;
use super::transaction::{Inside, Overlay};
use super::tree::{Change, Tree};
use super::watch::Told;
use crate::wire::{Header, MessageType};

enum Command {
    Introduce(u16, PathBuf),
    Release(u16),
    Connect(OwnedFd),
    Stop,
}

type Ask = (Command, Sender<io::Result<()>>);

/// Tells the daemon what happens to domains; any thread may hold one.
#[derive(Clone)]
pub struct ServerHandle {
    commands: Sender<Ask>,
    bell: Arc<OwnedFd>,
}

impl ServerHandle {
    /// Listens at `socket` as domain `domid` and fires `@introduceDomain`. Returns when that is done.
    ///
    /// # Errors
    /// What binding said; `EEXIST` for a domain that is there.
    pub fn introduce(&self, domid: u16, socket: &Path) -> io::Result<()> {
        self.ask(Command::Introduce(domid, socket.to_owned()))
    }

    /// Closes a domain's connections and its socket, removes its nodes, and fires `@releaseDomain`.
    ///
    /// # Errors
    /// `ENOENT` for a domain that is not there.
    pub fn release(&self, domid: u16) -> io::Result<()> {
        self.ask(Command::Release(domid))
    }

    /// A connection as dom0 that needs no socket in the file system.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        self.ask(Command::Connect(theirs))?;
        Ok(ours)
    }

    /// Ends the daemon.
    pub fn stop(&self) {
        if let Err(error) = self.ask(Command::Stop) {
            tracing::debug!(%error, "xenstored had ended already");
        }
    }

    fn ask(&self, command: Command) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::BrokenPipe, "xenstored has ended");
        let (sender, answer) = channel();
        self.commands.send((command, sender)).map_err(|_| ended())?;
        rustix::io::write(&*self.bell, &1u64.to_ne_bytes())?;
        answer.recv().map_err(|_| ended())?
    }
}

struct Listener {
    fd: OwnedFd,
    domid: u16,
    path: PathBuf,
}

/// The daemon.
pub struct Server {
    epoll: OwnedFd,
    bell: Arc<OwnedFd>,
    commands: Receiver<Ask>,
    state: State,
    listeners: BTreeMap<u64, Listener>,
    clients: HashMap<u64, Connection>,
    next: u64,
}

/// Bell of the commands in the epoll set; listeners and clients count from 1.
const BELL: u64 = 0;
/// Requests of one client before the others have their turn.
const TURN: usize = 32;

impl Server {
    /// A daemon with an empty store, and the handle to it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(limits: Limits) -> io::Result<(Server, ServerHandle)> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &*bell, EventData::new_u64(BELL), EventFlags::IN)?;
        let (sender, commands) = channel();
        let state = State { tree: Tree::new(), introduced: BTreeSet::new(), limits };
        let handle = ServerHandle { commands: sender, bell: Arc::clone(&bell) };
        let server =
            Server { epoll, bell, commands, state, listeners: BTreeMap::new(), clients: HashMap::new(), next: 1 };
        Ok((server, handle))
    }

    /// Listens as dom0.
    ///
    /// # Errors
    /// What binding said.
    pub fn listen(&mut self, path: &Path) -> io::Result<()> {
        self.listen_as(path, 0)
    }

    fn listen_as(&mut self, path: &Path, domid: u16) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&fd, &SocketAddrUnix::new(path)?)?;
        listen(&fd, 128)?;
        let number = self.number();
        epoll::add(&self.epoll, &fd, EventData::new_u64(number), EventFlags::IN)?;
        self.listeners.insert(number, Listener { fd, domid, path: path.to_owned() });
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Serves until the handle stops it; the sockets are removed then.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        loop {
            let ready: Vec<u64> = match epoll::wait(&self.epoll, &mut events, None) {
                Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for number in ready {
                if number == BELL {
                    if self.obey() {
                        return Ok(());
                    }
                } else if self.listeners.contains_key(&number) {
                    self.accept(number);
                } else {
                    self.serve(number);
                }
            }
        }
    }

    /// Does what the host asks; true when it asks for the end.
    fn obey(&mut self) -> bool {
        // Nothing to read: another round has heard it.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        while let Ok((command, answer)) = self.commands.try_recv() {
            let stop = matches!(command, Command::Stop);
            let result = match command {
                Command::Introduce(domid, path) => self.introduce(domid, &path),
                Command::Release(domid) => self.release(domid),
                Command::Connect(fd) => self.admit(fd, 0),
                Command::Stop => Ok(()),
            };
            // Nobody waits for the answer any more: fine.
            let _ = answer.send(result);
            if stop {
                return true;
            }
        }
        false
    }

    fn introduce(&mut self, domid: u16, path: &Path) -> io::Result<()> {
        if domid == 0 || self.state.introduced.contains(&domid) {
            return Err(Errno::EXIST.into());
        }
        self.listen_as(path, domid)?;
        self.state.introduced.insert(domid);
        self.fire_special("@introduceDomain");
        Ok(())
    }

    fn release(&mut self, domid: u16) -> io::Result<()> {
        if !self.state.introduced.remove(&domid) {
            return Err(Errno::NOENT.into());
        }
        let theirs: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.domid == domid).map(|(number, _)| *number).collect();
        theirs.into_iter().for_each(|number| self.forget(number));
        let listeners: Vec<u64> =
            self.listeners.iter().filter(|(_, listener)| listener.domid == domid).map(|(number, _)| *number).collect();
        for number in listeners {
            if let Some(listener) = self.listeners.remove(&number) {
                self.unlisten(&listener);
            }
        }
        let caller = Caller { domid: 0, limits: self.state.limits };
        for root in self.state.tree.roots_owned_by(domid) {
            let (mut overlay, tree) = (Overlay::default(), &mut self.state.tree);
            // One may have gone with another: nothing to remove then, and nothing that changes.
            let removed = rm(&mut Inside { overlay: &mut overlay, tree }, &root, &caller);
            match removed.and_then(|()| overlay.commit(tree, &caller)) {
                Ok(changes) => self.fire(&changes),
                Err(error) => tracing::debug!(%error, root, "went with another node"),
            }
        }
        self.state.tree.forget_domain(domid);
        self.fire_special("@releaseDomain");
        Ok(())
    }

    fn unlisten(&self, listener: &Listener) {
        let removed = epoll::delete(&self.epoll, &listener.fd).map_err(io::Error::from);
        if let Err(error) = removed.and(std::fs::remove_file(&listener.path)) {
            tracing::warn!(%error, path = %listener.path.display(), "closing a socket");
        }
    }

    fn accept(&mut self, number: u64) {
        let Some(listener) = self.listeners.get(&number) else { return };
        let domid = listener.domid;
        match accept_with(&listener.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => {
                let theirs = self.clients.values().filter(|client| client.domid == domid).count();
                if domid != 0 && theirs >= self.state.limits.connections {
                    tracing::warn!(domid, "too many connections");
                } else if let Err(error) = self.admit(fd, domid) {
                    tracing::warn!(%error, domid, "a client could not be admitted");
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a client");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }

    fn admit(&mut self, fd: OwnedFd, domid: u16) -> io::Result<()> {
        let number = self.number();
        epoll::add(&self.epoll, &fd, EventData::new_u64(number), EventFlags::IN)?;
        self.clients.insert(number, Connection::new(fd, domid));
        Ok(())
    }

    fn forget(&mut self, number: u64) {
        if let Some(client) = self.clients.remove(&number)
            && let Err(error) = epoll::delete(&self.epoll, &client.fd)
        {
            tracing::warn!(%error, "forgetting a client");
        }
    }

    fn serve(&mut self, number: u64) {
        if self.serve_turn(number) == Err(Gone) {
            self.forget(number);
        }
    }

    /// Sends what waits, then takes requests while the client reads its answers.
    fn serve_turn(&mut self, number: u64) -> Result<(), Gone> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        client.send()?;
        if client.unread() < self.state.limits.unread {
            client.receive()?;
        }
        for _ in 0..TURN {
            let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
            if client.unread() >= self.state.limits.unread {
                break;
            }
            let Some((header, payload)) = client.request()? else { break };
            let usage = if counts(&header) { self.usage(number) } else { Usage::default() };
            let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
            let effects = dispatch(&mut self.state, client, usage, &header, &payload);
            if let Some(event) = effects.event {
                client.tell((event.clone(), event), usize::MAX);
            }
            client.send()?;
            self.fire(&effects.changes);
        }
        self.arm(number)
    }

    fn usage(&self, number: u64) -> Usage {
        let Some(domid) = self.clients.get(&number).map(|client| client.domid).filter(|domid| *domid != 0) else {
            return Usage::default();
        };
        self.clients.values().filter(|client| client.domid == domid).fold(Usage::default(), |usage, client| Usage {
            watches: usage.watches + client.watches.len(),
            transactions: usage.transactions + client.transactions.len(),
        })
    }

    fn arm(&mut self, number: u64) -> Result<(), Gone> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        let wants = client.wants(self.state.limits.unread);
        if std::mem::replace(&mut client.armed, wants) == wants {
            return Ok(());
        }
        epoll::modify(&self.epoll, client.fd.as_fd(), EventData::new_u64(number), wants).map_err(|_| Gone)
    }

    fn fire(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        self.tell_all(|client| changes.iter().flat_map(|change| client.watches.events(change, client.domid)).collect());
    }

    /// Domains but dom0 may not read the special nodes (until Xen 4.22), so they are not told.
    fn fire_special(&mut self, name: &str) {
        self.tell_all(|client| if client.domid == 0 { client.watches.special(name).collect() } else { Vec::new() });
    }

    fn tell_all(&mut self, events: impl Fn(&Connection) -> Vec<Told>) {
        let most = self.state.limits.events;
        let mut told = Vec::new();
        for (number, client) in &mut self.clients {
            let events = events(client);
            if !events.is_empty() {
                events.into_iter().for_each(|event| client.tell(event, most));
                told.push((*number, client.send()));
            }
        }
        for (number, sent) in told {
            if sent.and_then(|()| self.arm(number)).is_err() {
                self.forget(number);
            }
        }
    }
}

/// True for requests that the domain's use of all its connections limits.
fn counts(header: &Header) -> bool {
    [MessageType::Watch as u32, MessageType::TransactionStart as u32].contains(&header.kind)
}

impl Drop for Server {
    fn drop(&mut self) {
        let listeners = std::mem::take(&mut self.listeners);
        listeners.values().for_each(|listener| self.unlisten(listener));
    }
}

//! The daemon's one thread: waiting, taking requests in turns, telling what has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::connection::{Connection, Gone};
use super::dispatch::{Effects, OK, Outcome, State, Usage, is_limited, perform};
use super::domains::Domains;
use super::handle::{Ask, Command, ServerHandle};
use super::quota::Limits;
use super::sockets::Listener;
use super::special::Specials;
use super::tree::{Change, Tree};
use super::watch::{Told, Watches};
use crate::wire::{ErrorName, Header};

/// The daemon.
pub struct Server {
    pub(super) epoll: OwnedFd,
    bell: Arc<OwnedFd>,
    commands: Receiver<Ask>,
    pub(super) state: State,
    pub(super) listeners: BTreeMap<u64, Listener>,
    pub(super) clients: HashMap<u64, Connection>,
    /// Clients whose domain has written too much; time is what they wait for.
    pub(super) held: BTreeSet<u64>,
    /// dom0's socket: those of domains that come by message are beside it.
    pub(super) beside: PathBuf,
    /// A descriptor to let go of when there are no more.
    pub(super) spare: Option<OwnedFd>,
    next: u64,
}

/// Bell of the commands in the epoll set; listeners and clients count from 1.
const BELL: u64 = 0;
/// Requests of one client before the others have their turn.
const TURN: usize = 32;
/// Bytes of events that the connections of a domain may leave unread, together. For more than that each is told once per
/// watch that something has changed there.
const EVENTS: usize = 512 << 10;

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
        let domains = Domains::new(limits);
        let state = State { tree: Tree::new(), watches: Watches::default(), domains, specials: Specials::new() };
        let handle = ServerHandle { commands: sender, bell: Arc::clone(&bell) };
        let server = Server {
            epoll,
            bell,
            commands,
            state,
            listeners: BTreeMap::new(),
            clients: HashMap::new(),
            held: BTreeSet::new(),
            beside: PathBuf::new(),
            spare: Some(eventfd(0, EventfdFlags::CLOEXEC)?),
            next: 1,
        };
        Ok((server, handle))
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Serves until the handle stops it; the sockets are removed then.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn(true)?.is_some() {}
        Ok(())
    }

    /// One round: takes what is there, or `wait`s for something. Tells for how many it had something to do; `None` when
    /// the handle has asked for the end.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn turn(&mut self, wait: bool) -> io::Result<Option<usize>> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let timeout = if wait { self.held_for() } else { Some(Duration::ZERO) };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let ready: Vec<(u64, EventFlags)> = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events.iter().map(|event| (event.data.u64(), event.flags)).collect(),
            Err(Errno::INTR) => return Ok(Some(0)),
            Err(error) => return Err(error.into()),
        };
        for (number, flags) in &ready {
            if *number == BELL {
                if self.obey() {
                    return Ok(None);
                }
            } else if self.listeners.contains_key(number) {
                self.accept(*number);
            } else if flags.contains(EventFlags::HUP) && self.held.contains(number) {
                self.forget(*number);
            } else {
                self.serve(*number);
            }
        }
        self.release_held();
        Ok(Some(ready.len()))
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

    /// Until the first of those that are held back may go on.
    fn held_for(&mut self) -> Option<Duration> {
        let domains: BTreeSet<u16> =
            self.held.iter().filter_map(|number| Some(self.clients.get(number)?.domid)).collect();
        domains.into_iter().map(|domid| self.state.domains.wait(domid).unwrap_or(Duration::ZERO)).min()
    }

    fn release_held(&mut self) {
        for number in self.held.clone() {
            let Some(client) = self.clients.get_mut(&number) else { continue };
            if self.state.domains.wait(client.domid).is_none() {
                client.held = false;
                self.held.remove(&number);
                self.serve(number);
            }
        }
    }

    fn serve(&mut self, number: u64) {
        if self.serve_turn(number) == Err(Gone) {
            self.forget(number);
        }
    }

    /// Sends what waits, then takes requests while the client reads its answers and its domain may write.
    fn serve_turn(&mut self, number: u64) -> Result<(), Gone> {
        let outstanding = self.outstanding(number);
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        client.send()?;
        if !client.is_behind(outstanding) && !client.held {
            client.receive()?;
        }
        for _ in 0..TURN {
            let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
            if client.held || client.is_behind(outstanding) {
                break;
            }
            if self.state.domains.wait(client.domid).is_some() {
                client.held = true;
                self.held.insert(number);
                break;
            }
            let Some((header, payload)) = client.request()? else { break };
            self.request(number, &header, &payload)?;
        }
        self.arm(number)
    }

    /// How many answers a client may leave unread.
    fn outstanding(&self, number: u64) -> usize {
        let domid = self.clients.get(&number).map_or(0, |client| client.domid);
        self.state.domains.get(domid).map_or(usize::MAX, |domain| domain.limits.outstanding)
    }

    fn request(&mut self, number: u64, header: &Header, payload: &[u8]) -> Result<(), Gone> {
        let usage = if is_limited(header) { self.usage(number) } else { Usage::default() };
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        let (domid, open) = (client.domid, client.transactions.len());
        let mut effects = Effects::default();
        let outcome = perform(&mut self.state, client, usage, header, payload, &mut effects);
        let rates = &mut self.state.domains.rates;
        rates.transactions = rates.transactions - open + client.transactions.len();
        let result = match outcome {
            Ok(Outcome::Answer(answer)) => Ok(answer),
            Ok(Outcome::Introduce(domid)) => self.introduce_by_message(domid),
            Ok(Outcome::Release(domid)) => self.release(domid).map(|()| OK.to_vec()).map_err(|_| ErrorName::Enoent),
            Err(error) => Err(error),
        };
        if !effects.changes.is_empty() {
            self.state.domains.written(domid, Instant::now);
        }
        self.fire(&effects.changes, Some(number));
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        client.answer(header, &result);
        if let Some(event) = effects.event {
            let told = Told { client: number, event: event.clone(), instead: event };
            client.tell(told, usize::MAX, &self.state.watches);
        }
        client.send()
    }

    /// What a client's domain uses, for its limits.
    fn usage(&mut self, number: u64) -> Usage {
        let Some(domid) = self.clients.get(&number).map(|client| client.domid) else { return Usage::default() };
        let Some(domain) = self.state.domains.get_mut(domid) else { return Usage::default() };
        let mut usage = Usage { memory: self.state.tree.owned(domid).memory, ..Usage::default() };
        for (number, client) in domain.connections.iter().filter_map(|number| Some((number, self.clients.get(number)?)))
        {
            let (watches, memory) = self.state.watches.of(*number);
            usage.watches += watches;
            usage.transactions += client.transactions.len();
            let transactions: usize = client.transactions.values().map(|overlay| overlay.memory()).sum();
            usage.memory += memory + transactions + client.unread();
        }
        let soft = domain.limits.memory_soft;
        if (usage.memory >= soft) != domain.is_fat {
            domain.is_fat = !domain.is_fat;
            let memory = usage.memory;
            tracing::warn!(domid, memory, soft, above = domain.is_fat, "a domain passed its soft limit of memory");
        }
        usage
    }

    fn arm(&mut self, number: u64) -> Result<(), Gone> {
        let outstanding = self.outstanding(number);
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        let wants = client.wants(outstanding);
        if std::mem::replace(&mut client.armed, wants) == wants {
            return Ok(());
        }
        epoll::modify(&self.epoll, client.fd.as_fd(), EventData::new_u64(number), wants).map_err(|_| Gone)
    }

    /// Tells everybody concerned. The one who asked gets what it has to read with its answer.
    pub(super) fn fire(&mut self, changes: &[Change], asked: Option<u64>) {
        if !changes.is_empty() {
            self.tell_all(asked, |state, tell| {
                changes.iter().for_each(|change| state.watches.events(change, &state.domains, tell))
            });
        }
    }

    pub(super) fn fire_special(&mut self, name: &str) {
        self.tell_all(None, |state, tell| state.watches.special(name, (&state.specials, &state.domains), tell));
    }

    fn tell_all(&mut self, asked: Option<u64>, events: impl Fn(&State, &mut dyn FnMut(Told))) {
        let mut concerned = BTreeSet::new();
        let State { watches, domains, .. } = &self.state;
        events(&self.state, &mut |told| {
            let Some(client) = self.clients.get_mut(&told.client) else { return };
            concerned.insert(told.client);
            let connections = domains.get(client.domid).map_or(1, |domain| domain.connections.len().max(1));
            client.tell(told, EVENTS / connections, watches);
        });
        for number in concerned.into_iter().filter(|number| Some(*number) != asked) {
            let sent = self.clients.get_mut(&number).map_or(Ok(()), Connection::send);
            if sent.and_then(|()| self.arm(number)).is_err() {
                self.forget(number);
            }
        }
    }
}

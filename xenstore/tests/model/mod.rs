//! A store as simple as can be, to compare the daemon with: what the C daemon 4.17 does, written from what is known of
//! its protocol, and sharing nothing with our server but the wire's names.
#![allow(dead_code, reason = "each test file uses some of it")]

mod domains;
pub mod paths;
mod requests;
mod store;
mod transactions;
mod watches;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use xenstore::server::Limits;
use xenstore::wire::{ErrorName, MessageType};

use crate::peer::{Answer, Event};
use requests::{number, one, text};
use store::{Entry, Node, Store, Who};
use work::State;

/// Bytes that a permission entry counts for, and a node for itself.
pub const ENTRY_SIZE: usize = 8;
pub const NODE_SIZE: usize = 24;

/// The whole daemon.
pub struct Model {
    limits: Limits,
    store: Store,
    clock: u64,
    /// How often each number has been released.
    lives: Rc<BTreeMap<u16, u32>>,
    /// The domains that are there.
    introduced: BTreeSet<u16>,
    /// For whom else a domain acts.
    targets: BTreeMap<u16, Who>,
    /// Who hears of domains that come and go.
    specials: [(&'static str, Vec<Entry>); 2],
    connections: BTreeMap<usize, Connection>,
    next: usize,
}

struct Connection {
    who: Who,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, State>,
    events: VecDeque<Event>,
}

struct Watch {
    path: String,
    token: String,
    /// Bytes at the front of a path that are not told.
    hidden: usize,
}

impl Model {
    /// With the nodes that a daemon has: path, value, children, permissions.
    pub fn new(limits: Limits, nodes: Vec<(String, Vec<u8>, Vec<String>, String)>) -> Model {
        let mut model = Model {
            limits,
            store: Store::default(),
            clock: 0,
            lives: Rc::default(),
            introduced: BTreeSet::from([0]),
            targets: BTreeMap::new(),
            specials: ["@introduceDomain", "@releaseDomain"].map(|name| (name, Vec::new())),
            connections: BTreeMap::new(),
            next: 0,
        };
        let dom0 = Entry { who: model.who(0), letter: b'n' };
        model.specials.iter_mut().for_each(|(_, perms)| perms.push(dom0));
        for (path, value, children, perms) in nodes {
            let perms = perms.split_terminator('\0').map(|text| model.entry(text).unwrap()).collect();
            model.store.set(&path, Some(Node { value, children, perms, changed: 0 }));
        }
        model
    }

    fn who(&self, domid: u16) -> Who {
        Who { domid, life: self.lives.get(&domid).copied().unwrap_or(0) }
    }

    /// A new connection of a domain.
    pub fn connect(&mut self, domid: u16) -> usize {
        let connection = Connection {
            who: self.who(domid),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            events: VecDeque::new(),
        };
        self.next += 1;
        self.connections.insert(self.next, connection);
        self.next
    }

    /// The end of one.
    pub fn close(&mut self, connection: usize) {
        self.connections.remove(&connection);
    }

    /// The answer to a request. That to a started transaction is empty: its number is for [`Model::started`].
    pub fn ask(&mut self, connection: usize, kind: u32, transaction: u32, payload: &[u8]) -> Answer {
        use MessageType::*;
        let kind = MessageType::from_number(kind).ok_or(ErrorName::Enosys)?;
        let who = self.connections[&connection].who;
        match kind {
            WatchEvent | Error => return Err(ErrorName::Enosys),
            Control | Introduce | Release | Resume | SetTarget | IsDomainIntroduced if who.domid != 0 => {
                return Err(ErrorName::Eacces);
            }
            Watch => return self.watch(connection, payload),
            Unwatch => return self.unwatch(connection, payload),
            _ => {}
        }
        if transaction != 0 && !self.connections[&connection].transactions.contains_key(&transaction) {
            return Err(ErrorName::Enoent);
        }
        match kind {
            ResetWatches => {
                let connection = self.connections.get_mut(&connection).expect("open");
                connection.watches.clear();
                connection.transactions.clear();
                Ok(b"OK\0".to_vec())
            }
            TransactionStart => self.start(connection, transaction),
            TransactionEnd => self.end(connection, transaction, payload),
            GetDomainPath => Ok(format!("{}\0", paths::home(number(one(payload)?)?)).into_bytes()),
            IsDomainIntroduced => {
                let domid = number(one(payload)?)?;
                // 0x7FF0 is "myself".
                let known = domid == 0x7FF0 || self.introduced.contains(&domid);
                Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() })
            }
            Resume => match number(one(payload)?)? {
                0 => Err(ErrorName::Einval),
                domid if self.introduced.contains(&domid) => Ok(b"OK\0".to_vec()),
                _ => Err(ErrorName::Enoent),
            },
            SetTarget => self.set_target(payload),
            Introduce => self.introduce_again(payload),
            SetPerms if payload.starts_with(b"@") => self.set_special(who, payload),
            _ => self.nodes(connection, kind, transaction, payload),
        }
    }

    /// The number that the daemon gave to a transaction.
    pub fn started(&mut self, connection: usize, transaction: u32) {
        let open = &mut self.connections.get_mut(&connection).expect("open").transactions;
        assert!(transaction != 0 && !open.contains_key(&transaction), "{transaction} is taken");
        open.insert(transaction, State { inside: true, ..State::default() });
    }

    /// What a connection is to be told, oldest first.
    pub fn events(&mut self, connection: usize) -> Vec<Event> {
        self.connections.get_mut(&connection).expect("open").events.drain(..).collect()
    }

    /// How much of that there is.
    pub fn waiting_of(&self, connection: usize) -> usize {
        self.connections[&connection].events.len()
    }

    /// To whom something is to be told.
    pub fn waiting(&self) -> Vec<usize> {
        let waiting = self.connections.iter().filter(|(_, connection)| !connection.events.is_empty());
        waiting.map(|(number, _)| *number).collect()
    }

    /// All nodes: path, value, children, permissions.
    pub fn dump(&self) -> Vec<(String, Vec<u8>, Vec<String>, String)> {
        let paths = self.store.subtree("/", false).into_iter();
        let nodes = paths.map(|path| (self.store.get(&path).expect("listed").clone(), path));
        nodes.map(|(node, path)| (path, node.value, node.children, text(&node.perms))).collect()
    }

    fn of(&self, who: Who) -> impl Iterator<Item = &Connection> {
        self.connections.values().filter(move |connection| connection.who == who)
    }
}

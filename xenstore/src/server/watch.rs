//! Everybody's watches, and which changes concern them.
//!
//! One structure owns them all: by number (the order of registration, which is the order of events), by path for
//! firing, by client for its end. None is in one of the three and not in the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::domains::Domains;
use super::operations::canonical;
use super::special::Specials;
use super::tree::{Change, parent};
use crate::wire::ErrorName;

/// Bytes that a watch takes beside what it says: allocations and indexes, measured generously.
const WATCH: usize = 550;

/// A watch, as its owner registered it.
#[derive(Clone, Debug)]
struct Watch {
    client: u64,
    /// The client's domain; whom it acts for is asked when the watch fires.
    domid: u16,
    /// Absolute, or one of the special names, which like tokens may be any bytes.
    path: Arc<[u8]>,
    /// What the owner said: events speak the same language.
    given: Arc<[u8]>,
    token: Arc<[u8]>,
}

/// All watches.
#[derive(Debug, Default)]
pub struct Watches {
    watches: BTreeMap<u64, Watch>,
    by_path: HashMap<Arc<[u8]>, BTreeSet<u64>>,
    by_client: HashMap<u64, Theirs>,
    last: u64,
}

/// What one client has registered.
#[derive(Debug, Default)]
struct Theirs {
    watches: BTreeSet<u64>,
    memory: usize,
}

/// An event to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// What has changed.
    pub path: Arc<[u8]>,
    /// The watch's.
    pub token: Arc<[u8]>,
}

impl Event {
    /// Bytes that it takes up while it waits.
    pub fn len(&self) -> usize {
        self.path.len() + self.token.len() + 64
    }
}

/// An event for a client, and what is said instead when too many wait: that something has changed where the watch is.
#[derive(Clone, Debug)]
pub struct Told {
    /// Whom it is for.
    pub client: u64,
    /// The event.
    pub event: Event,
    /// The one that stands for all of its watch.
    pub instead: Event,
}

/// What somebody asks to watch.
pub struct Wish<'a> {
    /// The connection.
    pub client: u64,
    /// Its domain.
    pub domid: u16,
    /// As given.
    pub path: &'a [u8],
    /// As given.
    pub token: &'a [u8],
}

impl Watches {
    /// Of one client: how many, and the bytes they take.
    pub fn of(&self, client: u64) -> (usize, usize) {
        self.by_client.get(&client).map_or((0, 0), |theirs| (theirs.watches.len(), theirs.memory))
    }

    /// Registers one; the event that it fires at once is returned. `room` is how many more the domain may have.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` for a bad path, `E2BIG` without room.
    pub fn add(&mut self, wish: &Wish<'_>, room: usize, path_max: usize) -> Result<Event, ErrorName> {
        let path: Arc<[u8]> = watched(wish.path, wish.domid, path_max)?.into();
        let (given, token): (Arc<[u8]>, Arc<[u8]>) = (wish.path.into(), wish.token.into());
        if self.find(wish.client, &path, wish.token).is_some() {
            return Err(ErrorName::Eexist);
        }
        if room == 0 {
            return Err(ErrorName::E2big);
        }
        self.last += 1;
        self.by_path.entry(Arc::clone(&path)).or_default().insert(self.last);
        let event = Event { path: Arc::clone(&given), token: Arc::clone(&token) };
        let watch = Watch { client: wish.client, domid: wish.domid, path, given, token };
        let theirs = self.by_client.entry(wish.client).or_default();
        theirs.watches.insert(self.last);
        theirs.memory += watch.memory();
        self.watches.insert(self.last, watch);
        Ok(event)
    }

    /// Ends one.
    ///
    /// # Errors
    /// `ENOENT` when there is none such, if only because its path is none.
    pub fn remove(&mut self, wish: &Wish<'_>, path_max: usize) -> Result<(), ErrorName> {
        let path = watched(wish.path, wish.domid, path_max).map_err(|_| ErrorName::Enoent)?;
        let number = self.find(wish.client, &path, wish.token).ok_or(ErrorName::Enoent)?;
        self.forget(number);
        Ok(())
    }

    /// Ends all of one client.
    pub fn clear(&mut self, client: u64) {
        let theirs: Vec<u64> = self.theirs(client).map(|(number, _)| number).collect();
        theirs.into_iter().for_each(|number| self.forget(number));
    }

    /// True when an event that waits has a watch that would fire it now.
    pub fn covers(&self, client: u64, event: &Event) -> bool {
        self.instead_of(client, event).next().is_some()
    }

    /// For an event that waits, those that name the client's watches which would fire it now.
    pub fn instead_of(&self, client: u64, event: &Event) -> impl Iterator<Item = Event> {
        let concerned = self.theirs(client).filter(|(_, watch)| {
            watch.token == event.token && (is_at_or_below(&event.path, &watch.given) || *watch.given == *b"/")
        });
        concerned.map(|(_, watch)| Event { path: Arc::clone(&watch.given), token: Arc::clone(&watch.token) })
    }

    /// The events that a change means, in the order of registration.
    pub fn events(&self, change: &Change, domains: &Domains, tell: &mut (impl FnMut(Told) + ?Sized)) {
        let mut concerned: Vec<u64> = Vec::new();
        let mut at = &*change.path;
        loop {
            concerned.extend(self.by_path.get(at.as_bytes()).into_iter().flatten());
            if change.exact || at == "/" {
                break;
            }
            at = parent(at);
        }
        concerned.sort_unstable();
        // Most watches in a row are of one domain; who may know is worth asking only once for those.
        let mut last: Option<(u16, bool)> = None;
        for watch in concerned.iter().filter_map(|number| self.watches.get(number)) {
            let visible = match last {
                Some((domid, visible)) if domid == watch.domid => visible,
                _ => change.is_visible_to(domains.who(watch.domid)),
            };
            last = Some((watch.domid, visible));
            if visible {
                tell(told(watch, as_given(watch, &change.path)));
            }
        }
    }

    /// The events of one of the special names. They are below nothing: who watches `/` is not told.
    pub fn special(&self, name: &str, state: (&Specials, &Domains), tell: &mut (impl FnMut(Told) + ?Sized)) {
        let (specials, domains) = state;
        let numbers = self.by_path.get(name.as_bytes()).into_iter().flatten();
        let concerned = numbers.filter_map(|number| self.watches.get(number));
        let heard = concerned.filter(|watch| specials.is_for(name, domains.who(watch.domid)));
        heard.for_each(|watch| tell(told(watch, name.as_bytes().into())));
    }

    fn theirs(&self, client: u64) -> impl Iterator<Item = (u64, &Watch)> {
        let numbers = self.by_client.get(&client).into_iter().flat_map(|theirs| &theirs.watches);
        numbers.filter_map(|number| self.watches.get(number).map(|watch| (*number, watch)))
    }

    fn find(&self, client: u64, path: &[u8], token: &[u8]) -> Option<u64> {
        let is_it = |watch: &&u64| {
            self.watches.get(watch).is_some_and(|watch| watch.client == client && *watch.token == *token)
        };
        self.by_path.get(path)?.iter().find(is_it).copied()
    }

    fn forget(&mut self, number: u64) {
        let Some(watch) = self.watches.remove(&number) else { return };
        if let Some(numbers) = self.by_path.get_mut(&watch.path) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_path.remove(&watch.path);
            }
        }
        if let Some(theirs) = self.by_client.get_mut(&watch.client) {
            theirs.watches.remove(&number);
            theirs.memory -= watch.memory();
            if theirs.watches.is_empty() {
                self.by_client.remove(&watch.client);
            }
        }
    }
}

fn is_at_or_below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

impl Watch {
    fn memory(&self) -> usize {
        self.path.len() + self.given.len() + self.token.len() + WATCH
    }
}

/// What a watch is on: a node, or one of the special names, of which there may be more than we fire.
fn watched(given: &[u8], domid: u16, path_max: usize) -> Result<Vec<u8>, ErrorName> {
    match given.starts_with(b"@") {
        false => canonical(given, domid, path_max).map(String::into_bytes),
        true if given.len() > path_max => Err(ErrorName::Einval),
        true => Ok(given.to_vec()),
    }
}

fn told(watch: &Watch, path: Arc<[u8]>) -> Told {
    let event = |path| Event { path, token: Arc::clone(&watch.token) };
    Told { client: watch.client, event: event(path), instead: event(Arc::clone(&watch.given)) }
}

/// A path in the language of the watch: relative if the watch is.
fn as_given(watch: &Watch, path: &str) -> Arc<[u8]> {
    let path = path.as_bytes();
    if watch.given == watch.path {
        return path.into();
    }
    [&watch.given, &path[watch.path.len().min(path.len())..]].concat().into()
}

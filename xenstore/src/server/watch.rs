//! Watches of one connection, and which changes concern them.

use std::sync::Arc;

use super::operations::canonical;
use super::quota::Limits;
use super::tree::{Change, is_at_or_below};
use crate::wire::{ErrorName, REL_PATH_MAX};

/// A watch, as its owner registered it.
#[derive(Clone, Debug)]
struct Watch {
    /// Absolute, or one of the special names.
    path: String,
    /// What the owner said: events speak the same language.
    given: Arc<str>,
    token: Arc<str>,
}

/// A connection's watches.
#[derive(Debug, Default)]
pub struct Watches {
    watches: Vec<Watch>,
}

/// An event to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// What has changed.
    pub path: Arc<str>,
    /// The watch's.
    pub token: Arc<str>,
}

impl Event {
    /// Bytes that it takes up while it waits.
    pub fn len(&self) -> usize {
        self.path.len() + self.token.len() + 64
    }
}

/// An event, and what is said instead when too many wait: that something has changed where the watch is.
pub type Told = (Event, Event);

impl Watches {
    /// How many.
    pub fn len(&self) -> usize {
        self.watches.len()
    }

    /// Registers one; the event that it fires at once is returned.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` for a bad path, `E2BIG` over the limit (`count` of the whole domain).
    pub fn add(
        &mut self,
        given: &[u8],
        token: &[u8],
        domid: u16,
        count: usize,
        limits: &Limits,
    ) -> Result<Event, ErrorName> {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(Arc::from).map_err(|_| ErrorName::Einval);
        let (given, token, path): (Arc<str>, Arc<str>, _) = (text(given)?, text(token)?, watched(given, domid)?);
        if self.watches.iter().any(|watch| watch.path == path && watch.token == token) {
            return Err(ErrorName::Eexist);
        }
        if domid != 0 && count >= limits.watches {
            return Err(ErrorName::E2big);
        }
        self.watches.push(Watch { path, given: Arc::clone(&given), token: Arc::clone(&token) });
        Ok(Event { path: given, token })
    }

    /// Ends one.
    ///
    /// # Errors
    /// `ENOENT` when there is none such, `EINVAL` for a bad path.
    pub fn remove(&mut self, given: &[u8], token: &[u8], domid: u16) -> Result<(), ErrorName> {
        let path = watched(given, domid)?;
        let is_it = |watch: &Watch| watch.path == path && watch.token.as_bytes() == token;
        let at = self.watches.iter().position(is_it).ok_or(ErrorName::Enoent)?;
        self.watches.remove(at);
        Ok(())
    }

    /// Ends all.
    pub fn clear(&mut self) {
        self.watches.clear();
    }

    /// True when an event that waits has a watch that would fire it now.
    pub fn covers(&self, event: &Event) -> bool {
        self.instead_of(event).next().is_some()
    }

    /// For an event that waits, those that name the watches which would fire it now.
    pub fn instead_of(&self, event: &Event) -> impl Iterator<Item = Event> {
        let concerned = self.watches.iter().filter(|watch| {
            watch.token == event.token && (is_at_or_below(&event.path, &watch.given) || &*watch.given == "/")
        });
        concerned.map(|watch| told(watch, Arc::clone(&watch.given)).0)
    }

    /// The events that a change means for a domain.
    pub fn events<'a>(&'a self, change: &'a Change, domid: u16) -> impl Iterator<Item = Told> + 'a {
        let visible = !self.watches.is_empty() && change.is_visible_to(domid);
        self.watches.iter().filter(move |_| visible).filter_map(move |watch| {
            let concerns = match change.exact {
                true => watch.path == change.path,
                false => is_at_or_below(&change.path, &watch.path),
            };
            concerns.then(|| told(watch, as_given(watch, &change.path)))
        })
    }

    /// The events of one of the special names; who watches everything watches these too.
    pub fn special<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Told> + 'a {
        let concerned = self.watches.iter().filter(move |watch| watch.path == name || watch.path == "/");
        concerned.map(move |watch| told(watch, name.into()))
    }
}

/// What a watch is on: a node, or one of the special names, of which there may be more than we fire.
fn watched(given: &[u8], domid: u16) -> Result<String, ErrorName> {
    let Some(name) = given.strip_prefix(b"@") else { return canonical(given, domid) };
    let name = canonical(name, domid).map(|_| String::from_utf8_lossy(given).into_owned())?;
    if name.len() > REL_PATH_MAX { Err(ErrorName::Einval) } else { Ok(name) }
}

fn told(watch: &Watch, path: Arc<str>) -> Told {
    let event = |path| Event { path, token: Arc::clone(&watch.token) };
    (event(path), event(Arc::clone(&watch.given)))
}

/// A path in the language of the watch: relative if the watch is.
fn as_given(watch: &Watch, path: &str) -> Arc<str> {
    if *watch.given == watch.path {
        return path.into();
    }
    format!("{}{}", watch.given, &path[watch.path.len().min(path.len())..]).into()
}

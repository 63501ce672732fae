//! Watches of one connection, and which changes concern them.

use super::operations::canonical;
use super::quota::Limits;
use super::tree::{Change, is_at_or_below};
use crate::wire::ErrorName;

/// A watch, as its owner registered it.
#[derive(Clone, Debug)]
struct Watch {
    /// Absolute, or one of the special names.
    path: String,
    /// What the owner said: events speak the same language.
    given: String,
    token: String,
}

/// A connection's watches.
#[derive(Debug, Default)]
pub struct Watches {
    watches: Vec<Watch>,
}

/// An event to be told: path and token.
pub type Event = (String, String);

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
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| ErrorName::Einval);
        let (given_text, token) = (text(given)?, text(token)?);
        let path = match given {
            b"@introduceDomain" | b"@releaseDomain" => given_text.clone(),
            _ => canonical(given, domid)?,
        };
        if self.watches.iter().any(|watch| watch.path == path && watch.token == token) {
            return Err(ErrorName::Eexist);
        }
        if domid != 0 && count >= limits.watches {
            return Err(ErrorName::E2big);
        }
        let event = (given_text.clone(), token.clone());
        self.watches.push(Watch { path, given: given_text, token });
        Ok(event)
    }

    /// Ends one.
    ///
    /// # Errors
    /// `ENOENT` when there is none such.
    pub fn remove(&mut self, given: &[u8], token: &[u8]) -> Result<(), ErrorName> {
        let at =
            self.watches.iter().position(|watch| watch.given.as_bytes() == given && watch.token.as_bytes() == token);
        self.watches.remove(at.ok_or(ErrorName::Enoent)?);
        Ok(())
    }

    /// Ends all.
    pub fn clear(&mut self) {
        self.watches.clear();
    }

    /// The events that a change means for a domain.
    pub fn events<'a>(&'a self, change: &'a Change, domid: u16) -> impl Iterator<Item = Event> + 'a {
        let visible = change.is_visible_to(domid);
        self.watches.iter().filter(move |_| visible).filter_map(move |watch| {
            let concerns = match change.exact {
                true => watch.path == change.path,
                false => is_at_or_below(&change.path, &watch.path),
            };
            concerns.then(|| (as_given(watch, &change.path), watch.token.clone()))
        })
    }

    /// The events of one of the special names.
    pub fn special<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Event> + 'a {
        self.watches
            .iter()
            .filter(move |watch| watch.path == name)
            .map(|watch| (watch.given.clone(), watch.token.clone()))
    }
}

/// A path in the language of the watch: relative if the watch is.
fn as_given(watch: &Watch, path: &str) -> String {
    let below = &path[watch.path.len().min(path.len())..];
    if watch.path == "/" { path.to_owned() } else { format!("{}{below}", watch.given) }
}

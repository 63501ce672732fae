//! Watches, and what they hear.

use xenstore::wire::ErrorName;

use super::paths::{absolute, home, within};
use super::requests::strings;
use super::store::{Asker, Right, allows};
use super::work::Fire;
use super::{Model, Watch};
use crate::peer::Answer;

impl Model {
    pub(super) fn watch(&mut self, connection: usize, payload: &[u8]) -> Answer {
        let who = self.connections[&connection].who;
        let (path, token) = watched(payload, who.domid)?;
        let watches: usize = self.of(who).map(|connection| connection.watches.len()).sum();
        let full = who.domid != 0 && watches >= self.limits.watches;
        let open = self.connections.get_mut(&connection).expect("open");
        if open.watches.iter().any(|watch| watch.path == path && watch.token == token) {
            return Err(ErrorName::Eexist);
        }
        if full {
            return Err(ErrorName::E2big);
        }
        let relative = !payload.starts_with(b"/") && !payload.starts_with(b"@");
        let hidden = if relative { home(who.domid).len() + 1 } else { 0 };
        open.events.push_back((path[hidden..].to_owned(), token.clone()));
        open.watches.push(Watch { path, token, hidden });
        Ok(b"OK\0".to_vec())
    }

    pub(super) fn unwatch(&mut self, connection: usize, payload: &[u8]) -> Answer {
        let open = self.connections.get_mut(&connection).expect("open");
        let (path, token) = watched(payload, open.who.domid).map_err(|_| ErrorName::Enoent)?;
        let at = open.watches.iter().position(|watch| watch.path == path && watch.token == token);
        open.watches.remove(at.ok_or(ErrorName::Enoent)?);
        Ok(b"OK\0".to_vec())
    }

    /// Each connection hears of it by each of its watches, in the order in which they were set up, but of the same
    /// path with the same token once.
    pub(super) fn tell(&mut self, fire: &Fire) {
        for connection in self.connections.values_mut() {
            let asker = Asker { who: connection.who, target: self.targets.get(&connection.who.domid).copied() };
            if !fire.readable.iter().any(|perms| allows(perms, asker, Right::Read)) {
                continue;
            }
            let mut told = Vec::new();
            for watch in &connection.watches {
                let hears = if fire.exact { fire.path == watch.path } else { within(&fire.path, &watch.path) };
                let shown = fire.path.get(watch.hidden..).unwrap_or_default();
                let event = (shown.to_owned(), watch.token.clone());
                if hears && !told.contains(&event) {
                    told.push(event);
                }
            }
            connection.events.extend(told);
        }
    }
}

/// What a watch is on, and its token.
fn watched(payload: &[u8], domid: u16) -> Result<(String, String), ErrorName> {
    let parts = strings(payload);
    let [path, token] = parts[..] else { return Err(ErrorName::Einval) };
    Ok((absolute(path, domid, true)?, String::from_utf8_lossy(token).into_owned()))
}

//! A client's watches and the events that wait to be taken.

use std::collections::{HashSet, VecDeque};

/// A watch has fired.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    /// What changed; relative if the watch was.
    pub path: String,
    /// What the watch was registered with.
    pub token: String,
}

/// A watch, as the daemon was asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    pub path: String,
    pub token: String,
    /// Levels below the path that it is for; all of them without a number.
    pub depth: Option<u32>,
}

/// Events that may wait, and bytes of them; beyond that each watch's are one.
const MOST: (usize, usize) = (16 << 10, 4 << 20);

/// What is registered, and what has fired.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub watches: Vec<Watch>,
    waiting: VecDeque<WatchEvent>,
    /// The same, to see quickly that one waits already.
    known: HashSet<WatchEvent>,
    /// Bytes of all that wait.
    bytes: usize,
    /// Too many waited: until all are taken, an event says no more than which watch has something to look at.
    merged: bool,
}

impl Events {
    /// One has come. A daemon that tells more than anybody takes cannot fill the memory: then all watches fire once
    /// more, and their owner, who looks at everything again, has lost nothing.
    pub fn push(&mut self, event: WatchEvent) {
        if !self.merged && (self.waiting.len() >= MOST.0 || self.bytes >= MOST.1) {
            self.merged = true;
            self.keep(|_| false);
            let all: Vec<WatchEvent> = self.watches.iter().map(Watch::event).collect();
            all.into_iter().for_each(|event| self.put(event));
        }
        if !self.merged {
            return self.put(event);
        }
        // By the token alone: one look too many does no harm.
        let concerned = self.watches.iter().filter(|watch| watch.token == event.token).map(Watch::event);
        concerned.collect::<Vec<_>>().into_iter().for_each(|event| self.put(event));
    }

    fn put(&mut self, event: WatchEvent) {
        if self.known.insert(event.clone()) {
            self.bytes += event.size();
            self.waiting.push_back(event);
        }
    }

    fn keep(&mut self, stays: impl Fn(&WatchEvent) -> bool) {
        self.waiting.retain(&stays);
        self.known.retain(&stays);
        self.bytes = self.waiting.iter().map(WatchEvent::size).sum();
    }

    /// True for a watch that is registered, or was and will be again.
    pub fn has(&self, path: &str, token: &str) -> bool {
        self.watches.iter().any(|watch| watch.is(path, token))
    }

    /// The oldest.
    pub fn take(&mut self) -> Option<WatchEvent> {
        let event = self.waiting.pop_front();
        match &event {
            Some(event) => {
                self.known.remove(event);
                self.bytes -= event.size();
            }
            None => self.merged = false,
        }
        event
    }

    /// A watch has ended, and its events with it, unless another one of its token covers them.
    pub fn end(&mut self, path: &str, token: &str) {
        self.watches.retain(|watch| !watch.is(path, token));
        let ended = Watch { path: path.to_owned(), token: token.to_owned(), depth: None };
        let watches = std::mem::take(&mut self.watches);
        self.keep(|event| !ended.covers(event) || watches.iter().any(|watch| watch.covers(event)));
        self.watches = watches;
    }

    /// Everything has ended.
    pub fn clear(&mut self) {
        *self = Events::default();
    }
}

impl WatchEvent {
    fn size(&self) -> usize {
        self.path.len() + self.token.len()
    }
}

impl Watch {
    pub fn is(&self, path: &str, token: &str) -> bool {
        self.path == path && self.token == token
    }

    fn covers(&self, event: &WatchEvent) -> bool {
        let below = event.path.strip_prefix(&self.path);
        let is_below = below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.path.ends_with('/'));
        event.token == self.token && (is_below || self.path == "/")
    }

    fn event(&self) -> WatchEvent {
        WatchEvent { path: self.path.clone(), token: self.token.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, token: &str) -> WatchEvent {
        WatchEvent { path: path.into(), token: token.into() }
    }

    #[test]
    fn a_flood_becomes_one_event_per_watch_and_nothing_is_lost() {
        let watch = |path: &str| Watch { path: path.into(), token: "t".into(), depth: None };
        let mut events = Events { watches: vec![watch("/a"), watch("/b")], ..Events::default() };
        (0..3 * MOST.0).for_each(|n| events.push(event(&format!("/a/{n}"), "t")));
        events.push(event("/b/x", "t"));
        events.push(event("/nobody", "of any watch"));
        let mut taken = Vec::new();
        while let Some(event) = events.take() {
            taken.push(event.path);
        }
        assert_eq!(taken, ["/a", "/b"]);
        events.push(event("/a/again", "t"));
        assert_eq!(events.take(), Some(event("/a/again", "t")), "exact again once all are taken");
    }

    #[test]
    fn long_paths_fill_no_more_than_short_ones() {
        let watch = Watch { path: "/a".into(), token: "t".into(), depth: None };
        let mut events = Events { watches: vec![watch], ..Events::default() };
        for n in 0..MOST.0 {
            events.push(event(&format!("/a/{n}/{}", "x".repeat(3000)), "t"));
            assert!(events.bytes <= MOST.1 + 4096);
            assert_eq!(events.bytes, events.waiting.iter().map(WatchEvent::size).sum::<usize>());
        }
        assert_eq!([events.take(), events.take()], [Some(event("/a", "t")), None]);
        assert_eq!(events.bytes, 0);
    }

    #[test]
    fn the_end_of_a_watch_leaves_the_events_of_others() {
        let watch = |path: &str, token: &str| Watch { path: path.into(), token: token.into(), depth: None };
        let watches = vec![watch("/a", "t"), watch("/a/b", "t"), watch("/a", "u")];
        let mut events = Events { watches, ..Events::default() };
        for (path, token) in [("/a/x", "t"), ("/a/b/c", "t"), ("/a/x", "u")] {
            events.push(event(path, token));
        }
        events.end("/a", "t");
        assert_eq!(
            [events.take(), events.take(), events.take()],
            [Some(event("/a/b/c", "t")), Some(event("/a/x", "u")), None]
        );
    }
}

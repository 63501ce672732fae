//! Log lines that a guest can cause, bounded per guest: nobody fills a log by flapping.

use std::time::Instant;

use super::Supervisor;
use super::nodes::Name;
use crate::log::voice::Speak;

impl Supervisor {
    /// A warning that a guest may have caused: bounded per guest.
    pub(super) fn say(&mut self, name: Name, text: &str) {
        self.bounded(name.guest, true, |tail| tracing::warn!(device = %name, "{text}{tail}"));
    }

    /// The same for what is no trouble.
    pub(super) fn tell(&mut self, name: Name, text: &str) {
        self.bounded(name.guest, false, |tail| tracing::info!(device = %name, "{text}{tail}"));
    }

    /// A guest has no device left: what it had to say is forgotten.
    pub(super) fn forget_voices(&mut self, guest: u16) {
        if self.devices.keys().all(|name| name.guest != guest) && !self.vifs.serves(guest) {
            self.voices.retain(|(other, _), _| *other != guest);
        }
    }

    /// Trouble has lines of its own: what goes well must not hide it.
    pub(super) fn bounded(&mut self, guest: u16, trouble: bool, log: impl FnOnce(&str)) {
        match self.voices.entry((guest, trouble)).or_default().may_speak(Instant::now()) {
            Speak::Yes => log(""),
            Speak::Last => log(" (more of this guest's lines are dropped for a minute)"),
            Speak::No => {}
        }
    }
}

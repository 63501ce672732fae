//! When a backend does what, for every kind of device: pure decisions about one device, from what the store says and
//! where its parts stand; and the two accesses to the store that have to be one transaction each.
//!
//! ```text
//!             prepared                ring keys read, worker connected
//! Initialising ----------> InitWait ----------------------------------> Connected
//!      ^                    ^   |                                           |
//!      |                    |   '-----------.      frontend Closing: Closing|(the ring stays in use)
//!      |   frontend back in |               v                               v
//!      |   Initialising     '---- Closed <--- worker has drained <--- frontend Closed or gone
//!      |                            |
//!      new directory                '--online = 0--> directory removed
//! ```
//! One step is taken at a time; whoever carries it out looks at the store again and asks anew. So events may be
//! lost, merged or repeated without harm.

use std::time::Instant;

use super::XenbusState;
use crate::{Client, Error, Store};

/// What the store says about a device, all of it read in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The backend's own `state`; none when the directory is gone.
    pub backend: Option<XenbusState>,
    /// `online`: the toolstack wants the device to be there.
    pub online: bool,
    /// The frontend's `state`; Unknown when its directory is gone.
    pub frontend: XenbusState,
    /// The directory has a key of ours, so it is the one that we know.
    pub touched: bool,
}

impl Seen {
    /// Reads it, from the directories of the two sides. `mark` is a key of the backend's directory that is written no
    /// later than a device is offered or refused.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn read(store: &mut Client, backend: &str, frontend: &str, mark: &str) -> Result<Seen, Error> {
        store.transaction(|tx| {
            let ours = tx.read_optional(&format!("{backend}/state"))?;
            let online = tx.read_optional(&format!("{backend}/online"))?;
            let touched = tx.read_optional(&format!("{backend}/{mark}"))?.is_some();
            // Where the guest's directory is gone C xenstored says EACCES, for we may not read its parent.
            let theirs = match tx.read_optional(&format!("{frontend}/state")) {
                Err(error) if error.is_permission() => None,
                other => other?,
            };
            Ok(Seen {
                backend: ours.map(|state| XenbusState::parse(&state)),
                online: online.as_deref() == Some(b"1"),
                frontend: theirs.map_or(XenbusState::Unknown, |state| XenbusState::parse(&state)),
                touched,
            })
        })
    }

    /// The directory was removed and made again between two looks: another device of the same name. `parts` are those
    /// of the one we know.
    pub fn is_another(&self, parts: &Parts) -> bool {
        let began = parts.state != XenbusState::Initialising || parts.refused;
        self.backend == Some(XenbusState::Initialising) && began && !self.touched
    }

    /// The device that we know, when its directory is another's now.
    pub fn gone(&self) -> Seen {
        Seen { backend: None, ..*self }
    }
}

/// Writes a state below `backend`, if that directory is still there: writing would bring it back.
///
/// # Errors
/// When the store does not answer.
pub fn switch(store: &mut Client, backend: &str, state: XenbusState) -> Result<(), Error> {
    store.transaction(|tx| match tx.read_optional(&format!("{backend}/state"))? {
        Some(_) => write_state(tx, backend, state),
        None => Ok(()),
    })
}

/// The same within a transaction that has looked already.
///
/// # Errors
/// When the store does not answer.
pub fn write_state(store: &mut impl Store, backend: &str, state: XenbusState) -> Result<(), Error> {
    store.write(&format!("{backend}/state"), state.number().to_string().as_bytes())
}

/// Where the device's parts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The state we wrote last.
    pub state: XenbusState,
    /// What stands behind the device is there: a volume is open.
    pub prepared: bool,
    /// The device will not be served as it is.
    pub refused: bool,
    /// What a worker does for it.
    pub service: Service,
    /// A state that the toolstack must have time to see, InitWait or the last Closed, is kept up until then.
    pub dwell: Option<Instant>,
    /// We are ending.
    pub stopping: bool,
}

/// What a worker does for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Nothing; it holds nothing either.
    None,
    /// It was asked to connect.
    Connecting,
    /// It serves.
    Connected,
    /// It was asked to disconnect, or died and is fenced.
    Draining,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do before something changes.
    Wait,
    /// Nothing to do before this moment.
    WaitUntil(Instant),
    /// Open what stands behind the device, or look again whether it can be opened.
    Prepare,
    /// Publish what the frontend needs, then InitWait.
    Offer,
    /// Read what the frontend chose and have a worker connect.
    Connect,
    /// Publish what the device is, then Connected.
    Announce,
    /// Have the worker finish and let go.
    Disconnect,
    /// Write this state.
    Switch(XenbusState),
    /// Let go of what stands behind the device, remove our directory, forget the device.
    Remove,
    /// The directory is gone already: let go, forget the device.
    Forget,
}

/// Decides.
pub fn next(seen: &Seen, parts: &Parts, now: Instant) -> Step {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
    let Some(in_store) = seen.backend else {
        return match parts.service {
            Service::None => Step::Forget,
            Service::Draining => Step::Wait,
            Service::Connecting | Service::Connected => Step::Disconnect,
        };
    };
    // dom0 writes Closing into our own directory to ask for a detach.
    let asked = !seen.online || parts.stopping || matches!(in_store, Closing | Closed);
    match parts.state {
        Closed => match parts.service {
            Service::Draining => Step::Wait,
            Service::Connecting | Service::Connected => Step::Disconnect,
            // libxl waits for Closed and takes a directory that is gone by then for a failure.
            Service::None if !seen.online && in_store != Closed => Step::Switch(Closed),
            Service::None if !seen.online => match parts.dwell {
                Some(dwell) if now < dwell => Step::WaitUntil(dwell),
                _ => Step::Remove,
            },
            Service::None if parts.stopping || seen.frontend != Initialising => Step::Wait,
            Service::None if parts.refused => Step::Wait,
            Service::None if !parts.prepared => Step::Prepare,
            Service::None => Step::Offer,
        },
        _ if parts.service == Service::Draining => Step::Wait,
        Initialising | Unknown if asked => Step::Switch(Closed),
        Initialising | Unknown if seen.frontend == Unknown || parts.refused => Step::Wait,
        Initialising | Unknown if !parts.prepared => Step::Prepare,
        Initialising | Unknown => Step::Offer,
        InitWait if parts.service == Service::None => {
            // Nothing is shared yet, so nobody has to be waited for.
            if asked || parts.refused || matches!(seen.frontend, Unknown | Closed | Closing) {
                return Step::Switch(Closed);
            }
            match (seen.frontend, parts.dwell) {
                // A frontend may skip Initialised, and watch events may merge.
                (Initialised | Connected, Some(dwell)) if now < dwell => Step::WaitUntil(dwell),
                (Initialised | Connected, _) => Step::Connect,
                _ => Step::Wait,
            }
        }
        InitWait if asked || parts.refused || matches!(seen.frontend, Unknown | Closed | Closing) => Step::Disconnect,
        InitWait if parts.service == Service::Connected => Step::Announce,
        InitWait => Step::Wait,
        // Closing, Connected, and what only a backend of before us can have written.
        _ => match (parts.service, seen.frontend) {
            (Service::None, Unknown | Closed | Initialising) => Step::Switch(Closed),
            (Service::None, _) if asked => Step::Switch(Closed),
            (Service::None, _) if parts.state != Closing => Step::Switch(Closing),
            (Service::None, _) => Step::Wait,
            (_, Unknown | Closed | Initialising) => Step::Disconnect,
            // A guest that broke the protocol is not waited for.
            _ if (parts.stopping || parts.refused) && parts.state == Closing => Step::Disconnect,
            _ if parts.refused => Step::Switch(Closing),
            (_, Closing) if parts.state != Closing => Step::Switch(Closing),
            _ if asked && parts.state != Closing => Step::Switch(Closing),
            _ => Step::Wait,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
    use super::*;

    fn seen(backend: XenbusState, online: bool, frontend: XenbusState) -> Seen {
        Seen { backend: Some(backend), online, frontend, touched: true }
    }

    fn parts(state: XenbusState, service: Service) -> Parts {
        Parts { state, prepared: true, refused: false, service, dwell: None, stopping: false }
    }

    fn step(seen: Seen, parts: Parts) -> Step {
        next(&seen, &parts, Instant::now())
    }

    #[test]
    fn a_device_comes_up() {
        let new = Parts { prepared: false, ..parts(Initialising, Service::None) };
        assert_eq!(step(seen(Initialising, true, Initialising), new), Step::Prepare);
        assert_eq!(step(seen(Initialising, true, Initialising), parts(Initialising, Service::None)), Step::Offer);
        let waiting = parts(InitWait, Service::None);
        assert_eq!(step(seen(InitWait, true, Initialising), waiting), Step::Wait);
        assert_eq!(step(seen(InitWait, true, Initialised), waiting), Step::Connect);
        assert_eq!(step(seen(InitWait, true, Connected), waiting), Step::Connect);
        assert_eq!(step(seen(InitWait, true, Initialised), parts(InitWait, Service::Connecting)), Step::Wait);
        assert_eq!(step(seen(InitWait, true, Initialised), parts(InitWait, Service::Connected)), Step::Announce);
        assert_eq!(step(seen(Connected, true, Connected), parts(Connected, Service::Connected)), Step::Wait);
    }

    #[test]
    fn init_wait_is_kept_up_for_the_dwell() {
        let now = Instant::now();
        let dwell = now + Duration::from_millis(500);
        let waiting = Parts { dwell: Some(dwell), ..parts(InitWait, Service::None) };
        let seen = seen(InitWait, true, Initialised);
        assert_eq!(next(&seen, &waiting, now), Step::WaitUntil(dwell));
        assert_eq!(next(&seen, &waiting, dwell), Step::Connect);
    }

    #[test]
    fn a_detach_waits_for_the_guest_and_ends_with_the_directory() {
        let serving = parts(Connected, Service::Connected);
        assert_eq!(step(seen(Closing, false, Connected), serving), Step::Switch(Closing));
        let closing = parts(Closing, Service::Connected);
        assert_eq!(step(seen(Closing, false, Connected), closing), Step::Wait);
        assert_eq!(step(seen(Closing, false, Closing), closing), Step::Wait);
        assert_eq!(step(seen(Closing, false, Closed), closing), Step::Disconnect);
        assert_eq!(step(seen(Closing, false, Closed), parts(Closing, Service::Draining)), Step::Wait);
        assert_eq!(step(seen(Closing, false, Closed), parts(Closing, Service::None)), Step::Switch(Closed));
        assert_eq!(step(seen(Closed, false, Closed), parts(Closed, Service::None)), Step::Remove);
    }

    #[test]
    fn the_toolstack_sees_closed_before_the_directory_goes() {
        let now = Instant::now();
        let dwell = now + Duration::from_millis(500);
        let closed = Parts { dwell: Some(dwell), ..parts(Closed, Service::None) };
        assert_eq!(next(&seen(Closing, false, Unknown), &closed, now), Step::Switch(Closed));
        assert_eq!(next(&seen(Closed, false, Unknown), &closed, now), Step::WaitUntil(dwell));
        assert_eq!(next(&seen(Closed, false, Unknown), &closed, dwell), Step::Remove);
    }

    #[test]
    fn a_detach_before_anything_is_shared_waits_for_nobody() {
        for state in [Initialising, InitWait] {
            assert_eq!(step(seen(Closing, false, Initialising), parts(state, Service::None)), Step::Switch(Closed));
        }
        assert_eq!(step(seen(Closing, false, Initialised), parts(InitWait, Service::Connecting)), Step::Disconnect);
    }

    #[test]
    fn a_destroyed_guest_is_let_go_of() {
        for state in [InitWait, Connected, Closing] {
            let destroyed = seen(Closing, false, Unknown);
            assert_eq!(step(destroyed, parts(state, Service::Connected)), Step::Disconnect);
            assert_eq!(step(destroyed, parts(state, Service::None)), Step::Switch(Closed));
        }
    }

    #[test]
    fn a_guest_may_close_and_come_back() {
        let serving = parts(Connected, Service::Connected);
        assert_eq!(step(seen(Connected, true, Closing), serving), Step::Switch(Closing));
        assert_eq!(step(seen(Closing, true, Closed), parts(Closing, Service::Connected)), Step::Disconnect);
        let closed = parts(Closed, Service::None);
        assert_eq!(step(seen(Closed, true, Closed), closed), Step::Wait);
        assert_eq!(step(seen(Closed, true, Initialising), closed), Step::Offer);
        // A crash kernel starts over without having closed.
        assert_eq!(step(seen(Connected, true, Initialising), serving), Step::Disconnect);
        assert_eq!(step(seen(Connected, true, Initialising), parts(Connected, Service::None)), Step::Switch(Closed));
    }

    #[test]
    fn a_dead_worker_closes_the_device_and_a_detach_stays_clean() {
        // The state machine sees a device without service in Connected.
        assert_eq!(step(seen(Connected, true, Connected), parts(Connected, Service::Draining)), Step::Wait);
        assert_eq!(step(seen(Connected, true, Connected), parts(Connected, Service::None)), Step::Switch(Closing));
        assert_eq!(step(seen(Closing, true, Connected), parts(Closing, Service::None)), Step::Switch(Closed));
    }

    #[test]
    fn a_refused_device_stays_where_it_is_until_it_is_taken_away() {
        let refused = Parts { refused: true, prepared: false, ..parts(Initialising, Service::None) };
        assert_eq!(step(seen(Initialising, true, Initialising), refused), Step::Wait);
        assert_eq!(step(seen(Closing, false, Initialising), refused), Step::Switch(Closed));
    }

    #[test]
    fn a_guest_that_broke_the_protocol_is_disconnected_at_once() {
        let broken = |state, service| Parts { refused: true, ..parts(state, service) };
        let connected = seen(Connected, true, Connected);
        assert_eq!(step(seen(InitWait, true, Initialised), broken(InitWait, Service::Connected)), Step::Disconnect);
        assert_eq!(step(connected, broken(Connected, Service::Connected)), Step::Switch(Closing));
        let closing = seen(Closing, true, Connected);
        assert_eq!(step(closing, broken(Closing, Service::Connected)), Step::Disconnect);
        assert_eq!(step(closing, broken(Closing, Service::None)), Step::Switch(Closed));
        assert_eq!(step(seen(Closed, true, Connected), broken(Closed, Service::None)), Step::Wait);
    }

    #[test]
    fn a_directory_that_vanished_is_forgotten_once_nothing_is_in_use() {
        let gone = Seen { backend: None, online: false, frontend: Unknown, touched: false };
        assert_eq!(step(gone, parts(Connected, Service::Connected)), Step::Disconnect);
        assert_eq!(step(gone, parts(Connected, Service::Draining)), Step::Wait);
        assert_eq!(step(gone, parts(Connected, Service::None)), Step::Forget);
    }

    #[test]
    fn a_directory_made_anew_is_another_device() {
        let anew = Seen { touched: false, ..seen(Initialising, true, Initialising) };
        let waiting = Parts { prepared: false, ..parts(Initialising, Service::None) };
        assert!(!anew.is_another(&waiting));
        assert!(anew.is_another(&Parts { refused: true, ..waiting }));
        assert!(anew.is_another(&parts(Connected, Service::Connected)));
        assert!(!seen(Initialising, true, Initialising).is_another(&Parts { refused: true, ..waiting }));
        assert_eq!(step(anew.gone(), parts(Connected, Service::Connected)), Step::Disconnect);
    }

    #[test]
    fn stopping_closes_without_the_guest_and_leaves_the_directory() {
        let stop = |state, service| Parts { stopping: true, ..parts(state, service) };
        let connected = seen(Connected, true, Connected);
        assert_eq!(step(connected, stop(Connected, Service::Connected)), Step::Switch(Closing));
        assert_eq!(step(seen(Closing, true, Connected), stop(Closing, Service::Connected)), Step::Disconnect);
        assert_eq!(step(seen(Closing, true, Connected), stop(Closing, Service::None)), Step::Switch(Closed));
        assert_eq!(step(seen(Closed, true, Connected), stop(Closed, Service::None)), Step::Wait);
    }
}

//! A card's frontend on a store: reads what the backend says, writes what we answer, as Linux's netfront does it.
//!
//! ```text
//!  backend:   InitWait               Connected      Closing            Closed, or gone
//!  us:        keys, Connected   -->  it works  -->  Closed        -->  the grants are ended
//! ```

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use grant::{DomId, Granted};
use netback::packet::Mac;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::frontend::Frontend;
use xenstore::{Client, Error, Store};

use super::negotiate::{choose, keys};
use super::options::Options;
use super::queue::Queue;
use crate::blkfront::Machine;

/// What has happened to a card.
pub enum Event {
    /// Nothing that its user should know.
    Nothing,
    /// It can be used. The queues are the caller's until [`Event::Closing`].
    Connected(Vec<Queue>),
    /// It ends: the queues come back through [`Card::closed`].
    Closing,
    /// The backend has let go: [`Card::release`].
    Finished,
    /// Its directory has gone, or is somebody else's: [`Card::closed`] if it was connected, then [`Card::release`].
    Gone,
}

/// Why a card cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// The store did not answer, or would not let us.
    #[error(transparent)]
    Store(#[from] Error),
    /// A key of the toolstack's is missing or makes no sense.
    #[error("{0}")]
    Directory(String),
    /// The domain has no pages or event channels left.
    #[error("no pages or event channels for its rings: {0} (give the guest more --memory)")]
    Resources(#[from] io::Error),
    /// It was not connected in time.
    #[error("not connected after {0:?}: backend in state {1:?}")]
    TimedOut(Duration, XenbusState),
    /// It went away while we waited.
    #[error("the card has gone")]
    Gone,
}

/// One card of this domain.
pub struct Card {
    place: Frontend,
    peer: DomId,
    mac: Mac,
    mtu: u16,
    machine: Arc<dyn Machine>,
    options: Options,
    /// Laid out and not handed over.
    queues: Vec<Queue>,
    connected: bool,
}

/// The directory of card `devid`, relative to its domain.
fn directory(devid: u32) -> String {
    format!("device/vif/{devid}")
}

impl Card {
    /// Takes up card `devid`: its directory must be fresh (state Initialising). `None` when there is none, or it is not for
    /// us to begin with. The backend's state is watched from now on, with the token `vif-backend/DEVID`.
    ///
    /// # Errors
    /// [`CardError`].
    pub fn open(
        store: &mut Client,
        machine: Arc<dyn Machine>,
        options: Options,
        devid: u32,
    ) -> Result<Option<Card>, CardError> {
        let dir = directory(devid);
        let found = store.transaction(|tx| {
            let mut values = Vec::new();
            for key in ["state", "backend", "backend-id", "mac", "mtu"] {
                values.push(
                    tx.read_optional(&format!("{dir}/{key}"))?
                        .map(|value| String::from_utf8_lossy(&value).into_owned()),
                );
            }
            Ok(values)
        })?;
        let [Some(state), Some(backend), Some(peer), mac, mtu] = &found[..] else { return Ok(None) };
        if XenbusState::parse(state.as_bytes()) != XenbusState::Initialising {
            return Ok(None);
        }
        let wrong = |key| CardError::Directory(format!("{dir}/{key} makes no sense"));
        if !backend.starts_with("/local/domain/") {
            return Err(wrong("backend"));
        }
        let peer = peer.parse().map(DomId).map_err(|_| wrong("backend-id"))?;
        let mac = mac.as_deref().and_then(|mac| mac.parse().ok()).ok_or_else(|| wrong("mac"))?;
        let mtu = mtu.as_deref().and_then(|mtu| mtu.parse().ok()).unwrap_or(1500);
        Ok(Some(Card {
            place: Frontend::open(store, dir, backend.clone(), format!("vif-backend/{devid}"))?,
            peer,
            mac,
            mtu,
            machine,
            options,
            queues: Vec::new(),
            connected: false,
        }))
    }

    /// Its address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The largest payload of a frame, bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Our state and the backend's, as seen last.
    pub fn states(&self) -> (XenbusState, XenbusState) {
        self.place.states()
    }

    /// True from [`Event::Connected`] on until its queues are back.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Looks at both sides and takes one step. Call it whenever something below our directory or the backend's state has
    /// changed, until it says [`Event::Nothing`].
    ///
    /// # Errors
    /// [`CardError`]: the card is given up, call [`Card::closed`] with whatever queues there are.
    pub fn turn(&mut self, store: &mut Client) -> Result<Event, CardError> {
        if self.place.is_gone() {
            return Ok(Event::Nothing);
        }
        self.place.look(store)?;
        if self.place.is_gone() {
            return Ok(Event::Gone);
        }
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialising, Unknown};
        match self.place.states() {
            (Initialising, InitWait) => self.announce(store),
            (Connected, XenbusState::Connected) if !self.connected => {
                self.connected = true;
                Ok(Event::Connected(std::mem::take(&mut self.queues)))
            }
            (Connected, Closing | Closed | Unknown) if self.connected => Ok(Event::Closing),
            (Connected, Closing | Closed | Unknown) => {
                self.place.write(store, &[], Some(Closed))?;
                Ok(Event::Nothing)
            }
            (Closed, Closed | Unknown) => Ok(Event::Finished),
            _ => Ok(Event::Nothing),
        }
    }

    fn announce(&mut self, store: &mut Client) -> Result<Event, CardError> {
        let backend = self.place.backend();
        let options = choose(&self.options, &mut |key| store.read_optional(&format!("{backend}/{key}")))?;
        for _ in 0..options.queues {
            let (grants, events) = (self.machine.grant_access()?, self.machine.event_channel()?);
            self.queues.push(Queue::new(grants, events, self.peer, &options)?);
        }
        let rings: Vec<_> = self.queues.iter().map(Queue::keys).collect();
        // The state follows on its own, as a stock frontend does it.
        self.place.write(store, &keys(&options, &rings), None)?;
        self.place.write(store, &[], Some(XenbusState::Connected))?;
        Ok(Event::Nothing)
    }

    /// Begins to end the card from our side: then as after [`Event::Closing`].
    ///
    /// # Errors
    /// The store did not answer.
    pub fn leave(&mut self, store: &mut Client) -> Result<(), CardError> {
        Ok(self.place.write(store, &[], Some(XenbusState::Closing))?)
    }

    /// Takes the queues back and tells the backend that it may let go.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn closed(&mut self, store: &mut Client, queues: Vec<Queue>) -> Result<(), CardError> {
        self.queues.extend(queues);
        self.connected = false;
        Ok(self.place.write(store, &[], Some(XenbusState::Closed))?)
    }

    /// Ends the watch, every grant and every port. Returns what the backend still has mapped.
    pub fn release(self, store: &mut Client) -> Vec<Granted> {
        self.place.release(store);
        self.queues.into_iter().filter_map(|queue| queue.close().err()).flatten().collect()
    }
}

/// Connects card `devid` and waits for it: for programs with one card and nothing else to do.
///
/// # Errors
/// [`CardError`].
pub fn connect(
    store: &mut Client,
    machine: &Arc<dyn Machine>,
    options: &Options,
    devid: u32,
    timeout: Duration,
) -> Result<(Card, Vec<Queue>), CardError> {
    let (token, deadline) = (format!("vif-frontend/{devid}"), Instant::now() + timeout);
    store.watch(&directory(devid), &token)?;
    let mut card: Option<Card> = None;
    let connected = loop {
        if card.is_none() {
            card = Card::open(store, Arc::clone(machine), *options, devid)?;
        }
        match card.as_mut().map(|card| card.turn(store)).transpose()? {
            Some(Event::Connected(queues)) => break Ok(queues),
            Some(Event::Nothing) | None => {}
            Some(Event::Closing | Event::Finished | Event::Gone) => break Err(CardError::Gone),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let theirs = card.as_ref().map_or(XenbusState::Unknown, |card| card.states().1);
            break Err(CardError::TimedOut(timeout, theirs));
        }
        store.next_event(Some(left))?;
    };
    store.unwatch(&directory(devid), &token)?;
    match (connected, card) {
        (Ok(queues), Some(card)) => Ok((card, queues)),
        (Ok(_), None) => Err(CardError::Gone),
        (Err(error), card) => {
            if let Some(mut card) = card {
                // The first error is the one to tell.
                let _ = card.closed(store, Vec::new());
                card.release(store);
            }
            Err(error)
        }
    }
}

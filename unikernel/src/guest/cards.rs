//! The cards of a guest: each gets a TAP, through which programs of this machine use it like any network card.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frontend::blkfront::{Machine, Waker};
use frontend::netfront::{Card, CardError, Event, Options, Queue};
use grant::{Granted, tap};
use xenstore::Client;

use super::GuestError;
use super::wire::Wire;

/// Where cards appear, relative to the domain; also the token of the watch.
const CARDS: &str = "device/vif";
/// How often things are looked at again that nobody tells us of.
const LOOK: Duration = Duration::from_millis(200);
/// How long backends may take to let go when we end.
const CLOSE: Duration = Duration::from_secs(5);

/// The thread that follows the cards.
pub struct Cards {
    thread: Option<JoinHandle<Result<(), GuestError>>>,
    stop: Arc<AtomicBool>,
}

impl Cards {
    /// Opens the TAPs, the first for vif 0, and follows the cards in a thread of its own.
    ///
    /// # Errors
    /// A TAP that cannot be had, or what the store says.
    pub fn start(
        mut store: Client,
        machine: Arc<dyn Machine>,
        options: Options,
        taps: &[String],
    ) -> Result<Cards, GuestError> {
        let taps = taps.iter().map(|name| tap::open(name).map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        store.watch(CARDS, CARDS)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut following = Following { store, machine, options, taps, cards: BTreeMap::new(), leftover: Vec::new() };
        let stopped = Arc::clone(&stop);
        let body = move || following.run(&stopped);
        let thread = Some(std::thread::Builder::new().name("cards".into()).spawn(body)?);
        Ok(Cards { thread, stop })
    }

    /// Closes all cards.
    ///
    /// # Errors
    /// What the store said.
    pub fn close(mut self) -> Result<(), GuestError> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(io::Error::other("the thread of the cards panicked").into()),
        }
    }
}

struct Following {
    store: Client,
    machine: Arc<dyn Machine>,
    options: Options,
    taps: Vec<Arc<OwnedFd>>,
    cards: BTreeMap<u32, Followed>,
    /// Pages that a backend still had mapped when its card had gone.
    leftover: Vec<Granted>,
}

struct Followed {
    card: Card,
    wire: Option<(JoinHandle<Vec<Queue>>, Waker)>,
}

impl Followed {
    /// The queues back from the wire.
    fn cut(&mut self) -> Vec<Queue> {
        let Some((thread, waker)) = self.wire.take() else { return Vec::new() };
        waker.wake();
        thread.join().unwrap_or_default()
    }
}

impl Following {
    fn run(&mut self, stop: &AtomicBool) -> Result<(), GuestError> {
        while !stop.load(Ordering::Relaxed) {
            for devid in 0..self.taps.len() as u32 {
                self.look(devid)?;
            }
            self.end_leftovers();
            self.store.next_event(Some(LOOK))?;
        }
        for followed in self.cards.values_mut() {
            survivable(followed.card.leave(&mut self.store))?;
        }
        let deadline = Instant::now() + CLOSE;
        while !self.cards.is_empty() && Instant::now() < deadline {
            for devid in self.cards.keys().copied().collect::<Vec<_>>() {
                self.end(devid)?;
            }
            self.store.next_event(Some(LOOK))?;
        }
        Ok(())
    }

    /// Takes whatever steps a card is ready for.
    fn look(&mut self, devid: u32) -> Result<(), GuestError> {
        loop {
            if !self.cards.contains_key(&devid) {
                match Card::open(&mut self.store, Arc::clone(&self.machine), self.options, devid) {
                    Ok(Some(card)) => {
                        self.dress(devid, &card)?;
                        self.cards.insert(devid, Followed { card, wire: None });
                    }
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        tracing::error!(%error, "vif{devid} cannot be used");
                        return survivable(Err(error));
                    }
                }
            }
            let Some(followed) = self.cards.get_mut(&devid) else { return Ok(()) };
            match followed.card.turn(&mut self.store) {
                Ok(Event::Nothing) => return Ok(()),
                Ok(Event::Connected(queues)) => self.plug(devid, queues)?,
                Ok(Event::Closing) => {
                    tracing::info!("vif{devid} is closing");
                    let queues = followed.cut();
                    survivable(followed.card.closed(&mut self.store, queues))?;
                }
                Ok(Event::Gone) => {
                    tracing::info!("vif{devid} has been taken away");
                    let queues = followed.cut();
                    survivable(followed.card.closed(&mut self.store, queues))?;
                    self.release(devid);
                }
                Ok(Event::Finished) => self.release(devid),
                Err(error) => {
                    tracing::error!(%error, "vif{devid} cannot be used");
                    let queues = followed.cut();
                    let _ = followed.card.closed(&mut self.store, queues);
                    return survivable(Err(error));
                }
            }
        }
    }

    /// Gives a card's TAP its address and MTU: before the card is connected, so that nothing is sent from another one.
    fn dress(&self, devid: u32, card: &Card) -> Result<(), GuestError> {
        let Some(tap) = self.taps.get(devid as usize) else { return Ok(()) };
        let name = tap::name(tap)?;
        let (mac, mtu) = (card.mac(), card.mtu());
        for result in [tap::set_address(&name, mac.0), tap::set_mtu(&name, mtu), tap::set_up(&name)] {
            if let Err(error) = result {
                tracing::warn!(%error, "vif{devid}");
            }
        }
        tracing::info!(%mac, mtu, tap = name, "vif{devid} is there");
        Ok(())
    }

    /// Lays a card's wire.
    fn plug(&mut self, devid: u32, queues: Vec<Queue>) -> Result<(), GuestError> {
        let (Some(followed), Some(tap)) = (self.cards.get_mut(&devid), self.taps.get(devid as usize)) else {
            return Ok(());
        };
        let waker = Waker::new()?;
        let wire = Wire::new(Arc::clone(tap), queues, waker.clone());
        let body = move || {
            let (queues, result) = wire.run();
            if let Err(error) = result {
                tracing::error!(%error, "vif{devid}: the wire is cut");
            }
            queues
        };
        let thread = std::thread::Builder::new().name(format!("vif{devid}")).spawn(body)?;
        followed.wire = Some((thread, waker));
        tracing::info!("vif{devid} is connected");
        Ok(())
    }

    /// A step towards the end that we want ourselves.
    fn end(&mut self, devid: u32) -> Result<(), GuestError> {
        let Some(followed) = self.cards.get_mut(&devid) else { return Ok(()) };
        let queues = followed.cut();
        if followed.card.is_connected() || !queues.is_empty() {
            survivable(followed.card.closed(&mut self.store, queues))?;
        }
        let done = match followed.card.turn(&mut self.store) {
            Ok(Event::Finished | Event::Gone) | Err(_) => true,
            Ok(_) => {
                !followed.card.is_connected() && followed.card.states().0 == xenstore::xenbus::XenbusState::Initialising
            }
        };
        if done {
            self.release(devid);
        }
        Ok(())
    }

    fn release(&mut self, devid: u32) {
        if let Some(followed) = self.cards.remove(&devid) {
            tracing::info!("vif{devid} is closed");
            self.leftover.extend(followed.card.release(&mut self.store));
        }
    }

    fn end_leftovers(&mut self) {
        if self.leftover.is_empty() {
            return;
        }
        if let Ok(mut grants) = self.machine.grant_access() {
            let kept = self.leftover.drain(..).filter_map(|granted| Some(grants.end(granted).err()?.0)).collect();
            self.leftover = kept;
        }
    }
}

/// What ends one card does not end the guest; a store that is gone does.
fn survivable(result: Result<(), CardError>) -> Result<(), GuestError> {
    match result {
        Err(CardError::Store(error)) if !error.is_permission() && !error.is_not_found() => Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "passed over");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

//! A worker's cards: the one thread of a network, and the control half that speaks to it.
//!
//! All cards of a network and its uplink live on one thread, so that a packet goes from any of them to any other
//! without a lock. Control only sends messages and collects reports.

use std::collections::HashSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use grant::EventChannel;
use grant::exchange::Exchange;
use grant::reactor::{Inbox, Outbox, mailbox};
use serde::{Deserialize, Serialize};

use crate::config::{Connect, Rate, VifName};
use crate::station::{self, FromThread, Message};

/// What the thread is started with.
pub struct ThreadParts {
    /// Write end of its fence pipe: goes into the ring's file table and nowhere else.
    pub fence: OwnedFd,
    /// The way to the pages of all guests of the network.
    pub exchange: Box<dyn Exchange>,
}

/// What a card is connected with.
pub struct VifParts {
    /// Event channels, restricted to the card's guest.
    pub events: Box<dyn EventChannel>,
    /// A [`grant::meter::Meter`] with one block for each queue.
    pub meter: OwnedFd,
    /// A descriptor for the guest's grants, see [`Exchange::join`].
    pub grants: OwnedFd,
}

/// What a worker tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// All queues of the card are served.
    Connected {
        /// Which.
        vif: VifName,
    },
    /// The card could not be connected; nothing of it is left.
    Failed {
        /// Which.
        vif: VifName,
        /// Why.
        reason: String,
    },
    /// The frontend broke the protocol: the card takes and gives nothing more and is to be disconnected.
    Broken {
        /// Which.
        vif: VifName,
        /// How.
        reason: String,
    },
    /// Asked for: packets are put behind this much headroom from now on.
    Reconfigured {
        /// Which.
        vif: VifName,
        /// Bytes.
        headroom: u16,
    },
    /// Asked for: everything of the card is unmapped.
    Closed {
        /// Which.
        vif: VifName,
    },
    /// The uplink is gone; the cards still reach each other. Another may be given with [`Worker::uplink`].
    UplinkLost {
        /// What the kernel said.
        reason: String,
    },
}

/// The thread of one network.
pub struct Worker {
    thread: Option<(Outbox<Message>, JoinHandle<()>)>,
    inbox: Inbox<FromThread>,
    /// Cards that are here, or on their way in or out.
    vifs: HashSet<VifName>,
}

impl Worker {
    /// Starts the thread. `uplink` is a TAP with `IFF_VNET_HDR` (see [`grant::tap`]).
    ///
    /// # Errors
    /// What the kernel says: io_uring may be forbidden, see [`grant::caps::check_io_uring`].
    pub fn start(uplink: Option<OwnedFd>, parts: ThreadParts) -> io::Result<Worker> {
        let (outbox, inbox) = mailbox()?;
        let (sender, receiver) = mailbox()?;
        let (ready, started) = crossbeam::channel::bounded(1);
        let body = move || station::run(uplink, parts, &receiver, outbox, &ready);
        let thread = std::thread::Builder::new().name("switch".into()).spawn(body)?;
        started.recv().map_err(io::Error::other)??;
        Ok(Worker { thread: Some((sender, thread)), inbox, vifs: HashSet::new() })
    }

    /// Connects a card; a [`Report`] follows.
    ///
    /// # Errors
    /// `EEXIST` for a card that is here, `EINVAL` when the parts do not fit the description.
    pub fn connect(&mut self, connect: Connect, parts: VifParts) -> io::Result<()> {
        if self.vifs.contains(&connect.vif) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if connect.negotiated.queues.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.vifs.insert(connect.vif);
        self.send(Message::Attach(Box::new((connect, parts))));
        Ok(())
    }

    /// Takes nothing more of a card's and unmaps it; [`Report::Closed`] follows.
    pub fn disconnect(&mut self, vif: VifName) {
        self.send(Message::Detach { vif });
    }

    /// Changes how much a card may send, and receive.
    pub fn rate(&mut self, vif: VifName, rate: Option<Rate>) {
        self.send(Message::Rate { vif, rate });
    }

    /// The frontend wants only the groups that it asks for, or all again (`request-multicast-control`).
    pub fn multicast(&mut self, vif: VifName, control: bool) {
        self.send(Message::Multicast { vif, control });
    }

    /// The frontend wants this much room in front of each packet (`xdp-headroom`); [`Report::Reconfigured`] follows.
    pub fn headroom(&mut self, vif: VifName, headroom: u16) {
        self.send(Message::Headroom { vif, headroom });
    }

    /// Another uplink, or none.
    pub fn uplink(&mut self, uplink: Option<OwnedFd>) {
        self.send(Message::Uplink(uplink));
    }

    /// Readable when a report waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inbox.fd()
    }

    /// The next report; never waits. Read until there is none.
    pub fn next_report(&mut self) -> Option<Report> {
        self.inbox.clear();
        let FromThread(report) = self.inbox.next()?;
        if let Report::Closed { vif } | Report::Failed { vif, .. } = report {
            self.vifs.remove(&vif);
        }
        Some(report)
    }

    fn send(&self, message: Message) {
        if let Some((sender, _)) = &self.thread {
            sender.send(message);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            sender.send(Message::Stop);
            if thread.join().is_err() {
                tracing::error!("the switch's thread panicked");
            }
        }
    }
}

//! One queue of a card: its two rings, its pages, and its event channels.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use grant::{Access, DomId, EventChannel, GrantAccess, Granted, Port};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::frame::{Frame, Received};
use super::options::Options;
use super::receive::Receive;
use super::transmit::Transmit;

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets put into the transmit ring.
    pub sent: u64,
    /// Answers to them that were an error.
    pub send_errors: u64,
    /// Answers that said dropped.
    pub send_drops: u64,
    /// Packets taken from the receive ring.
    pub received: u64,
    /// Packets in the receive ring that were errors.
    pub receive_errors: u64,
    /// Notifications sent.
    pub notifications_sent: u64,
    /// Notifications that came.
    pub notifications_received: u64,
}

/// The backend broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the backend broke the protocol: {0}")]
pub struct Fault(pub String);

/// What the backend must be told of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingKeys {
    /// The page of the transmit ring.
    pub tx_ring_ref: u32,
    /// The page of the receive ring.
    pub rx_ring_ref: u32,
    /// The port of the transmit ring, or of both.
    pub tx_port: u32,
    /// The port of the receive ring, where it has its own.
    pub rx_port: Option<u32>,
}

/// One queue of a card.
pub struct Queue {
    grants: Box<dyn GrantAccess>,
    events: Box<dyn EventChannel>,
    tx_port: Port,
    rx_port: Option<Port>,
    tx: Transmit,
    rx: Receive,
    masked: Vec<Port>,
    counts: Counts,
}

impl Queue {
    /// Lays the rings out, takes ports and posts buffers.
    ///
    /// # Errors
    /// The domain has no pages or ports left.
    pub fn new(
        mut grants: Box<dyn GrantAccess>,
        mut events: Box<dyn EventChannel>,
        peer: DomId,
        options: &Options,
    ) -> io::Result<Queue> {
        let mut page = |count, access| grants.grant(peer, count, access);
        let rings = [page(1, Access::ReadWrite)?, page(1, Access::ReadWrite)?];
        let sending = page(netback_entries(size_of::<[u8; 12]>()), Access::ReadOnly)?;
        let receiving = page(usize::from(options.buffers.clamp(1, 256)), Access::ReadWrite)?;
        let [tx_ring, rx_ring] = rings;
        let tx_port = events.alloc_unbound(peer)?;
        let rx_port = if options.split_event_channels { Some(events.alloc_unbound(peer)?) } else { None };
        let tx = Transmit::new(tx_ring, sending, options.first_index);
        let mut queue = Queue {
            rx: Receive::new(rx_ring, receiving, options.first_index),
            tx,
            grants,
            events,
            tx_port,
            rx_port,
            masked: Vec::with_capacity(grant::MAX_PENDING),
            counts: Counts::default(),
        };
        queue.rx.post();
        Ok(queue)
    }

    /// What the backend must be told.
    pub fn keys(&self) -> RingKeys {
        RingKeys {
            tx_ring_ref: self.tx.ring_ref(),
            rx_ring_ref: self.rx.ring_ref(),
            tx_port: self.tx_port.0,
            rx_port: self.rx_port.map(|port| port.0),
        }
    }

    /// Counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Puts a packet into the ring; false when there is no room. The backend does not see it before [`Queue::kick`].
    pub fn send(&mut self, frame: &Frame) -> bool {
        let put = self.tx.send(frame);
        self.counts.sent += u64::from(put);
        put
    }

    /// Shows the backend what was put, and tells it if it wants to be told.
    pub fn kick(&mut self) {
        if self.tx.push() {
            self.notify(self.tx_port);
        }
    }

    /// Packets that were sent and are not answered.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn unanswered(&mut self) -> Result<usize, Fault> {
        self.tx.reap(&mut self.counts)?;
        Ok(self.tx.in_flight())
    }

    /// The next packet that came; its buffers are posted again.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn receive(&mut self) -> Result<Option<Received>, Fault> {
        let received = self.rx.receive(&mut self.counts)?;
        if received.is_some() {
            self.repost();
        }
        Ok(received)
    }

    /// Takes buffers back without posting them again, as a guest that has stopped does. See [`Queue::repost`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn receive_only(&mut self) -> Result<Option<Received>, Fault> {
        self.rx.receive(&mut self.counts)
    }

    /// Posts all free buffers.
    pub fn repost(&mut self) {
        if self.rx.post() {
            self.notify(self.rx_port.unwrap_or(self.tx_port));
        }
    }

    /// Waits until something may have come or was answered, or the time is over.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if self.arm()? {
            return Ok(());
        }
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(self.events.fd(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        self.woken()
    }

    /// Asks to be told, before somebody waits for [`Queue::fd`]; true when there is something already.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn arm(&mut self) -> io::Result<bool> {
        let busy = [self.tx.final_check(), self.rx.final_check()];
        // What is wrong with a ring shows again when it is read.
        if busy.into_iter().any(|check| check.unwrap_or(true)) {
            return Ok(true);
        }
        if !self.masked.is_empty() {
            self.events.unmask(&self.masked)?;
            self.masked.clear();
        }
        Ok(false)
    }

    /// Readable when the backend has told us something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Takes what the backend has told us: call it when [`Queue::fd`] was readable.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn woken(&mut self) -> io::Result<()> {
        let before = self.masked.len();
        self.events.pending(&mut self.masked)?;
        self.counts.notifications_received += (self.masked.len() - before) as u64;
        Ok(())
    }

    /// Ends everything that was granted and closes the ports. The backend must have let go before.
    ///
    /// # Errors
    /// What it still has mapped.
    pub fn close(mut self) -> Result<(), Vec<Granted>> {
        for port in [Some(self.tx_port), self.rx_port].into_iter().flatten() {
            if let Err(error) = self.events.unbind(port) {
                tracing::warn!(%error, port = port.0, "closing an event channel failed");
            }
        }
        let granted = self.tx.into_granted().into_iter().chain(self.rx.into_granted());
        let kept: Vec<Granted> = granted.filter_map(|granted| Some(self.grants.end(granted).err()?.0)).collect();
        if kept.is_empty() { Ok(()) } else { Err(kept) }
    }

    fn notify(&mut self, port: Port) {
        self.counts.notifications_sent += 1;
        if let Err(error) = self.events.notify(port) {
            tracing::warn!(%error, port = port.0, "notifying the backend failed");
        }
    }
}

/// Slots of a ring of one page.
fn netback_entries(slot: usize) -> usize {
    grant::ring::entries(1, slot) as usize
}

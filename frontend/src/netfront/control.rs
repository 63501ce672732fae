//! The control ring of a card: one request at a time, as a driver sets its hash up.

use std::io;
use std::time::{Duration, Instant};

use grant::ring::FrontRing;
use grant::{Access, DomId, EventChannel, GrantAccess, Granted, Port};
use netback::proto::{NetifCtrlRequest, NetifCtrlResponse};
use rustix::event::{PollFd, PollFlags, Timespec};
use zerocopy::IntoBytes;

/// A control ring and a page for what does not fit into a request.
pub struct Control {
    grants: Box<dyn GrantAccess>,
    events: Box<dyn EventChannel>,
    port: Port,
    /// Our half.
    pub ring: FrontRing,
    /// Its page.
    pub memory: Granted,
    /// A key, or a mapping.
    pub page: Granted,
    next: u16,
}

impl Control {
    /// Lays the ring out and takes a port.
    ///
    /// # Errors
    /// The domain has no pages or ports left.
    pub fn new(
        mut grants: Box<dyn GrantAccess>,
        mut events: Box<dyn EventChannel>,
        peer: DomId,
    ) -> io::Result<Control> {
        let memory = grants.grant(peer, 1, Access::ReadWrite)?;
        let page = grants.grant(peer, 1, Access::ReadOnly)?;
        let port = events.alloc_unbound(peer)?;
        let ring = FrontRing::new(memory.memory.pages(), size_of::<NetifCtrlRequest>());
        Ok(Control { grants, events, port, ring, memory, page, next: 0 })
    }

    /// What the backend must be told: the ring's page and its port.
    pub fn keys(&self) -> (u32, u32) {
        (self.memory.refs[0].0, self.port.0)
    }

    /// Puts a request and tells the backend; its id.
    ///
    /// # Errors
    /// When the port is closed.
    pub fn send(&mut self, kind: u16, data: [u32; 3]) -> io::Result<u16> {
        self.next = self.next.wrapping_add(1);
        self.ring.put(NetifCtrlRequest { id: self.next, kind, data }.as_bytes());
        if self.ring.push() {
            self.notify()?;
        }
        Ok(self.next)
    }

    /// Tells the backend, asked or not.
    ///
    /// # Errors
    /// When the port is closed.
    pub fn notify(&mut self) -> io::Result<()> {
        self.events.notify(self.port)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The backend broke the ring, or says nothing in time.
    pub fn answer(&mut self, patience: Duration) -> io::Result<NetifCtrlResponse> {
        let deadline = Instant::now() + patience;
        while !self.ring.final_check().map_err(io::Error::other)? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::from_borrowed_fd(self.events.fd(), PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ports = Vec::new();
            self.events.pending(&mut ports)?;
            self.events.unmask(&ports)?;
        }
        let mut bytes = [0; size_of::<NetifCtrlResponse>()];
        self.ring.take(&mut bytes);
        Ok(zerocopy::transmute!(bytes))
    }

    /// Asks for something and waits for the answer: its status and data.
    ///
    /// # Errors
    /// As [`Control::answer`], or an answer to something else.
    pub fn ask(&mut self, kind: u16, data: [u32; 3], patience: Duration) -> io::Result<(u32, u32)> {
        let id = self.send(kind, data)?;
        let response = self.answer(patience)?;
        if (response.id, response.kind) != (id, kind) {
            return Err(io::Error::other(format!("an answer to request {} of type {}", response.id, response.kind)));
        }
        Ok((response.status, response.data))
    }

    /// Writes a key or a mapping to the page; its grant.
    pub fn write(&mut self, bytes: &[u8]) -> u32 {
        self.page.memory.pages().write(0, bytes);
        self.page.refs[0].0
    }

    /// Ends everything that was granted and closes the port. The backend must have let go before.
    ///
    /// # Errors
    /// What it still has mapped.
    pub fn close(mut self) -> Result<(), Vec<Granted>> {
        if let Err(error) = self.events.unbind(self.port) {
            tracing::warn!(%error, port = self.port.0, "closing an event channel failed");
        }
        drop(self.ring);
        let grants = &mut self.grants;
        let kept: Vec<Granted> =
            [self.memory, self.page].into_iter().filter_map(|granted| Some(grants.end(granted).err()?.0)).collect();
        if kept.is_empty() { Ok(()) } else { Err(kept) }
    }
}

//! What queues work with: the thread's ring, its event channels, and its clock.

use std::io;
use std::time::{Duration, Instant};

use super::POLL_INBOX;
use super::clock::Clock;
use crate::uring::Uring;
use crate::{DomId, EventChannel, Port};

/// A descriptor for event channels that the thread listens to; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(pub(super) u32);

/// An event channel of the thread: a port, and the descriptor that it is bound through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    /// The descriptor.
    pub source: SourceId,
    /// Our end of it.
    pub port: Port,
}

/// A descriptor, and how its events are taken.
struct Source {
    id: SourceId,
    events: Box<dyn EventChannel>,
    /// The ring reads and writes it: no system calls of their own, neither to take events nor to unmask.
    by_ring: bool,
    /// Taking events and unmasking are system calls, as Xen would see them. What only stands for a device makes calls
    /// where the ring would do it, which are nobody's measure.
    calls: bool,
}

/// What queues work with: the thread's ring and event channels.
pub struct Core {
    /// The ring.
    pub ring: Uring,
    sources: Vec<Source>,
    next_source: u32,
    event_calls: u64,
    /// Read once per pass.
    pub now: Instant,
    clock: Clock,
    /// The same moment as [`Instant`] and by the clock.
    begun: (Instant, u64),
    /// [`Core::now`] by the clock.
    looked: u64,
}

impl Core {
    pub(super) fn new(ring: Uring) -> Core {
        let mut clock = Clock::new();
        let now = Instant::now();
        let begun = (now, clock.read());
        Core { ring, sources: Vec::new(), next_source: POLL_INBOX, event_calls: 0, now, clock, begun, looked: 0 }
    }

    /// Tells a peer. Errors are the kernel's and mean that the channel is gone; the peer will find out.
    #[inline]
    pub fn notify(&mut self, channel: Channel) {
        if let Err(error) = self.source(channel.source).and_then(|events| events.notify(channel.port)) {
            tracing::debug!(%error, port = %channel.port, "notify failed");
        }
    }

    /// [`Core::now`] in nanoseconds, since when is nobody's business: differences of it are cheap.
    #[inline]
    pub fn clock(&self) -> u64 {
        self.looked
    }

    pub(super) fn look_at_the_clock(&mut self) {
        self.looked = self.read_clock();
        self.now = self.begun.0 + Duration::from_nanos(self.looked);
    }

    /// The same at this very moment.
    #[inline]
    pub fn read_clock(&mut self) -> u64 {
        self.clock.read() - self.begun.1
    }

    /// Listens to event channels from now on.
    pub fn listen(&mut self, events: Box<dyn EventChannel>) -> SourceId {
        self.next_source += 1;
        let id = SourceId(self.next_source);
        let by_ring = events.is_device() && self.ring.caps().silent_success;
        let calls = events.is_device() && !by_ring;
        self.sources.push(Source { id, events, by_ring, calls });
        self.wait_for(self.sources.len() - 1);
        id
    }

    fn wait_for(&mut self, at: usize) {
        let Source { id, events, by_ring, .. } = &self.sources[at];
        if *by_ring { self.ring.read_events(id.0, events.fd()) } else { self.ring.poll(id.0, events.fd()) }
    }

    /// Listens no more. The channels of its queues are unbound.
    pub fn hang_up(&mut self, source: SourceId) {
        self.ring.cancel_poll(source.0);
        // What names the descriptor is with the kernel before the number can mean another file.
        self.ring.submit();
        self.sources.retain(|it| it.id != source);
    }

    /// Waiting for a source has ended, with this result: appends the ports that are pending, and waits for more. Nothing for
    /// a source that is gone.
    pub(super) fn take_events(&mut self, number: u32, result: i32, ports: &mut Vec<Port>) -> Option<SourceId> {
        let Some(at) = self.sources.iter().position(|it| it.id.0 == number) else {
            self.ring.forget_events(number);
            return None;
        };
        let source = &mut self.sources[at];
        self.event_calls += u64::from(source.calls);
        let taken = match (source.by_ring, usize::try_from(result)) {
            (true, Ok(bytes)) => {
                ports.extend(self.ring.reported(number, bytes));
                Ok(())
            }
            // Nothing there after all.
            (true, Err(_)) if [libc::EAGAIN, libc::EINTR].contains(&-result) => Ok(()),
            (true, Err(_)) => Err(io::Error::from_raw_os_error(-result)),
            (false, _) => source.events.pending(ports),
        };
        if let Err(error) = taken {
            tracing::error!(%error, "reading event channels failed");
        }
        self.wait_for(at);
        Some(SourceId(number))
    }

    /// Lets channels report again, at the latest when the thread sleeps. `ports` is for its use.
    pub(super) fn unmask(&mut self, quiet: &[Channel], ports: &mut Vec<Port>) {
        for source in &mut self.sources {
            ports.clear();
            ports.extend(quiet.iter().filter(|channel| channel.source == source.id).map(|channel| channel.port));
            if ports.is_empty() {
                continue;
            }
            if source.by_ring {
                self.ring.unmask(source.id.0, source.events.fd(), ports);
                continue;
            }
            self.event_calls += u64::from(source.calls);
            if let Err(error) = source.events.unmask(ports) {
                tracing::error!(%error, "unmasking event channels failed");
            }
        }
    }

    /// The same by a call, for what the ring could not do.
    pub(super) fn unmask_now(&mut self, number: u32, ports: &[Port]) {
        if let Err(error) = self.source(SourceId(number)).and_then(|events| events.unmask(ports)) {
            tracing::error!(%error, "unmasking event channels failed");
        }
    }

    /// Binds to a port that `peer` allocated for us.
    ///
    /// # Errors
    /// What the kernel says, `ENOENT` for a source that is gone.
    pub fn bind(&mut self, source: SourceId, peer: DomId, remote: Port) -> io::Result<Channel> {
        let port = self.source(source)?.bind(peer, remote)?;
        Ok(Channel { source, port })
    }

    /// Closes a channel.
    ///
    /// # Errors
    /// As [`Core::bind`].
    pub fn unbind(&mut self, channel: Channel) -> io::Result<()> {
        self.source(channel.source)?.unbind(channel.port)
    }

    /// For a call on a source.
    #[inline]
    fn source(&mut self, id: SourceId) -> io::Result<&mut dyn EventChannel> {
        self.event_calls += 1;
        match self.sources.iter_mut().find(|it| it.id == id) {
            Some(source) => Ok(source.events.as_mut()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A queue has made system calls of its own.
    pub fn called(&mut self, calls: u64) {
        self.event_calls += calls;
    }

    /// System calls so far, as Xen would see them.
    pub(super) fn system_calls(&self) -> u64 {
        self.ring.enters() + self.event_calls
    }
}

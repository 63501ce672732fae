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
    /// Hung up on, until the wait for them has ended: the kernel looks the descriptor of a read up when it gets to it, by its
    /// number, which must not mean another file by then.
    leaving: Vec<Source>,
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
        Core {
            ring,
            sources: Vec::new(),
            leaving: Vec::new(),
            next_source: POLL_INBOX,
            event_calls: 0,
            now,
            clock,
            begun,
            looked: 0,
        }
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

    /// A sleep that had a time to end at is over: that time is the kernel's.
    pub(super) fn doubt_the_clock(&mut self) {
        self.clock.doubt();
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
        let waiting = self.ring.cancel_poll(source.0);
        let leaving = self.sources.extract_if(.., |it| it.id == source);
        self.leaving.extend(leaving.filter(|_| waiting));
    }

    /// True while a wait for a source that was hung up on has not ended.
    pub(super) fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Waiting for a source has ended, with this result: appends the ports that are pending, and waits for more. Nothing for
    /// a source that is gone.
    pub(super) fn take_events(&mut self, number: u32, result: i32, ports: &mut Vec<Port>) -> Option<SourceId> {
        let Some(at) = self.sources.iter().position(|it| it.id.0 == number) else {
            self.ring.forget_events(number);
            self.leaving.retain(|it| it.id.0 != number);
            return None;
        };
        let source = &mut self.sources[at];
        match usize::try_from(result) {
            Ok(bytes) if source.by_ring => ports.extend(self.ring.reported(number, bytes)),
            // Nothing there after all.
            Err(_) if source.by_ring && [libc::EAGAIN, libc::EINTR].contains(&-result) => {}
            _ => {
                if source.by_ring {
                    let error = io::Error::from_raw_os_error(-result);
                    tracing::error!(%error, "reading event channels through the ring failed; from now on by calls");
                    (source.by_ring, source.calls) = (false, true);
                }
                self.event_calls += u64::from(source.calls);
                if let Err(error) = source.events.pending(ports) {
                    // It would say so again and again.
                    tracing::error!(%error, "reading event channels failed: they are not listened to any more");
                    return Some(SourceId(number));
                }
            }
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What is written to the other end is reported, and what is unmasked can be read there.
    struct Device(UnixStream);

    impl EventChannel for Device {
        fn bind(&mut self, _: DomId, _: Port) -> io::Result<Port> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn alloc_unbound(&mut self, _: DomId) -> io::Result<Port> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn unbind(&mut self, _: Port) -> io::Result<()> {
            Ok(())
        }

        fn notify(&mut self, _: Port) -> io::Result<()> {
            Ok(())
        }

        fn pending(&mut self, _: &mut Vec<Port>) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn unmask(&mut self, _: &[Port]) -> io::Result<()> {
            Ok(())
        }

        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn is_device(&self) -> bool {
            true
        }
    }

    fn device(core: &mut Core) -> (SourceId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (core.listen(Box::new(Device(ours))), theirs)
    }

    /// The result of the next wait that ends.
    fn next(core: &mut Core) -> i32 {
        loop {
            core.ring.submit_and_wait(None);
            core.ring.take_ended(|memory, _| panic!("{memory:?}"));
            while let Some(completion) = core.ring.reap() {
                if matches!(completion.operation, crate::uring::Operation::Poll(_)) {
                    return completion.result;
                }
            }
        }
    }

    #[test]
    fn ports_are_taken_until_it_is_hung_up_and_the_descriptor_outlives_the_wait() {
        let mut core = Core::new(Uring::new(None).unwrap());
        let (source, mut device) = device(&mut core);
        let mut ports = Vec::new();
        for port in [3u32, 4] {
            device.write_all(&port.to_ne_bytes()).unwrap();
            let result = next(&mut core);
            assert_eq!(core.take_events(source.0, result, &mut ports), Some(source));
        }
        assert_eq!(ports, [Port(3), Port(4)]);
        core.ring.submit();
        // Whatever of the wait the kernel has got to by now.
        device.write_all(&5u32.to_ne_bytes()).unwrap();
        core.hang_up(source);
        assert!(core.is_leaving());
        device.write_all(&6u32.to_ne_bytes()).expect("the other end is open");
        let result = next(&mut core);
        assert_eq!(core.take_events(source.0, result, &mut ports), None);
        assert!(!core.is_leaving());
        assert_eq!(device.write_all(&7u32.to_ne_bytes()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(ports, [Port(3), Port(4)]);
    }

    #[test]
    fn a_device_that_cannot_be_read_is_tried_once_more_by_a_call_and_then_left_alone() {
        let mut core = Core::new(Uring::new(None).unwrap());
        let (source, _device) = device(&mut core);
        core.ring.submit();
        let mut ports = Vec::new();
        assert_eq!(core.take_events(source.0, -libc::EFBIG, &mut ports), Some(source));
        assert_eq!((ports.len(), core.event_calls), (0, 1));
    }
}

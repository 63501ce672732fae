//! The life of one disk as its frontend sees it. Pure but for the rings it lays out: whoever follows the store tells
//! it the backend's state, and does what the answer says.
//!
//! ```text
//!  backend:   InitWait             Connected             Closing              Closed, or gone
//!  answer:    Announce(keys)  -->  Connected(queues) --> Drain          -->   Finished
//!  our state: Initialised          Connected             Closed once the      (grants are ended)
//!                                                        queues came back
//! ```

use std::io;
use std::sync::Arc;

use blkback::proto::VDISK_READONLY;
use grant::{DomId, EventChannel, GrantAccess, Granted};
use xenstore::xenbus::XenbusState;

use super::gate::Gate;
use super::negotiate::{Lookup, Properties, PropertyError, Rings, ring_keys};
use super::options::Options;
use super::queue::Queue;
use super::request::Encoder;
use super::slot::Widths;
use super::wiring::Wiring;

/// Where a frontend gets its pages and event channels: one of each per queue, for queues belong to threads.
pub trait Machine: Send + Sync {
    /// A way to grant pages of this domain.
    fn grant_access(&self) -> io::Result<Box<dyn GrantAccess>>;
    /// An event channel descriptor of its own.
    fn event_channel(&self) -> io::Result<Box<dyn EventChannel>>;
}

/// What to do after [`Device::observe`].
pub enum Step {
    /// Nothing.
    Wait,
    /// Write `keys` below the frontend's directory, in one transaction, then set our state.
    Announce {
        /// Names and values.
        keys: Vec<(String, String)>,
        /// Initialised, or Connected for those who go there straight.
        state: XenbusState,
    },
    /// Set our state to Connected; the disk can be used.
    Connected(Properties, Vec<Queue>),
    /// The disk's size or its like has changed.
    Changed(Properties),
    /// Give every queue back through [`Device::closing`] once nothing of it is under way.
    Drain,
    /// The backend is done with the disk: [`Device::finish`].
    Finished,
}

/// Why a disk cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The backend's keys.
    #[error(transparent)]
    Properties(#[from] PropertyError),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// The domain has no pages or event channels left.
    #[error("no pages or event channels for its rings: {0} (give the guest more --memory)")]
    Resources(io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for the backend's InitWait.
    Initialising,
    /// The rings are announced.
    Initialised,
    Connected,
    /// The queues' owners have been told.
    Draining,
    /// Nothing of ours is under way; the backend has to let go.
    Closed,
    Finished,
}

/// One disk.
pub struct Device {
    options: Options,
    machine: Arc<dyn Machine>,
    peer: DomId,
    handle: u16,
    phase: Phase,
    gate: Gate,
    wirings: Vec<Wiring>,
    queues: Vec<Queue>,
    properties: Option<Properties>,
}

impl Device {
    /// Disk number `devid` (its directory's name), served by `peer`.
    pub fn new(machine: Arc<dyn Machine>, options: Options, peer: DomId, devid: u32) -> Device {
        Device {
            options,
            machine,
            peer,
            // The wire has 16 bits for it, and nobody looks at them.
            handle: devid as u16,
            phase: Phase::Initialising,
            gate: Gate::default(),
            wirings: Vec::new(),
            queues: Vec::new(),
            properties: None,
        }
    }

    /// Whether it takes requests, shared with its queues.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The backend's domain.
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// Looks at the backend: its state ([`XenbusState::Unknown`] when the key is gone) and, through `lookup`, its keys.
    ///
    /// # Errors
    /// [`DeviceError`]: the disk is given up; it still has to be closed.
    pub fn observe(&mut self, backend: XenbusState, lookup: &mut Lookup<'_>) -> Result<Step, DeviceError> {
        use XenbusState::{Closed, Closing, Connected, InitWait, Unknown};
        let ended = matches!(backend, Closing | Closed | Unknown);
        match self.phase {
            Phase::Initialising if backend == InitWait => self.announce(lookup),
            // A backend may be quick: both its steps in one look.
            Phase::Initialised if backend == Connected => self.connect(lookup),
            Phase::Connected if backend == Connected => self.look_again(lookup),
            Phase::Initialising if ended => {
                // It never knew of us: a directory that still fills up, or one on its way out.
                Ok(Step::Wait)
            }
            Phase::Initialised | Phase::Connected if ended => {
                match backend {
                    Closing => self.gate.drain(),
                    _ => self.gate.fail("the backend has gone".to_owned()),
                }
                self.phase = Phase::Draining;
                Ok(Step::Drain)
            }
            Phase::Draining if matches!(backend, Closed | Unknown) => {
                self.gate.fail("the backend closed with requests under way".to_owned());
                Ok(Step::Wait)
            }
            Phase::Closed if matches!(backend, Closed | Unknown) => {
                self.phase = Phase::Finished;
                Ok(Step::Finished)
            }
            _ => Ok(Step::Wait),
        }
    }

    fn announce(&mut self, lookup: &mut Lookup<'_>) -> Result<Step, DeviceError> {
        let rings = Rings::choose(&self.options, lookup)?;
        for _ in 0..rings.queues {
            let grants = self.machine.grant_access().map_err(DeviceError::Resources)?;
            let events = self.machine.event_channel().map_err(DeviceError::Resources)?;
            let wiring = Wiring::new(grants, events, self.peer, &self.options, rings.order);
            self.wirings.push(wiring.map_err(DeviceError::Resources)?);
        }
        let announced: Vec<_> = self.wirings.iter().map(Wiring::keys).collect();
        self.phase = Phase::Initialised;
        Ok(Step::Announce {
            keys: ring_keys(&self.options, rings.order, &announced),
            state: match self.options.straight_to_connected {
                true => XenbusState::Connected,
                false => XenbusState::Initialised,
            },
        })
    }

    fn connect(&mut self, lookup: &mut Lookup<'_>) -> Result<Step, DeviceError> {
        let properties = Properties::read(&self.options, lookup)?;
        let widths = Widths {
            encoder: Encoder { abi: self.options.abi, handle: self.handle },
            persistent: properties.persistent,
            max_indirect: properties.max_indirect.into(),
            first_sect: self.options.first_sect.min(7),
        };
        let mut queues = Vec::with_capacity(self.wirings.len());
        while let Some(wiring) = self.wirings.pop() {
            match Queue::new(wiring, widths, self.gate.clone()) {
                Ok(queue) => queues.push(queue),
                Err(refused) => {
                    let (wiring, error) = *refused;
                    self.wirings.push(wiring);
                    self.queues = queues;
                    return Err(DeviceError::Resources(error));
                }
            }
        }
        queues.reverse();
        self.properties = Some(properties);
        self.phase = Phase::Connected;
        Ok(Step::Connected(properties, queues))
    }

    /// A backend that writes Connected again has changed something that may change: the size.
    fn look_again(&mut self, lookup: &mut Lookup<'_>) -> Result<Step, DeviceError> {
        let Some(frozen) = self.properties else { return Ok(Step::Wait) };
        let now = Properties::read(&self.options, lookup)?;
        let live = Properties {
            sectors: now.sectors,
            info: frozen.info & !VDISK_READONLY | now.info & VDISK_READONLY,
            ..frozen
        };
        if live == frozen {
            return Ok(Step::Wait);
        }
        self.properties = Some(live);
        Ok(Step::Changed(live))
    }

    /// It cannot be used: as after [`Step::Drain`], but nothing of it will be answered.
    pub fn abandon(&mut self, reason: String) {
        self.gate.fail(reason);
        if matches!(self.phase, Phase::Initialising | Phase::Initialised | Phase::Connected) {
            self.phase = Phase::Draining;
        }
    }

    /// We want to end the disk ourselves: set our state to Closing, then act as after [`Step::Drain`].
    pub fn leave(&mut self) {
        self.gate.drain();
        self.phase = Phase::Draining;
    }

    /// Takes the queues back. Set our state to Closed after this; the backend lets the grants go when it sees that.
    pub fn closing(&mut self, queues: Vec<Queue>) {
        self.gate.drain();
        self.queues.extend(queues);
        self.phase = Phase::Closed;
    }

    /// Ends every grant and closes every port. Returns what the backend still has mapped: these pages must not be
    /// used again before [`GrantAccess::end`] takes them.
    pub fn finish(self) -> Vec<Granted> {
        let rings = self.wirings.into_iter().filter_map(Wiring::close);
        rings.chain(self.queues.into_iter().flat_map(Queue::close)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use blkback::proto::Abi;
    use grant::heap::Heap;

    use super::super::backend::{BACK, Backend, FRONT};
    use super::*;

    struct Bench {
        heap: Heap,
        device: Device,
        keys: BTreeMap<String, String>,
    }

    impl Machine for Heap {
        fn grant_access(&self) -> io::Result<Box<dyn GrantAccess>> {
            Ok(Box::new(self.access()))
        }

        fn event_channel(&self) -> io::Result<Box<dyn EventChannel>> {
            Ok(Box::new(self.ports(FRONT)?))
        }
    }

    const EARLY: [(&str, &str); 3] =
        [("max-ring-page-order", "4"), ("multi-queue-max-queues", "4"), ("feature-persistent", "1")];
    const LATE: [(&str, &str); 3] =
        [("sectors", "2048"), ("feature-flush-cache", "1"), ("feature-max-indirect-segments", "256")];

    fn bench(options: Options, pages: usize) -> Bench {
        let heap = Heap::new(pages);
        let device = Device::new(Arc::new(heap.clone()), options, BACK, 51712);
        let keys = EARLY.iter().chain(&LATE).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Bench { heap, device, keys: keys.collect() }
    }

    impl Bench {
        fn observe(&mut self, state: XenbusState) -> Result<Step, DeviceError> {
            let keys = &self.keys;
            self.device.observe(state, &mut |key| Ok(keys.get(key).map(|value| value.clone().into_bytes())))
        }

        fn set(&mut self, key: &str, value: &str) {
            self.keys.insert(key.to_owned(), value.to_owned());
        }

        fn announced(&mut self) -> BTreeMap<String, String> {
            match self.observe(XenbusState::InitWait).unwrap() {
                Step::Announce { keys, state } => {
                    assert_eq!(state, XenbusState::Initialised);
                    keys.into_iter().collect()
                }
                _ => panic!("nothing announced"),
            }
        }

        fn backends(&self, announced: &BTreeMap<String, String>, abi: Abi, queues: u32, pages: u32) -> Vec<Backend> {
            let number = |key: String| announced[&key].parse().unwrap();
            let backend = |queue| {
                let prefix = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
                let page = |page: u32| if pages > 1 { page.to_string() } else { String::new() };
                let refs: Vec<u32> = (0..pages).map(|at| number(format!("{prefix}ring-ref{}", page(at)))).collect();
                Backend::new(&self.heap, abi, &refs, number(format!("{prefix}event-channel")), 1 << 20)
            };
            (0..queues).map(backend).collect()
        }

        fn connected(&mut self) -> (Properties, Vec<Queue>) {
            match self.observe(XenbusState::Connected).unwrap() {
                Step::Connected(properties, queues) => (properties, queues),
                _ => panic!("not connected"),
            }
        }
    }

    #[test]
    fn the_whole_life_of_a_disk_in_every_width() {
        for abi in [Abi::X86_64, Abi::X86_32] {
            for (ring_order, queues) in [(0, 1), (2, 1), (0, 3), (4, 2)] {
                let mut bench = bench(Options { abi, ring_order, queues, ..Options::default() }, 4096);
                assert!(matches!(bench.observe(XenbusState::Initialising), Ok(Step::Wait)));
                assert!(matches!(bench.observe(XenbusState::Unknown), Ok(Step::Wait)));
                let keys = bench.announced();
                let mut backends = bench.backends(&keys, abi, queues.into(), 1 << ring_order);
                assert!(matches!(bench.observe(XenbusState::InitWait), Ok(Step::Wait)));
                let (properties, mut queues) = bench.connected();
                assert_eq!((properties.sectors, properties.max_indirect), (2048, 32));
                for (queue, backend) in queues.iter_mut().zip(&mut backends) {
                    std::thread::scope(|scope| {
                        let backend = scope.spawn(|| {
                            while backend.seen.len() < 2 {
                                backend.turn();
                                std::thread::yield_now();
                            }
                        });
                        queue.write_at(512, &[7; 1024]).unwrap();
                        let mut read = [0; 1024];
                        queue.read_at(512, &mut read).unwrap();
                        assert_eq!(read, [7; 1024]);
                        backend.join().unwrap();
                    });
                }
                assert!(matches!(bench.observe(XenbusState::Closing), Ok(Step::Drain)));
                assert!(queues[0].flush().is_err());
                bench.device.closing(queues);
                assert!(matches!(bench.observe(XenbusState::Closing), Ok(Step::Wait)));
                drop(backends);
                assert!(matches!(bench.observe(XenbusState::Closed), Ok(Step::Finished)));
                assert!(bench.device.finish().is_empty());
                let mut access = bench.heap.access();
                assert!(access.grant(BACK, 4096, grant::Access::ReadWrite).is_ok(), "something is still granted");
            }
        }
    }

    #[test]
    fn a_backend_that_vanishes_fails_the_disk() {
        for gone in [XenbusState::Closed, XenbusState::Unknown] {
            let mut bench = bench(Options::default(), 256);
            let keys = bench.announced();
            let backends = bench.backends(&keys, Abi::X86_64, 1, 1);
            let (_, mut queues) = bench.connected();
            assert!(matches!(bench.observe(gone), Ok(Step::Drain)));
            let error = queues[0].read_at(0, &mut [0; 512]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            bench.device.closing(queues);
            assert!(matches!(bench.observe(gone), Ok(Step::Finished)));
            // It still has the ring, and nothing else.
            let left = bench.device.finish();
            assert_eq!(left.len(), 1);
            drop(backends);
            assert!(bench.heap.access().end(left.into_iter().next().unwrap()).is_ok());
        }
    }

    #[test]
    fn a_backend_may_leave_before_it_is_connected() {
        let mut bench = bench(Options::default(), 256);
        bench.announced();
        assert!(matches!(bench.observe(XenbusState::Closing), Ok(Step::Drain)));
        bench.device.closing(Vec::new());
        assert!(matches!(bench.observe(XenbusState::Unknown), Ok(Step::Finished)));
        assert!(bench.device.finish().is_empty());
    }

    #[test]
    fn a_guest_without_memory_says_so_and_keeps_nothing() {
        let options = Options { queues: 4, ..Options::default() };
        let mut few = bench(options.clone(), 3);
        assert!(matches!(few.observe(XenbusState::InitWait), Err(DeviceError::Resources(_))));
        few.device.closing(Vec::new());
        assert!(few.device.finish().is_empty());
        // Rings, but no pool.
        let mut few = bench(options, 60);
        let keys = few.announced();
        let backends = few.backends(&keys, Abi::X86_64, 4, 1);
        assert!(matches!(few.observe(XenbusState::Connected), Err(DeviceError::Resources(_))));
        few.device.abandon("no memory".to_owned());
        few.device.closing(Vec::new());
        drop(backends);
        assert!(few.device.finish().is_empty());
    }

    #[test]
    fn a_disk_that_cannot_be_is_refused() {
        let mut bench = bench(Options::default(), 256);
        bench.set("sector-size", "100");
        bench.announced();
        assert!(matches!(bench.observe(XenbusState::Connected), Err(DeviceError::Properties(_))));
    }

    #[test]
    fn a_disk_may_grow_while_it_is_used() {
        let mut bench = bench(Options::default(), 256);
        bench.announced();
        bench.connected();
        assert!(matches!(bench.observe(XenbusState::Connected), Ok(Step::Wait)));
        bench.set("sectors", "4096");
        bench.set("feature-persistent", "0");
        let Ok(Step::Changed(properties)) = bench.observe(XenbusState::Connected) else { panic!("not changed") };
        assert_eq!(properties.sectors, 4096);
        assert!(properties.persistent, "frozen while connected");
    }

    #[test]
    fn firmware_goes_straight_to_connected() {
        let mut bench = bench(Options { straight_to_connected: true, ..Options::default() }, 256);
        let Ok(Step::Announce { state, .. }) = bench.observe(XenbusState::InitWait) else {
            panic!("nothing announced")
        };
        assert_eq!(state, XenbusState::Connected);
    }
}

//! A network inside one test process: guests with real frontends, and a worker of the real backend between them.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use frontend::hostile::CardQueue;
use frontend::netfront::{Control, Options, Queue, Received, RingKeys};
use grant::embedded::{self, Domain, ForeignExchange, GuestMemory};
use grant::exchange::Exchange;
use grant::meter::Meter;
use grant::{Access, DomId, Granted};
use netback::config::{Allow, Connect, ControlKeys, Features, Negotiated, QueueKeys, Rate, VifName, VifParams};
use netback::device::{Report, ThreadParts, VifParts, Worker};
use netback::packet::Mac;
use netback::proto::NetifTxResponse;
use netback::stats::{Stats, snapshot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::world::World;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network and the process that would serve it.
pub struct Network {
    /// The host.
    pub world: World,
    /// The backend.
    pub worker: Worker,
    /// Read end of its fence.
    pub fence: OwnedFd,
    guests: Vec<(Domain, GuestMemory)>,
    /// The worker's thread, as the kernel calls it.
    thread: u32,
}

/// What a card is like.
#[derive(Clone, Debug)]
pub struct Card {
    /// Its frontend.
    pub options: Options,
    /// See [`VifParams`].
    pub vlan: Option<u16>,
    /// See [`VifParams`].
    pub mtu: u16,
    /// See [`VifParams`].
    pub rate: Option<Rate>,
    /// See [`VifParams`].
    pub allow: Allow,
    /// See [`VifParams`].
    pub addresses: Vec<std::net::IpAddr>,
    /// Its address, where it is not that of its number.
    pub mac: Option<Mac>,
    /// It has a control ring.
    pub control: bool,
}

impl Default for Card {
    fn default() -> Card {
        Card {
            options: Options::default(),
            vlan: None,
            mtu: 1500,
            rate: None,
            allow: Allow::default(),
            addresses: Vec::new(),
            mac: None,
            control: false,
        }
    }
}

/// A card with both its ends.
pub struct Vif {
    /// Its name.
    pub name: VifName,
    /// Its address.
    pub mac: Mac,
    /// The guest's queues.
    pub queues: Vec<Queue>,
    /// Its control ring, when it has one.
    pub control: Option<Control>,
    meter: Meter,
}

/// A card whose frontend means harm.
pub struct Hostile {
    /// Its name.
    pub name: VifName,
    /// Its address.
    pub mac: Mac,
    /// The guest's end.
    pub queue: CardQueue,
    /// The backend's domain.
    pub service: DomId,
    meter: Meter,
}

impl Hostile {
    /// Its counters.
    pub fn stats(&self) -> Stats {
        snapshot(&self.meter)
    }

    /// Pages granted to the backend.
    pub fn pages(&mut self, count: usize, access: Access) -> Granted {
        self.queue.grants.grant(self.service, count, access).unwrap()
    }

    /// Puts slots into the transmit ring and tells the backend.
    pub fn transmit(&mut self, slots: &[[u8; 12]]) {
        self.queue.tx.put(slots.iter().map(|slot| &slot[..]));
        self.queue.notify().unwrap();
    }

    /// Waits for so many answers in the transmit ring.
    ///
    /// # Panics
    /// When they do not come.
    pub fn answers(&mut self, count: usize) -> Vec<NetifTxResponse> {
        let deadline = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        while answers.len() < count {
            if self.queue.tx.ring.unconsumed().unwrap() == 0 {
                assert!(Instant::now() < deadline, "{} of {count} answers", answers.len());
                std::thread::yield_now();
                continue;
            }
            let mut bytes = [0; 4];
            self.queue.tx.ring.take(&mut bytes);
            answers.push(zerocopy::transmute!(bytes));
        }
        answers
    }
}

impl Network {
    /// Nobody is there yet.
    pub fn new() -> Network {
        Network::with_uplink(None)
    }

    /// The same with an uplink.
    pub fn with_uplink(uplink: Option<OwnedFd>) -> Network {
        Network::over(uplink, Box::<ForeignExchange>::default())
    }

    /// The same with another way to the guests' pages.
    pub fn over(uplink: Option<OwnedFd>, exchange: Box<dyn Exchange>) -> Network {
        let world = World::new();
        let (fence, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let parts = ThreadParts { fence: write_end, exchange };
        // Which thread it is can be seen while nobody else starts one.
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = threads();
        let worker = Worker::start(uplink, parts).unwrap();
        let thread = threads().into_iter().find(|thread| !before.contains(thread)).unwrap();
        drop(alone);
        Network { world, worker, fence, guests: Vec::new(), thread }
    }

    /// How long the worker's thread has been on a processor, to 10 ms.
    ///
    /// # Panics
    /// When it is gone.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", self.thread)).unwrap();
        // Fields 14 and 15 of proc(5), after a name in parentheses.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 = fields.split(' ').skip(12).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// A new guest with one card.
    ///
    /// # Panics
    /// When it cannot be served.
    pub fn vif(&mut self, card: &Card) -> Vif {
        self.try_vif(card).unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// A new guest with one card, or why not.
    ///
    /// # Errors
    /// The worker's reason.
    pub fn try_vif(&mut self, card: &Card) -> Result<Vif, String> {
        let number = self.guests.len() as u8 + 1;
        let (domain, memory) = self.world.another_guest(&format!("g{number}"));
        let domid = domain.domid;
        let name = VifName { guest: domid.0, devid: 0 };
        let service = self.world.service.domid;
        let queue = |_| {
            Queue::new(Box::new(memory.clone()), Box::new(self.world.ports(domid)), service, &card.options).unwrap()
        };
        let queues: Vec<Queue> = (0..card.options.queues).map(queue).collect();
        let keys = queues.iter().map(|queue| keys(&queue.keys())).collect();
        let mac = card.mac.unwrap_or(Mac([0, 0x16, 0x3E, 0, 0, number]));
        let control = || Control::new(Box::new(memory.clone()), Box::new(self.world.ports(domid)), service).unwrap();
        let control = card.control.then(control);
        let of_control = control.as_ref().map(|control| {
            let (ring_ref, event_channel) = control.keys();
            ControlKeys { ring_ref, event_channel }
        });
        let meter = self.connect(name, mac, (keys, of_control), card, (domain, memory))?;
        Ok(Vif { name, mac, queues, control, meter })
    }

    /// A new guest whose card is driven by hand, or why not.
    ///
    /// # Errors
    /// The worker's reason.
    pub fn hostile(&mut self, card: &Card) -> Result<Hostile, String> {
        let number = self.guests.len() as u8 + 1;
        let (domain, memory) = self.world.another_guest(&format!("g{number}"));
        let domid = domain.domid;
        let name = VifName { guest: domid.0, devid: 0 };
        let service = self.world.service.domid;
        let queue = CardQueue::new(Box::new(memory.clone()), Box::new(self.world.ports(domid)), service).unwrap();
        let mac = card.mac.unwrap_or(Mac([0, 0x16, 0x3E, 0, 0, number]));
        let meter = self.connect(name, mac, (vec![keys(&queue.keys())], None), card, (domain, memory))?;
        Ok(Hostile { name, mac, queue, service, meter })
    }

    fn connect(
        &mut self,
        name: VifName,
        mac: Mac,
        (queues, control): (Vec<QueueKeys>, Option<ControlKeys>),
        card: &Card,
        guest: (Domain, GuestMemory),
    ) -> Result<Meter, String> {
        let service = self.world.service.domid;
        let meter = Meter::create(queues.len()).unwrap();
        let connect = Connect {
            vif: name,
            negotiated: Negotiated { queues, control, features: features(&card.options) },
            params: VifParams {
                mac,
                addresses: card.addresses.clone(),
                vlan: card.vlan,
                mtu: card.mtu,
                rate: card.rate,
                allow: card.allow,
            },
        };
        self.guests.push(guest);
        let parts = VifParts {
            events: Box::new(self.world.ports(service)),
            meter: meter.try_clone().unwrap(),
            grants: embedded::connect(self.world.dir.path(), service).unwrap(),
        };
        self.worker.connect(connect, parts).unwrap();
        match self.report() {
            Report::Connected { vif } if vif == name => Ok(Meter::open(meter).unwrap()),
            Report::Failed { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for what the worker says.
    ///
    /// # Panics
    /// When it says nothing.
    pub fn report(&mut self) -> Report {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = self.worker.next_report() {
                return report;
            }
            assert!(Instant::now() < deadline, "the worker says nothing");
            let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut [PollFd::from_borrowed_fd(self.worker.fd(), PollFlags::IN)], Some(&timeout)).unwrap();
        }
    }

    /// Disconnects a card: the backend has let go of everything.
    ///
    /// # Panics
    /// When it has not.
    pub fn close(&mut self, vif: Vif) {
        self.worker.disconnect(vif.name);
        while !matches!(self.report(), Report::Closed { vif: name } if name == vif.name) {}
        for queue in vif.queues {
            queue.close().expect("nothing is mapped any more");
        }
        if let Some(control) = vif.control {
            control.close().expect("nothing is mapped any more");
        }
    }

    /// Grants of a guest's that the backend has mapped.
    pub fn active_grants(&self, guest: u16) -> u32 {
        embedded::usage(self.world.dir.path(), DomId(guest)).unwrap().active_grants
    }
}

impl Default for Network {
    fn default() -> Network {
        Network::new()
    }
}

impl Vif {
    /// Its counters.
    pub fn stats(&self) -> Stats {
        snapshot(&self.meter)
    }

    /// Waits for a packet, on any queue.
    ///
    /// # Panics
    /// When none comes.
    pub fn receive(&mut self) -> Received {
        self.receive_within(PATIENCE).expect("a packet")
    }

    /// Waits for a packet, on any queue, for some time.
    pub fn receive_within(&mut self, patience: Duration) -> Option<Received> {
        let deadline = Instant::now() + patience;
        loop {
            for queue in &mut self.queues {
                if let Some(received) = queue.receive().unwrap() {
                    return Some(received);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let share = if self.queues.len() == 1 { left } else { left.min(Duration::from_millis(2)) };
            for queue in &mut self.queues {
                queue.wait(share).unwrap();
            }
        }
    }

    /// Waits until all that was sent by a queue is answered.
    ///
    /// # Panics
    /// When it is not.
    pub fn answered(&mut self, queue: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.queues[queue].unanswered().unwrap() > 0 {
            assert!(Instant::now() < deadline, "packets are not answered");
            self.queues[queue].wait(Duration::from_millis(100)).unwrap();
        }
    }
}

/// Threads of networks in this process.
fn threads() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    let is_one = |task: &u32| {
        std::fs::read_to_string(format!("/proc/self/task/{task}/comm")).is_ok_and(|name| name.trim_end() == "switch")
    };
    tasks.filter(is_one).collect()
}

/// As the supervisor would have read them.
fn keys(keys: &RingKeys) -> QueueKeys {
    QueueKeys {
        tx_ring_ref: keys.tx_ring_ref,
        rx_ring_ref: keys.rx_ring_ref,
        event_channel_tx: keys.tx_port,
        event_channel_rx: keys.rx_port,
    }
}

fn features(options: &Options) -> Features {
    Features {
        scatter_gather: options.scatter_gather,
        gso_tcpv4: options.gso_tcpv4,
        gso_tcpv6: options.gso_tcpv6,
        checksum_ipv4: options.checksum_ipv4,
        checksum_ipv6: options.checksum_ipv6,
        rx_notify: options.rx_notify,
        multicast_control: options.multicast_control,
        xdp_headroom: 0,
    }
}

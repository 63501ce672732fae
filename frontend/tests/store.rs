//! A disk's whole life on a real store, with the permissions that libxl sets: our directory is ours, the backend's is not.

#[path = "../src/blkfront/backend.rs"]
#[allow(dead_code)]
mod backend;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use backend::{BACK, Backend, FRONT};
use blkback::proto::Abi;
use frontend::blkfront::{Blkfront, Event, FollowError, Machine, Options, Properties, Queue, connect};
use grant::heap::Heap;
use grant::{EventChannel, GrantAccess};
use xenstore::server::{Limits, Server, ServerHandle};
use xenstore::xenbus::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialised, Initialising};
use xenstore::{Client, Permission, Store};

const FRONTEND: &str = "/local/domain/7/device/vbd/51712";
const BACKEND: &str = "/local/domain/3/backend/vbd/7/51712";

struct Guest(Heap);

impl Machine for Guest {
    fn grant_access(&self) -> io::Result<Box<dyn GrantAccess>> {
        Ok(Box::new(self.0.access()))
    }

    fn event_channel(&self) -> io::Result<Box<dyn EventChannel>> {
        Ok(Box::new(self.0.ports(FRONT)?))
    }
}

struct World {
    heap: Heap,
    handle: ServerHandle,
    server: Option<JoinHandle<io::Result<()>>>,
    toolstack: Client,
    service: Client,
    guest: Client,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.server.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.unwrap().is_ok()));
    }
}

fn world() -> World {
    let (server, handle) = Server::new(Limits::default()).unwrap();
    let server = Some(std::thread::spawn(move || server.run()));
    let dir = tempfile::tempdir().unwrap();
    let mut toolstack = Client::from_fd(handle.connect().unwrap()).unwrap();
    let mut domain = |domid: u16| {
        let socket = dir.path().join(domid.to_string());
        handle.introduce(domid, &socket).unwrap();
        let root = format!("/local/domain/{domid}");
        toolstack.mkdir(&root).unwrap();
        toolstack.set_perms(&root, &[Permission::none(0), Permission::read(domid)]).unwrap();
        Client::connect(&socket).unwrap()
    };
    let (service, guest) = (domain(BACK.0), domain(FRONT.0));
    World { heap: Heap::new(1024), handle, server, toolstack, service, guest, _dir: dir }
}

impl World {
    fn machine(&self) -> Arc<dyn Machine> {
        Arc::new(Guest(self.heap.clone()))
    }

    /// What a toolstack writes.
    fn attach(&mut self, backend: &str) {
        let (front, back) = (FRONT.0, BACK.0);
        let written = self.toolstack.transaction(|tx| {
            tx.rm(FRONTEND)?;
            tx.mkdir(FRONTEND)?;
            tx.set_perms(FRONTEND, &[Permission::none(front), Permission::read(back)])?;
            tx.rm(backend)?;
            tx.mkdir(backend)?;
            tx.set_perms(backend, &[Permission::none(back), Permission::read(front)])?;
            for (key, value) in [("backend", backend), ("backend-id", "3"), ("state", "1")] {
                tx.write(&format!("{FRONTEND}/{key}"), value.as_bytes())?;
            }
            tx.write(&format!("{backend}/state"), b"1")
        });
        written.unwrap();
    }

    /// What the backend writes.
    fn serve(&mut self, keys: &[(&str, &str)], state: XenbusState) {
        for (key, value) in keys {
            self.service.write(&format!("{BACKEND}/{key}"), value.as_bytes()).unwrap();
        }
        self.service.write(&format!("{BACKEND}/state"), state.number().to_string().as_bytes()).unwrap();
    }

    fn offer(&mut self) {
        self.serve(&[("max-ring-page-order", "4"), ("multi-queue-max-queues", "4")], InitWait);
    }

    fn connect(&mut self) {
        self.serve(&[("sectors", "2048"), ("feature-persistent", "1"), ("feature-flush-cache", "1")], Connected);
    }

    fn try_open(&mut self) -> Result<Option<Blkfront>, FollowError> {
        let machine = self.machine();
        Blkfront::open(&mut self.guest, machine, Options::default(), 51712)
    }

    fn open(&mut self) -> Blkfront {
        self.try_open().unwrap().expect("no disk")
    }

    fn turn(&mut self, disk: &mut Blkfront) -> Event {
        disk.turn(&mut self.guest).unwrap()
    }

    fn key(&mut self, key: &str) -> Option<String> {
        let value = self.toolstack.read_optional(&format!("{FRONTEND}/{key}")).unwrap();
        value.map(|value| String::from_utf8(value).unwrap())
    }

    fn state(&mut self) -> XenbusState {
        XenbusState::parse(self.key("state").unwrap().as_bytes())
    }

    fn backend(&mut self) -> Backend {
        let mut number = |key| self.key(key).unwrap().parse().unwrap();
        let (refs, port) = ([number("ring-ref")], number("event-channel"));
        Backend::new(&self.heap, Abi::X86_64, &refs, port, 1 << 20)
    }

    fn connected(&mut self, disk: &mut Blkfront) -> (Properties, Vec<Queue>, Backend) {
        self.offer();
        assert!(matches!(self.turn(disk), Event::Nothing));
        let backend = self.backend();
        self.connect();
        let Event::Connected(properties, queues) = self.turn(disk) else { panic!("not connected") };
        disk.ready(&mut self.guest).unwrap();
        (properties, queues, backend)
    }
}

#[test]
fn a_disk_comes_works_and_goes() {
    let mut world = world();
    world.attach(BACKEND);
    let mut disk = world.open();
    assert!(matches!(world.turn(&mut disk), Event::Nothing));
    world.offer();
    assert!(matches!(world.turn(&mut disk), Event::Nothing));
    assert_eq!(world.state(), Initialised);
    assert_eq!(world.key("protocol").as_deref(), Some("x86_64-abi"));
    assert_eq!(world.key("feature-persistent").as_deref(), Some("1"));
    assert_eq!(world.key("ring-page-order"), None);
    let mut backend = world.backend();
    world.connect();
    let Event::Connected(properties, mut queues) = world.turn(&mut disk) else { panic!("not connected") };
    assert_eq!(world.state(), Initialised);
    disk.ready(&mut world.guest).unwrap();
    assert_eq!((world.state(), properties.sectors), (Connected, 2048));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while backend.seen.is_empty() {
                backend.turn();
                std::thread::yield_now();
            }
        });
        queues[0].write_at(4096, &[3; 4096]).unwrap();
    });
    world.serve(&[], Closing);
    assert!(matches!(world.turn(&mut disk), Event::Drain));
    assert_eq!(world.state(), Connected);
    disk.closed(&mut world.guest, queues).unwrap();
    assert_eq!(world.state(), Closed);
    assert!(matches!(world.turn(&mut disk), Event::Nothing));
    drop(backend);
    world.service.rm(BACKEND).unwrap();
    assert!(matches!(world.turn(&mut disk), Event::Finished));
    assert!(disk.release(&mut world.guest).is_empty());
    assert!(world.heap.access().grant(BACK, 1024, grant::Access::ReadOnly).is_ok(), "something is still granted");
}

#[test]
fn every_step_of_the_backend_is_an_event() {
    let mut world = world();
    world.attach(BACKEND);
    let disk = world.open();
    let token = "backend/51712";
    let woken = |world: &mut World| {
        let event = world.guest.next_event(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(event.expect("no event").token, token);
    };
    woken(&mut world);
    for state in [InitWait, Connected, Closing] {
        world.serve(&[], state);
        woken(&mut world);
    }
    world.service.rm(BACKEND).unwrap();
    woken(&mut world);
    disk.release(&mut world.guest);
    world.attach(BACKEND);
    assert!(world.guest.next_event(Some(Duration::from_millis(50))).unwrap().is_none());
}

#[test]
fn a_directory_taken_away_or_replaced_is_not_written_to() {
    for replaced in [false, true] {
        let mut world = world();
        world.attach(BACKEND);
        let mut disk = world.open();
        let (_, mut queues, backend) = world.connected(&mut disk);
        if replaced {
            world.attach(BACKEND);
        } else {
            world.toolstack.rm(FRONTEND).unwrap();
        }
        assert!(matches!(world.turn(&mut disk), Event::Gone));
        assert!(matches!(world.turn(&mut disk), Event::Nothing));
        assert!(queues[0].flush().is_err());
        disk.closed(&mut world.guest, queues).unwrap();
        assert_eq!(world.key("state").as_deref(), replaced.then_some("1"));
        // It has the ring mapped still.
        let left = disk.release(&mut world.guest);
        assert_eq!(left.len(), 1);
        drop(backend);
        assert!(left.into_iter().all(|granted| world.heap.access().end(granted).is_ok()));
        assert_eq!(world.try_open().unwrap().is_some(), replaced);
    }
}

#[test]
fn a_directory_with_another_backend_is_another_disk() {
    let mut world = world();
    world.attach(BACKEND);
    let mut disk = world.open();
    world.attach("/local/domain/3/backend/vbd/7/other");
    assert!(matches!(world.turn(&mut disk), Event::Gone));
}

#[test]
fn only_a_fresh_directory_is_taken_up() {
    let mut world = world();
    assert!(world.try_open().unwrap().is_none());
    world.attach(BACKEND);
    world.toolstack.write(&format!("{FRONTEND}/state"), b"6").unwrap();
    assert!(world.try_open().unwrap().is_none());
    for (key, value) in [("backend-id", "70000"), ("backend", "relative/path"), ("backend", "\u{e9}")] {
        world.attach(BACKEND);
        world.toolstack.write(&format!("{FRONTEND}/{key}"), value.as_bytes()).unwrap();
        let error = world.try_open();
        assert!(matches!(error, Err(FollowError::Directory(_))), "{key}={value}");
    }
}

#[test]
fn a_backend_that_makes_no_sense_is_left() {
    let mut world = world();
    world.attach(BACKEND);
    let mut disk = world.open();
    world.offer();
    world.turn(&mut disk);
    world.serve(&[("sectors", "many")], Connected);
    assert!(matches!(disk.turn(&mut world.guest), Err(FollowError::Device(_))));
    disk.closed(&mut world.guest, Vec::new()).unwrap();
    assert_eq!(world.state(), Closed);
    world.serve(&[], Closed);
    assert!(matches!(world.turn(&mut disk), Event::Finished));
    assert!(disk.release(&mut world.guest).is_empty());
}

#[test]
fn a_disk_that_grows_tells() {
    let mut world = world();
    world.attach(BACKEND);
    let mut disk = world.open();
    let (_, _queues, _backend) = world.connected(&mut disk);
    world.serve(&[("sectors", "4096")], Connected);
    let Event::Changed(properties) = world.turn(&mut disk) else { panic!("nothing changed") };
    assert_eq!(properties.sectors, 4096);
}

#[test]
fn leaving_takes_the_frontend_s_own_way_out() {
    let mut world = world();
    world.attach(BACKEND);
    let mut disk = world.open();
    let (_, queues, _backend) = world.connected(&mut disk);
    disk.leave(&mut world.guest).unwrap();
    assert_eq!(world.state(), Closing);
    world.serve(&[], Closing);
    assert!(matches!(world.turn(&mut disk), Event::Nothing));
    disk.closed(&mut world.guest, queues).unwrap();
    assert_eq!(world.state(), Closed);
    world.serve(&[], Closed);
    assert!(matches!(world.turn(&mut disk), Event::Finished));
}

#[test]
fn connecting_in_one_call_waits_for_all_of_it() {
    let mut world = world();
    let (machine, options) = (world.machine(), Options::default());
    let mut guest = Client::connect(&world._dir.path().join("7")).unwrap();
    let waiting = std::thread::spawn(move || {
        connect(&mut guest, machine, &options, 51712, Duration::from_secs(20)).map(|it| it.1)
    });
    std::thread::sleep(Duration::from_millis(20));
    world.attach(BACKEND);
    world.offer();
    while world.state() != Initialised {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _backend = world.backend();
    world.connect();
    assert_eq!(waiting.join().unwrap().unwrap().sectors, 2048);
    assert_eq!(world.state(), Connected);
}

#[test]
fn connecting_gives_up_in_time() {
    let mut world = world();
    world.attach(BACKEND);
    let machine = world.machine();
    let result = connect(&mut world.guest, machine, &Options::default(), 51712, Duration::from_millis(50));
    assert!(matches!(result.err(), Some(FollowError::TimedOut(_, Initialising))));
    assert_eq!(world.state(), Closed);
}

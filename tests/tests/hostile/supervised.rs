//! The same against whole processes: a host, a service VM with its supervisor and workers, and a guest that behaves
//! beside one that does not.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use blkback::proto::{BLKIF_OP_READ, BlkifRequest64};
use frontend::blkfront::Options;
use frontend::hostile::{Index, Keys, Queue};
use grant::embedded::{self, Domain, GuestMemory, Ports};
use grant::{Access, DomId, GrantAccess, Granted};
use rustix::process::Signal;
use tests::world::rw;
use xenstore::xenbus::XenbusState;
use xenstore::{Client, Store};
use zerocopy::IntoBytes;

use crate::rig::{Nbd, Rig, children, eventually, signal_to};
use crate::{MOST_LINES, alone, long};

const DIRECTORY: &str = "device/vbd/51712";

/// A host, a service VM with two volumes, a guest `good` on the first and a hostile one that was given the second.
struct Scene {
    rig: Rig,
    domain: Domain,
    memory: GuestMemory,
    store: Client,
    dom0: Client,
    good: Nbd,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(&[])
    }

    /// With more arguments for the host.
    fn with(more: &[&str]) -> Scene {
        let alone = alone();
        let mut rig = Rig::with(more);
        let image = rig.image("z.img", 1);
        let more = format!(
            "[backend]\ninitwait-dwell-ms = 0\n[[volume]]\nname = \"z\"\npath = \"{}\"\ndirect = false\n",
            image.display()
        );
        rig.serve("acme", &more);
        rig.guest("good");
        rig.run("attach", &["good", "acme:db"]).fine();
        let good = Nbd::open(&rig.nbd("good"), "xvda").unwrap();
        let memory = GuestMemory::new(16 << 20).unwrap();
        let domain = embedded::register(&rig.dir(), "hostile", Some(&memory)).unwrap();
        let store = rig.store_of(domain.domid.0);
        rig.run("attach", &["hostile", "acme:z", "--wait", "1"]).refused(4);
        let dom0 = rig.store();
        Scene { rig, domain, memory, store, dom0, good, _alone: alone }
    }

    fn write(&mut self, key: &str, value: &[u8]) {
        self.store.write(&format!("{DIRECTORY}/{key}"), value).unwrap();
    }

    /// A ring of the hostile guest's.
    fn queue(&self, options: &Options) -> Queue {
        let events = Ports::new(embedded::connect(&self.rig.dir(), self.domain.domid).unwrap()).unwrap();
        Queue::new(Box::new(self.memory.clone()), Box::new(events), DomId(1), options).unwrap()
    }

    fn disk(&self) -> serde_json::Value {
        self.rig.disks().into_iter().find(|disk| disk["guest"] == "hostile").unwrap()
    }

    fn backend_is(&mut self, state: XenbusState) {
        let node = format!("/local/domain/1/backend/vbd/{}/51712/state", self.domain.domid.0);
        eventually(&format!("the backend is {state}"), || {
            let now = self.dom0.read_optional(&node).unwrap().unwrap_or_default();
            (XenbusState::parse(&now) == state).then_some(())
        });
    }

    /// As a driver does: keys, Initialised, Connected.
    fn connect(&mut self, keys: &Keys) {
        keys.write(&mut self.store, DIRECTORY).unwrap();
        self.write("state", b"3");
        self.backend_is(XenbusState::Connected);
        self.write("state", b"4");
    }

    /// As a driver does that is loaded again.
    fn start_over(&mut self) {
        self.write("state", b"6");
        self.backend_is(XenbusState::Closed);
        for key in self.store.directory(DIRECTORY).unwrap() {
            if key.contains("ring") || key.contains("queue") || key == "event-channel" || key == "protocol" {
                self.store.rm(&format!("{DIRECTORY}/{key}")).unwrap();
            }
        }
        self.write("state", b"1");
        self.backend_is(XenbusState::InitWait);
    }

    /// Nobody else has noticed, nothing is mapped, the log is short.
    fn over(mut self) {
        assert_eq!(self.good.write(0, &[9; 4096]).unwrap(), 0);
        assert_eq!(self.good.read(0, 4096).unwrap(), Ok(vec![9; 4096]));
        self.rig.run("detach", &["hostile", "xvda", "--force"]).fine();
        assert_eq!(embedded::usage(&self.rig.dir(), self.domain.domid).unwrap().active_grants, 0);
        // What the good guest's disk has to say is in it too, and what a service VM says when it starts.
        let lines = self.rig.daemon("acme").log().lines().count();
        assert!(lines <= MOST_LINES, "{lines} lines of log:\n{}", self.rig.daemon("acme").log());
    }
}

/// Responses of a queue, as they come.
fn answered(queue: &Queue, first: u32, count: u32) {
    let begun = Instant::now();
    while queue.index(Index::RspProd) != first.wrapping_add(count) {
        assert!(begun.elapsed() < Duration::from_secs(20), "no answers");
        std::thread::yield_now();
    }
}

#[test]
fn t01_a_broken_ring_ends_its_disk_says_why_and_may_be_made_anew() {
    let mut scene = Scene::new();
    let options = Options::default();
    for ahead in [33, 1 << 20, u32::MAX] {
        let queue = scene.queue(&options);
        scene.connect(&Keys::of(&options, &[&queue]));
        queue.set_index(Index::ReqProd, ahead);
        let mut queue = queue;
        queue.notify().unwrap();
        scene.backend_is(XenbusState::Closed);
        let why = format!("/local/domain/1/error/backend/vbd/{}/51712/error", scene.domain.domid.0);
        let why = scene.rig.store().read_string(&why).unwrap();
        assert!(why.contains("broke the protocol"), "{why}");
        assert_eq!(scene.good.write(4096, &[1; 4096]).unwrap(), 0);
        scene.start_over();
        queue.grants.end(queue.ring_grant).unwrap();
    }
    // It comes back with a good ring and is served.
    let mut queue = scene.queue(&options);
    let data = scene.memory.grant(DomId(1), 1, Access::ReadWrite).unwrap();
    scene.connect(&Keys::of(&options, &[&queue]));
    queue.put_bytes([rw(BLKIF_OP_READ, 1, 0, &data.refs).as_bytes()]);
    queue.notify().unwrap();
    answered(&queue, 0, 1);
    scene.over();
}

/// Through all that a guest can make a service VM write about: requests, rings, states and keys. A hundred lines.
#[test]
fn t06_xsa_180_a_guest_that_does_everything_wrong_fills_no_log() {
    let mut scene = Scene::new();
    let options = Options::default();
    let batches = (long(1_000_000) / 20 / 32) as u32;
    for round in 0..60u32 {
        let mut queue = scene.queue(&options);
        let keys = Keys::of(&options, &[&queue]);
        scene.connect(&keys);
        let bad: BlkifRequest64 = rw(77, 1, 0, &[grant::GrantRef(round)]);
        let wrong: BlkifRequest64 = rw(BLKIF_OP_READ, 1, 0, &[grant::GrantRef(1 << 20)]);
        for batch in 0..if round < 20 { batches } else { 1 } {
            queue.put_bytes((0..32).map(|n| if n % 8 == 0 { wrong.as_bytes() } else { bad.as_bytes() }));
            queue.notify().unwrap();
            answered(&queue, batch * 32, 32);
            while queue.ring.unconsumed().unwrap() > 0 {
                queue.ring.take(&mut [0; 16]);
            }
        }
        // Then its ring breaks.
        queue.set_index(Index::ReqProd, queue.index(Index::RspProd).wrapping_add(50));
        queue.notify().unwrap();
        scene.backend_is(XenbusState::Closed);
        scene.start_over();
        // And keys that cannot be.
        keys.with("ring-ref", "4000000000").write(&mut scene.store, DIRECTORY).unwrap();
        scene.write("state", b"3");
        scene.backend_is(XenbusState::Closed);
        scene.start_over();
        queue.grants.end(queue.ring_grant).unwrap();
    }
    scene.over();
}

/// A disk is what its configuration says, whatever a guest writes to its first sectors.
#[test]
fn t05_headers_of_image_formats_written_by_a_guest_are_data() {
    let _alone = alone();
    let mut rig = Rig::new();
    let headers: [&[u8]; 5] =
        [b"QFI\xfb\0\0\0\x03", b"conectix", b"LUKS\xba\xbe\0\x02", b"KDMV\x01\0\0\0", b"vhdxfile"];
    let names = ["a", "b", "c", "d", "e"];
    let mut volumes = String::new();
    for name in names {
        let path = rig.image(&format!("{name}.img"), 2);
        volumes += &format!("[[volume]]\nname = \"{name}\"\npath = \"{}\"\ndirect = false\n", path.display());
    }
    rig.serve("acme", &volumes);
    rig.guest("g1");
    let first = |header: &[u8]| {
        let mut first = vec![0; 4096];
        first[..header.len()].copy_from_slice(header);
        // A size as well: a format that is believed says another one than the configuration.
        first[24..32].copy_from_slice(&(1u64 << 40).to_be_bytes());
        first
    };
    for (name, header) in names.iter().zip(headers) {
        let vdev = rig.run("attach", &["g1", &format!("acme:{name}")]).fine().to_owned();
        let mut nbd = Nbd::open(&rig.nbd("g1"), &vdev).unwrap();
        assert_eq!((nbd.write(0, &first(header)).unwrap(), nbd.flush().unwrap()), (0, 0));
        drop(nbd);
        rig.run("detach", &["g1", &vdev]).fine();
    }
    assert_eq!(rig.take("acme").stop(), Some(0));
    rig.serve_again("acme");
    for (name, header) in names.iter().zip(headers) {
        assert_eq!(std::fs::read(rig.path(&format!("{name}.img"))).unwrap()[..4096], first(header));
        let vdev = rig.run("attach", &["g1", &format!("acme:{name}")]).fine().to_owned();
        let mut nbd = Nbd::open(&rig.nbd("g1"), &vdev).unwrap();
        assert_eq!((nbd.size, nbd.read(0, 4096).unwrap()), (2 << 20, Ok(first(header))));
    }
}

/// Kilobytes that a process has in memory.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

/// XSA-349: writing a watched node as fast as it goes, which the store's limit on writes would slow down. A million
/// times with `WINDSOR_LONG`.
#[test]
fn t16_xsa_349_a_guest_that_rewrites_its_state_grows_no_queue() {
    let mut scene = Scene::with(&["--quota", "write-rate=0"]);
    let supervisor = scene.rig.supervisor("acme");
    for _ in 0..1000 {
        scene.write("state", b"1");
    }
    let before = resident(supervisor);
    let writes = if std::env::var_os("WINDSOR_LONG").is_some() { 1_000_000 } else { 10_000 };
    for round in 0..writes {
        // Faster than it can be looked at, now and then something new.
        scene.write("state", if round % 100 == 0 { b"77" } else { b"1" });
        if round % 500 == 0 {
            assert_eq!(scene.good.write(0, &[1; 4096]).unwrap(), 0);
        }
    }
    let grown = resident(supervisor).saturating_sub(before);
    assert!(grown < 1024, "the supervisor has grown by {grown} kB");
    scene.over();
}

/// Watch events merge: a driver that was loaded anew while nobody looked has said Closed, and nobody saw it.
#[test]
fn t15_a_guest_that_starts_over_unseen_after_breaking_its_ring_is_served_again() {
    let mut scene = Scene::new();
    let options = Options::default();
    let mut queue = scene.queue(&options);
    let supervisor = scene.rig.supervisor("acme");
    for _ in 0..5 {
        scene.connect(&Keys::of(&options, &[&queue]));
        signal_to(supervisor, Signal::STOP);
        queue.set_index(Index::ReqProd, queue.index(Index::RspProd).wrapping_add(1000));
        queue.notify().unwrap();
        for state in [b"5", b"6", b"1"] {
            scene.write("state", state);
        }
        signal_to(supervisor, Signal::CONT);
        scene.backend_is(XenbusState::InitWait);
        queue.set_index(Index::ReqProd, queue.index(Index::RspProd));
    }
    scene.over();
}

/// CVE-2026-43249: a frontend acts on each state it is shown, so each is shown once.
#[test]
fn t15_cve_2026_43249_each_state_of_the_backend_is_written_once() {
    let mut scene = Scene::new();
    let node = format!("/local/domain/1/backend/vbd/{}/51712/state", scene.domain.domid.0);
    let mut watcher = scene.rig.store();
    watcher.watch(&node, "state").unwrap();
    let options = Options::default();
    let mut rings: Vec<Granted> = Vec::new();
    for _ in 0..5 {
        let queue = scene.queue(&options);
        scene.connect(&Keys::of(&options, &[&queue]));
        scene.write("state", b"4");
        scene.write("state", b"4");
        scene.write("state", b"5");
        scene.backend_is(XenbusState::Closing);
        scene.start_over();
        rings.push(queue.ring_grant);
    }
    // One event for the watch itself; then 4, 5, 6, 1 or 2 in each round, none of them twice in a row.
    let mut writes = 0;
    while watcher.next_event(Some(Duration::from_millis(300))).unwrap().is_some() {
        writes += 1;
    }
    let cycle = 4;
    assert!(writes <= 1 + 5 * (cycle + 1), "{writes} writes of a state in five rounds");
    rings.into_iter().for_each(|ring| scene.memory.end(ring).unwrap());
    scene.over();
}

/// Linux 4a8c31a1c6f5 and its repair: `ring-page-order` and the references beside it do not fit; and a frontend that
/// knows of neither is served as ever.
#[test]
fn t13_linux_4a8c31a1c6f5_keys_that_do_not_fit_each_other_are_refused_and_old_frontends_are_not() {
    let mut scene = Scene::new();
    let wide = Options { ring_order: 2, ..Options::default() };
    let queue = scene.queue(&wide);
    let keys = Keys::of(&wide, &[&queue]);
    let wrong = [
        keys.clone().without("ring-ref3"),
        keys.clone().with("ring-page-order", "5"),
        keys.clone().with("ring-page-order", "4294967296"),
        keys.clone().with("ring-page-order", "-1"),
        keys.clone().with("ring-page-order", "abc"),
        keys.clone().with("ring-page-order", "9".repeat(1500)),
        keys.clone().with("ring-ref1", "4294967297"),
        keys.clone().with("ring-ref1", vec![0xFF; 4]),
        keys.clone().with("event-channel", "4294967296"),
        keys.clone().with("event-channel", "1023"),
        keys.clone().with("multi-queue-num-queues", "0"),
        keys.clone().with("multi-queue-num-queues", "5"),
        keys.clone().with("multi-queue-num-queues", "4294967297"),
        keys.clone().with("protocol", "arm-abi"),
    ];
    for keys in wrong {
        keys.write(&mut scene.store, DIRECTORY).unwrap();
        scene.write("state", b"3");
        eventually(&format!("refused: {keys:?}"), || (scene.disk()["phase"] == "failed").then_some(()));
        scene.backend_is(XenbusState::Closed);
        assert_eq!(embedded::usage(&scene.rig.dir(), scene.domain.domid).unwrap().active_grants, 0, "{keys:?}");
        scene.start_over();
        assert_eq!(scene.good.write(0, &[1; 4096]).unwrap(), 0);
    }
    // One page, one name: what every frontend wrote before there was an order.
    let old = Options { persistent: false, ..Options::default() };
    let mut plain = scene.queue(&old);
    let keys = Keys::of(&old, &[&plain]).without("protocol").with("protocol", "x86_64-abi");
    scene.connect(&keys);
    let data = scene.memory.grant(DomId(1), 1, Access::ReadWrite).unwrap();
    plain.put_bytes([rw(BLKIF_OP_READ, 1, 0, &data.refs).as_bytes()]);
    plain.notify().unwrap();
    answered(&plain, 0, 1);
    scene.over();
}

/// Reads the first page of the hostile guest's disk.
fn first_page(queue: &mut Queue, data: &Granted, count: u32) -> Vec<u8> {
    queue.put_bytes([rw(BLKIF_OP_READ, 1, 0, &data.refs).as_bytes()]);
    queue.notify().unwrap();
    answered(queue, count, 1);
    let mut response = [0; 16];
    queue.ring.take(&mut response);
    assert_eq!(response[10..12], [0, 0]);
    let mut page = vec![0; 4096];
    data.memory.pages().read(0, &mut page);
    page
}

/// Firecracker's CVE-2026-5747: what was negotiated is not read again.
#[test]
fn t14_keys_that_change_after_connected_change_nothing() {
    let mut scene = Scene::new();
    let options = Options::default();
    let mut queue = scene.queue(&options);
    let data = scene.memory.grant(DomId(1), 1, Access::ReadWrite).unwrap();
    let keys = Keys::of(&options, &[&queue]);
    scene.connect(&keys);
    assert_eq!(first_page(&mut queue, &data, 0), [0; 4096]);
    let path = scene.disk()["path"].clone();
    let other = Keys::default()
        .with("ring-ref", "8")
        .with("ring-ref0", "8")
        .with("ring-page-order", "4")
        .with("event-channel", "999")
        .with("protocol", "x86_32-abi")
        .with("feature-persistent", "0")
        .with("multi-queue-num-queues", "4")
        .with("queue-0/ring-ref", "9");
    for (count, state) in (1..).zip(["4", "3", "4", "2", "4"]) {
        other.write(&mut scene.store, DIRECTORY).unwrap();
        scene.write("state", state.as_bytes());
        assert_eq!(first_page(&mut queue, &data, count), [0; 4096], "state {state}");
    }
    assert_eq!(scene.disk()["path"], path);
    // Whoever looks anew reads the frozen ones as well.
    signal_to(scene.rig.supervisor("acme"), Signal::KILL);
    assert_eq!(first_page(&mut queue, &data, 6), [0; 4096]);
    eventually("there is another supervisor", || (scene.disk()["phase"] == "connected").then_some(()));
    assert_eq!(first_page(&mut queue, &data, 7), [0; 4096]);
    scene.over();
}

#[test]
fn t17_states_that_are_none_and_a_directory_that_vanishes_end_a_disk_cleanly() {
    let mut scene = Scene::new();
    let options = Options::default();
    let data = scene.memory.grant(DomId(1), 1, Access::ReadWrite).unwrap();
    let worker = || children(scene.rig.supervisor("acme"), "worker").len();
    let workers = worker();
    for state in [&b""[..], b"99", b"-1", b"4 ", b"\xFF\xFE", &[b'4'; 2000], b"0"] {
        let mut queue = scene.queue(&options);
        scene.connect(&Keys::of(&options, &[&queue]));
        first_page(&mut queue, &data, 0);
        scene.write("state", state);
        assert_eq!(scene.good.write(0, &[1; 4096]).unwrap(), 0);
        scene.start_over();
    }
    let mut queue = scene.queue(&options);
    scene.connect(&Keys::of(&options, &[&queue]));
    first_page(&mut queue, &data, 0);
    for key in scene.store.directory(DIRECTORY).unwrap() {
        // All that is the guest's to remove.
        let _ = scene.store.rm(&format!("{DIRECTORY}/{key}"));
    }
    eventually("its pages are let go of", || {
        (embedded::usage(&scene.rig.dir(), scene.domain.domid).unwrap().active_grants == 0).then_some(())
    });
    assert!(children(scene.rig.supervisor("acme"), "worker").len() <= workers + 1);
    scene.over();
}

/// XSA-175 and 178 in our direction: whose disk it is stands where only dom0 writes.
#[test]
fn t18_a_frontend_that_names_another_tenant_gets_its_own_disk() {
    let mut scene = Scene::new();
    assert_eq!(scene.good.write(0, &[0xBD; 4096]).unwrap(), 0);
    let options = Options::default();
    let mut queue = scene.queue(&options);
    let data = scene.memory.grant(DomId(1), 1, Access::ReadWrite).unwrap();
    for (key, value) in [("backend", "/local/domain/1/backend/vbd/2/51712"), ("backend-id", "2"), ("params", "db")] {
        // As far as it may.
        let _ = scene.store.write(&format!("{DIRECTORY}/{key}"), value.as_bytes());
    }
    let theirs = "/local/domain/1/backend/vbd/2/51712";
    for key in ["state", "params", "frontend", "frontend-id", "online"] {
        assert!(scene.store.write(&format!("{theirs}/{key}"), b"1").unwrap_err().is_permission(), "{key}");
    }
    scene.connect(&Keys::of(&options, &[&queue]));
    assert_eq!(first_page(&mut queue, &data, 0), [0; 4096], "its own volume");
    assert_eq!(scene.good.read(0, 4096).unwrap(), Ok(vec![0xBD; 4096]));
    scene.over();
}

/// Stopped for a while, worker or guest, as a suspend would do: nothing is lost and nothing comes twice. The clock may
/// jump meanwhile: the backend knows only the one that never does.
#[test]
fn t46_whoever_is_stopped_goes_on_where_it_was() {
    let _alone = alone();
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let worker = children(rig.supervisor("acme"), "worker")[0];
    let guest = rig.daemon("g1").pid();
    let pause = Duration::from_millis(if std::env::var_os("WINDSOR_LONG").is_some() { 60_000 } else { 700 });
    for (round, pid) in [worker, guest, worker].into_iter().enumerate() {
        let path = rig.nbd("g1");
        let io = std::thread::spawn(move || {
            let mut nbd = Nbd::open(&path, "xvda").unwrap();
            nbd.be_patient(pause).unwrap();
            let begun = Instant::now();
            let mut at = 0u64;
            while begun.elapsed() < Duration::from_millis(1500) {
                let value = (at % 251) as u8 + round as u8;
                let offset = at % 2000 * 4096;
                assert_eq!(nbd.write(offset, &[value; 4096]).unwrap(), 0);
                assert_eq!(nbd.read(offset, 4096).unwrap(), Ok(vec![value; 4096]));
                at += 1;
            }
            at
        });
        std::thread::sleep(Duration::from_millis(200));
        signal_to(pid, Signal::STOP);
        std::thread::sleep(pause);
        signal_to(pid, Signal::CONT);
        assert!(io.join().unwrap() > 0);
    }
    assert_eq!(rig.disks()[0]["phase"], "connected");
}

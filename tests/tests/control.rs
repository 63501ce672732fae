//! The control plane, through the real binary: attach and detach, what is refused and how it is said, and who survives
//! whose death.

mod rig;

use std::process::Stdio;
use std::time::{Duration, Instant};

use grant::embedded::{self, Domain, GuestMemory, Ports};
use grant::ring::FrontRing;
use grant::{Access, DomId, EventChannel, GrantAccess};
use rig::{Nbd, Rig, children, eventually, run, signal_to, windsor};
use rustix::process::Signal;
use unikernel::toolstack::sample::Sample;
use xenstore::{Client, Store};

/// A domain with memory and no driver: its side of the store is written by hand.
struct Raw {
    domain: Domain,
    memory: GuestMemory,
    store: Client,
}

impl Raw {
    fn new(rig: &Rig, name: &str) -> Raw {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let domain = embedded::register(&rig.dir(), name, Some(&memory)).unwrap();
        let store = rig.store_of(domain.domid.0);
        Raw { domain, memory, store }
    }

    fn write(&mut self, key: &str, value: &str) {
        self.store.write(&format!("device/vbd/51712/{key}"), value.as_bytes()).unwrap();
    }
}

fn read(store: &mut Client, path: &str) -> Option<String> {
    let value = store.read_optional(path).unwrap()?;
    Some(String::from_utf8(value).unwrap())
}

/// Several at once (`top`, a scraper, a bench) ask through one node: nobody waits for an answer that will never be given.
#[test]
fn an_answer_to_who_asked_last_is_one_to_who_asked_before() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut store = rig.store();
    let acme = rig.status()["vms"][0]["domid"].as_u64().unwrap() as u16;
    for _ in 0..20 {
        let asked: Vec<Sample> = (0..4).map(|_| Sample::ask(&mut store, acme).unwrap()).collect();
        for sample in asked.iter().rev() {
            eventually("an answer", || sample.is_answered(&mut store).unwrap().then_some(()));
        }
    }
}

#[test]
fn attach_and_detach_return_when_both_sides_are_there_or_gone() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    assert_eq!(rig.run("attach", &["g1", "acme:db"]).fine(), "xvda");
    let disks = rig.disks();
    let disk = &disks[0];
    for (key, value) in [("guest", "g1"), ("vdev", "xvda"), ("volume", "db"), ("mode", "w"), ("phase", "connected")] {
        assert_eq!(disk[key], value, "{disk}");
    }
    assert_eq!((disk["backend_state"].as_u64(), disk["frontend_state"].as_u64()), (Some(4), Some(4)));
    assert_eq!((disk["backend"].as_str(), disk["reason"].as_str()), (Some("Connected"), Some("")));
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_eq!(nbd.size, 16 << 20);
    assert_eq!(nbd.write(4096, &[7; 4096]).unwrap(), 0);
    assert_eq!(nbd.flush().unwrap(), 0);
    let stats = &rig.disks()[0]["stats"];
    assert_eq!((stats["writes"].as_u64(), stats["write_bytes"].as_u64()), (Some(1), Some(4096)), "{stats}");
    assert_eq!(std::fs::read(rig.path("acme.img")).unwrap()[4096..8192], [7; 4096]);
    drop(nbd);

    rig.run("detach", &["g1", "xvda"]).fine();
    assert!(rig.disks().is_empty());
    let volumes = &rig.status()["vms"][0]["volumes"][0];
    assert_eq!((volumes["size"].as_u64(), volumes["used-by"].as_array().map(Vec::len)), (Some(16 << 20), Some(0)));
    assert!(embedded::usage(&rig.dir(), DomId(2)).unwrap().active_grants == 0);
    // Neither side nor the toolstack leaves a node behind.
    let mut store = rig.store();
    assert!(store.directory("/local/domain/2/device").unwrap().is_empty());
    assert!(store.directory("/libxl/2/device").unwrap().is_empty());
    assert!(store.directory("/local/domain/1/backend").unwrap().is_empty());
    let shelves = "/local/domain/1/data/windsor/dev";
    for shelf in store.directory(shelves).unwrap() {
        assert!(store.directory(&format!("{shelves}/{shelf}")).unwrap().is_empty());
    }
    // And it all works again.
    assert_eq!(rig.run("attach", &["g1", "acme:db", "--vdev", "xvdc"]).fine(), "xvdc");
}

#[test]
fn the_nodes_are_those_of_libxl() {
    let mut rig = Rig::new();
    rig.serve("acme", "[backend]\nqueues = 2\nmax-ring-order = 1\nmax-indirect = 64\n");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut store = rig.store();
    let perms = |store: &mut Client, path: &str| {
        let perms = store.get_perms(path).unwrap();
        perms.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let (frontend, backend) = ("/local/domain/2/device/vbd/51712", "/local/domain/1/backend/vbd/2/51712");
    assert_eq!(perms(&mut store, frontend), "n2,r1");
    assert_eq!(perms(&mut store, &format!("{frontend}/state")), "n2,r1");
    assert_eq!(perms(&mut store, backend), "n1,r2");
    assert_eq!(perms(&mut store, &format!("{backend}/state")), "n1,r2");
    for parent in ["/local/domain/1/backend", "/local/domain/1/backend/vbd", "/local/domain/1/backend/vbd/2"] {
        assert_eq!(perms(&mut store, parent), "n0,r1");
    }
    for (key, value) in [
        ("frontend", frontend),
        ("frontend-id", "2"),
        ("params", "db"),
        ("type", "phy"),
        ("mode", "w"),
        ("dev", "xvda"),
        ("online", "1"),
        ("feature-max-indirect-segments", "64"),
        ("max-ring-page-order", "1"),
        ("multi-queue-max-queues", "2"),
        ("feature-persistent", "1"),
        ("feature-flush-cache", "1"),
        ("sectors", "32768"),
        ("sector-size", "512"),
        ("info", "0"),
        ("hotplug-status", "connected"),
    ] {
        assert_eq!(read(&mut store, &format!("{backend}/{key}")).as_deref(), Some(value), "{key}");
    }
    // The service VM's own connection may not write on the guest's side, nor make a device up.
    let mut service = rig.store_of(1);
    assert!(service.write(&format!("{frontend}/state"), b"6").unwrap_err().is_permission());
    assert!(service.write("/local/domain/1/backend/vbd/2/51728/state", b"1").unwrap_err().is_permission());
    assert_eq!(read(&mut service, &format!("{frontend}/state")).as_deref(), Some("4"));
}

#[test]
fn init_wait_is_kept_up_for_a_new_disk_and_not_for_one_that_comes_back() {
    let mut rig = Rig::new();
    rig.serve("acme", "[backend]\ninitwait-dwell-ms = 1500\n");
    rig.guest("g1");
    let begun = Instant::now();
    rig.run("attach", &["g1", "acme:db"]).fine();
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[test]
fn a_wrong_configuration_is_one_line_with_its_place() {
    let rig = Rig::new();
    let config = rig.config("x", "[vm]\nname = \"x\"\n\n[backend]\nqueue = 2\n");
    let ended = run(rig.command("serve").arg("--config").arg(&config));
    let line = ended.refused(2);
    assert!(line.contains("x.toml:5: unknown field `queue`"), "{line}");
    let ended = run(rig.command("serve").arg("--config").arg(rig.path("none.toml")));
    assert!(ended.refused(3).contains("none.toml"));
}

#[test]
fn a_volume_that_cannot_be_used_is_one_line_with_the_reason() {
    let rig = Rig::new();
    let serve = |path: &str| {
        let text = format!("[vm]\nname = \"x\"\n[[volume]]\nname = \"db\"\npath = \"{path}\"\ndirect = false\n");
        let config = rig.config("x", &text);
        run(rig.command("serve").arg("--config").arg(config))
    };
    let ended = serve("/nowhere/db.img");
    let line = ended.refused(3);
    assert!(line.contains("volume db: /nowhere/db.img: No such file"), "{line}");
    let odd = rig.path("odd.img");
    std::fs::write(&odd, [0; 1000]).unwrap();
    let ended = serve(odd.to_str().unwrap());
    let line = ended.refused(3);
    assert!(line.contains("1000 bytes, is no multiple of 512"), "{line}");
}

#[test]
fn without_a_host_or_with_a_taken_name_nothing_starts() {
    let nowhere = tempfile::tempdir().unwrap();
    let dir = nowhere.path().to_str().unwrap();
    for args in [
        ["status", "--dir", dir].as_slice(),
        &["attach", "--dir", dir, "g", "a:b"],
        &["detach", "--dir", dir, "g", "xvda"],
    ] {
        let ended = run(windsor().args(args));
        assert!(ended.refused(3).contains(&format!("windsor host --dir {dir}")), "{ended:?}");
    }
    let mut rig = Rig::new();
    rig.serve("acme", "");
    let ended = run(rig.command("serve").arg("--config").arg(rig.path("acme.toml")));
    assert!(ended.refused(5).contains("a domain named acme exists already"), "{ended:?}");
    let ended = run(rig.command("guest").args(["--name", "acme", "--nbd", "unix:/nowhere/x"]));
    ended.refused(5);
}

#[test]
fn a_directory_that_cannot_be_used_is_one_line() {
    let ended = run(windsor().args(["host", "--dir", "/proc/nowhere"]));
    assert!(ended.refused(1).contains("/proc/nowhere"), "{ended:?}");
    let rig = Rig::new();
    let ended = rig.run("host", &[]);
    assert!(ended.refused(5).contains("another embedded host"), "{ended:?}");
}

#[test]
fn what_does_not_exist_is_named_together_with_what_does() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    for (args, code, says) in [
        (["g2", "acme:db"], 3, "no guest named \"g2\" (there is: acme, g1)"),
        (["g1", "core:db"], 3, "no service VM named \"core\""),
        (["g1", "g1:db"], 3, "g1 is no service VM that is ready"),
        (["g1", "acme:log"], 3, "acme has no volume named \"log\" (it has: db)"),
        (["g1", "acme"], 2, "give VM:VOLUME"),
        (["acme", "acme:db"], 1, "its own guest"),
    ] {
        let ended = rig.run("attach", &args);
        let line = ended.refused(code);
        assert!(line.contains(says), "{line}");
    }
    assert_eq!(rig.run("attach", &["g1", "acme:db", "--vdev", "fd0"]).code, Some(2));
    assert!(rig.run("detach", &["g1", "xvda"]).refused(3).contains("g1 has no disk xvda (it has: none)"));
    assert!(rig.run("detach", &["g9", "xvda"]).refused(3).contains("no guest named \"g9\""));
}

#[test]
fn a_disk_name_or_a_volume_in_use_is_busy() {
    let mut rig = Rig::new();
    rig.serve("acme", "[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    rig.guest("g1");
    rig.guest("g2");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let ended = rig.run("attach", &["g1", "acme:z", "--vdev", "xvda"]);
    assert!(ended.refused(5).contains("g1 has a disk xvda already"), "{ended:?}");
    let ended = rig.run("attach", &["g2", "acme:db"]);
    assert!(ended.refused(5).contains("volume db is in use by xvda of domain 2"), "{ended:?}");
    let ended = rig.run("attach", &["g2", "acme:db", "--ro"]);
    ended.refused(5);
    // The refused disk left nothing behind, and its reader can have another volume.
    assert_eq!(rig.disks().len(), 1);
    assert_eq!(rig.run("attach", &["g2", "acme:z"]).fine(), "xvda");
    // And none of it harmed the disk that was there.
    assert_eq!(Nbd::open(&rig.nbd("g1"), "xvda").unwrap().write(0, &[1; 512]).unwrap(), 0);
}

#[test]
fn a_volume_of_another_program_is_busy_with_its_name() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    let image = std::fs::File::open(rig.path("acme.img")).unwrap();
    rustix::fs::flock(&image, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let ended = rig.run("attach", &["g1", "acme:db"]);
    let line = ended.refused(5);
    assert!(line.contains("acme.img: locked by process") && line.contains(&std::process::id().to_string()), "{line}");
}

#[test]
fn readers_share_and_a_read_only_volume_has_no_writer() {
    let mut rig = Rig::new();
    let image = rig.image("ro.img", 1);
    rig.serve(
        "acme",
        &format!("[[volume]]\nname = \"ro\"\npath = \"{}\"\nmode = \"ro\"\ndirect = false\n", image.display()),
    );
    rig.guest("g1");
    rig.guest("g2");
    let ended = rig.run("attach", &["g1", "acme:ro"]);
    assert!(ended.refused(1).contains("volume ro is read-only: attach it with --ro"), "{ended:?}");
    rig.run("attach", &["g1", "acme:ro", "--ro"]).fine();
    rig.run("attach", &["g2", "acme:ro", "--ro"]).fine();
    assert_eq!(rig.disks().iter().filter(|disk| disk["mode"] == "r").count(), 2);
    let mut store = rig.store();
    assert_eq!(read(&mut store, "/local/domain/1/backend/vbd/2/51712/info").as_deref(), Some("4"));
}

#[test]
fn a_guest_without_a_driver_times_out_with_both_states() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    let raw = Raw::new(&rig, "raw");
    let ended = rig.run("attach", &["raw", "acme:db", "--wait", "1"]);
    let line = ended.refused(4);
    assert!(line.contains("the backend is InitWait, the frontend Initialising"), "{line}");
    assert!(line.contains("windsor detach raw xvda"), "{line}");
    // Nothing is shared, so nobody has to be waited for.
    rig.run("detach", &["raw", "xvda"]).fine();
    drop(raw);
}

#[test]
fn a_guest_that_refuses_keeps_its_disk_until_it_is_forced() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    rig.daemon("g1").signal(Signal::STOP);
    let ended = rig.run("detach", &["g1", "xvda", "--wait", "1"]);
    let line = ended.refused(4);
    assert!(line.contains("the frontend Connected") && line.contains("--force"), "{line}");
    assert_eq!(rig.disks().len(), 1);
    rig.run("detach", &["g1", "xvda", "--force"]).fine();
    assert!(rig.disks().is_empty());
    assert_eq!(embedded::usage(&rig.dir(), DomId(2)).unwrap().active_grants, 0);
}

#[test]
fn keys_that_cannot_be_are_refused_and_the_guest_may_try_again() {
    let mut rig = Rig::new();
    rig.serve("acme", "[backend]\ninitwait-dwell-ms = 0\n");
    let mut raw = Raw::new(&rig, "raw");
    rig.run("attach", &["raw", "acme:db", "--wait", "1"]).refused(4);
    for (order, says) in [("31", "ring-page-order = \"31\""), ("1", "did not write ring-ref0")] {
        raw.write("ring-page-order", order);
        raw.write("event-channel", "1");
        raw.write("state", "3");
        let disk = rig.phase("failed");
        assert!(disk["reason"].as_str().unwrap().contains(says), "{disk}");
        eventually("the backend closes", || (rig.disks()[0]["backend"] == "Closed").then_some(()));
        // A driver that is loaded again starts over, and InitWait comes without a pause.
        raw.write("state", "6");
        raw.write("state", "1");
        eventually("the backend offers the disk again", || (rig.disks()[0]["backend"] == "InitWait").then_some(()));
    }
    // Grants that are none: the worker says no, and lives on.
    raw.write("ring-page-order", "0");
    raw.write("ring-ref0", "4000000000");
    raw.write("state", "3");
    let disk = rig.phase("failed");
    assert!(disk["reason"].as_str().unwrap().contains("mapping the ring"), "{disk}");
    assert_eq!(children(rig.supervisor("acme"), "worker").len(), 1);
    rig.run("detach", &["raw", "xvda"]).fine();
}

#[test]
fn a_guest_that_breaks_its_ring_loses_its_disk_and_nobody_else_does() {
    let mut rig = Rig::new();
    rig.serve("acme", "[backend]\ninitwait-dwell-ms = 0\n[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut raw = Raw::new(&rig, "raw");
    rig.run("attach", &["raw", "acme:z", "--wait", "1"]).refused(4);
    let ring = raw.memory.grant(DomId(1), 1, Access::ReadWrite).unwrap();
    let mut events = Ports::new(embedded::connect(&rig.dir(), raw.domain.domid).unwrap()).unwrap();
    let port = events.alloc_unbound(DomId(1)).unwrap();
    FrontRing::new(ring.memory.pages(), 112);
    raw.write("ring-ref", &ring.refs[0].to_string());
    raw.write("event-channel", &port.to_string());
    raw.write("protocol", "x86_64-abi");
    raw.write("state", "3");
    let raw_disk = |rig: &Rig| rig.disks().into_iter().find(|disk| disk["guest"] == "raw").unwrap();
    eventually("the raw guest is served", || (raw_disk(&rig)["backend"] == "Connected").then_some(()));
    raw.write("state", "4");
    // req_prod, a million requests ahead of a ring of 32.
    ring.memory.pages().store_release(0, 1 << 20);
    events.notify(port).unwrap();
    let disk = rig.phase("failed");
    assert_eq!(disk["guest"], "raw");
    assert!(disk["reason"].as_str().unwrap().contains("broke the protocol"), "{disk}");
    // Its ring is unmapped although it never closed, and its neighbour does not notice.
    eventually("nothing of its is mapped", || {
        (embedded::usage(&rig.dir(), raw.domain.domid).unwrap().active_grants == 0).then_some(())
    });
    assert_eq!(Nbd::open(&rig.nbd("g1"), "").unwrap().write(0, &[3; 4096]).unwrap(), 0);
    rig.run("detach", &["raw", "xvda"]).fine();
    raw.memory.end(ring).unwrap();
}

#[test]
fn a_guest_that_flaps_its_state_stops_nobody() {
    let mut rig = Rig::new();
    rig.serve("acme", "[backend]\ninitwait-dwell-ms = 0\n[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut raw = Raw::new(&rig, "raw");
    rig.run("attach", &["raw", "acme:z", "--wait", "1"]).refused(4);
    let mut nbd = Nbd::open(&rig.nbd("g1"), "").unwrap();
    for state in ["3", "4", "6", "1", "5", "9", "", "4", "2", "1"].iter().cycle().take(400) {
        raw.write("state", state);
        assert_eq!(nbd.write(0, &[3; 4096]).unwrap(), 0);
    }
    let log = rig.daemon("acme").log();
    assert!(log.lines().count() < 80, "{} lines of log", log.lines().count());
    assert_eq!(raw.domain.domid.0, 3);
    rig.run("detach", &["raw", "xvda", "--force"]).fine();
}

#[test]
fn a_killed_worker_fails_its_own_disks_only() {
    let mut rig = Rig::new();
    rig.serve("acme", "[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    rig.guest("g1");
    rig.guest("g2");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let first = children(rig.supervisor("acme"), "worker");
    rig.run("attach", &["g2", "acme:z"]).fine();
    let mut hurt = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    let mut other = Nbd::open(&rig.nbd("g2"), "xvda").unwrap();
    assert_eq!(hurt.write(0, &[1; 4096]).unwrap(), 0);
    signal_to(first[0], Signal::KILL);
    let disk = rig.phase("failed");
    assert_eq!(disk["guest"], "g1");
    let reason = disk["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("its worker (process {}) was killed by SIGKILL", first[0])), "{reason}");
    // EIO, or the export is gone: never silence.
    assert!(!matches!(hurt.write(0, &[1; 4096]), Ok(0)));
    assert_eq!(other.write(0, &[1; 4096]).unwrap(), 0);
    assert_eq!(embedded::usage(&rig.dir(), DomId(2)).unwrap().active_grants, 0);
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut again = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_eq!(again.read(0, 4096).unwrap(), Ok(vec![1; 4096]));
}

#[test]
fn a_killed_supervisor_is_not_noticed_by_a_guest() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    let supervisor = rig.supervisor("acme");
    signal_to(supervisor, Signal::KILL);
    for round in 0..50u8 {
        assert_eq!(nbd.write(u64::from(round) * 4096, &[round; 4096]).unwrap(), 0);
    }
    eventually("another supervisor", || (rig.supervisor("acme") != supervisor).then_some(()));
    eventually("it has taken over", || {
        rig.daemon("acme").log().contains("taken over workers=1 devices=1").then_some(())
    });
    let disk = rig.phase("connected");
    assert!(disk["stats"]["writes"].as_u64().unwrap() >= 50, "{disk}");
    assert_eq!(rig.status()["vms"][0]["volumes"][0]["size"], 16 << 20);
    drop(nbd);
    rig.run("detach", &["g1", "xvda"]).fine();
    // A worker that was taken over is ended with its last disk as well.
    eventually("no worker is left", || {
        let left =
            children(rig.supervisor("acme"), "worker").len() + children(rig.daemon("acme").pid(), "worker").len();
        (left == 0).then_some(())
    });
    rig.run("attach", &["g1", "acme:db"]).fine();
}

#[test]
fn a_supervisor_that_dies_while_a_disk_closes_lets_it_close() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let supervisor = rig.supervisor("acme");
    signal_to(supervisor, Signal::STOP);
    let detach = rig.command("detach").args(["g1", "xvda"]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    signal_to(supervisor, Signal::KILL);
    assert_eq!(detach.wait_with_output().unwrap().status.code(), Some(0));
    assert!(rig.disks().is_empty());
}

#[test]
fn a_killed_guest_is_buried() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_eq!(nbd.write(0, &[9; 4096]).unwrap(), 0);
    let guest = rig.take("g1");
    guest.signal(Signal::KILL);
    eventually("its disk is gone", || rig.disks().is_empty().then_some(()));
    let mut store = rig.store();
    eventually("its nodes are gone", || (!store.directory("/libxl").unwrap().contains(&"2".to_owned())).then_some(()));
    assert!(store.directory("/local/domain/1/backend").unwrap().is_empty());
    assert!(!store.directory("/local/domain").unwrap().contains(&"2".to_owned()));
    // Its volume is free at once for the next guest, who finds what was written.
    rig.guest("g2");
    rig.run("attach", &["g2", "acme:db"]).fine();
    assert_eq!(Nbd::open(&rig.nbd("g2"), "").unwrap().read(0, 4096).unwrap(), Ok(vec![9; 4096]));
}

#[test]
fn a_new_attach_waits_for_the_guest_that_gives_the_volume_up() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.guest("g2");
    rig.run("attach", &["g1", "acme:db"]).fine();
    // It is asked to close and does not answer for a while.
    rig.daemon("g1").signal(Signal::STOP);
    rig.run("detach", &["g1", "xvda", "--wait", "1"]).refused(4);
    let attach = rig.command("attach").args(["g2", "acme:db"]).stdout(Stdio::null()).spawn().unwrap();
    rig.phase("waiting");
    std::thread::sleep(Duration::from_secs(1));
    rig.daemon("g1").signal(Signal::CONT);
    assert_eq!(attach.wait_with_output().unwrap().status.code(), Some(0));
    let disk = rig.phase("connected");
    assert_eq!(disk["guest"], "g2");
}

#[test]
fn serve_stops_after_closing_its_disks() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_eq!(nbd.write(0, &[5; 4096]).unwrap(), 0);
    let serve = rig.take("acme");
    let pid = serve.pid();
    assert_eq!(serve.stop(), Some(0));
    assert!(children(pid, "worker").is_empty());
    // The lock is gone with the last worker.
    let image = std::fs::File::open(rig.path("acme.img")).unwrap();
    rustix::fs::flock(&image, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(image);
    assert!(rig.run("status", &[]).fine().contains("no service VM"));
    // The guest is told, not left waiting.
    assert!(!matches!(nbd.write(0, &[1; 4096]), Ok(0)));
}

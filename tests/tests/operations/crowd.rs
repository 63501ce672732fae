//! Many disks and many guests under the store's limits, and guests that make as much noise in it as they can.

use std::time::Duration;

use crate::rig::{Ended, Nbd, Rig, children, eventually};
use grant::embedded::{self, GuestMemory};
use xenstore::{Client, Store};

/// Nodes at and below a path that a domain owns: its quota counts them.
fn owned(store: &mut Client, path: &str, domid: u16) -> usize {
    let owner = store.get_perms(path).unwrap()[0].to_string();
    let below = store.directory(path).unwrap();
    let below: usize = below.iter().map(|name| owned(store, &format!("{path}/{name}"), domid)).sum();
    below + usize::from(owner == format!("n{domid}"))
}

/// A configuration with `count` volumes of 1 MiB, v0 and on, in files.
fn volumes(rig: &Rig, count: usize) -> String {
    let volume = |n: usize| {
        let image = rig.image(&format!("v{n}.img"), 1);
        format!("[[volume]]\nname = \"v{n}\"\npath = \"{}\"\ndirect = false\n", image.display())
    };
    (0..count).map(volume).collect()
}

/// CPU time of a process so far, all of its threads.
fn cpu(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let times = threads.map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default());
    Duration::from_nanos(times.map(|time| time.split(' ').next().unwrap().parse::<u64>().unwrap_or(0)).sum())
}

/// The quotas are those of Xen 4.17 unless a test says otherwise.
#[test]
fn thirty_disks_fit_the_default_quota_and_the_next_one_is_refused_with_the_way_out() {
    let mut rig = Rig::new();
    let text = volumes(&rig, 48);
    rig.serve("acme", &format!("{text}[backend]\ninitwait-dwell-ms = 0\n"));
    rig.guest("g1");
    let mut store = rig.store();
    let alone = owned(&mut store, "/local/domain/1", 1);
    let attach = |n: usize| -> Ended { rig.run("attach", &["g1", &format!("acme:v{n}")]) };
    attach(0).fine();
    let with_one = owned(&mut store, "/local/domain/1", 1);
    attach(1).fine();
    let with_two = owned(&mut store, "/local/domain/1", 1);
    let (first, each) = (with_one - alone, with_two - with_one);
    println!("nodes: {alone} of the service VM, {first} of its first disk, {each} of another one");
    // libxl makes some more for a VM than the embedded toolstack does: 20 are allowed for them.
    assert!(alone + 20 + first + 29 * each.max(first) <= 1000, "{alone} + 30 * {each}");

    let (count, refused) =
        (2..48).map(|n| (n, attach(n))).find(|(_, ended)| ended.code != Some(0)).expect("the quota is not met");
    println!("{count} disks fit");
    assert!(count >= 30, "{count} disks");
    let line = refused.refused(1);
    for says in
        ["quota of nodes", &format!("its {count} disks"), "`windsor host --quota nodes=20000`", "xenstore-control"]
    {
        assert!(line.contains(says), "{says} is not in: {line}");
    }
    // Nobody else has noticed, and nothing is left of it.
    assert_eq!(rig.disks().len(), count);
    assert!(rig.disks().iter().all(|disk| disk["phase"] == "connected"));
    for disk in ["xvda", "xvdb"] {
        assert_eq!(Nbd::open(&rig.nbd("g1"), disk).unwrap().write(0, &[1; 4096]).unwrap(), 0);
    }
    let image = std::fs::File::open(rig.path(&format!("v{count}.img"))).unwrap();
    rustix::fs::flock(&image, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("the volume is let go");
    drop(image);
    let log = rig.daemon("acme").log();
    assert_eq!(log.lines().filter(|line| line.contains("quota of nodes")).count(), 1, "{log}");

    // A disk that goes makes room for another one, and so does the command.
    rig.run("detach", &["g1", "xvda"]).fine();
    attach(count).fine();
    attach(0).refused(1);
    store.control(&["quota", "set", "nodes", "20000"]).unwrap();
    attach(0).fine();
}

#[test]
fn a_disk_that_found_no_room_comes_up_when_there_is_some() {
    let mut rig = Rig::new();
    let text = volumes(&rig, 2);
    rig.serve("acme", &format!("{text}[backend]\ninitwait-dwell-ms = 0\n"));
    rig.guest("g1");
    let mut store = rig.store();
    let alone = owned(&mut store, "/local/domain/1", 1);
    // One disk fits, and the nodes that dom0 writes for the second one.
    store.set_quota(Some(1), "nodes", alone as u32 + 50).unwrap();
    rig.run("attach", &["g1", "acme:v0"]).fine();
    // As a toolstack that is in no hurry.
    for key in ["frontend", "frontend-id", "params", "mode", "online", "state"] {
        let path = |devid: u32| format!("/local/domain/1/backend/vbd/2/{devid}");
        let value = match key {
            "frontend" => b"/local/domain/2/device/vbd/51728".to_vec(),
            "params" => b"v1".to_vec(),
            "state" => b"1".to_vec(),
            _ => store.read(&format!("{}/{key}", path(51712))).unwrap(),
        };
        if key == "frontend" {
            store.mkdir(&path(51728)).unwrap();
            let perms = store.get_perms(&path(51712)).unwrap();
            store.set_perms(&path(51728), &perms).unwrap();
            // Fills the quota up.
            for n in 0..40 {
                store.write(&format!("{}/other-{n}", path(51728)), b"").unwrap();
            }
            let front = "/local/domain/2/device/vbd/51728";
            store.mkdir(front).unwrap();
            let perms = store.get_perms("/local/domain/2/device/vbd/51712").unwrap();
            store.set_perms(front, &perms).unwrap();
            for (key, value) in [("backend-id", "1"), ("virtual-device", "51728"), ("state", "1")] {
                store.write(&format!("{front}/{key}"), value.as_bytes()).unwrap();
            }
            store.write(&format!("{front}/backend"), path(51728).as_bytes()).unwrap();
        }
        store.write(&format!("{}/{key}", path(51728)), &value).unwrap();
    }
    let second = |rig: &Rig| rig.disks().into_iter().find(|disk| disk["vdev"] == "xvdb").unwrap();
    let disk = eventually("it is refused", || Some(second(&rig)).filter(|disk| disk["phase"] == "failed"));
    assert!(disk["reason"].as_str().unwrap().contains("quota of nodes"), "{disk}");
    store.set_quota(Some(1), "nodes", 1000).unwrap();
    eventually("it is there", || (second(&rig)["phase"] == "connected").then_some(()));
    assert_eq!(second(&rig)["reason"], "");
}

#[test]
fn two_hundred_and_fifty_six_disks_need_more_nodes_and_nothing_else() {
    const GUESTS: usize = 4;
    const EACH: usize = 64;
    let mut rig = Rig::with(&["--quota", "nodes=20000"]);
    let text = volumes(&rig, GUESTS * EACH);
    rig.serve("acme", &format!("{text}[backend]\ninitwait-dwell-ms = 0\nqueues = 1\nthreads = 1\n"));
    for guest in 0..GUESTS {
        rig.guest_with(&format!("g{guest}"), &["--memory", "32"]);
    }
    std::thread::scope(|scope| {
        for guest in 0..GUESTS {
            let rig = &rig;
            scope.spawn(move || {
                for n in 0..EACH {
                    rig.run("attach", &[&format!("g{guest}"), &format!("acme:v{}", guest * EACH + n)]).fine();
                }
            });
        }
    });
    let disks = rig.disks();
    assert_eq!(disks.len(), GUESTS * EACH);
    assert!(disks.iter().all(|disk| disk["phase"] == "connected"));
    println!("{} nodes of the service VM", owned(&mut rig.store(), "/local/domain/1", 1));
    for guest in 0..GUESTS {
        for disk in ["xvda", "xvdp", "xvdq", "xvdbl"] {
            let mut nbd = Nbd::open(&rig.nbd(&format!("g{guest}")), disk).unwrap();
            assert_eq!(nbd.write(0, &[guest as u8; 4096]).unwrap(), 0);
            assert_eq!(nbd.read(0, 4096).unwrap(), Ok(vec![guest as u8; 4096]));
        }
    }
    // What looking after them costs when nothing happens, the store's answers not counted.
    let supervisor = rig.supervisor("acme");
    let mut all = vec![("supervisor", supervisor)];
    all.extend(children(supervisor, "worker").into_iter().map(|pid| ("worker", pid)));
    let before: Vec<Duration> = all.iter().map(|(_, pid)| cpu(*pid)).collect();
    std::thread::sleep(Duration::from_secs(if std::env::var_os("WINDSOR_LONG").is_some() { 10 } else { 3 }));
    for ((what, pid), before) in all.iter().zip(before) {
        println!("{what}: {:?} of CPU while all is idle, {} KiB resident", cpu(*pid) - before, resident(*pid));
    }
}

/// Pages that a process has in memory, KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

fn count() -> u32 {
    if std::env::var_os("WINDSOR_LONG").is_some() { 30_000 } else { 3_000 }
}

#[test]
fn one_watch_serves_all_disks() {
    let mut rig = Rig::with(&["--quota", "watches=1"]);
    rig.serve("acme", "[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    // The service VM keeps the limit that it has; guests have their own watches.
    assert!(rig.store().set_quota(None, "watches", 128).unwrap());
    for guest in ["g1", "g2"] {
        rig.guest(guest);
    }
    rig.run("attach", &["g1", "acme:db"]).fine();
    rig.run("attach", &["g2", "acme:z"]).fine();
    assert_eq!(Nbd::open(&rig.nbd("g1"), "xvda").unwrap().write(0, &[1; 4096]).unwrap(), 0);
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", "acme:db", "--vdev", "xvdb"]).fine();
    rig.run("detach", &["g2", "xvda", "--force"]).fine();
    rig.take("g1").stop();
    eventually("a guest that ended has no disk", || rig.disks().is_empty().then_some(()));
}

#[test]
fn a_guest_whose_nodes_vanish_without_a_word_is_let_go_of() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    let memory = GuestMemory::new(1 << 20).unwrap();
    let raw = embedded::register(&rig.dir(), "raw", Some(&memory)).unwrap();
    rig.run("attach", &["raw", "acme:db", "--wait", "1"]).refused(4);
    assert_eq!(rig.disks()[0]["backend"], "InitWait");
    rig.store().rm(&format!("/local/domain/{}", raw.domid.0)).unwrap();
    eventually("the backend has closed", || (rig.disks()[0]["backend"] == "Closed").then_some(()));
}

/// Security case T16, seen from the supervisor.
#[test]
fn a_guest_that_floods_the_store_with_events_costs_no_memory_and_stops_nobody() {
    let mut rig = Rig::new();
    rig.serve("acme", "[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    rig.guest("g1");
    let memory = GuestMemory::new(1 << 20).unwrap();
    let raw = embedded::register(&rig.dir(), "raw", Some(&memory)).unwrap();
    rig.run("attach", &["raw", "acme:z", "--wait", "1"]).refused(4);
    let mut store = rig.store_of(raw.domid.0);
    let supervisor = rig.supervisor("acme");
    let noise = |store: &mut xenstore::Client, rounds: u32| {
        for round in 0..rounds {
            let key = match round % 4 {
                0 => "state".to_owned(),
                1 => format!("noise-{}", round % 400),
                2 => "ring-ref".to_owned(),
                _ => format!("queue-{}/event-channel", round % 7),
            };
            store.write(&format!("device/vbd/51712/{key}"), round.to_string().as_bytes()).unwrap();
        }
    };
    noise(&mut store, 800);
    rig.run("attach", &["g1", "acme:db"]).fine();
    let before = resident(supervisor);
    let flood = std::thread::spawn(move || {
        noise(&mut store, count());
        store
    });
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    while !flood.is_finished() {
        assert_eq!(nbd.write(0, &[1; 4096]).unwrap(), 0);
    }
    drop(nbd);
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", "acme:db"]).fine();
    drop(flood.join().unwrap());
    let after = resident(supervisor);
    println!("supervisor: {before} KiB before, {after} KiB after {} writes", count());
    assert!(after < before + 1024, "{before} KiB before, {after} KiB after");
    let log = rig.daemon("acme").log();
    assert!(log.lines().count() < 100, "{} lines of log", log.lines().count());
    rig.run("detach", &["raw", "xvda", "--force"]).fine();
}

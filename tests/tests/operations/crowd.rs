//! Many disks and many guests under the store's limits, and guests that make as much noise in it as they can.

use crate::rig::{Nbd, Rig, eventually};
use grant::embedded::{self, GuestMemory};
use xenstore::Store;

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

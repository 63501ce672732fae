//! Guests that mean harm by way of the store, against the real binary: keys, states, storms; and what is written of it.

use std::time::Duration;

use frontend::netfront::Frame;
use grant::DomId;
use grant::embedded;
use netback::packet::Mac;
use xenstore::Store;

use crate::card::{A, B, Guest, LAN, backend, passes, phase, read, wait_for};
use crate::rig::{Rig, eventually};

/// A service VM with a fair card, whose guest is also the one that receives.
fn scene(more: &[&str]) -> (Rig, Guest, Guest) {
    let mut rig = Rig::with(more);
    rig.serve("acme", LAN);
    let (hostile, fair) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    rig.run("attach", &["g2", "acme:lan", "--mac", &B.to_string()]).fine();
    (rig, hostile, fair)
}

/// A card that failed or closed may begin anew.
fn start_over(rig: &Rig, guest: &mut Guest) {
    let state = backend(1, guest.domid(), "state");
    wait_for(rig, &state, "6");
    guest.write("state", "6");
    guest.write("state", "1");
    wait_for(rig, &state, "2");
}

#[test]
fn t13_cve_2026_45890_keys_that_cannot_be_are_refused_with_their_name_and_old_frontends_are_not() {
    let (rig, mut guest, mut fair) = scene(&[]);
    let id = guest.domid();
    let mut fair_queue = fair.connect(&rig, 1);
    let before = embedded::usage(&rig.dir(), DomId(id)).unwrap().active_grants;
    let long = "9".repeat(2000);
    for (key, value) in [
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "5"),
        ("multi-queue-num-queues", "4294967296"),
        ("multi-queue-num-queues", "abc"),
        ("multi-queue-num-queues", &long),
        ("tx-ring-ref", "-1"),
        ("rx-ring-ref", "1e3"),
        ("rx-ring-ref", "4000000"),
        ("event-channel-tx", "0"),
        ("event-channel-rx", "77777"),
        ("request-rx-copy", "0"),
        ("ctrl-ring-ref", "5"),
        ("xdp-headroom", "32768"),
    ] {
        let queue = guest.queue(1);
        guest.write(key, value);
        guest.write("state", "4");
        let card = phase(&rig, "g1", "failed");
        let reason = card["reason"].as_str().unwrap();
        assert!(reason.len() < 300, "{reason}");
        let node = format!("/local/domain/1/error/backend/vif/{id}/0/error");
        assert_eq!(eventually("the error's node", || read(&mut rig.store(), &node)), reason);
        start_over(&rig, &mut guest);
        assert_eq!(embedded::usage(&rig.dir(), DomId(id)).unwrap().active_grants, before, "{key} = {value}");
        queue.close().expect("nothing is mapped");
        guest.store.rm(&format!("device/vif/0/{key}")).unwrap();
    }
    // One ring for two masters.
    let queue = guest.queue(1);
    let gref = read(&mut guest.store, "device/vif/0/tx-ring-ref").unwrap();
    guest.write("rx-ring-ref", &gref);
    guest.write("state", "4");
    let reason = phase(&rig, "g1", "failed")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("for two rings"), "{reason}");
    start_over(&rig, &mut guest);
    queue.close().expect("nothing is mapped");
    // As MiniOS: one channel, nothing else.
    for key in ["event-channel-tx", "event-channel-rx", "feature-rx-notify", "feature-sg", "feature-gso-tcpv4"] {
        guest.store.rm(&format!("device/vif/0/{key}")).unwrap();
    }
    let mut old = guest.old_queue(1);
    guest.write("state", "4");
    wait_for(&rig, &backend(1, id, "state"), "4");
    passes((&mut old, A), (&mut fair_queue, B), "an old frontend");
}

#[test]
fn t14_keys_that_change_after_connected_change_nothing() {
    let (rig, mut guest, mut fair) = scene(&[]);
    let (mut a, mut b) = (guest.connect(&rig, 1), fair.connect(&rig, 1));
    passes((&mut a, A), (&mut b, B), "before");
    for (key, value) in [
        ("tx-ring-ref", "1"),
        ("rx-ring-ref", "4000000"),
        ("event-channel-tx", "99"),
        ("multi-queue-num-queues", "4"),
        ("feature-sg", "0"),
        ("feature-gso-tcpv4", "0"),
        ("ctrl-ring-ref", "8"),
        ("mac", "00:16:3e:00:00:02"),
    ] {
        // Some are not its to write.
        let _ = guest.store.write(&format!("device/vif/0/{key}"), value.as_bytes());
        passes((&mut a, A), (&mut b, B), key);
        passes((&mut b, B), (&mut a, A), key);
    }
    let features = &phase(&rig, "g1", "connected")["features"];
    assert!(features.as_array().unwrap().iter().any(|feature| feature == "sg"), "{features}");
}

#[test]
fn t15_xsa_350_states_in_any_order_stop_nobody_and_leave_nothing() {
    let (rig, mut guest, mut fair) = scene(&["--quota", "write-rate=0"]);
    let id = guest.domid();
    let mut b = fair.connect(&rig, 1);
    let a = guest.queue(1);
    let mut random = fastrand::Rng::with_seed(15);
    let count = if std::env::var_os("WINDSOR_LONG").is_some() { 100_000 } else { 3000 };
    for _ in 0..count {
        let state = ["1", "2", "3", "4", "5", "6", "7", "8", "", "99", "\u{FFFD}"][random.usize(..11)];
        guest.write("state", state);
    }
    guest.write("state", "6");
    wait_for(&rig, &backend(1, id, "state"), "6");
    eventually("all is let go of", || {
        (embedded::usage(&rig.dir(), DomId(id)).unwrap().active_grants == 0).then_some(())
    });
    a.close().expect("nothing is mapped");
    guest.write("state", "1");
    wait_for(&rig, &backend(1, id, "state"), "2");
    let mut a = guest.connect(&rig, 1);
    passes((&mut a, A), (&mut b, B), "after");
    passes((&mut b, B), (&mut a, A), "and back");
}

#[test]
fn t16_xsa_349_a_guest_that_rewrites_what_is_watched_grows_no_queue() {
    let (rig, mut guest, mut fair) = scene(&["--quota", "write-rate=0"]);
    let (mut a, mut b) = (guest.connect(&rig, 1), fair.connect(&rig, 1));
    let supervisor = rig.supervisor("acme");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let keys = ["request-multicast-control", "state", "xdp-headroom"];
    let write = |guest: &mut Guest, round: usize| {
        let value = if round % 3 == 1 {
            "4"
        } else if round % 6 < 3 {
            "0"
        } else {
            "1"
        };
        guest.write(keys[round % 3], value);
    };
    (0..1000).for_each(|round| write(&mut guest, round));
    let before = resident();
    let count = if std::env::var_os("WINDSOR_LONG").is_some() { 1_000_000 } else { 10_000 };
    for round in 0..count {
        write(&mut guest, round);
        if round % 2000 == 0 {
            passes((&mut b, B), (&mut a, A), "meanwhile");
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 1024, "the supervisor has grown by {grown} kB");
    guest.write("request-multicast-control", "0");
    guest.write("state", "4");
    passes((&mut a, A), (&mut b, B), "after");
}

/// Through all that a guest can make a service VM write about: packets that are wrong, forbidden or for nobody, rings
/// that break, keys that cannot be. A hundred lines.
#[test]
fn t06_xsa_43_xsa_157_xsa_180_a_guest_that_does_everything_wrong_fills_no_log() {
    let (rig, mut guest, mut fair) = scene(&[]);
    let mut b = fair.connect(&rig, 1);
    let lines = || rig.daemon("acme").log().lines().count();
    let before = lines();
    let long = std::env::var_os("WINDSOR_LONG").is_some();
    for round in 0..if long { 200 } else { 30 } {
        let mut a = guest.connect(&rig, 1);
        let spoofed = Frame::new([&B.0[..], &[2, 9, 9, 9, 9, 9, 0x88, 0xB5], &[0; 50]].concat());
        let nobody = Frame::new([&Mac([2; 6]).0[..], &A.0[..], &[0x88, 0xB5], &[0; 50]].concat());
        let short = Frame::new(vec![1; 10]);
        for _ in 0..if long { 500 } else { 100 } {
            for frame in [&spoofed, &nobody, &short] {
                while !a.send(frame) {
                    a.kick();
                    a.wait(Duration::from_millis(10)).unwrap();
                    a.unanswered().unwrap();
                }
            }
        }
        a.kick();
        // Then it breaks the ring, or goes without a word.
        if round % 2 == 0 {
            let cut = Frame { cuts: vec![30, 4097], bytes: vec![0; 4127], ..Frame::default() };
            assert!(a.send(&cut) || a.unanswered().is_ok());
            a.kick();
        }
        guest.write("state", "6");
        start_over(&rig, &mut guest);
        let _ = a.close();
        // And keys that cannot be.
        let queue = guest.queue(1);
        guest.write("tx-ring-ref", "no");
        guest.write("state", "4");
        start_over(&rig, &mut guest);
        let _ = queue.close();
    }
    let written = lines() - before;
    assert!(written <= 100, "{written} lines:\n{}", rig.daemon("acme").log());
    let mut a = guest.connect(&rig, 1);
    passes((&mut a, A), (&mut b, B), "after");
}

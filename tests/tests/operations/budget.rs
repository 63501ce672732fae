//! Disks under a budget of memory and grants: each is offered no more than is left, and one for which nothing is left is
//! refused before anything is begun.

use crate::rig::{Nbd, Rig};
use grant::DomId;
use grant::embedded;
use xenstore::Store;

/// What a disk was offered: queues, ring order, indirect segments.
fn offered(rig: &Rig, devid: u32) -> (u32, u32, u32) {
    let mut store = rig.store();
    let mut key = |key: &str, default: u32| {
        let path = format!("/local/domain/1/backend/vbd/2/{devid}/{key}");
        let value = store.read_optional(&path).unwrap();
        value.map_or(default, |value| String::from_utf8(value).unwrap().parse().unwrap())
    };
    (key("multi-queue-max-queues", 1), key("max-ring-page-order", 0), key("feature-max-indirect-segments", 0))
}

fn volumes(count: usize) -> String {
    (0..count).map(|n| format!("[[volume]]\nname = \"v{n}\"\nkind = \"null\"\nsize = \"64MiB\"\n")).collect()
}

/// Attaches volumes until one is refused: how many there are, and the refusal.
fn fill(rig: &Rig, count: usize) -> (usize, String) {
    let attach = |n: usize| rig.run("attach", &["g1", &format!("acme:v{n}")]);
    let (n, ended) = (0..count).map(|n| (n, attach(n))).find(|(_, ended)| ended.code != Some(0)).expect("no end");
    (n, ended.refused(1).to_owned())
}

/// The options of a guest that takes what it is offered.
const GREEDY: [&str; 6] = ["--queues", "4", "--ring-order", "4", "--max-indirect", "256"];

#[test]
fn every_volume_finds_room_and_a_disk_has_its_share_of_memory() {
    // Of which a worker with one thread takes more than eight.
    let limits = "[backend]\ninitwait-dwell-ms = 0\nthreads = 1\nmemory = \"24MiB\"\n";
    let mut offers = Vec::new();
    for count in [1, 4, 100] {
        let mut rig = Rig::new();
        rig.serve("acme", &format!("{}{limits}", volumes(count - 1)));
        rig.guest_with("g1", &GREEDY);
        let tried = count.min(20);
        rig.run("attach", &["g1", "acme:db"]).fine();
        for n in 0..tried - 1 {
            rig.run("attach", &["g1", &format!("acme:v{n}")]).fine();
        }
        let devid = |n: u32| if n < 16 { 51712 + n * 16 } else { 1 << 28 | n << 8 };
        let all: Vec<_> = (0..tried as u32).map(|n| offered(&rig, devid(n))).collect();
        assert!(all.iter().all(|offer| *offer == all[0]), "{all:?}");
        assert!(rig.disks().iter().all(|disk| disk["phase"] == "connected"));
        assert_eq!(Nbd::open(&rig.nbd("g1"), "xvda").unwrap().write(0, &vec![1; 1 << 20]).unwrap(), 0);
        offers.push(all[0]);
    }
    println!("{offers:?}");
    let [one, few, many] = offers[..] else { panic!("three") };
    assert!((1..4).contains(&one.0) && one.1 == 4 && one.2 == 256, "{one:?}");
    assert!(few.0 == 1 && few.1 < 4 && few.2 == 256, "{few:?}");
    assert!(many.0 == 1 && many.1 == 0 && many.2 < 256, "{many:?}");
}

#[test]
fn the_disk_for_which_there_is_no_memory_is_refused() {
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{}[backend]\nthreads = 1\nmemory = \"8600KiB\"\n", volumes(20)));
    rig.guest_with("g1", &GREEDY);
    let (count, line) = fill(&rig, 20);
    println!("{count} disks");
    assert!(
        line.contains("no memory left for another disk") && line.contains("raise `memory` under [backend]"),
        "{line}"
    );
    assert!(count > 0 && rig.disks().len() == count);
    // What one disk gives back is another one's.
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", &format!("acme:v{count}")]).fine();
}

#[test]
fn no_more_pages_of_guests_are_mapped_than_the_budget_has() {
    const GRANTS: usize = 400;
    let mut rig = Rig::new();
    let limits = format!("[backend]\ninitwait-dwell-ms = 0\nthreads = 1\nguest-grants = {GRANTS}\n");
    rig.serve("acme", &format!("{}{limits}", volumes(10)));
    rig.guest("g1");
    let (count, line) = fill(&rig, 10);
    assert!(line.contains("no grants left for another disk") && line.contains("raise `guest-grants`"), "{line}");
    assert!(count > 1, "{count}");
    for disk in ["xvda", "xvdb"] {
        let mut nbd = Nbd::open(&rig.nbd("g1"), disk).unwrap();
        for round in 0..60u64 {
            assert_eq!(nbd.write(round << 20, &vec![1; 1 << 20]).unwrap(), 0);
        }
    }
    let mapped = embedded::usage(&rig.dir(), DomId(2)).unwrap().active_grants;
    println!("{count} disks, {mapped} grants mapped");
    assert!(mapped as usize <= GRANTS, "{mapped}");
}

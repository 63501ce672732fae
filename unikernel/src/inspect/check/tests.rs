//! A healthy store with a disk and a card, broken in one way after the other.

use xenstore::server::{Limits, Server};
use xenstore::{Client, Permission, Store};

use super::{Finding, look};

const DISK: &str = "/local/domain/5/device/vbd/51712";
const DISK_BACK: &str = "/local/domain/3/backend/vbd/5/51712";
const CARD: &str = "/local/domain/5/device/vif/0";
const CARD_BACK: &str = "/local/domain/3/backend/vif/5/0";

/// A store of its own, as dom0.
fn store() -> Client {
    let (server, handle) = Server::new(Limits::default()).unwrap();
    std::thread::spawn(move || server.run().unwrap());
    Client::from_fd(handle.connect().unwrap()).unwrap()
}

fn half(store: &mut Client, path: &str, owner: u16, peer: u16, keys: &[(&str, &str)]) {
    store.mkdir(path).unwrap();
    store.set_perms(path, &[Permission::none(owner), Permission::read(peer)]).unwrap();
    keys.iter().for_each(|(key, value)| store.write(&format!("{path}/{key}"), value.as_bytes()).unwrap());
}

fn healthy() -> Client {
    let mut store = store();
    let back = [("frontend-id", "5"), ("online", "1"), ("state", "4")];
    let front = [("backend-id", "3"), ("state", "4")];
    half(&mut store, DISK, 5, 3, &front);
    half(&mut store, DISK_BACK, 3, 5, &back);
    half(&mut store, CARD, 5, 3, &front);
    half(&mut store, CARD_BACK, 3, 5, &back);
    for (path, key, value) in [
        (DISK, "backend", DISK_BACK),
        (DISK, "virtual-device", "51712"),
        (DISK, "protocol", "x86_64-abi"),
        (DISK, "multi-queue-num-queues", "2"),
        (DISK, "ring-page-order", "1"),
        (DISK, "queue-0/ring-ref0", "8"),
        (DISK, "queue-0/ring-ref1", "9"),
        (DISK, "queue-0/event-channel", "5"),
        (DISK, "queue-1/ring-ref0", "10"),
        (DISK, "queue-1/ring-ref1", "11"),
        (DISK, "queue-1/event-channel", "6"),
        (DISK_BACK, "frontend", DISK),
        (DISK_BACK, "mode", "w"),
        (DISK_BACK, "max-ring-page-order", "4"),
        (DISK_BACK, "multi-queue-max-queues", "4"),
        (DISK_BACK, "sectors", "32768"),
        (DISK_BACK, "sector-size", "512"),
        (DISK_BACK, "info", "0"),
        (CARD, "backend", CARD_BACK),
        (CARD, "tx-ring-ref", "20"),
        (CARD, "rx-ring-ref", "21"),
        (CARD, "event-channel-tx", "7"),
        (CARD, "event-channel-rx", "8"),
        (CARD, "request-rx-copy", "1"),
        (CARD_BACK, "frontend", CARD),
        (CARD_BACK, "handle", "0"),
        (CARD_BACK, "mac", "00:16:3e:00:00:01"),
        (CARD_BACK, "hotplug-status", "connected"),
    ] {
        store.write(&format!("{path}/{key}"), value.as_bytes()).unwrap();
    }
    store
}

fn findings(store: &mut Client) -> Vec<Finding> {
    look(store).unwrap().findings
}

#[test]
fn a_healthy_store_has_no_findings_and_an_empty_one_neither() {
    assert_eq!(findings(&mut store()), []);
    let report = look(&mut healthy()).unwrap();
    assert_eq!((report.devices, report.findings), (2, Vec::new()));
}

#[test]
fn every_wrong_value_is_named_with_its_node() {
    for (node, value, why) in [
        ("DISK/state", "9", "\"9\" is no xenbus state"),
        ("DISK/backend", "/local/domain/4/backend/vbd/5/51712", "is meant"),
        ("DISK/backend-id", "4", "\"4\" where 3 is meant"),
        ("DISK/virtual-device", "1", "own number, 51712"),
        ("DISK/protocol", "arm", "protocol"),
        ("DISK/ring-page-order", "5", "ring-page-order"),
        ("DISK/queue-1/ring-ref1", "x", "ring-ref1"),
        ("DISK/queue-1/event-channel", "0", "event-channel"),
        ("DISK/multi-queue-num-queues", "5", "multi-queue-num-queues"),
        ("DISKBACK/frontend", "/local/domain/6/device/vbd/51712", "is meant"),
        ("DISKBACK/frontend-id", "6", "where 5 is meant"),
        ("DISKBACK/online", "yes", "neither 0 nor 1"),
        ("DISKBACK/mode", "rw", "neither r nor w"),
        ("DISKBACK/sectors", "-1", "is no number"),
        ("DISKBACK/sector-size", "1000", "no multiple of 512"),
        ("DISKBACK/info", "8", "no number up to 7"),
        ("CARD/tx-ring-ref", "4294967296", "is no number"),
        ("CARD/request-rx-copy", "0", "is not 1"),
        ("CARD/multi-queue-num-queues", "2", "no number up to 1"),
        ("CARDBACK/mac", "00:16:3e:00:00", "no MAC address"),
        ("CARDBACK/handle", "eth0", "is no number"),
        ("CARDBACK/hotplug-status", "error", "though it is Connected"),
    ] {
        let mut store = healthy();
        let node = node.replace("DISKBACK", DISK_BACK).replace("CARDBACK", CARD_BACK);
        let node = node.replace("DISK", DISK).replace("CARD", CARD);
        store.write(&node, value.as_bytes()).unwrap();
        let found = findings(&mut store);
        assert_eq!(found.len(), 1, "{node} = {value}: {found:?}");
        assert!(found[0].node == node && found[0].why.contains(why), "{node} = {value}: {found:?}");
    }
}

#[test]
fn every_missing_key_is_named() {
    for node in [
        format!("{DISK}/state"),
        format!("{DISK}/backend-id"),
        format!("{DISK}/queue-0/ring-ref0"),
        format!("{DISK}/queue-1/event-channel"),
        format!("{DISK_BACK}/state"),
        format!("{DISK_BACK}/frontend-id"),
        format!("{DISK_BACK}/sectors"),
        format!("{DISK_BACK}/sector-size"),
        format!("{DISK_BACK}/info"),
        format!("{CARD}/rx-ring-ref"),
        format!("{CARD}/event-channel-rx"),
        format!("{CARD_BACK}/mac"),
    ] {
        let mut store = healthy();
        store.rm(&node).unwrap();
        let found = findings(&mut store);
        assert!(found.iter().any(|finding| finding.node == node), "{node}: {found:?}");
    }
}

#[test]
fn states_that_do_not_go_together_are_named_and_passing_ones_are_not() {
    for (backend, frontend, why) in [
        ("1", "1", "nobody serves it"),
        ("2", "4", "has given its rings"),
        ("4", "1", "begun anew"),
        ("4", "6", "has closed"),
        ("6", "4", "under a frontend"),
        ("6", "1", "the device is online"),
        ("2", "1", ""),
        ("4", "3", ""),
        ("4", "4", ""),
        ("5", "4", "under a frontend"),
        ("6", "6", ""),
    ] {
        let mut store = healthy();
        store.write(&format!("{DISK_BACK}/state"), backend.as_bytes()).unwrap();
        store.write(&format!("{DISK}/state"), frontend.as_bytes()).unwrap();
        let found = findings(&mut store);
        assert_eq!(found.len(), usize::from(!why.is_empty()), "{backend} {frontend}: {found:?}");
        assert!(found.iter().all(|finding| finding.why.contains(why)), "{backend} {frontend}: {found:?}");
    }
}

#[test]
fn half_devices_and_wrong_rights_are_named() {
    let broken = |how: fn(&mut Client)| {
        let mut store = healthy();
        how(&mut store);
        findings(&mut store).into_iter().map(|finding| finding.why).collect::<Vec<_>>()
    };
    let says = |found: Vec<String>, why: &str| assert!(found.len() == 1 && found[0].contains(why), "{found:?}");
    says(broken(|store| store.rm(DISK).unwrap()), "has left half a device");
    says(broken(|store| store.rm(DISK_BACK).unwrap()), "is no backend of this device");
    says(broken(|store| store.rm(CARD_BACK).unwrap()), "is no backend of this device");
    let gone = broken(|store| store.rm("/local/domain/3").unwrap());
    assert!(gone.len() == 2 && gone.iter().all(|why| why.contains("domain 3 has ended")), "{gone:?}");
    let perms = |store: &mut Client, path: &str, perms: &[Permission]| store.set_perms(path, perms).unwrap();
    assert!(!findings(&mut healthy()).iter().any(|finding| finding.node == DISK));
    let mut store = healthy();
    perms(&mut store, DISK, &[Permission::none(0), Permission::read(3)]);
    perms(&mut store, CARD, &[Permission::none(5)]);
    perms(&mut store, DISK_BACK, &[Permission::none(3), Permission::both(5)]);
    let found: Vec<(String, String)> = findings(&mut store).into_iter().map(|f| (f.node, f.why)).collect();
    let has = |node: &str, why: &str| found.iter().any(|(at, what)| at == node && what.contains(why));
    assert!(has(DISK, "is domain 0's and should be domain 5's"), "{found:?}");
    assert!(has(CARD, "domain 3, the other half, may not read it"), "{found:?}");
    assert!(has(DISK_BACK, "domain 5, the other half, may write it"), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn what_a_guest_writes_is_printed_short_and_harmless() {
    let mut store = healthy();
    store.write(&format!("{DISK}/state"), &[0x1B; 2000]).unwrap();
    store.write(&format!("{DISK}/multi-queue-num-queues"), "4".repeat(2000).as_bytes()).unwrap();
    (0..200).for_each(|n| store.write(&format!("{DISK}/queue-{n}/ring-ref0"), b"\n").unwrap());
    let found = findings(&mut store);
    assert!(!found.is_empty() && found.len() <= super::MOST, "{found:?}");
    for Finding { why, .. } in &found {
        assert!(why.len() < 300 && why.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{why:?}");
    }
}

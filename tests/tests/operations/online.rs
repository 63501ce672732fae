//! What an operator does to a volume while a guest uses it, through the real binary.

use std::fs::OpenOptions;

use crate::rig::{Nbd, Rig, eventually, signal_to};
use rustix::process::Signal;
use xenstore::Store;

const BACKEND: &str = "/local/domain/1/backend/vbd/2/51712";

fn node(rig: &Rig, key: &str) -> String {
    let value = rig.store().read_optional(&format!("{BACKEND}/{key}")).unwrap().unwrap_or_default();
    String::from_utf8(value).unwrap()
}

#[test]
fn a_volume_that_grows_is_larger_for_the_guest_and_one_that_shrinks_is_not_smaller() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest_with("g1", &["--queues", "3"]);
    rig.run("attach", &["g1", "acme:db"]).fine();
    assert_eq!(Nbd::open(&rig.nbd("g1"), "xvda").unwrap().size, 16 << 20);
    let image = OpenOptions::new().write(true).open(rig.path("acme.img")).unwrap();
    let mut old = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();

    // Not whole sectors of the medium: the rest is left out.
    image.set_len((24 << 20) + 1000).unwrap();
    let mut nbd = eventually("the guest sees the new size", || {
        let nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
        (nbd.size == 24 << 20).then_some(nbd)
    });
    for round in 0..8u8 {
        let at = (23 << 20) + u64::from(round) * 4096;
        assert_eq!(nbd.write(at, &[round; 4096]).unwrap(), 0);
        assert_eq!(nbd.read(at, 4096).unwrap(), Ok(vec![round; 4096]));
    }
    assert_eq!(nbd.write((24 << 20) - 512, &[9; 512]).unwrap(), 0);
    assert_eq!(old.write(0, &[1; 4096]).unwrap(), 0);
    assert_eq!((node(&rig, "sectors").as_str(), node(&rig, "state").as_str()), ("49152", "4"));
    eventually("the volume is shown as large as it is", || {
        (rig.status()["vms"][0]["volumes"][0]["size"] == 24 << 20).then_some(())
    });
    assert_eq!(rig.disks()[0]["reason"], "");

    image.set_len(8 << 20).unwrap();
    let disk = eventually("status says that it has shrunk", || {
        let disk = rig.disks().remove(0);
        (disk["reason"] != "").then_some(disk)
    });
    let reason = disk["reason"].as_str().unwrap();
    assert!(reason.contains("shrunk to 8388608 bytes, the guest still has 25165824"), "{reason}");
    assert_eq!(disk["phase"], "connected");
    assert_eq!(node(&rig, "sectors"), "49152");
    assert_eq!(nbd.write(0, &[2; 4096]).unwrap(), 0);
    assert_ne!(nbd.read(20 << 20, 4096).unwrap(), Ok(vec![0; 4096]));
    image.set_len(24 << 20).unwrap();
    eventually("all is well again", || (rig.disks()[0]["reason"] == "").then_some(()));
    let log = rig.daemon("acme").log();
    assert_eq!(log.lines().filter(|line| line.contains("shrunk")).count(), 1, "{log}");

    // Nobody uses it: it may have any size.
    rig.run("detach", &["g1", "xvda"]).fine();
    image.set_len(4 << 20).unwrap();
    rig.run("attach", &["g1", "acme:db"]).fine();
    assert_eq!(Nbd::open(&rig.nbd("g1"), "xvda").unwrap().size, 4 << 20);
}

#[test]
fn a_volume_that_grows_while_there_is_no_supervisor_is_seen_by_the_next() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let supervisor = rig.supervisor("acme");
    signal_to(supervisor, Signal::STOP);
    OpenOptions::new().write(true).open(rig.path("acme.img")).unwrap().set_len(32 << 20).unwrap();
    signal_to(supervisor, Signal::KILL);
    let mut nbd = eventually("the guest sees the new size", || {
        let nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
        (nbd.size == 32 << 20).then_some(nbd)
    });
    assert_eq!(nbd.write(31 << 20, &[7; 4096]).unwrap(), 0);
}

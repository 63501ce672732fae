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

/// Waits for something in the only disk's status.
fn status(rig: &Rig, phase: &str, reason: &str) {
    eventually(&format!("{phase}: {reason}"), || {
        let disk = rig.disks().remove(0);
        (disk["phase"] == phase && disk["reason"].as_str().unwrap().contains(reason)).then_some(())
    });
}

#[test]
fn a_disk_that_is_held_goes_on_at_the_operator_s_word() {
    let mut rig = Rig::new();
    let image = rig.image("held.img", 16);
    rig.serve(
        "acme",
        &format!("[[volume]]\nname = \"h\"\npath = \"{}\"\ndirect = false\non-error = \"hold\"\n", image.display()),
    );
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:h"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_eq!(nbd.write(12 << 20, &[3; 4096]).unwrap(), 0);
    let content = std::fs::read(&image).unwrap();
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || nbd.read(12 << 20, 4096).unwrap());
        status(&rig, "held", "held: Input/output error");
        let text = rig.run("status", &[]).fine().to_owned();
        assert!(text.contains("held: Input/output error"), "{text}");
        // The word alone cures nothing.
        rig.run("resume", &["g1", "xvda"]).fine();
        status(&rig, "held", "held: Input/output error");
        assert!(!waiting.is_finished());
        std::fs::write(&image, &content).unwrap();
        assert_eq!(rig.run("resume", &["acme:h"]).fine(), "vbd-2-51712");
        assert_eq!(waiting.join().unwrap(), Ok(vec![3; 4096]));
    });
    status(&rig, "connected", "");
    eventually("nothing is wrong", || (rig.disks()[0]["reason"] == "").then_some(()));
}

#[test]
fn a_flush_that_failed_is_shown_until_the_operator_or_a_new_attach_ends_it() {
    let mut rig = Rig::new();
    let image = rig.image("f.img", 1);
    rig.serve(
        "acme",
        &format!(
            "[[volume]]\nname = \"f\"\npath = \"{}\"\ndirect = false\n[volume.fault]\nfail-flush = true\n",
            image.display()
        ),
    );
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:f"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_ne!(nbd.flush().unwrap(), 0);
    status(&rig, "connected", "flush failed");
    let supervisor = rig.supervisor("acme");
    signal_to(supervisor, Signal::KILL);
    eventually("another supervisor", || (rig.supervisor("acme") != supervisor).then_some(()));
    status(&rig, "connected", "flush failed");
    assert_eq!(rig.run("resume", &["g1", "xvda"]).fine(), "vbd-2-51712");
    eventually("it is forgotten", || (rig.disks()[0]["reason"] == "").then_some(()));
    assert_ne!(nbd.flush().unwrap(), 0);
    status(&rig, "connected", "flush failed");
    // Its worker dies, and with it all that it knew.
    let worker = crate::rig::children(rig.daemon("acme").pid(), "worker");
    let worker = worker.first().copied().unwrap_or_else(|| crate::rig::children(rig.supervisor("acme"), "worker")[0]);
    signal_to(worker, Signal::KILL);
    rig.phase("failed");
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", "acme:f"]).fine();
    assert_eq!(rig.disks()[0]["reason"], "");

    assert!(rig.run("resume", &["g1", "xvdq"]).refused(3).contains("g1 has no disk xvdq (it has: xvda)"));
    assert!(rig.run("resume", &["acme:x"]).refused(3).contains("no volume named \"x\""));
    rig.run("resume", &["g1"]).refused(2);
    assert_eq!(rig.run("resume", &["acme:db"]).fine(), "");
    rig.take("acme").stop();
    rig.run("resume", &["g1", "xvda"]).refused(3);
}

#[test]
fn discards_and_barriers_can_be_switched_off() {
    let mut rig = Rig::new();
    let image = rig.image("n.img", 1);
    let volume = format!("[[volume]]\nname = \"n\"\npath = \"{}\"\ndirect = false\ndiscard = false\n", image.display());
    rig.serve("acme", &format!("{volume}[backend]\nbarrier = false\n"));
    rig.guest("g1");
    let has = |key: &str| rig.store().read_optional(&format!("{BACKEND}/{key}")).unwrap().is_some();
    rig.run("attach", &["g1", "acme:db"]).fine();
    assert!(has("feature-discard") && !has("feature-barrier") && !has("discard-granularity"));
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", "acme:n"]).fine();
    assert!(!has("feature-discard") && has("feature-flush-cache"));
    rig.run("detach", &["g1", "xvda"]).fine();

    // The toolstack's word: the directory is there with its key before we look at it.
    signal_to(rig.supervisor("acme"), Signal::STOP);
    let attach = rig.command("attach").args(["g1", "acme:db"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually("its nodes", || has("discard-enable").then_some(()));
    rig.store().write(&format!("{BACKEND}/discard-enable"), b"0").unwrap();
    signal_to(rig.supervisor("acme"), Signal::CONT);
    assert!(attach.wait_with_output().unwrap().status.success());
    assert!(!has("feature-discard"));
}

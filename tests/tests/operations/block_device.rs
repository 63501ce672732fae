//! A block device with sectors of 4096 bytes behind a guest's disk: a loop device, which refuses whatever a 4Kn drive
//! refuses.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::skip::{installed, skip};

use xenstore::Store;

use super::rig::{Nbd, Rig};

/// A loop device over a file, given back when it is dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, more: &[&str]) -> Option<Loop> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--direct-io=on"]).args(more);
        let output = losetup.arg(file).output().ok().filter(|output| output.status.success())?;
        Some(Loop(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays", self.0.display());
    }
}

fn fio(rig: &Rig, job: &[&str]) {
    let uri = format!("--uri=nbd+unix:///xvda?socket={}", rig.nbd("g1").display());
    let mut fio = Command::new("fio");
    fio.args(["--name=t", "--ioengine=nbd", "--size=8m", &uri]).args(job).current_dir(rig.path(""));
    let output = fio.output().expect("fio");
    assert!(output.status.success(), "{job:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// As every guest does: requests of 512-byte sectors, many at a time, from several queues; then the space comes back.
#[test]
fn guests_use_512_byte_sectors_on_a_4kn_drive_and_give_space_back() {
    if !installed("block-device-fio", "fio", "fio") {
        return;
    }
    let mut rig = Rig::new();
    let file = rig.image("backing.img", 8);
    let Some(device) = Loop::new(&file, &["--sector-size", "4096"]) else {
        return skip("block-device", "a loop device needs root and the loop module");
    };
    rig.serve(
        "acme",
        &format!("[[volume]]\nname = \"kn\"\npath = \"{}\"\nmode = \"rw\"\ndirect = true", device.0.display()),
    );
    for wishes in [&["--queues", "2"][..], &["--no-persistent"]] {
        rig.guest_with("g1", wishes);
        rig.run("attach", &["g1", "acme:kn"]).fine();
        let mut store = rig.store();
        let mut key = |key: &str| {
            // The host numbers domains from 1 as they come: the service VM is the first.
            let guests = store.directory("/local/domain/1/backend/vbd").expect("the service VM's disks");
            let path = format!("/local/domain/1/backend/vbd/{}/51712/{key}", guests[0]);
            store
                .read_optional(&path)
                .expect("the store")
                .map(|value| String::from_utf8(value).unwrap())
                .unwrap_or_default()
        };
        assert_eq!(key("sector-size"), "512");
        assert_eq!(key("physical-sector-size"), "4096");
        assert_eq!(key("feature-discard"), "1");
        assert_eq!(key("feature-barrier"), "1");
        assert_eq!(key("discard-granularity"), "4096");
        fio(&rig, &["--rw=randrw", "--bsrange=512-64k", "--blockalign=512", "--iodepth=16", "--verify=crc32c"]);
        let full = file.metadata().unwrap().blocks();
        fio(&rig, &["--rw=trim", "--bs=1m", "--iodepth=4"]);
        let left = file.metadata().unwrap().blocks();
        assert!(full > 4_000 && left < full / 10, "{full} blocks before, {left} after");
        rig.run("detach", &["g1", "xvda"]).fine();
        rig.take("g1").stop();
    }
}

/// One that is served stays what it is, and what it is called, while those around it come and go; also for the kernel.
#[test]
fn partitions_come_and_go_beside_one_in_use() {
    let mut rig = Rig::new();
    let file = rig.image("disk.img", 64);
    let Some(device) = Loop::new(&file, &["--partscan"]) else {
        return skip("partitions", "a loop device needs root and the loop module");
    };
    rig.serve("acme", &format!("[[volume]]\nname = \"ssd\"\ndisk = \"{}\"\n", device.0.display()));
    for name in ["first", "used", "last"] {
        rig.run("volume", &["create", &format!("acme:{name}"), "8MiB"]).fine();
    }
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:used"]).fine();
    let mut disk = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    assert_eq!(disk.write(0, &[7; 4096]).unwrap(), 0);
    rig.run("volume", &["rm", "acme:first"]).fine();
    rig.run("volume", &["rm", "acme:last"]).fine();
    rig.run("volume", &["create", "acme:new", "4MiB"]).fine();
    assert!(rig.run("volume", &["rm", "acme:used"]).refused(5).contains("in use by xvda"));
    assert_eq!(disk.read(0, 4096).unwrap(), Ok(vec![7; 4096]));
    drop(disk);
    rig.run("detach", &["g1", "xvda"]).fine();
    // Whoever opens it next finds the same.
    rig.run("attach", &["g1", "acme:used"]).fine();
    assert_eq!(Nbd::open(&rig.nbd("g1"), "xvda").unwrap().read(0, 4096).unwrap(), Ok(vec![7; 4096]));
    rig.run("detach", &["g1", "xvda"]).fine();
    for name in ["used", "new"] {
        rig.run("volume", &["rm", &format!("acme:{name}")]).fine();
    }
    let listing = rig.run("volume", &["ls", "acme"]);
    assert!(!listing.fine().contains("ssd"), "{}", listing.fine());
    rig.take("acme").stop();
}

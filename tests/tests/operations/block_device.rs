//! A block device with sectors of 4096 bytes behind a guest's disk: a loop device, which refuses whatever a 4Kn drive
//! refuses.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::skip::{installed, skip};

use xenstore::Store;

use super::rig::Rig;

/// A loop device over a file, given back when it is dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, sector_size: u32) -> Option<Loop> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--direct-io=on", "--sector-size", &sector_size.to_string()]);
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
    let Some(device) = Loop::new(&file, 4096) else {
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

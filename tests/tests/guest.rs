//! `windsor guest`: programs of a guest use its disks through the whole PV path, in every width.

mod rig;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rig::{Nbd, Rig, eventually, run};

/// Bytes that tell where they belong.
fn pattern(offset: u64, len: usize, seed: u64) -> Vec<u8> {
    let word = |at: u64| (at / 8 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[at as usize % 8];
    (offset..offset + len as u64).map(word).collect()
}

#[test]
fn every_width_carries_the_same_bytes() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    let image = std::fs::File::open(rig.path("acme.img")).unwrap();
    let widths: [&[&str]; 8] = [
        &[],
        &["--no-persistent"],
        &["--ring-order", "4", "--max-indirect", "256"],
        &["--ring-order", "4", "--max-indirect", "256", "--no-persistent", "--abi", "x86_32"],
        &["--max-indirect", "11", "--abi", "x86_32"],
        &["--max-indirect", "0", "--no-persistent"],
        &["--queues", "4"],
        &["--queues", "3", "--ring-order", "2", "--abi", "x86_32"],
    ];
    for (seed, width) in (1..).zip(widths) {
        let name = format!("g{seed}");
        rig.guest_with(&name, width);
        rig.run("attach", &[&name, "acme:db"]).fine();
        // Three clients, so that more than one queue is used where there is one.
        let mut clients: Vec<Nbd> = (0..3).map(|_| Nbd::open(&rig.nbd(&name), "xvda").unwrap()).collect();
        for (at, len) in
            [(0, 512), (512, 4096), (8192, 45056), (65536, 49152), (1 << 20, 1 << 20), (3 << 20, 3_000_320)]
        {
            for (client, of) in clients.iter_mut().zip([0, 4 << 20, 8 << 20]) {
                assert_eq!(client.write(at + of, &pattern(at + of, len, seed)).unwrap(), 0, "{width:?}");
            }
            clients.rotate_left(1);
            for (client, of) in clients.iter_mut().zip([0, 4 << 20, 8 << 20]) {
                let read = client.read(at + of, len).unwrap().expect("a read failed");
                assert!(read == pattern(at + of, len, seed), "{width:?}: {len} bytes at {at} + {of}");
            }
            assert_eq!(clients[0].flush().unwrap(), 0);
            let mut stored = vec![0; len];
            image.read_exact_at(&mut stored, at).unwrap();
            assert!(stored == pattern(at, len, seed), "{width:?}: not in the file");
        }
        rig.run("detach", &[&name, "xvda"]).fine();
        assert_eq!(rig.take(&name).stop(), Some(0));
    }
}

#[test]
fn disks_are_exports_by_name_as_they_come_and_go() {
    let mut rig = Rig::new();
    rig.image("two.img", 8);
    let two = rig.path("two.img");
    rig.serve("acme", &format!("[[volume]]\nname = \"two\"\npath = \"{}\"\ndirect = false", two.display()));
    rig.guest("g");
    let nbd = rig.nbd("g");
    let sizes = |names: [&str; 3]| names.map(|name| Nbd::open(&nbd, name).ok().map(|disk| disk.size >> 20));
    assert_eq!(sizes(["", "xvda", "xvdb"]), [None, None, None]);
    rig.run("attach", &["g", "acme:two", "--vdev", "xvdb"]).fine();
    assert_eq!(sizes(["", "xvda", "xvdb"]), [Some(8), None, Some(8)]);
    rig.run("attach", &["g", "acme:db", "--vdev", "xvda"]).fine();
    assert_eq!(sizes(["", "xvda", "xvdb"]), [Some(16), Some(16), Some(8)]);
    // A number is as good as a name.
    assert_eq!(sizes(["51712", "51728", "sda"]), [Some(16), Some(8), None]);
    let mut open = Nbd::open(&nbd, "xvda").unwrap();
    let mut other = Nbd::open(&nbd, "xvdb").unwrap();
    rig.run("detach", &["g", "xvda"]).fine();
    assert_eq!(open.read(0, 512).unwrap(), Err(5));
    assert_eq!(open.write(0, &[0; 512]).unwrap(), 5);
    assert_eq!(open.flush().unwrap(), 5);
    assert!(other.read(0, 512).unwrap().is_ok());
    assert_eq!(sizes(["", "xvda", "xvdb"]), [Some(8), None, Some(8)]);
    rig.run("attach", &["g", "acme:db", "--vdev", "xvda", "--ro"]).fine();
    let mut again = Nbd::open(&nbd, "xvda").unwrap();
    assert!(again.read(0, 512).unwrap().is_ok());
    assert_eq!(again.write(0, &[0; 512]).unwrap(), 1);
    assert_eq!(open.read(0, 512).unwrap(), Err(5), "a new disk of the same name is another disk");
}

#[test]
fn a_guest_that_is_stopped_flushes_and_gives_its_disks_back() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g");
    rig.run("attach", &["g", "acme:db"]).fine();
    let mut disk = Nbd::open(&rig.nbd("g"), "").unwrap();
    assert_eq!(disk.write(0, &pattern(0, 1 << 20, 1)).unwrap(), 0);
    let nbd = rig.nbd("g");
    assert_eq!(rig.take("g").stop(), Some(0));
    assert!(!nbd.exists(), "the socket is still there");
    eventually("its disk has gone", || rig.disks().is_empty().then_some(()));
    let mut stored = vec![0; 1 << 20];
    std::fs::File::open(rig.path("acme.img")).unwrap().read_exact_at(&mut stored, 0).unwrap();
    assert!(stored == pattern(0, 1 << 20, 1));
}

#[test]
fn a_socket_that_cannot_be_is_one_line() {
    let mut rig = Rig::new();
    rig.guest("g");
    let guest = |nbd: &str| run(rig.command("guest").args(["--name", "h", "--nbd", nbd]));
    let taken = format!("unix:{}", rig.nbd("g").display());
    assert!(guest(&taken).refused(5).contains("in use"));
    let file = rig.image("file", 1);
    assert!(guest(&format!("unix:{}", file.display())).refused(1).contains("no socket"));
    assert!(guest("unix:/no/such/directory/nbd").refused(1).contains("/no/such/directory/nbd"));
    assert!(guest("tcp:10809").refused(2).contains("unix:PATH"));
    // None of them has left a domain of that name behind.
    rig.guest("h");
}

fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|it| it.status.success());
    if !found {
        tests::skip::skip(&format!("guest-{program}"), "it is not installed");
    }
    found
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let ended = command.output().expect("cannot be run");
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// Real clients, each if it is installed.
#[test]
fn real_nbd_clients_find_what_they_look_for() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    let source = rig.path("source.img");
    std::fs::write(&source, pattern(0, 16 << 20, 7)).unwrap();
    rig.guest_with("g", &["--queues", "2"]);
    rig.run("attach", &["g", "acme:db"]).fine();
    let uri = format!("nbd+unix:///xvda?socket={}", rig.nbd("g").display());
    let same = |path: &Path| assert!(std::fs::read(path).unwrap() == pattern(0, 16 << 20, 7), "{path:?} differs");
    if installed("qemu-img") {
        succeeds(Command::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&source).arg(&uri));
        let back = rig.path("qemu.img");
        succeeds(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &uri]).arg(&back));
        same(&back);
        same(&rig.path("acme.img"));
    }
    if installed("nbdinfo") {
        let info = succeeds(Command::new("nbdinfo").arg("--json").arg(&uri));
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], 16 << 20);
        assert_eq!((&export["can_flush"], &export["can_fua"]), (&true.into(), &true.into()));
        assert_eq!((&export["can_multi_conn"], &export["is_read_only"]), (&true.into(), &false.into()));
        assert_eq!(export["block_size_minimum"], 512);
        assert!(!Command::new("nbdinfo").arg(uri.replace("xvda", "xvdb")).output().unwrap().status.success());
    }
    if installed("nbdcopy") {
        succeeds(Command::new("nbdcopy").args(["--connections=4"]).arg(&source).arg(&uri));
        let back = rig.path("nbdcopy.img");
        succeeds(Command::new("nbdcopy").args(["--connections=4", &uri]).arg(&back));
        same(&back);
    }
    if installed("fio") {
        let fio = Command::new("fio")
            .args(["--name=t", "--ioengine=nbd", "--rw=randrw", "--bsrange=512-256k", "--blockalign=512"])
            .args(["--iodepth=32", "--fsync=16", "--size=8m", "--loops=2", "--verify=crc32c", "--output-format=json"])
            .arg(format!("--uri={uri}"))
            .current_dir(rig.path(""))
            .output()
            .unwrap();
        assert!(fio.status.success(), "{}", String::from_utf8_lossy(&fio.stderr));
    }
}

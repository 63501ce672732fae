//! Other people's programs on a guest's disks: qemu-img, nbdcopy and fio over every width, and while guests, workers and
//! disks go away under them.

mod rig;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rig::{Rig, children, eventually, signal_to};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::Value;
use tests::skip::{installed, skip};
use xenstore::Store;

/// Bytes of a disk.
const SIZE: usize = 24 << 20;
/// How long any of the programs may take, in seconds.
const LIMIT: &str = "120";

/// Whether the programs are there.
fn programs(case: &str) -> bool {
    installed(case, "qemu-img", "qemu-utils")
        && installed(case, "nbdcopy", "libnbd-bin")
        && installed(case, "fio", "fio")
}

/// An image in the workspace's target directory: a temporary directory is often a tmpfs, which has no O_DIRECT.
struct Image {
    path: PathBuf,
    direct: bool,
}

impl Image {
    fn new(name: &str) -> Image {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.img", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(SIZE as u64)).expect("an image");
        let direct = rustix::fs::open(&path, OFlags::RDWR | OFlags::DIRECT, Mode::empty()).is_ok();
        Image { path, direct }
    }

    /// The volume's table in the configuration.
    fn volume(&self, name: &str, direct: bool) -> String {
        let path = self.path.display();
        format!("[[volume]]\nname = \"{name}\"\npath = \"{path}\"\ndirect = {}\n", direct && self.direct)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A program with a limit on its time.
fn program(words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", LIMIT]).args(words).stdin(Stdio::null());
    command
}

#[track_caller]
fn ends_well(about: &str, output: &Output) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{about}: {} {}{}", output.status, text(&output.stdout), text(&output.stderr));
}

#[track_caller]
fn succeeds(about: &str, words: &[&str]) {
    ends_well(&format!("{about}: {}", words.join(" ")), &program(words).output().expect("timeout cannot be run"));
}

/// A disk of a guest as its clients name it.
fn uri(rig: &Rig, guest: &str) -> String {
    format!("nbd+unix:///xvda?socket={}", rig.nbd(guest).display())
}

/// fio with verification. (No `--randrepeat=0`: with it and more than one round, fio 3.33 finds differences on any file.)
fn fio(uri: &str, more: &[&str]) -> Command {
    let uri = format!("--uri={uri}");
    let mut words = vec!["fio", "--name=interop", "--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=4k-128k"];
    // Whoever is killed in the middle would leave its state lying about.
    words.extend(["--size=16M", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--iodepth=32"]);
    words.extend(more);
    program(&words)
}

/// fio that runs for as long as nothing stops it, within the test's patience.
fn endless(uri: &str) -> Child {
    let mut command = fio(uri, &["--time_based", "--runtime=60"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout cannot be run")
}

/// Waits until a guest's disk has carried at least this many requests.
#[track_caller]
fn busy(rig: &Rig, guest: &str, requests: u64) {
    eventually(&format!("{guest} is busy"), || {
        let disks = rig.disks();
        let stats = &disks.iter().find(|disk| disk["guest"] == guest)?["stats"];
        (stats["reads"].as_u64()? + stats["writes"].as_u64()? >= requests).then_some(())
    });
}

/// Waits for a fio that has lost its disk: it is told so.
#[track_caller]
fn gives_up(mut child: Child) -> String {
    let started = Instant::now();
    let status = eventually("fio notices", || child.try_wait().expect("waiting for fio"));
    let output = child.wait_with_output().expect("reading from fio");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!status.success(), "it lost its disk and noticed nothing: {said}");
    assert!(![Some(124), Some(137)].contains(&status.code()), "it hung for {:?}: {said}", started.elapsed());
    said.into_owned()
}

fn random() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    fastrand::fill(&mut bytes);
    bytes
}

#[track_caller]
fn same(about: &str, path: &Path, bytes: &[u8]) {
    let found = std::fs::read(path).expect("reading a copy");
    let differs = found.iter().zip(bytes).position(|(a, b)| a != b);
    assert!(differs.is_none() && found.len() == bytes.len(), "{about}: differs from byte {differs:?}");
}

/// One way to carry a disk.
#[derive(Clone, Copy, Debug)]
struct Width {
    persistent: bool,
    order: u8,
    indirect: u16,
    fixed: bool,
    abi: &'static str,
    direct: bool,
    queues: u16,
}

impl Width {
    /// From seven bits, one each.
    fn new(bits: u8) -> Width {
        let bit = |n: u8| bits >> n & 1 == 1;
        Width {
            persistent: bit(0),
            order: if bit(1) { 4 } else { 0 },
            indirect: if bit(2) { 256 } else { 11 },
            fixed: bit(3),
            abi: if bit(4) { "x86_64" } else { "x86_32" },
            direct: bit(5),
            queues: if bit(6) { 2 } else { 1 },
        }
    }

    /// All of them, or ten among which each two switches meet in all four ways: an orthogonal array of eight rows over
    /// seven columns, its first two rows turned round besides.
    fn chosen() -> Vec<Width> {
        if std::env::var_os("WINDSOR_LONG").is_some() {
            return (0..128).map(Width::new).collect();
        }
        let row = |n: u8| {
            let [a, b, c] = [n & 1, n >> 1 & 1, n >> 2 & 1];
            a | b << 1 | c << 2 | (a ^ b) << 3 | (a ^ c) << 4 | (b ^ c) << 5 | (a ^ b ^ c) << 6
        };
        (0..8).map(row).chain([!row(0) & 0x7f, !row(1) & 0x7f]).map(Width::new).collect()
    }

    fn check(self, rig: &mut Rig, number: usize) {
        let (service, guest) = (format!("s{number}"), format!("g{number}"));
        let image = Image::new(&format!("interop-{}-{number}", self.abi));
        if self.direct && !image.direct {
            skip("interop-direct", &format!("no O_DIRECT in {}", env!("CARGO_TARGET_TMPDIR")));
        }
        let Width { order, indirect, fixed, queues, .. } = self;
        rig.serve(
            &service,
            &format!(
                "{}[backend]\nfixed-buffers = {fixed}\nmax-indirect = {indirect}\nqueues = {queues}\n",
                image.volume("disk", self.direct)
            ),
        );
        let (order, queues) = (order.to_string(), queues.to_string());
        let mut words = vec!["--ring-order", &order, "--queues", &queues, "--abi", self.abi, "--max-indirect", "256"];
        if !self.persistent {
            words.push("--no-persistent");
        }
        rig.guest_with(&guest, &words);
        rig.run("attach", &[&guest, &format!("{service}:disk")]).fine();
        self.copy(rig, &guest);
        let written = random();
        let (source, back) = (rig.path("source.raw"), rig.path("back.raw"));
        let (uri, about) = (uri(rig, &guest), format!("{self:?}"));
        std::fs::write(&source, &written).expect("a source");
        let [source_word, back_word] = [&source, &back].map(|path| path.to_str().expect("a plain path"));
        succeeds(&about, &["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source_word, &uri]);
        succeeds(&about, &["qemu-img", "convert", "-f", "raw", "-O", "raw", &uri, back_word]);
        same(&about, &back, &written);
        // On a busy machine the counters may come too late for one look.
        let disk = eventually("its counters", || {
            let mut disks = rig.disks().into_iter();
            disks.find(|disk| disk["guest"] == guest.as_str() && disk["stats"].is_object())
        });
        assert_eq!(disk["stats"]["errors"], 0, "{about}: {disk}");
        self.in_force(rig, &disk);
        rig.run("detach", &[&guest, "xvda"]).fine();
        same(&format!("{about}, the image"), &image.path, &written);
        assert_eq!(rig.take(&guest).stop(), Some(0), "{about}");
        assert_eq!(rig.take(&service).stop(), Some(0), "{about}");
    }

    /// Whether the disk is carried this way indeed, by the frontend's nodes and the backend's counters.
    fn in_force(self, rig: &Rig, disk: &Value) {
        let dir = format!("/local/domain/{}/device/vbd/{}", disk["guest_domid"], disk["devid"]);
        let mut store = rig.store();
        let mut has = |key: &str, value: Option<&str>| {
            let found = store.read_optional(&format!("{dir}/{key}")).expect("the store");
            let found = found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            assert_eq!(found.as_deref(), value, "{self:?}: {key}");
        };
        has("protocol", Some(if self.abi == "x86_64" { "x86_64-abi" } else { "x86_32-abi" }));
        has("feature-persistent", Some(if self.persistent { "1" } else { "0" }));
        has("ring-page-order", (self.order > 0).then_some("4"));
        has("multi-queue-num-queues", (self.queues > 1).then_some("2"));
        let stats = &disk["stats"];
        assert_eq!(stats["copy_calls"] == 0, self.persistent, "{self:?}: {disk}");
        if self.persistent {
            // Others may be mapped for each request, where that costs less.
            assert_eq!(stats["unmap_calls"], 0, "{self:?}: {disk}");
        }
        if !self.fixed {
            assert!(!disk["path"].to_string().contains("fixed"), "{self:?}: {disk}");
        }
    }

    /// fio, then nbdcopy there and back.
    fn copy(self, rig: &Rig, guest: &str) {
        let (uri, about) = (uri(rig, guest), format!("{self:?}"));
        ends_well(&about, &fio(&uri, &[]).output().expect("timeout cannot be run"));
        let (source, back) = (rig.path("source.nbd"), rig.path("back.nbd"));
        let written = random();
        std::fs::write(&source, &written).expect("a source");
        let [source, back_word] = [&source, &back].map(|path| path.to_str().expect("a plain path"));
        succeeds(&about, &["nbdcopy", "--flush", source, &uri]);
        succeeds(&about, &["nbdcopy", &uri, back_word]);
        same(&about, &back, &written);
    }
}

fn widths_of(abi: &str) {
    if !programs("interop-widths") {
        return;
    }
    let mut rig = Rig::new();
    for (number, width) in Width::chosen().into_iter().filter(|width| width.abi == abi).enumerate() {
        width.check(&mut rig, number);
    }
}

#[test]
fn every_program_reads_back_what_it_wrote() {
    widths_of("x86_64");
}

#[test]
fn every_program_reads_back_what_it_wrote_over_32_bit_rings() {
    widths_of("x86_32");
}

#[test]
fn a_spoilt_byte_is_found() {
    if !programs("interop-spoilt-byte") {
        return;
    }
    const BYTE: usize = 5_000_123;
    let image = Image::new("spoilt");
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{}fault = {{ flip = {BYTE} }}\n", image.volume("disk", true)));
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:disk"]).fine();
    let (source, back, uri) = (rig.path("source"), rig.path("back"), uri(&rig, "g1"));
    let mut bytes = random();
    std::fs::write(&source, &bytes).expect("a source");
    let [source, back_word] = [&source, &back].map(|path| path.to_str().expect("a plain path"));
    succeeds("writing", &["nbdcopy", source, &uri]);
    succeeds("reading", &["nbdcopy", &uri, back_word]);
    rig.run("detach", &["g1", "xvda"]).fine();
    same("the image", &image.path, &bytes);
    bytes[BYTE] ^= 1;
    same("what the guest read", &back, &bytes);
}

/// Two guests, each with a disk of the same service VM.
fn two_guests(images: &[Image; 2]) -> Rig {
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{}{}", images[0].volume("one", true), images[1].volume("two", true)));
    rig.guest("g1");
    rig.guest_with("g2", &["--ring-order", "2", "--no-persistent"]);
    rig.run("attach", &["g1", "acme:one"]).fine();
    rig.run("attach", &["g2", "acme:two"]).fine();
    rig
}

#[test]
fn two_guests_of_one_service_vm_do_not_meet() {
    if !programs("interop-two-guests") {
        return;
    }
    let images = [Image::new("two-1"), Image::new("two-2")];
    let rig = two_guests(&images);
    let start = |guest| {
        let mut command = fio(&uri(&rig, guest), &["--loops=2"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout cannot be run")
    };
    let running = [start("g1"), start("g2")];
    for child in running {
        ends_well("fio of one of two guests", &child.wait_with_output().expect("waiting for fio"));
    }
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("detach", &["g2", "xvda"]).fine();
}

#[test]
fn a_disk_can_be_taken_away_under_load() {
    if !programs("interop-detach") {
        return;
    }
    let images = [Image::new("detach-1"), Image::new("detach-2")];
    let rig = two_guests(&images);
    let hurt = endless(&uri(&rig, "g1"));
    busy(&rig, "g1", 200);
    rig.run("detach", &["g1", "xvda"]).fine();
    gives_up(hurt);
    assert_eq!(rig.disks().len(), 1);
    // And it can come back, to the same guest.
    rig.run("attach", &["g1", "acme:one"]).fine();
    ends_well("fio afterwards", &fio(&uri(&rig, "g1"), &[]).output().expect("timeout cannot be run"));
}

#[test]
fn what_is_not_allowed_is_refused() {
    if !programs("interop-refused") {
        return;
    }
    let image = Image::new("refused");
    let mut rig = Rig::new();
    rig.serve("acme", &image.volume("disk", true));
    rig.guest("g1");
    let uri = uri(&rig, "g1");
    let refused = |words: &[&str]| {
        let output = program(words).output().expect("timeout cannot be run");
        let code = output.status.code();
        assert!(!output.status.success() && ![Some(124), Some(137)].contains(&code), "{words:?}: {code:?}");
    };
    // Nothing is attached yet.
    refused(&["qemu-img", "info", &uri]);
    rig.run("attach", &["g1", "acme:disk", "--ro"]).fine();
    succeeds("reading", &["qemu-img", "info", &uri]);
    let (source, back) = (rig.path("source"), rig.path("back"));
    std::fs::write(&source, random()).expect("a source");
    let [source, back] = [&source, &back].map(|path| path.to_str().expect("a plain path"));
    refused(&["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, &uri]);
    refused(&["nbdcopy", source, &uri]);
    succeeds("reading", &["nbdcopy", &uri, back]);
    same("a disk nobody may write", &image.path, &vec![0; SIZE]);
    // Another disk's name is no way round.
    refused(&["qemu-img", "info", &uri.replace("xvda", "xvdb")]);
    rig.run("detach", &["g1", "xvda"]).fine();
    refused(&["qemu-img", "info", &uri]);
}

#[test]
fn a_guest_killed_in_the_middle_of_its_io_leaves_its_volume_free() {
    if !programs("interop-guest-killed") {
        return;
    }
    let images = [Image::new("guest-1"), Image::new("guest-2")];
    let mut rig = two_guests(&images);
    let hurt = endless(&uri(&rig, "g1"));
    let other = endless(&uri(&rig, "g2"));
    busy(&rig, "g1", 200);
    busy(&rig, "g2", 200);
    let killed = Instant::now();
    rig.take("g1").signal(Signal::KILL);
    gives_up(hurt);
    rig.guest("g3");
    // Busy while the dead guest's last requests end; then free.
    eventually("the volume is free", || (rig.run("attach", &["g3", "acme:one"]).code == Some(0)).then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(10), "free after {:?}", killed.elapsed());
    ends_well("fio of the next guest", &fio(&uri(&rig, "g3"), &[]).output().expect("timeout cannot be run"));
    still_running(other);
}

/// The other guest's program has noticed nothing; it is ended.
#[track_caller]
fn still_running(mut child: Child) {
    let ended = child.try_wait().expect("waiting for a program");
    // `timeout` passes it on; fio then ends with what it has in flight, and reports.
    signal_to(child.id(), Signal::TERM);
    let output = child.wait_with_output().expect("waiting for fio");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(ended.is_none(), "the other guest's fio ended: {ended:?} {said}{complained}");
    assert!(said.contains("err= 0"), "the other guest's fio: {said}{complained}");
}

#[test]
fn a_worker_killed_in_the_middle_of_its_io_fails_its_own_disk() {
    if !programs("interop-worker-killed") {
        return;
    }
    let images = [Image::new("worker-1"), Image::new("worker-2")];
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{}{}", images[0].volume("one", true), images[1].volume("two", true)));
    rig.guest("g1");
    rig.guest("g2");
    rig.run("attach", &["g1", "acme:one"]).fine();
    let worker = children(rig.supervisor("acme"), "worker");
    assert_eq!(worker.len(), 1);
    rig.run("attach", &["g2", "acme:two"]).fine();
    let hurt = endless(&uri(&rig, "g1"));
    let other = endless(&uri(&rig, "g2"));
    busy(&rig, "g1", 200);
    busy(&rig, "g2", 200);
    let killed = Instant::now();
    signal_to(worker[0], Signal::KILL);
    let failed: Value = rig.phase("failed");
    assert!(killed.elapsed() < Duration::from_secs(2), "failed after {:?}", killed.elapsed());
    assert_eq!((&failed["guest"], &failed["volume"]), (&"g1".into(), &"one".into()), "{failed}");
    let reason = failed["reason"].as_str().expect("a reason");
    assert!(reason.contains("SIGKILL"), "{reason}");
    let said = gives_up(hurt);
    assert!(said.contains("Input/output error"), "{said}");
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("attach", &["g1", "acme:one"]).fine();
    ends_well("fio afterwards", &fio(&uri(&rig, "g1"), &[]).output().expect("timeout cannot be run"));
    still_running(other);
    let disks = rig.disks();
    assert!(disks.iter().all(|disk| disk["phase"] == "connected"), "{disks:?}");
}

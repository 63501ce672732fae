//! `windsor demo` through the real binary: what it proves, what it says when a byte is wrong, and that it leaves nothing
//! behind however it ends.

mod rig;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rig::{children, eventually, run, signal_to, windsor};
use rustix::process::Signal;
use serde_json::Value;

/// A directory that is the demo's `$TMPDIR`, so that whatever it leaves is seen.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        Bench { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn demo(&self, args: &[&str]) -> Command {
        self.demo_of("1", args)
    }

    fn demo_of(&self, seconds: &str, args: &[&str]) -> Command {
        let mut command = windsor();
        command.env("TMPDIR", self.path("tmp")).args(["demo", "--seconds", seconds]).args(args);
        command
    }

    /// An ext4 file system of 4 MiB with files in it.
    fn image(&self) -> PathBuf {
        let (files, image) = (self.path("files"), self.path("X.img"));
        std::fs::create_dir(&files).unwrap();
        for number in 0..20u8 {
            std::fs::write(files.join(format!("f{number}")), vec![number; 5000 + 1000 * usize::from(number)]).unwrap();
        }
        let mke2fs = ["mke2fs", "/sbin/mke2fs", "/usr/sbin/mke2fs"].into_iter().find_map(|program| {
            Command::new(program).args(["-q", "-t", "ext4", "-d"]).arg(&files).arg(&image).arg("4M").output().ok()
        });
        let made = mke2fs.expect("mke2fs (package e2fsprogs) is missing");
        assert!(made.status.success(), "{made:?}");
        image
    }

    #[track_caller]
    fn is_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("tmp")).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let ours = self.processes();
        assert!(ours.is_empty(), "{ours:?}");
    }

    /// Every process that has our directory in its environment, as all of a demo's have.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.path().to_str().unwrap();
        let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let environ = std::fs::read(entry.path().join("environ")).ok()?;
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&environ).contains(dir).then(|| line.replace('\0', " "))
        });
        lines.collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(text: &str) -> Value {
    let mut lines = text.lines();
    let value = serde_json::from_str(lines.next().expect("a line")).expect("JSON");
    assert_eq!(lines.next(), None);
    value
}

#[test]
fn a_file_system_is_read_as_it_is_and_stays_as_it_is() {
    let bench = Bench::new();
    let image = bench.image();
    let (bytes, before) = (std::fs::read(&image).unwrap(), image.metadata().unwrap());
    let ended = run(&mut bench.demo(&["--disk", text(&image), "--json"]));
    let report = json(ended.fine());
    assert!(ended.err.is_empty(), "{ended:?}");
    assert_eq!(report["schema_version"], 1);
    assert_eq!((report["disk"]["bytes"].as_u64(), &report["disk"]["read_only"]), (Some(4 << 20), &Value::Bool(true)));
    let verify = &report["verify"];
    assert_eq!((&verify["kind"], &verify["equal"]), (&"sha256".into(), &true.into()));
    assert_eq!((verify["file"].as_str().map(str::len), &verify["file"]), (Some(64), &verify["guest"]));
    let phases = report["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 3, "{report}");
    for phase in phases {
        for key in ["iops", "mb_per_s", "p50_us", "p99_us"] {
            assert!(phase[key].as_f64().unwrap() > 0.0, "{key} of {phase}");
        }
        assert!(phase["p99_us"].as_f64() >= phase["p50_us"].as_f64(), "{phase}");
        let cost = &phase["per_io"];
        assert!(cost["backend_system_calls"].as_f64().unwrap() > 0.0, "{phase}");
        // The grants are persistent: what was mapped once stays so. On a slow machine the first time weighs more.
        let pages = phase["block_bytes"].as_f64().unwrap() / 4096.0;
        assert!(cost["grants_mapped"].as_f64().unwrap() < pages / 2.0, "{phase}");
    }
    let exchanges = report["network"]["exchanges"].as_array().unwrap();
    let [round_trips, stream] = &exchanges[..] else { panic!("{report}") };
    for exchange in exchanges {
        assert_eq!((&exchange["equal"], exchange.get("differs")), (&true.into(), None), "{exchange}");
        for key in ["packets", "packets_per_s", "mb_per_s"] {
            assert!(exchange[key].as_f64().unwrap() > 0.0, "{key} of {exchange}");
        }
        assert!(exchange["per_packet"]["backend_system_calls"].as_f64().unwrap() > 0.0, "{exchange}");
    }
    assert!(round_trips["p99_us"].as_f64() >= round_trips["p50_us"].as_f64() && stream.get("p50_us").is_none());
    let cost = &round_trips["per_packet"];
    // One at a time: its headers are looked at, then it goes from guest to guest, and somebody is told.
    assert_eq!(cost["grant_copies"].as_f64(), Some(2.0), "{round_trips}");
    assert!(cost["hypercalls"].as_f64().unwrap() >= 3.0, "{round_trips}");
    // A large packet is not cut. It lies in 16 pages, and four of them have one small one for an answer.
    assert_eq!(stream["packet_bytes"].as_u64(), Some(65_214), "{stream}");
    assert!(stream["per_packet"]["grant_copies"].as_f64().unwrap() > 12.0, "{stream}");
    let after = image.metadata().unwrap();
    assert!(bytes == std::fs::read(&image).unwrap(), "the image has changed");
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    bench.is_clean();
}

#[test]
fn a_spoilt_byte_is_named_with_its_block() {
    let bench = Bench::new();
    let image = bench.image();
    // In a block that is not the first of its chunk.
    let byte = 2_500_001u64;
    let ended = run(&mut bench.demo(&["--disk", text(&image), "--fault", &format!("flip={byte}")]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("block 610 (byte 2498560) differs"), "{ended:?}");
    assert!(
        ended.out.contains("DIFFERENT") && !ended.out.contains("IOPS") && !ended.out.contains("packets/s"),
        "{ended:?}"
    );
    bench.is_clean();
}

#[test]
fn a_scratch_image_is_written_read_back_and_gone() {
    let bench = Bench::new();
    let ended = run(&mut bench.demo(&["--scratch", "2"]));
    let table = ended.fine();
    assert!(table.contains("every block is right") && table.contains("4 KiB random reads, depth 32"), "{table}");
    assert!(table.contains("as two guests see it") && table.contains("64 KiB of TCP, one way"), "{table}");
    bench.is_clean();
    let ended = run(&mut bench.demo(&["--scratch", "2", "--fault", "flip=1048576", "--json"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("block 256 (byte 1048576) differs"), "{ended:?}");
    let verify = &json(&ended.out)["verify"];
    assert_eq!((&verify["equal"], verify["differs"]["block"].as_u64()), (&Value::Bool(false), Some(256)));
    bench.is_clean();
}

#[test]
fn what_cannot_be_served_is_one_line() {
    let bench = Bench::new();
    let odd = bench.path("odd.img");
    std::fs::write(&odd, [0; 1000]).unwrap();
    let refused = |args: &[&str], code, says: &str| {
        let ended = run(&mut bench.demo(args));
        let line = ended.refused(code);
        assert!(line.contains(says), "{line}");
    };
    refused(&["--disk", text(&odd)], 2, "1000 bytes, is no multiple of 512");
    refused(&["--disk", text(&bench.path("none.img"))], 3, "none.img: No such file");
    let fine = bench.path("fine.img");
    std::fs::write(&fine, [0; 8192]).unwrap();
    refused(&["--disk", text(&fine), "--fault", "flip=8192"], 2, "the last is 8191");
    let file = std::fs::File::open(&fine).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refused(&["--disk", text(&fine)], 5, "fine.img: locked by process");
    assert_eq!(run(&mut bench.demo(&["--fault", "flop=1"])).code, Some(2));
    bench.is_clean();
}

#[test]
fn io_uring_that_cannot_be_had_is_one_line_with_the_fix() {
    let bench = Bench::new();
    let demo = bench.demo(&[]);
    // Of the ways to be without one, this is the one that a process can choose for itself.
    let mut command = Command::new("prlimit");
    command.arg("--memlock=0:0").env("TMPDIR", bench.path("tmp"));
    if rustix::process::geteuid().is_root() {
        command.args(["setpriv", "--bounding-set", "-ipc_lock"]);
    }
    let ended = run(command.arg(demo.get_program()).args(demo.get_args()));
    assert!(ended.refused(3).contains("raise ulimit -l"), "{ended:?}");
    bench.is_clean();
}

/// A demo that has come as far as its loads.
fn loaded(bench: &Bench, args: &[&str]) -> (Child, u32) {
    let mut command = bench.demo_of("60", args);
    let demo = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let guest = eventually("a guest", || children(demo.id(), "guest").first().copied());
    let service = eventually("a service VM", || children(demo.id(), "serve").first().copied());
    let supervisor = eventually("a supervisor", || children(service, "supervisor").first().copied());
    let worker = eventually("a worker", || children(supervisor, "worker").first().copied());
    // It has used the processor for a tenth of a second: attached long ago, and busy.
    eventually("a load", || {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).ok()?;
        let ticks: u64 = stat.rsplit(')').next()?.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
        (ticks >= 10).then_some(())
    });
    (demo, guest)
}

#[test]
fn the_guest_has_no_way_to_the_image() {
    let bench = Bench::new();
    let image = bench.image();
    let (mut demo, guest) = loaded(&bench, &["--disk", text(&image)]);
    let number = image.metadata().unwrap().ino();
    for entry in std::fs::read_dir(format!("/proc/{guest}/fd")).unwrap().flatten() {
        // Sockets and the like have no path to follow.
        let is_it = std::fs::metadata(entry.path()).is_ok_and(|found| found.ino() == number && found.is_file());
        assert!(!is_it, "{:?}", std::fs::read_link(entry.path()));
    }
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{guest}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("X.img"), "{file}");
    }
    signal_to(demo.id(), Signal::TERM);
    demo.wait().unwrap();
    bench.is_clean();
}

#[test]
fn an_interrupted_demo_takes_everything_down() {
    for signal in [Signal::INT, Signal::TERM] {
        let bench = Bench::new();
        let (demo, _) = loaded(&bench, &["--scratch", "2"]);
        signal_to(demo.id(), signal);
        let ended = rig::Ended::from(demo.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(128 + signal.as_raw()), "{ended:?}");
        assert!(ended.out.is_empty() && ended.err.lines().count() == 1, "{ended:?}");
        bench.is_clean();
    }
}

#[test]
fn a_demo_that_is_killed_takes_its_processes_along() {
    let bench = Bench::new();
    let (mut demo, _) = loaded(&bench, &["--scratch", "2"]);
    signal_to(demo.id(), Signal::KILL);
    demo.wait().unwrap();
    eventually("everything has ended", || bench.processes().is_empty().then_some(()));
}

#[test]
fn a_part_that_dies_ends_the_demo() {
    for part in ["host", "serve", "guest", "worker"] {
        let bench = Bench::new();
        let (demo, _) = loaded(&bench, &["--scratch", "2"]);
        let victim = match part {
            "worker" => {
                let service = children(demo.id(), "serve")[0];
                children(children(service, "supervisor")[0], "worker")[0]
            }
            part => children(demo.id(), part)[0],
        };
        signal_to(victim, Signal::KILL);
        let ended = rig::Ended::from(demo.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(1), "{part}: {ended:?}");
        assert!(ended.out.is_empty() && ended.err.lines().count() == 1, "{part}: {ended:?}");
        // The worker of a service VM that was killed is nobody's child to wait for.
        eventually("everything has ended", || bench.processes().is_empty().then_some(()));
        bench.is_clean();
    }
}

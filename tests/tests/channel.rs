//! dom0's request channel through the real binary: logs, top, metrics, volumes, and what becomes of it when the
//! supervisor dies.

mod rig;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rig::{Nbd, Rig, children, eventually, run, signal_to};
use rustix::process::Signal;
use serde_json::Value;
use unikernel::metrics::check::check;
use xenstore::{Permission, Store};

const MIB: u64 = 1 << 20;

fn rig_with_images() -> Rig {
    let mut rig = Rig::new();
    let dir = rig.path("images");
    std::fs::create_dir(&dir).unwrap();
    rig.serve("acme", &format!("[[volume]]\nname = \"images\"\ndirectory = \"{}\"\ndirect = false\n", dir.display()));
    rig
}

fn volumes(rig: &Rig) -> Vec<Value> {
    let text = rig.run("volume", &["ls", "acme", "--json"]);
    let listing: Value = serde_json::from_str(text.fine()).unwrap();
    listing["volumes"].as_array().unwrap().clone()
}

#[test]
fn volumes_come_and_go_while_guests_are_served() {
    let mut rig = rig_with_images();
    assert_eq!(volumes(&rig).len(), 1);
    rig.run("volume", &["create", "acme:web", "8MiB"]).fine();
    let of_web = volumes(&rig).into_iter().find(|volume| volume["name"] == "web").unwrap();
    assert_eq!((of_web["size"].as_u64(), of_web["source"].as_str()), (Some(8 * MIB), Some("images")));
    assert!(rig.run("volume", &["create", "acme:web", "8MiB"]).refused(5).contains("already"));
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:web"]).fine();
    for args in [&["resize", "acme:web", "16MiB"][..], &["rm", "acme:web"]] {
        assert!(rig.run("volume", args).refused(5).contains("in use by xvda of domain"));
    }
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("volume", &["resize", "acme:web", "16MiB"]).fine();
    assert!(rig.run("volume", &["resize", "acme:web", "8MiB"]).refused(2).contains("--shrink"));
    rig.run("attach", &["g1", "acme:web"]).fine();
    let last = Nbd::open(&rig.nbd("g1"), "xvda").unwrap().read(16 * MIB - 4096, 4096).unwrap();
    assert_eq!(last, Ok(vec![0; 4096]));
    rig.run("detach", &["g1", "xvda"]).fine();
    rig.run("volume", &["rm", "acme:web"]).fine();
    assert!(!rig.path("images/web.img").exists());
    assert!(rig.run("attach", &["g1", "acme:web"]).refused(3).contains("no volume named \"web\""));
    // An image that somebody puts there is found when it is asked for.
    std::fs::File::create(rig.path("images/late.img")).unwrap().set_len(MIB).unwrap();
    rig.run("volume", &["create", "acme:other", "1MiB"]).fine();
    rig.run("attach", &["g1", "acme:late"]).fine();
}

#[test]
fn names_that_are_none_reach_nothing() {
    let rig = rig_with_images();
    let long = format!("acme:{}", "a".repeat(200));
    for name in ["acme:", "acme:../db", "acme:a/b", "acme:/etc/passwd", "acme:a\nb", "acme", &long] {
        rig.run("volume", &["rm", name]).refused(2);
        rig.run("volume", &["create", name, "1MiB"]).refused(2);
    }
    assert!(rig.run("volume", &["rm", "acme:db"]).refused(2).contains("named by the configuration"));
    rig.run("volume", &["rm", "acme:none"]).refused(3);
    rig.run("volume", &["rm", "other:none"]).refused(3);
    assert_eq!(std::fs::read_dir(rig.path("images")).unwrap().count(), 0);
    // Without a daemon.
    let config = rig.path("acme.toml");
    let offline = |args: &[&str]| run(rig::windsor().arg("volume").args(args).arg("--config").arg(&config));
    offline(&["create", "acme:off", "2MiB"]).fine();
    assert!(offline(&["ls"]).fine().contains("off"));
    offline(&["rm", "bolt:off"]).refused(3);
    offline(&["rm", "acme:off"]).fine();
    assert_eq!(std::fs::read_dir(rig.path("images")).unwrap().count(), 0);
}

/// What a toolstack other than ours writes as a disk's `params` is a name and nothing else.
#[test]
fn params_are_never_a_path() {
    let mut rig = rig_with_images();
    std::fs::write(rig.path("outside.img"), vec![0; 4096]).unwrap();
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let outside = rig.path("outside.img").display().to_string();
    let mut store = rig.store();
    let targets = ["../outside", "images/../../outside", &outside, "", "db\n", "/dev/sda", &"a".repeat(200), "outside"];
    for (number, target) in (1u32..).zip(targets) {
        let devid = 51712 + 16 * number;
        let (front, back) =
            (format!("/local/domain/2/device/vbd/{devid}"), format!("/local/domain/1/backend/vbd/2/{devid}"));
        store
            .transaction(|tx| {
                tx.mkdir(&front)?;
                tx.set_perms(&front, &[Permission::none(2), Permission::read(1)])?;
                tx.write(&format!("{front}/state"), b"1")?;
                tx.write(&format!("{front}/backend"), back.as_bytes())?;
                tx.mkdir(&back)?;
                tx.set_perms(&back, &[Permission::none(1), Permission::read(2)])?;
                for (key, value) in [
                    ("frontend", front.as_str()),
                    ("frontend-id", "2"),
                    ("params", target),
                    ("mode", "w"),
                    ("online", "1"),
                ] {
                    tx.write(&format!("{back}/{key}"), value.as_bytes())?;
                }
                tx.write(&format!("{back}/state"), b"1")
            })
            .unwrap();
        let why = eventually("a refusal", || store.read_optional(&format!("{back}/hotplug-error")).unwrap());
        let why = String::from_utf8(why).unwrap();
        assert!(why.contains("has no volume") && !why.contains('\n') && why.len() < 400, "{target:?}: {why}");
        assert_eq!(store.read(&format!("{back}/state")).unwrap(), b"1", "{target:?}");
    }
    // Nobody has opened it: it is still whoever's.
    let outside = std::fs::File::open(rig.path("outside.img")).unwrap();
    rustix::fs::flock(&outside, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
}

/// Nor does ours write one.
#[test]
fn a_target_is_never_a_path() {
    let mut rig = rig_with_images();
    std::fs::write(rig.path("outside.img"), vec![0; 4096]).unwrap();
    rig.guest("g1");
    let outside = rig.path("outside.img").display().to_string();
    let long = "a".repeat(200);
    for target in ["../outside", "images/../../outside", &outside, "", "db\n", "/dev/sda", &long, "outside"] {
        let ended = rig.run("attach", &["g1", &format!("acme:{target}")]);
        assert_ne!(ended.code, Some(0), "{target:?}: {ended:?}");
        assert!(ended.err.trim_end().lines().count() == 1 && ended.err.len() < 600, "{ended:?}");
    }
}

#[test]
fn logs_top_and_metrics() {
    let mut rig = rig_with_images();
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    for n in 0..10 {
        assert_eq!(nbd.write(n * 4096, &[7; 4096]).unwrap(), 0);
    }
    let logs = rig.run("logs", &["acme", "--json"]);
    let first: Value = serde_json::from_str(logs.fine().lines().next().unwrap()).unwrap();
    assert!(first["number"] == 1 && first["level"].as_u64().is_some(), "{first}");
    assert!(rig.run("logs", &[]).fine().contains("serving"));

    let top = rig.run("top", &["acme", "-n", "1", "-d", "0.1", "--json"]);
    let top: Value = serde_json::from_str(top.fine()).unwrap();
    let disk = &top["devices"][0];
    assert!(disk["guest"] == "g1" && disk["device"] == "xvda" && disk["volume"] == "db", "{top}");
    assert!(
        disk["phase"] == "connected" && disk["in_flight"] == 0 && disk["grants_mapped"].as_u64() > Some(0),
        "{top}"
    );
    let table = rig.run("top", &["-b", "-n", "2", "-d", "0.1"]);
    assert_eq!(table.fine().matches("acme  g1     xvda").count(), 2, "{table:?}");

    let text = rig.run("metrics", &["acme"]);
    let samples = check(&text.out).unwrap();
    let value = |part: &str| samples.iter().find(|(name, _)| name.contains(part)).map(|(_, value)| *value);
    assert_eq!(value("op=\"write\""), Some(10.0), "{}", text.out);
    assert_eq!(value("windsor_blk_latency_seconds_count"), Some(10.0));
    assert_eq!(value("windsor_up"), Some(1.0));
    // A disk has at least a dozen keys.
    assert!(value("windsor_xenstore_nodes") > Some(12.0), "{}", text.out);
    assert!(
        text.out.contains("windsor_xenbus_state{vm=\"acme\",guest=\"g1\"") && text.out.contains("side=\"frontend\"} 4")
    );
    assert!(text.out.contains("guest=\"g1\",guest_domid="), "{}", text.out);

    rig.run("metrics", &["nobody"]).refused(3);
    rig.run("logs", &["nobody"]).refused(3);
    rig.run("top", &["nobody", "-n", "1"]).refused(3);
    rig.run("top", &["-d", "0"]).code.filter(|code| *code == 2).expect("usage");
}

/// What its worker has to say of a volume is among them, also when the guest provokes far more of it than anybody reads.
#[test]
fn logs_have_the_workers_lines() {
    let mut rig = rig_with_images();
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    std::fs::File::options().write(true).open(rig.path("acme.img")).unwrap().set_len(0).unwrap();
    for n in 0..100 {
        assert!(nbd.read(n * 4096, 4096).unwrap().is_err(), "a volume without content was read");
    }
    let worker = children(rig.supervisor("acme"), "worker")[0];
    let of_worker = || {
        let logs = rig.run("logs", &["acme", "--json"]);
        let lines = logs.fine().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["text"].as_str().unwrap().contains(&format!("worker={worker}"))).collect::<Vec<_>>()
    };
    let lines = eventually("the worker's lines", || Some(of_worker()).filter(|lines| !lines.is_empty()));
    assert!(
        lines[0]["level"] == 4 && lines[0]["text"].as_str().unwrap().contains("the volume failed a request"),
        "{lines:?}"
    );
    assert!(lines.len() < 30, "{}", lines.len());
}

#[test]
fn the_daemon_hands_numbers_to_a_scraper() {
    let mut rig = Rig::new();
    let image = rig.image("acme.img", 1);
    let path = rig.path("acme.toml");
    let text = format!("[vm]\nname='acme'\n[[volume]]\nname='db'\ndirect=false\npath='{}'\n", image.display());
    std::fs::write(path, text).unwrap();
    let socket = rig.path("metrics.sock");
    rig.serve_with("acme", &["--metrics", &format!("unix:{}", socket.display())]);
    let scrape = || {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let answer = eventually("an answer", || scrape().filter(|answer| answer.starts_with("HTTP/1.1 200")));
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let samples = check(body).unwrap();
    assert!(samples.iter().any(|(name, value)| name.starts_with("windsor_volume_size_bytes") && *value == 1048576.0));
    // The scraper's server goes with its supervisor, and comes with the next.
    let supervisor = children(rig.daemon("acme").pid(), "supervisor")[0];
    signal_to(supervisor, Signal::KILL);
    eventually("another supervisor", || {
        children(rig.daemon("acme").pid(), "supervisor").first().filter(|pid| **pid != supervisor).copied()
    });
    eventually("an answer", || {
        scrape().filter(|answer| answer.starts_with("HTTP/1.1 200") && answer.contains("windsor_up{vm=\"acme\"} 1"))
    });
    assert_eq!(rig.take("acme").stop(), Some(0));
    assert!(scrape().is_none());
    let refused = run(rig.command("serve").args(["--config", "x.toml", "--metrics", "0.0.0.0:1"]));
    assert_eq!(refused.code, Some(2));
}

#[test]
fn a_supervisor_that_dies_takes_neither_the_channel_nor_the_log_along() {
    let rig = rig_with_images();
    let daemon = rig.daemon("acme").pid();
    for _ in 0..3 {
        let supervisor = eventually("a supervisor", || children(daemon, "supervisor").first().copied());
        let before = rig.run("logs", &["acme"]).fine().to_owned();
        signal_to(supervisor, Signal::KILL);
        // Asked while there is nobody, it is answered by the next.
        let after = rig.run("logs", &["acme"]);
        assert!(after.fine().starts_with(&before), "{before}\n--\n{after:?}");
        eventually("a word of it", || rig.run("logs", &["acme"]).out.contains("taken over").then_some(()));
    }
    rig.run("volume", &["create", "acme:web", "1MiB"]).fine();
}

#[test]
fn many_ask_at_once() {
    let rig = rig_with_images();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..3 {
                    rig.run("logs", &["acme"]).fine();
                }
            });
        }
    });
}

/// `serve --linger`, as PID 1 has it: guests are served on, and nobody new is.
#[test]
fn the_end_waits_for_the_last_guest() {
    let mut rig = Rig::new();
    let image = rig.image("acme.img", 1);
    rig.config(
        "acme",
        &format!("[vm]\nname='acme'\n[[volume]]\nname='db'\ndirect=false\npath='{}'\n", image.display()),
    );
    rig.serve_with("acme", &["--linger", "600"]);
    rig.guest("g1");
    rig.guest("g2");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let mut nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    rig.daemon("acme").signal(Signal::TERM);
    let waiting = "/local/domain/1/data/windsor/waiting-for";
    let mut store = rig.store();
    let whom = eventually("a word", || store.read_optional(waiting).unwrap().filter(|text| !text.is_empty()));
    assert_eq!(String::from_utf8_lossy(&whom), "xvda of domain 2");
    assert!(rig.run("logs", &["acme"]).fine().contains("waiting for xvda of domain 2"));
    assert_eq!(nbd.write(0, &[9; 4096]).unwrap(), 0);
    assert_eq!(nbd.read(0, 4096).unwrap().unwrap(), [9; 4096]);
    let refused = rig.run("attach", &["g2", "acme:db", "--ro"]);
    assert!(refused.code != Some(0) && refused.err.contains("being shut down"), "{refused:?}");
    // One that dies now has a successor, which waits in its place.
    let supervisor = rig.supervisor("acme");
    store.write(waiting, b"").unwrap();
    signal_to(supervisor, Signal::KILL);
    eventually("a word of the next", || store.read_optional(waiting).unwrap().filter(|text| *text == whom));
    assert_eq!(nbd.write(4096, &[8; 4096]).unwrap(), 0);
    drop(nbd);
    rig.run("detach", &["g1", "xvda"]).fine();
    assert_eq!(rig.take("acme").wait(), Some(0));
    // Nobody is served: the end is at once. And so it is for whoever asks twice.
    rig.serve_with("acme", &["--linger", "600"]);
    assert_eq!(rig.take("acme").stop(), Some(0));
    rig.serve_with("acme", &["--linger", "600"]);
    rig.guest("g3");
    rig.run("attach", &["g3", "acme:db"]).fine();
    rig.daemon("acme").signal(Signal::TERM);
    eventually("a word", || rig.daemon("acme").log().contains("waiting for").then_some(()));
    assert_eq!(rig.take("acme").stop(), Some(0));
    // Patience ends.
    rig.serve_with("acme", &["--linger", "1"]);
    rig.guest("g4");
    rig.run("attach", &["g4", "acme:db"]).fine();
    let mut daemon = rig.take("acme");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0));
    assert!(daemon.log().contains("still in use, and stopped all the same"), "{}", daemon.log());
}

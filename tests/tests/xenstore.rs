//! `windsor xenstore`, through the real binary: as Debian's programs where there is one of the name, and what it exits
//! with.

mod rig;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use rig::{Ended, Rig, run};
use tests::skip;
use xenstore::{Permission, Store};

fn xenstore(rig: &Rig, args: &[&str]) -> Ended {
    rig.run("xenstore", args)
}

/// One of Debian's programs on the rig's store.
fn debian(rig: &Rig, program: &str, args: &[&str]) -> Ended {
    run(Command::new(program).args(args).env("XENSTORED_PATH", rig.dir().join("xenstored/socket")))
}

/// With values of every kind, names too long for a line, and permissions.
fn fill(rig: &Rig) {
    let mut store = rig.store();
    let every: Vec<u8> = (0..=255).collect();
    store.write("/a/b/bytes", &every).unwrap();
    (60..80).for_each(|len| store.write(&format!("/a/n{len}"), "x".repeat(len).as_bytes()).unwrap());
    (60..80).for_each(|len| store.write(&format!("/a/{}", "y".repeat(len)), b"v").unwrap());
    store.write("/a/text", b"tab\there, \"quoted\" back\\slash\n").unwrap();
    store.set_perms("/a/b", &[Permission::none(0), Permission::read(3), Permission::both(4)]).unwrap();
    store.write("/local/domain/3/data/x", b"1").unwrap();
    store.set_perms("/local/domain/3/data/x", &[Permission::read(3)]).unwrap();
}

#[test]
fn listings_and_values_are_those_of_debian_s_programs() {
    if !skip::installed("xenstore-ls", "xenstore-ls", "xenstore-utils") {
        return;
    }
    let rig = Rig::new();
    fill(&rig);
    for args in [&[][..], &["-f"], &["-p"], &["-f", "-p"], &["/a"], &["-p", "/a/b"], &["/a/text"]] {
        let ours = xenstore(&rig, &[&["ls"], args].concat());
        let theirs = debian(&rig, "xenstore-ls", args);
        assert_eq!((ours.fine(), theirs.code), (theirs.out.trim_end(), Some(0)), "{args:?}");
    }
    for args in [&["/a/text"][..], &["-p", "/a/b/bytes", "/a/n60"]] {
        assert_eq!(xenstore(&rig, &[&["read"], args].concat()).fine(), debian(&rig, "xenstore-read", args).fine());
    }
    for args in [&["/a"][..], &["-p", "/a/b", "/local"], &["/a/text"]] {
        assert_eq!(xenstore(&rig, &[&["list"], args].concat()).fine(), debian(&rig, "xenstore-list", args).fine());
    }
    let value = "a\\tb\\x41\\101\\q\\\\";
    xenstore(&rig, &["write", "/ours", value, "/more", "2"]).fine();
    debian(&rig, "xenstore-write", &["/theirs", value]).fine();
    let mut store = rig.store();
    assert_eq!(store.read("/ours").unwrap(), store.read("/theirs").unwrap());
    xenstore(&rig, &["chmod", "-r", "-u", "/a/b", "n0", "r5"]).fine();
    let ours = xenstore(&rig, &["ls", "-fp"]).fine().to_owned();
    debian(&rig, "xenstore-chmod", &["-r", "-u", "/a/b", "n0", "r5"]).fine();
    assert_eq!(ours, debian(&rig, "xenstore-ls", &["-fp"]).fine(), "the same once more changes nothing");
}

#[test]
fn nodes_are_written_and_removed_and_what_fails_says_why() {
    let rig = Rig::new();
    assert_eq!(xenstore(&rig, &["write", "/x/y", "one", "/x/z", "-2"]).fine(), "");
    assert_eq!(xenstore(&rig, &["read", "/x/y", "/x/z"]).fine(), "one\n-2");
    let dir = rig.dir().display().to_string();
    run(rig::windsor().args(["xenstore", "write", "/x/y", "one", "--dir", &dir])).fine();
    run(rig::windsor().args(["xenstore", "write", "--dir", &dir, "--", "/x/h", "--dir"])).fine();
    assert_eq!(run(rig::windsor().args(["xenstore", "read", "/x/h"]).env("WINDSOR_DIR", &dir)).fine(), "--dir");
    xenstore(&rig, &["rm", "/x/h"]).fine();
    assert_eq!(xenstore(&rig, &["mkdir", "/x/dir"]).fine(), "");
    assert_eq!(xenstore(&rig, &["list", "/x"]).fine(), "y\nz\ndir");
    xenstore(&rig, &["exists", "/x/y", "/x/dir"]).fine();
    assert!(xenstore(&rig, &["exists", "/x/y", "/x/q"]).refused(3).contains("/x/q: no such node"));
    assert!(xenstore(&rig, &["read", "/nope"]).refused(3).contains("/nope: no such node"));
    assert!(xenstore(&rig, &["ls", "/nope"]).refused(3).contains("/nope: no such node"));
    assert!(xenstore(&rig, &["rm", "/nope/below"]).refused(3).contains("the node above it"));
    xenstore(&rig, &["rm", "/nope"]).fine();
    assert!(xenstore(&rig, &["write", "/a b", "1"]).refused(2).contains("/a b: not a path"));
    assert!(xenstore(&rig, &["write", "/x/y"]).refused(2).contains("/x/y has no value"));
    assert!(xenstore(&rig, &["write", "/x/y", &"v".repeat(4097)]).refused(1).contains("4096 bytes"));
    assert_eq!(xenstore(&rig, &["chmod", "/x", "q1"]).code, Some(2));
    assert_eq!(xenstore(&rig, &["read"]).code, Some(2));
    xenstore(&rig, &["write", "/deep/er/still", ""]).fine();
    xenstore(&rig, &["rm", "-t", "/deep/er/still"]).fine();
    assert_eq!(xenstore(&rig, &["exists", "/deep"]).code, Some(3), "empty parents went with it");
    let bytes: Vec<u8> = (0..=255).collect();
    let mut write = rig.command("xenstore");
    let mut child = write.args(["write", "--stdin", "/bytes"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(rig.command("xenstore").args(["read", "-R", "/bytes"]).output().unwrap().stdout, bytes);
    let json: serde_json::Value = serde_json::from_str(xenstore(&rig, &["ls", "--json", "/x"]).fine()).unwrap();
    let node = serde_json::json!({"path": "/x/y", "value": "one", "perms": ["n0"]});
    assert_eq!((&json["schema_version"], &json["nodes"][0]), (&serde_json::json!(1), &node));
    let nowhere = rig.path("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    assert!(run(rig::windsor().args(["xenstore", "ls", "--dir", nowhere])).refused(3).contains("windsor host --dir"));
}

#[test]
fn a_domain_sees_and_does_what_it_may() {
    let mut rig = Rig::new();
    rig.guest("g1");
    let mut store = rig.store();
    let domains = store.directory("/local/domain").unwrap();
    let of = |domid: &&String| store.read(&format!("/local/domain/{domid}/name")).is_ok_and(|name| name == b"g1");
    let domid = domains.iter().find(of).unwrap().clone();
    xenstore(&rig, &["write", "/secret", "1"]).fine();
    let as_guest = |args: &[&str]| xenstore(&rig, &[args, &["--domain", &domid]].concat());
    assert!(as_guest(&["read", "/secret"]).refused(1).contains("this domain may not"));
    assert!(as_guest(&["write", "/new", "1"]).refused(1).contains("this domain may not"));
    assert_eq!(as_guest(&["read", "name"]).fine(), "g1", "relative to itself");
    assert!(as_guest(&["ls"]).fine().contains("name = \"g1\""), "its own directory");
    assert!(xenstore(&rig, &["ls", "--domain", "77"]).refused(3).contains("domains/77"));
}

#[test]
fn the_host_s_limits_can_be_set() {
    let rig = Rig::new();
    let dir = rig.path("other").display().to_string();
    let host = |quota: &str| run(rig::windsor().args(["host", "--dir", &dir, "--quota", quota]));
    for wrong in ["nodes", "nodes=x", "colour=1"] {
        assert!(host(wrong).refused(2).contains("transaction-nodes"), "{wrong}");
    }
    let mut command = rig::windsor();
    let mut child =
        command.args(["host", "--dir", &dir, "--quota", "node-size=64"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut store = xenstore::Client::connect(&rig.path("other/xenstored/socket")).unwrap();
    let limit = store.quota(None, "node-size");
    rig::signal_to(child.id(), rustix::process::Signal::TERM);
    child.wait().unwrap();
    assert_eq!(limit.unwrap(), Some(64));
}

#[test]
fn a_host_without_descriptors_serves_those_it_has_and_others_later() {
    let rig = Rig::new();
    let (dir, program) = (rig.path("few"), rig::windsor().get_program().to_owned());
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 64; exec \"$0\" host --dir \"$1\""]).arg(program).arg(&dir).stdout(Stdio::piped());
    let mut child = shell.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let socket = dir.join("xenstored/socket");
    let mut early = xenstore::Client::connect(&socket).unwrap();
    early.write("/early", b"1").unwrap();
    let crowd: Vec<_> = (0..200).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    early.write("/early", b"2").unwrap();
    drop(crowd);
    rig::eventually("a place for one more", || xenstore::Client::connect(&socket).ok()?.read("/early").ok());
    rig::signal_to(child.id(), rustix::process::Signal::TERM);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    child.wait().unwrap();
    assert!(said.lines().count() < 20, "{said}");
}

#[test]
fn a_watch_tells_each_change_and_ends_when_told_to() {
    let rig = Rig::new();
    let mut command = rig.command("xenstore");
    command.args(["watch", "-n", "4", "/w", "@releaseDomain"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!([lines.next().unwrap(), lines.next().unwrap()], ["/w", "@releaseDomain"], "at the beginning");
    rig.store().write("/w/x", b"1").unwrap();
    assert_eq!(lines.next().unwrap(), "/w/x");
    rig.store().rm("/w").unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), ["/w"]);
    assert!(child.wait().unwrap().success());
    let ended = xenstore(&rig, &["watch", "--json", "--timeout", "0.2", "/w"]);
    assert_eq!(ended.fine(), r#"{"path":"/w","watch":"/w"}"#);
    assert_eq!(xenstore(&rig, &["watch", "-n", "2", "--timeout", "0.2", "/w"]).code, Some(4), "one line is missing");
}

#[test]
fn a_store_that_is_restored_is_the_same_to_the_byte() {
    let (one, two) = (Rig::new(), Rig::new());
    fill(&one);
    let dump = |rig: &Rig, args: &[&str]| xenstore(rig, &[&["dump"], args].concat());
    let first = dump(&one, &[]);
    let file = one.path("dump");
    std::fs::write(&file, &first.out).unwrap();
    let file = file.to_str().unwrap();
    two.store().write("/other/node", b"goes").unwrap();
    two.store().write("/a/n79", b"another value, and in another place").unwrap();
    let ended = xenstore(&two, &["restore", file]);
    assert!(ended.code == Some(0) && ended.err.contains("2 nodes removed"), "{ended:?}");
    assert_eq!(dump(&two, &[]).out, first.out);
    assert_eq!(xenstore(&two, &["ls", "-fp"]).out, xenstore(&one, &["ls", "-fp"]).out);
    let mut watch = two.store();
    watch.watch("/", "w").unwrap();
    watch.next_event(None).unwrap();
    let again = xenstore(&two, &["restore", file]);
    assert!(again.err.contains("0 nodes removed") && again.err.contains("0 made, 0 changed"), "{again:?}");
    assert_eq!(watch.next_event(Some(std::time::Duration::from_millis(200))).unwrap(), None, "nothing was touched");
    // A part of it, and a file that is wrong.
    let part = dump(&one, &["/a/b"]);
    assert!(part.fine().starts_with("windsor-xenstore-dump 1 /a/b\n/a/b\tn0,r3,b4\t\n"), "{part:?}");
    let before = dump(&two, &[]).out;
    for wrong in [&first.out[..first.out.len() / 2], &first.out[..first.out.rfind("end ").unwrap()], "nonsense\n", ""] {
        std::fs::write(file, wrong).unwrap();
        let refused = xenstore(&two, &["restore", file]);
        assert!(refused.refused(1).ends_with("nothing was changed"), "{refused:?}");
    }
    assert_eq!(dump(&two, &[]).out, before);
    assert!(xenstore(&two, &["restore", "/nonexistent/dump"]).refused(3).contains("/nonexistent/dump"));
}

#[test]
fn check_has_nothing_to_say_of_a_device_that_works_and_names_one_that_does_not() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    rig.guest("g1");
    let nothing = xenstore(&rig, &["check", "--dwell", "0.1"]);
    assert_eq!((nothing.fine(), nothing.err.trim_end()), ("", "0 devices, 0 findings"));
    rig.run("attach", &["g1", "acme:db"]).fine();
    let healthy = xenstore(&rig, &["check", "--dwell", "0.1"]);
    assert_eq!((healthy.fine(), healthy.err.trim_end()), ("", "1 devices, 0 findings"));
    let listing = xenstore(&rig, &["ls", "-f"]).fine().to_owned();
    let sectors = listing.lines().find(|line| line.contains("/sectors = ")).unwrap();
    let sectors = sectors.split(" = ").next().unwrap();
    xenstore(&rig, &["write", sectors, "many"]).fine();
    let broken = xenstore(&rig, &["check", "--dwell", "0.1"]);
    assert_eq!((broken.code, broken.err.trim_end()), (Some(1), "1 devices, 1 findings"), "{broken:?}");
    assert!(broken.out.starts_with(&format!("{sectors}: \"many\" is no number")), "{broken:?}");
    let json: serde_json::Value =
        serde_json::from_str(&xenstore(&rig, &["check", "--json", "--dwell", "0.1"]).out).unwrap();
    assert_eq!(json["findings"][0]["node"], *sectors);
}

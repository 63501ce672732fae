//! The README's session by hand, run as it stands there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::skip::{installed, skip};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).expect("README.md")
}

/// The `sh` blocks of the section with this heading, one after the other.
fn session(text: &str, heading: &str) -> String {
    let mut script = String::new();
    let (mut in_section, mut in_block) = (false, false);
    for line in text.lines() {
        match line {
            _ if !in_block && line.starts_with("## ") => in_section = line == heading,
            "```sh" if in_section => in_block = true,
            "```" => in_block = false,
            _ if in_block => {
                script.push_str(line);
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

/// Runs a session of the README, which must end well, in a directory of its own; what it said.
#[track_caller]
fn run(script: &str, at_exit: &str, dir: &Path) -> String {
    let build = escargot::CargoBuild::new().package("unikernel").bin("windsor").current_target();
    let build = if cfg!(debug_assertions) { build } else { build.release() };
    let built = build.run().expect("windsor does not build");
    let programs = built.path().parent().expect("a directory").display().to_string();
    let output = Command::new("timeout")
        .args(["-k", "10", "180", "bash", "-euo", "pipefail", "-c"])
        // Ours, so that a session that breaks off leaves no daemon behind.
        .arg(format!("trap 'kill $(jobs -p) 2>/dev/null || :; {at_exit}' EXIT\n{script}"))
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").expect("PATH")))
        .env_remove("WINDSOR_DIR")
        .env_remove("WINDSOR_LOG")
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("timeout cannot be run");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    said
}

#[test]
fn the_session_by_hand_works_as_it_is_written() {
    let case = "readme-session";
    if !installed(case, "qemu-img", "qemu-utils") || !installed(case, "fio", "fio") {
        return;
    }
    let script = session(&readme(), "## By hand");
    for word in ["host", "serve", "guest", "attach", "status", "detach"] {
        assert!(script.contains(&format!("windsor {word}")), "no windsor {word} in:\n{script}");
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let said = run(&script, "", dir.path());
    assert!(said.contains("g1 xvda  db  connected"), "no disk in the status: {said}");
    assert!(said.contains("err= 0"), "fio is not content: {said}");
    assert!(!dir.path().join("g1.sock").exists(), "the guest did not stop: {said}");
}

#[test]
fn the_network_by_hand_works_as_it_is_written() {
    let case = "readme-network";
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        return skip(case, "network namespaces need root and /dev/net/tun");
    }
    let tools = [("ip", "iproute2"), ("ping", "iputils-ping"), ("iperf3", "iperf3")];
    if !tools.into_iter().all(|(program, package)| installed(case, program, package)) {
        return;
    }
    let script = session(&readme(), "## A network by hand");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let said = run(&script, "for g in g1 g2; do ip netns del $g 2>/dev/null || :; done", dir.path());
    assert!(said.contains("3 received, 0% packet loss"), "the guests do not reach each other: {said}");
    assert!(said.contains("g2 vif0  lan  ") && said.contains("  connected"), "no card in the status: {said}");
}

#[test]
fn the_packages_are_named() {
    let text = readme();
    for list in ["tests/packages", "tests/lab/packages"] {
        for name in std::fs::read_to_string(root().join(list)).expect(list).lines() {
            assert!(text.contains(name), "README.md does not name the package {name} of {list}");
        }
    }
}

#[test]
fn only_the_section_s_own_blocks_are_run() {
    let text = "## A\n```sh\none\n```\n## B\n```sh\ntwo\n## not a heading\n```\n```\nthree\n```\n```sh\nfour\n```\n";
    assert_eq!(session(text, "## B"), "two\n## not a heading\nfour\n");
}

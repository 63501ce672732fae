//! The Debian package: built, and looked into.

use std::path::Path;
use std::process::Command;

use tests::skip::installed;

use crate::rig::{Ended, run, windsor};

#[test]
fn the_package_holds_what_an_operator_needs() {
    if !installed("debian-package", "dpkg-deb", "dpkg") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut build = Command::new(root.join("packaging/deb"));
    let ended = run(build.arg(dir.path()).env("WINDSOR", windsor().get_program()).env_remove("WINDSOR_DIR"));
    let deb = ended.fine().to_owned();
    let ask = |args: &[&str]| -> Ended { run(Command::new("dpkg-deb").args(args)) };
    let contents = ask(&["--contents", &deb]);
    let lines: Vec<(&str, &str)> = contents
        .fine()
        .lines()
        .map(|line| (line.split_whitespace().next().unwrap(), line.split_whitespace().nth(5).unwrap()))
        .collect();
    for (mode, path) in [
        ("-rwxr-xr-x", "./usr/bin/windsor"),
        ("-rw-r--r--", "./usr/lib/systemd/system/windsor@.service"),
        ("-rw-r--r--", "./usr/lib/systemd/system/windsor-guests.service"),
        ("-rw-r--r--", "./usr/share/man/man1/windsor.1.gz"),
        ("-rw-r--r--", "./usr/share/man/man1/windsor-vm-upgrade.1.gz"),
        ("-rw-r--r--", "./usr/share/man/man5/windsor.toml.5.gz"),
        ("-rw-r--r--", "./usr/share/man/man7/windsor-xenstore-paths.7.gz"),
        ("-rw-r--r--", "./usr/share/bash-completion/completions/windsor"),
        ("-rw-r--r--", "./usr/share/zsh/vendor-completions/_windsor"),
        ("-rw-r--r--", "./usr/share/fish/vendor_completions.d/windsor.fish"),
        ("-rw-r--r--", "./usr/share/doc/windsor/examples/acme.toml"),
        ("drwxr-xr-x", "./etc/windsor/"),
    ] {
        assert!(lines.contains(&(mode, path)), "no {mode} {path} in {}", contents.out);
    }
    assert!(contents.out.lines().all(|line| line.contains("root/root")), "{}", contents.out);
    let control = ask(&["--field", &deb, "Package", "Architecture", "Version"]);
    assert!(control.fine().contains("Package: windsor"), "{control:?}");

    let tree = dir.path().join("tree");
    ask(&["--extract", &deb, tree.to_str().unwrap()]).fine();
    let version = run(Command::new(tree.join("usr/bin/windsor")).arg("--version"));
    let number = version.fine().split(' ').nth(1).unwrap();
    assert!(control.out.contains(&format!("Version: {number}")), "{control:?} {version:?}");
    // The example is a configuration as it stands: only its volume is missing here.
    let example = tree.join("usr/share/doc/windsor/examples/acme.toml");
    let config = unikernel::config::Config::load(&example).unwrap();
    assert_eq!((config.vm.name.as_str(), config.volumes.len()), ("acme", 1));
}

#[test]
fn systemd_takes_the_units_and_windsor_their_commands() {
    if !installed("systemd-units", "systemd-analyze", "systemd") {
        return;
    }
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging/systemd");
    let dir = tempfile::tempdir().unwrap();
    let program = windsor().get_program().to_str().unwrap().to_owned();
    let (mut files, mut commands) = (Vec::new(), 0);
    for unit in std::fs::read_dir(units).unwrap() {
        let unit = unit.unwrap();
        let text = std::fs::read_to_string(unit.path()).unwrap();
        let file = dir.path().join(unit.file_name().to_str().unwrap().replace('@', "@acme"));
        // The command is not installed here.
        std::fs::write(&file, text.replace("/usr/bin/windsor", &program)).unwrap();
        files.push(file);
        for line in text.lines().filter(|line| line.starts_with("Exec")) {
            let words = line.split_once("/usr/bin/windsor ").unwrap().1.replace("%i", "acme");
            let ended = run(windsor().args(words.split(' ')).arg("--dry-run").env("XENSTORED_PATH", "/nonexistent"));
            assert_ne!(ended.code, Some(2), "{line}: {ended:?}");
            commands += 1;
        }
    }
    let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files));
    assert_eq!((verified.code, verified.err.as_str()), (Some(0), ""), "{verified:?}");
    assert_eq!((files.len(), commands), (2, 3));
}

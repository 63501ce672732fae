//! The manual's pages and the completion scripts, made by the command itself.

use std::fs;
use std::process::Command;

use tests::skip::installed;

use crate::rig::{run, windsor};

#[test]
fn pages_are_complete_and_well_formed() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(windsor().args(["man", "--out"]).arg(dir.path()));
    let files: Vec<&str> = ended.fine().lines().collect();
    for name in [
        "windsor.1",
        "windsor-vm.1",
        "windsor-vm-create.1",
        "windsor-doctor.1",
        "windsor-xenstore-ls.1",
        "windsor.toml.5",
        "windsor-xenstore-paths.7",
    ] {
        assert!(files.iter().any(|file| file.ends_with(&format!("/{name}"))), "no {name}");
    }
    assert!(
        !files.iter().any(|file| file.contains("supervisor") || file.contains("-help")),
        "hidden commands have pages"
    );
    let page = fs::read_to_string(dir.path().join("windsor-vm-create.1")).unwrap();
    for word in [".TH windsor-vm-create 1", "\\-\\-print\\-xl", "\\-\\-pci", "windsor\\-vm(1)"] {
        assert!(page.contains(word), "no {word} in {page}");
    }
    if !installed("man-pages", "groff", "groff-base") {
        return;
    }
    for file in files {
        let lint = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z", file]).output().unwrap();
        assert!(lint.status.success() && lint.stderr.is_empty(), "{file}: {}", String::from_utf8_lossy(&lint.stderr));
    }
}

#[test]
fn shells_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(windsor().args(["completion", shell]));
        for word in ["attach", "doctor", "print-xl", "rollback"] {
            assert!(script.fine().contains(word), "{shell}: no {word}");
        }
    }
    let bash = tempfile::NamedTempFile::new().unwrap();
    fs::write(bash.path(), run(windsor().args(["completion", "bash"])).out).unwrap();
    let parsed = Command::new("bash").arg("-n").arg(bash.path()).status().unwrap();
    assert!(parsed.success(), "bash does not take its script");
    assert_eq!(run(windsor().args(["completion", "tcsh"])).code, Some(2));
}

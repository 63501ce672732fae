//! The shape of the workspace: who may depend on whom, where `unsafe` lives, how long a file may be, and what may not be
//! left lying about.

use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand, Package, TargetKind};

/// Which crates of the workspace each crate may depend on, in whatever way.
const MAY_USE: [(&str, &[&str]); 7] = [
    ("grant", &[]),
    ("xenstore", &[]),
    ("blkback", &["grant", "xenstore"]),
    ("netback", &["grant", "xenstore"]),
    ("frontend", &["grant", "xenstore", "blkback", "netback"]),
    ("unikernel", &["grant", "xenstore", "blkback", "netback", "frontend"]),
    ("tests", &["grant", "xenstore", "blkback", "netback", "frontend", "unikernel"]),
];

/// Lines after which a file must be split.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.current_dir(root()).no_deps().exec().expect("cargo metadata")
}

/// Every file of the repository, with its text where it is text, by its path from the root.
fn files() -> Vec<(String, String)> {
    // A checkout that belongs to somebody else (CI's, seen by root) is read all the same.
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "-C"]).arg(root()).args(["ls-files", "-z"]);
    let listed = git.output().expect("git");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    let texts: Vec<_> = names
        .split_terminator('\0')
        .filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(root().join(name)).ok()?)))
        .collect();
    assert!(texts.len() > 50, "{} files", texts.len());
    texts
}

fn rust_files() -> Vec<(String, String)> {
    files().into_iter().filter(|(name, _)| name.ends_with(".rs")).collect()
}

/// The text without its comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What the code names of a crate: the first segment after each `name::`, or `*` where it takes the crate as a whole.
fn named(code: &str, name: &str) -> Vec<String> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for (at, _) in code.match_indices(name) {
        let rest = &code[at + name.len()..];
        if at > 0 && (in_word(bytes[at - 1]) || bytes[at - 1] == b':') {
            continue;
        }
        if let Some(path) = rest.strip_prefix("::{") {
            found.extend(group(path));
        } else if let Some(path) = rest.strip_prefix("::") {
            found.push(path.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect());
        } else if rest.starts_with(" as ") || (rest.starts_with(';') && code[..at].ends_with("use ")) {
            found.push("*".to_owned());
        }
    }
    found
}

/// The first segments of the paths in a `{...}` whose brace has been taken.
fn group(text: &str) -> Vec<String> {
    let mut depth = 1;
    let mut top = String::new();
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ if depth == 1 => top.push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    top.split(',').map(|path| path.split("::").next().unwrap_or_default().trim().to_owned()).collect()
}

fn is_root(kind: &TargetKind) -> bool {
    matches!(kind, TargetKind::Lib | TargetKind::Bin)
}

fn roots(package: &Package) -> Vec<PathBuf> {
    let targets = package.targets.iter().filter(|target| target.kind.iter().any(is_root));
    targets.map(|target| target.src_path.clone().into_std_path_buf()).collect()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let names: Vec<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    for name in &names {
        assert!(MAY_USE.iter().any(|(known, _)| known == name), "crate {name} is not in the design");
    }
    for (name, may_use) in MAY_USE {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name);
        let package = package.unwrap_or_else(|| panic!("crate {name} is missing"));
        for dependency in &package.dependencies {
            let other = dependency.name.as_str();
            let ours = names.contains(&other);
            assert!(!ours || may_use.contains(&other), "{name} must not depend on {other}");
        }
    }
}

#[test]
fn unsafe_lives_in_grant() {
    for package in metadata().packages.iter().filter(|package| package.name.as_str() != "grant") {
        for root in roots(package) {
            let text = std::fs::read_to_string(&root).expect("the root of a crate");
            assert!(text.contains("#![forbid(unsafe_code)]"), "{}: no forbid(unsafe_code)", root.display());
        }
    }
    // The roots of integration tests are crates of their own.
    for (name, text) in rust_files() {
        if name.starts_with("grant/") || name.ends_with("/structure.rs") {
            continue;
        }
        for keyword in ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"] {
            assert!(!code(&text).contains(keyword), "{name}: {keyword}");
        }
    }
}

#[test]
fn one_crate_picks_the_world() {
    for (name, text) in rust_files() {
        let krate = name.split('/').next().unwrap_or_default();
        if !["grant", "unikernel", "tests"].contains(&krate) {
            let worlds: Vec<String> = named(&code(&text), "grant");
            let world = worlds.iter().find(|path| ["xen", "embedded", "*"].contains(&path.as_str()));
            assert!(world.is_none(), "{name} names grant::{}", world.expect("one"));
        }
    }
}

#[test]
fn the_frontend_knows_devices_by_their_protocol() {
    for (name, text) in rust_files().into_iter().filter(|(name, _)| name.starts_with("frontend/")) {
        for device in ["blkback", "netback"] {
            // What a frame is called is neither side's.
            let shared = |path: &String| path == "proto" || path == "packet" && device == "netback";
            let other = named(&code(&text), device).into_iter().find(|path| !shared(path));
            assert!(other.is_none(), "{name} names {device}::{}", other.expect("one"));
        }
    }
}

#[test]
fn files_are_short() {
    for (name, text) in rust_files() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{name} has {lines} lines: split it by meaning");
    }
}

#[test]
fn nothing_is_left_for_later() {
    let words = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("FIX", "ME"), concat!("XX", "X")];
    for (name, text) in files().into_iter().filter(|(name, _)| name != "LICENSE") {
        let shell = text.starts_with("#!") && !name.ends_with(".rs");
        for (number, line) in text.lines().enumerate() {
            // A template of mktemp is no note.
            if shell && line.contains("mktemp") {
                continue;
            }
            let word = words.iter().find(|word| line.contains(**word));
            assert!(word.is_none(), "{name}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn no_path_belongs_to_one_machine() {
    for (name, text) in files() {
        for (number, line) in text.lines().enumerate() {
            for top in ["work", "root", "home"] {
                for (at, _) in line.match_indices(&format!("/{top}/")) {
                    let mut before = line[..at].bytes().rev();
                    let absolute = match before.next() {
                        // "$DIRECTORY"/root/ continues a path.
                        Some(b'"' | b'\'') => !before.next().is_some_and(in_word),
                        Some(byte) => !in_word(byte) && !b"}).-*~".contains(&byte),
                        None => true,
                    };
                    assert!(!absolute, "{name}:{}: {line}", number + 1);
                }
            }
        }
    }
}

#[test]
fn the_toolchain_and_the_dependencies_are_pinned() {
    let text = std::fs::read_to_string(root().join("rust-toolchain.toml")).expect("rust-toolchain.toml");
    let channel = text.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'));
    let channel = channel.expect("a channel");
    let exact = channel.split('.').count() == 3 && channel.split('.').all(|part| part.parse::<u32>().is_ok());
    assert!(exact, "channel {channel} is not an exact version");
    assert!(!text.lines().any(|line| line.starts_with("targets")), "a pinned target ties the workspace to a machine");
    assert!(files().iter().any(|(name, _)| name == "Cargo.lock"), "Cargo.lock is not tracked");
}

#[test]
fn paths_are_found_in_every_form() {
    let found = named("use grant::{DomId, embedded::{Host, Stop}, xen};\nlet a = grant::heap::x();", "grant");
    assert_eq!(found, ["DomId", "embedded", "xen", "heap"]);
    assert_eq!(named("use grant as g; use grant::*;", "grant"), ["*", "*"]);
    assert!(named("crate::grant::xen; my_grant::xen", "grant").is_empty());
}

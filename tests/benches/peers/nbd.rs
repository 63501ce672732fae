//! Windsor's guest, qemu-nbd and nbdkit export the same file by NBD; fio is the client of each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::measure::{Running, json, version};
use unikernel::bench::figures::{Document, Figure, Group};

use crate::rig::{self, Rig};

/// An export, and what keeps it there.
struct Export {
    name: &'static str,
    uri: String,
    _program: Option<Running>,
}

/// One loop of service VM and guest for the export; a rig must not go before its exports.
fn windsor(file: &Path) -> (Rig, Export) {
    let mut rig = Rig::new();
    let path = file.display();
    let text = format!(
        "[vm]\nname = \"acme\"\n[[volume]]\nname = \"db\"\npath = \"{path}\"\ndirect = false\nmode = \"ro\"\n\
         [backend]\npoll-us = 0\n"
    );
    rig.config("acme", &text);
    rig.serve_again("acme");
    rig.guest("g1");
    rig::run(rig.command("attach").args(["g1", "acme:db", "--vdev", "xvda", "--ro"])).fine();
    let uri = format!("nbd+unix:///xvda?socket={}", rig.nbd("g1").display());
    (rig, Export { name: "windsor", uri, _program: None })
}

fn program(name: &'static str, command: &mut Command, dir: &Path, socket: PathBuf) -> Result<Export, String> {
    let started = Running::start(command, &dir.join(format!("{name}.log"))).map_err(|error| error.to_string())?;
    let patience = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        if Instant::now() > patience {
            return Err(format!("{name} makes no socket"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Export { name, uri: format!("nbd+unix:///?socket={}", socket.display()), _program: Some(started) })
}

fn fio(uri: &str, (bytes, depth): (usize, u16), seconds: u64) -> Result<f64, String> {
    let mut command = Command::new("fio");
    command.args(["--name=peers", "--ioengine=nbd", "--rw=randread", "--readonly", "--time_based"]);
    command.args(["--output-format=json", "--size=100%", "--randrepeat=1"]);
    command.arg(format!("--uri={uri}")).arg(format!("--bs={bytes}")).arg(format!("--iodepth={depth}"));
    let found: Value = json(command.arg(format!("--runtime={seconds}")))?;
    found["jobs"][0]["read"]["iops"].as_f64().ok_or_else(|| "fio says nothing of its reads".to_owned())
}

/// Measures what there is; what is missing stands among the notes.
pub fn run(
    document: &mut Document,
    file: &Path,
    wanted: &[&'static str],
    shapes: &[(usize, u16)],
    (rounds, seconds): (usize, u64),
) -> Result<(), String> {
    match version("fio") {
        Some(version) => document.versions.insert("fio".into(), version),
        None => {
            document.notes.push("NBD: fio is missing (apt-get install fio).".into());
            return Ok(());
        }
    };
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (rig, export) = windsor(file);
    let mut exports = vec![export];
    for name in wanted {
        let Some(version) = version(name) else {
            let package = if *name == "nbdkit" { "nbdkit" } else { "qemu-utils" };
            document.notes.push(format!("{name} is missing (apt-get install {package})."));
            continue;
        };
        document.versions.insert((*name).to_owned(), version);
        let socket = dir.path().join(name);
        let mut command = Command::new(name);
        match *name {
            "nbdkit" => command.args(["-f", "-r", "-U"]).arg(&socket).arg("file").arg(file),
            _ => command
                .args(["-r", "-t", "-f", "raw", "-e", "4", "--cache=writeback", "--aio=io_uring", "-k"])
                .arg(&socket)
                .arg(file),
        };
        exports.push(program(name, &mut command, dir.path(), socket)?);
    }
    for &shape in shapes {
        let mut found = vec![Vec::new(); exports.len()];
        for _ in 0..rounds {
            for (export, found) in exports.iter().zip(&mut found) {
                found.push(fio(&export.uri, shape, seconds)?);
            }
        }
        let (bytes, depth) = shape;
        let mut figures: Vec<Figure> = exports
            .iter()
            .zip(&found)
            .map(|(export, found)| Figure::new(format!("{} by NBD", export.name), "IOPS", found))
            .collect();
        for (export, its) in exports.iter().zip(&found).skip(1) {
            figures.push(Figure::ratio(format!("windsor / {}", export.name), &found[0], its));
        }
        document.groups.push(Group { title: format!("fio by NBD, reads of {bytes} bytes, depth {depth}"), figures });
    }
    drop((exports, rig));
    Ok(())
}

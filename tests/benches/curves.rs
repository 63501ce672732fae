//! Throughput, system calls and instructions of an I/O against whatever there may be more of.
//!
//!   cargo bench -p tests --bench curves [-- --short --seconds S --cpu N --only depth,block,queues,disks,guests --json FILE]
//!
//! Reads at random places of a file in the page cache, everything on one CPU: a curve that falls shows that something
//! costs more, not that a processor is missing. Of several disks of a guest one is used and the rest idle; of several
//! guests all are used. Instructions are counted apart from that, as the test `cost` does it, with one thread and in
//! lock-step; a guest has a worker of its own, so that they do not depend on how many there are. `--short` takes the ends of
//! every axis.

#[path = "../tests/cost/lives.rs"]
mod lives;
#[path = "../tests/rig/mod.rs"]
mod rig;
#[path = "../tests/cost/worker.rs"]
mod worker;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use lives::Load;
use rig::Rig;
use serde_json::Value;
use tests::measure::{Pinned, Scratch, Words, json, version};
use unikernel::bench::figures::{Curve, Document, Meanwhile, Series};

/// The axes.
const ALL: [&str; 5] = ["depth", "block", "queues", "disks", "guests"];
/// MiB of the file.
const SIZE: usize = 256;
/// Batches of a short life whose instructions are counted, and of a long one.
const FEW: u32 = 100;
const MANY: u32 = 500;

/// What a point has: requests a second, and calls of the service VM for each.
struct Point {
    iops: f64,
    calls: f64,
}

fn of(found: &Value) -> Result<Point, String> {
    let iops = found["jobs"][0]["read"]["iops"].as_f64();
    let calls = found["windsor"]["per_io"]["system_calls"].as_f64();
    match (iops, calls) {
        (Some(iops), Some(calls)) => Ok(Point { iops, calls }),
        _ => Err("windsor says nothing of its reads".into()),
    }
}

/// `windsor bench blk` on the file.
fn blk(file: &Path, seconds: u64, more: [(&str, u64); 3]) -> Result<Point, String> {
    let mut command = rig::windsor();
    command.args(["bench", "blk", "--output-format", "json", "--size", &format!("{SIZE}m"), "--filename"]).arg(file);
    command.args(["--runtime", &seconds.to_string()]);
    for (word, value) in more {
        command.args([word, &value.to_string()]);
    }
    of(&json(&mut command)?)
}

/// A service VM with the file and idle disks.
fn served(file: &Path, idle: u64) -> Rig {
    let mut rig = Rig::with(&["--quota", "nodes=20000", "--quota", "watches=1000"]);
    let mut text = format!(
        "[vm]\nname = \"acme\"\n[[volume]]\nname = \"db\"\npath = \"{}\"\ndirect = false\nmode = \"ro\"\n",
        file.display()
    );
    for disk in 0..idle {
        let image = rig.image(&format!("{disk}.img"), 1);
        let _ = writeln!(text, "[[volume]]\nname = \"v{disk}\"\npath = \"{}\"\ndirect = false", image.display());
    }
    rig.config("acme", &format!("{text}[backend]\ninitwait-dwell-ms = 0\npoll-us = 0\ngrants = 1048576\n"));
    rig.serve_again("acme");
    rig
}

/// One disk of a guest is read by NBD, the rest idle.
fn disks(file: &Path, disks: u64, seconds: u64) -> Result<Point, String> {
    let mut rig = served(file, disks - 1);
    rig.guest_with("g1", &["--memory", "2048"]);
    rig.run("attach", &["g1", "acme:db", "--vdev", "xvda", "--ro"]).fine();
    for disk in 0..disks - 1 {
        rig.run("attach", &["g1", &format!("acme:v{disk}")]).fine();
    }
    let counted = || {
        let disks = rig.disks();
        let stats = disks.iter().find(|disk| disk["volume"] == "db").map(|disk| disk["stats"].clone());
        let number = |name: &str| stats.as_ref().and_then(|stats| stats[name].as_f64()).unwrap_or_default();
        [number("reads"), number("system_calls")]
    };
    let settled = || std::thread::sleep(std::time::Duration::from_millis(1500));
    settled();
    let before = counted();
    let mut fio = Command::new("fio");
    fio.args(["--name=curve", "--ioengine=nbd", "--rw=randread", "--readonly", "--time_based", "--size=100%"]);
    fio.args(["--bs=4096", "--iodepth=32", "--output-format=json", &format!("--runtime={seconds}")]);
    let found = json(fio.arg(format!("--uri=nbd+unix:///xvda?socket={}", rig.nbd("g1").display())))?;
    settled();
    let after = counted();
    let iops = found["jobs"][0]["read"]["iops"].as_f64().ok_or("fio says nothing of its reads")?;
    Ok(Point { iops, calls: (after[1] - before[1]) / (after[0] - before[0]).max(1.0) })
}

/// Guests that all read at once; together, and on average.
fn guests(file: &Path, guests: u64, seconds: u64) -> Result<Point, String> {
    let rig = served(file, 0);
    let (one, rig) = (
        |rig: &Rig, guest: u64| {
            let mut command = rig::windsor();
            command.args([
                "bench",
                "blk",
                "--volume",
                "acme:db",
                "--output-format",
                "json",
                "--iodepth",
                "32",
                "--dir",
            ]);
            command.arg(rig.dir()).args(["--guest", &format!("g{guest}"), "--runtime", &seconds.to_string()]);
            of(&json(&mut command)?)
        },
        &rig,
    );
    let points = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..guests).map(|guest| scope.spawn(move || one(rig, guest))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|ended| ended.map_err(|_| "a thread panicked".to_owned())?).collect::<Result<Vec<Point>, String>>()
    })?;
    let iops = points.iter().map(|point| point.iops).sum();
    Ok(Point { iops, calls: points.iter().map(|point| point.calls).sum::<f64>() / guests as f64 })
}

/// The points of an axis.
fn points(words: &Words, values: Vec<u64>) -> Vec<u64> {
    if words.short { vec![values[0], values[values.len() - 1]] } else { values }
}

fn curve(document: &mut Document, (title, x): (&str, &str), y: &str, points: Vec<[f64; 2]>) {
    let series = vec![Series { name: "windsor".into(), points }];
    document.curves.push(Curve { title: title.into(), x: x.into(), y: y.into(), series });
}

fn axis(
    document: &mut Document,
    about: (&str, &str),
    values: &[u64],
    mut point: impl FnMut(u64) -> Result<Point, String>,
) -> Result<(), String> {
    let (mut iops, mut calls) = (Vec::new(), Vec::new());
    for &value in values {
        let Point { iops: of_value, calls: each } = point(value)?;
        iops.push([value as f64, of_value]);
        calls.push([value as f64, each]);
    }
    curve(document, about, "IOPS", iops);
    curve(document, about, "system calls per I/O, as on Xen", calls);
    Ok(())
}

/// The same axis in exact counts, where valgrind is installed.
fn counts(
    document: &mut Document,
    about: (&str, &str),
    values: &[u64],
    load: impl Fn(u64) -> Load,
) -> Result<(), String> {
    if version("valgrind").is_none() {
        return Ok(());
    }
    let file = lives::image();
    let (mut instructions, mut calls, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for &value in values {
        let load = load(value);
        let found = lives::cost(&load, &file, (FEW * load.depth, MANY * load.depth), about.1);
        if found.turns < 1.0 {
            return Err(format!("not in lock-step, {} turns for each batch: {load:?}", found.turns));
        }
        instructions.push([value as f64, found.instructions]);
        calls.push([value as f64, found.system_calls]);
        events.push([value as f64, found.events_in.max(found.events_out)]);
    }
    curve(document, about, "user instructions per I/O, in lock-step", instructions);
    curve(document, about, "system calls per batch, in lock-step", calls);
    curve(document, about, "events per batch each way, in lock-step", events);
    Ok(())
}

fn measure(words: &Words) -> Result<Document, String> {
    rig::run(rig::windsor().arg("--version")).fine();
    let scratch =
        Scratch::new(env!("CARGO_TARGET_TMPDIR"), SIZE).map_err(|error| format!("no scratch file: {error}"))?;
    let (file, seconds) = (scratch.path(), words.seconds);
    let meanwhile = Meanwhile::start();
    let mut found = meanwhile.document("Curves");
    let _pinned = Pinned::to(words.cpu).map_err(|error| format!("--cpu {}: {error}", words.cpu))?;
    let powers = |from: u32, to: u32| points(words, (from..=to).map(|power| 1 << power).collect());
    if words.wants("depth") {
        let (about, values) = (("Reads of 4 KiB", "depth"), powers(0, 7));
        axis(&mut found, about, &values, |depth| {
            blk(file, seconds, [("--bs", 4096), ("--iodepth", depth), ("--numjobs", 1)])
        })?;
        counts(&mut found, about, &values, |depth| Load { depth: depth as u32, ..Load::PLAIN })?;
    }
    if words.wants("block") {
        let (about, values) = (("Reads at depth 8", "bytes of a read"), powers(9, 20));
        axis(&mut found, about, &values, |bytes| {
            blk(file, seconds, [("--bs", bytes), ("--iodepth", 8), ("--numjobs", 1)])
        })?;
        counts(&mut found, about, &values, |bytes| Load { bytes: bytes as usize, depth: 8, ..Load::PLAIN })?;
    }
    if words.wants("queues") {
        let (about, values) = (("Reads of 4 KiB, depth 32 on each queue", "queues"), points(words, vec![1, 2, 3, 4]));
        axis(&mut found, about, &values, |queues| {
            blk(file, seconds, [("--bs", 4096), ("--iodepth", 32), ("--numjobs", queues)])
        })?;
        counts(&mut found, about, &values, |queues| Load { queues: queues as usize, ..Load::PLAIN })?;
    }
    if words.wants("disks") {
        let values = points(words, vec![1, 4, 16, 64, 256]);
        match version("fio") {
            Some(fio) => {
                found.versions.insert("fio".into(), fio);
                let about = ("Reads of 4 KiB by fio over NBD, depth 32, of one disk among idle ones", "disks");
                axis(&mut found, about, &values, |count| disks(file, count, seconds))?;
            }
            None => found.notes.push("disks: fio is missing (apt-get install fio).".into()),
        }
        let about = ("Reads of 4 KiB, depth 32, of one disk among idle ones", "disks");
        counts(&mut found, about, &values, |disks| Load { idle: disks as usize - 1, ..Load::PLAIN })?;
    }
    if words.wants("guests") {
        let about = ("Reads of 4 KiB at depth 32 of each guest, all together", "guests");
        axis(&mut found, about, &powers(0, 4), |count| guests(file, count, seconds))?;
    }
    match version("valgrind") {
        Some(valgrind) => drop(found.versions.insert("valgrind".into(), valgrind)),
        None => found.notes.push("instructions: valgrind is missing (apt-get install valgrind).".into()),
    }
    found.notes.push(format!("Each point is one run of {seconds} s, everything on one CPU, event-driven."));
    let Document { load_average, cpu_pressure, .. } = meanwhile.document("");
    Ok(Document { load_average, cpu_pressure, ..found })
}

fn main() -> ExitCode {
    tests::measure::bench("curves", &ALL, measure)
}

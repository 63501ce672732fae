//! Windsor beside what people would use instead, and beside the least that the same reads can cost.
//!
//!   cargo bench -p tests --bench peers [-- --short --rounds N --seconds S --cpu N --only raw,qsd,qemu-nbd,nbdkit,polling --json FILE]
//!
//! All at random places of one file in the page cache, everything on one CPU (so that what is seen is what a read costs,
//! both ends and the kernel together), one after the other in each round; a ratio is that of two neighbours. `polling` is
//! on all CPUs instead: the service VM that looks for work before it sleeps, against itself without that, on a machine
//! that idles and under two loops for ever. What is missing is named and left out.

mod nbd;
mod polling;
#[path = "../../tests/rig/mod.rs"]
mod rig;
mod vhost;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use tests::measure::{Pinned, Running, Scratch, Words, children_cpu, json, thread_cpu, version};
use unikernel::bench::figures::{Document, Figure, Group, Meanwhile};
use unikernel::bench::machine::Threads;

/// Everything that can be asked for.
const ALL: [&str; 5] = ["raw", "qsd", "qemu-nbd", "nbdkit", "polling"];
/// MiB of the file.
const SIZE: usize = 256;
/// Pages that each load draws its data's places from, where a read needs no more.
const PAGES: usize = 1056;

/// Reads of one size, and their bars: against raw zero copy and arena, against qemu-storage-daemon the same.
struct Shape {
    bytes: usize,
    depth: u16,
    raw: [(f64, f64); 2],
    qsd: Option<[(f64, f64); 2]>,
}

const SHAPES: [Shape; 3] = [
    Shape { bytes: 4096, depth: 32, raw: [(0.75, 0.85), (0.60, 0.75)], qsd: Some([(5.0, 6.5), (4.0, 5.0)]) },
    Shape { bytes: 128 << 10, depth: 8, raw: [(0.90, 0.97), (0.45, 0.55)], qsd: None },
    Shape { bytes: 1 << 20, depth: 8, raw: [(0.90, 0.97), (0.45, 0.55)], qsd: None },
];

impl Shape {
    /// Places for data: as many for everybody, all of the same pages.
    fn slots(&self) -> usize {
        (PAGES / self.bytes.div_ceil(grant::PAGE_SIZE)).max(self.depth.into())
    }
}

/// IOPS of `windsor bench blk` on the file.
fn windsor(file: &Path, (bytes, depth): (usize, u16), seconds: u64, more: &[&str]) -> Result<f64, String> {
    let mut command = rig::windsor();
    command.args(["bench", "blk", "--output-format", "json", "--size", &format!("{SIZE}m"), "--filename"]).arg(file);
    command.args(["--bs", &bytes.to_string(), "--iodepth", &depth.to_string(), "--runtime", &seconds.to_string()]);
    let found = json(command.args(more))?;
    found["jobs"][0]["read"]["iops"].as_f64().ok_or_else(|| "windsor says nothing of its reads".to_owned())
}

/// What a load came to: reads a second, and reads for each second of processor time of everybody who took part. With a
/// CPU of its own the two are the same; on a busy machine only the second one is the load's own.
#[derive(Default)]
struct Rates {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Rates {
    fn add(&mut self, reads_a_second: f64, seconds: f64, cpu: f64) {
        self.wall.push(reads_a_second);
        self.cpu.push(reads_a_second * seconds / cpu.max(0.01));
    }
}

/// `windsor bench blk`: starting, warming up and stopping are measured by a run that reads next to nothing.
fn ours(rates: &mut Rates, file: &Path, shape: &Shape, seconds: u64, more: &[&str]) -> Result<(), String> {
    let size = (shape.bytes, shape.depth);
    let before = children_cpu();
    windsor(file, size, seconds, &[more, &["--number-ios", "1"]].concat())?;
    let around = children_cpu();
    let iops = windsor(file, size, seconds, more)?;
    rates.add(iops, seconds as f64, (children_cpu() - around) - (around - before));
    Ok(())
}

/// Plain io_uring.
fn raw(
    rates: &mut Rates,
    program: &Path,
    file: &Path,
    shape: &Shape,
    (pages, time): (usize, u64),
) -> Result<(), String> {
    let numbers = [shape.bytes, shape.depth.into(), pages, time as usize, 0];
    let mut command = Command::new(program);
    let before = children_cpu();
    let output = command.arg(file).args(numbers.map(|number| number.to_string())).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(reads), Some(seconds)) if output.status.success() => {
            rates.add(reads / seconds, seconds, children_cpu() - before);
            Ok(())
        }
        _ => Err(format!("raw: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The other side's processor time and ours.
fn shared_cpu(program: &Running) -> f64 {
    let threads = Threads::of(program.0.id());
    threads.0.values().map(|thread| thread.cpu_ns).sum::<u64>() as f64 / 1e9 + thread_cpu()
}

/// The C program of the limit.
fn compiled(dir: &Path) -> Result<PathBuf, String> {
    let program = dir.join("raw");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/raw.c");
    let status = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source).status();
    match status {
        Ok(status) if status.success() => Ok(program),
        Ok(status) => Err(format!("cc: {status}")),
        Err(error) => Err(format!("cc: {error} (apt-get install gcc libc6-dev linux-libc-dev)")),
    }
}

/// qemu-storage-daemon with the file as vhost-user-blk, and its driver.
fn qsd(file: &Path, dir: &Path) -> Result<(Running, vhost::Disk), String> {
    let socket = dir.join("vhost");
    let mut command = Command::new("qemu-storage-daemon");
    let path = file.display();
    command.args(["--blockdev", &format!("driver=file,node-name=f,filename={path},read-only=on,aio=io_uring")]);
    let place = socket.display();
    command.args(["--export", &format!("type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={place}")]);
    let mut running = Running::start(&mut command, &dir.join("qsd.log")).map_err(|error| error.to_string())?;
    let patience = Instant::now() + Duration::from_secs(10);
    let room = SHAPES.iter().map(|shape| shape.slots() * shape.bytes).max().unwrap_or_default();
    loop {
        match vhost::Disk::connect(&socket, room) {
            Ok(disk) => return Ok((running, disk)),
            Err(error) => {
                let gone = running.0.try_wait().map_err(|error| error.to_string())?;
                if gone.is_some() || Instant::now() > patience {
                    let log = std::fs::read_to_string(dir.join("qsd.log")).unwrap_or_default();
                    return Err(format!("qemu-storage-daemon: {error}; {log}"));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Everything that shares memory with its client.
fn shared(document: &mut Document, words: &Words, file: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let program = compiled(dir.path())?;
    let mut peer = match version("qemu-storage-daemon").filter(|_| words.wants("qsd")) {
        Some(version) => {
            document.versions.insert("qemu-storage-daemon".into(), version);
            Some(qsd(file, dir.path())?)
        }
        None => {
            document.notes.push("qemu-storage-daemon is missing or not wanted (Debian: qemu-system-common).".into());
            None
        }
    };
    for shape in &SHAPES {
        let [mut limit, mut wide, mut zero_copy, mut arena, mut theirs] =
            [const { Rates { wall: Vec::new(), cpu: Vec::new() } }; 5];
        for _ in 0..words.rounds {
            raw(&mut limit, &program, file, shape, (0, words.seconds))?;
            ours(&mut zero_copy, file, shape, words.seconds, &[])?;
            if let Some((program, disk)) = &mut peer {
                let (time, before) = (Duration::from_secs(words.seconds), shared_cpu(program));
                let run = disk.run(((SIZE as u64) << 20, shape.bytes), (shape.depth, shape.slots()), time);
                let (reads, seconds) = run.map_err(|error| format!("qemu-storage-daemon: {error}"))?;
                theirs.add(reads as f64 / seconds, seconds, shared_cpu(program) - before);
            }
            ours(&mut arena, file, shape, words.seconds, &["--data-path", "arena"])?;
            raw(&mut wide, &program, file, shape, (PAGES, words.seconds))?;
        }
        let mut figures = Vec::new();
        for (unit, of) in
            [("IOPS", (|rates| &rates.wall) as fn(&Rates) -> &Vec<f64>), ("per CPU s", |rates| &rates.cpu)]
        {
            let all = [
                ("raw io_uring, as many buffers as reads", &limit),
                ("raw io_uring, 1056 pages as the others have", &wide),
                ("windsor, zero copy", &zero_copy),
                ("windsor, arena", &arena),
                ("qemu-storage-daemon, vhost-user-blk", &theirs),
            ];
            let all = all.into_iter().filter(|(_, rates)| !rates.wall.is_empty());
            figures.extend(all.map(|(name, rates)| Figure::new(name, unit, of(rates))));
            for (which, (name, rates)) in [("zero copy", &zero_copy), ("arena", &arena)].into_iter().enumerate() {
                let (must, aim) = shape.raw[which];
                let ratio =
                    |to: &str, theirs| Figure::ratio(format!("windsor, {name} / {to}, {unit}"), of(rates), of(theirs));
                figures.push(ratio("raw", &limit).with_bar(must, aim));
                figures.push(ratio("raw with 1056 pages", &wide));
                if peer.is_some() {
                    let figure = ratio("qemu-storage-daemon", &theirs);
                    figures.push(match shape.qsd {
                        Some(bars) => figure.with_bar(bars[which].0, bars[which].1),
                        None => figure,
                    });
                }
            }
        }
        let title = format!("one CPU, reads of {} bytes, depth {}", shape.bytes, shape.depth);
        document.groups.push(Group { title, figures });
    }
    Ok(())
}

fn measure(words: &Words) -> Result<Document, String> {
    // Built before anything is measured.
    rig::run(rig::windsor().arg("--version")).fine();
    let scratch =
        Scratch::new(env!("CARGO_TARGET_TMPDIR"), SIZE).map_err(|error| format!("no scratch file: {error}"))?;
    let file = scratch.path();
    let meanwhile = Meanwhile::start();
    let mut found = meanwhile.document("Windsor and its peers");
    found.notes.push(format!(
        "{} rounds of {} s, one after the other; ratios are those of each round. A file of {SIZE} MiB in the page cache, \
         reads at random places.",
        words.rounds, words.seconds
    ));
    {
        let _pinned = Pinned::to(words.cpu).map_err(|error| format!("--cpu {}: {error}", words.cpu))?;
        if words.wants("raw") || words.wants("qsd") {
            shared(&mut found, words, file)?;
        }
        let programs: Vec<&str> = ["qemu-nbd", "nbdkit"].into_iter().filter(|name| words.wants(name)).collect();
        if !programs.is_empty() {
            let shapes: Vec<_> = SHAPES.iter().map(|shape| (shape.bytes, shape.depth)).collect();
            nbd::run(&mut found, file, &programs, &shapes, (words.rounds, words.seconds))?;
        }
    }
    if words.wants("polling") {
        polling::run(&mut found, words, |depth, us| {
            windsor(file, (4096, depth), words.seconds, &["--poll-us", &us.to_string()])
        })?;
    }
    let Document { load_average, cpu_pressure, .. } = meanwhile.document("");
    Ok(Document { load_average, cpu_pressure, ..found })
}

fn main() -> ExitCode {
    tests::measure::bench("peers", &ALL, measure)
}

//! What disks cost that nobody uses: processor time, wake-ups and memory of a service VM with 256 of them, all connected.
//!
//!   cargo bench -p tests --bench idle [-- --short --seconds 10 --json FILE]
//!
//! All disks are one guest's, so one worker serves them. `--short` connects 16.

#[path = "../tests/rig/mod.rs"]
mod rig;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use rig::Rig;
use tests::measure::Words;
use unikernel::bench::figures::{Document, Figure, Group, Meanwhile};
use unikernel::bench::machine::Threads;

/// KiB from a line of a file of /proc.
fn kib(path: &str, keys: &[&str]) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum()
}

fn private(pid: u32) -> f64 {
    kib(&format!("/proc/{pid}/smaps_rollup"), &["Private_"])
}

fn measure(words: &Words) -> Document {
    let disks: u32 = if words.short { 16 } else { 256 };
    let meanwhile = Meanwhile::start();
    let mut rig = Rig::with(&["--quota", "nodes=20000", "--quota", "watches=1000"]);
    let mut text = "[vm]\nname = \"acme\"\n".to_owned();
    for disk in 0..disks {
        let image = rig.image(&format!("{disk}.img"), 1);
        let _ = writeln!(text, "[[volume]]\nname = \"v{disk}\"\npath = \"{}\"\ndirect = false", image.display());
    }
    rig.config("acme", &format!("{text}[backend]\ninitwait-dwell-ms = 0\n"));
    rig.serve_again("acme");
    rig.guest_with("g1", &["--memory", "2048"]);
    let attach = |disk: u32| {
        rig.run("attach", &["g1", &format!("acme:v{disk}")]).fine();
    };
    // The first one brings the worker.
    attach(0);
    let keeper = rig.daemon("acme").pid();
    let worker = rig::children(rig.supervisor("acme"), "worker");
    let worker = *worker.first().expect("a worker");
    let (before, there) = (private(worker), kib("/proc/meminfo", &["MemAvailable:"]));
    for disk in 1..disks {
        attach(disk);
    }
    let each = |kib: f64| kib / f64::from(disks - 1);
    let (worker_each, fell) = (each(private(worker) - before), each(there - kib("/proc/meminfo", &["MemAvailable:"])));
    // Whatever connecting has left to do ends first.
    std::thread::sleep(Duration::from_secs(3));
    let seconds = words.seconds.max(2);
    let threads = Threads::of(keeper);
    std::thread::sleep(Duration::from_secs(seconds));
    let threads = Threads::of(keeper).since(&threads).0;
    let cpu = threads.values().map(|thread| thread.cpu_ns).sum::<u64>() as f64 / 1e6;
    let wakes: Vec<f64> = threads.values().map(|thread| thread.sleeps as f64 / seconds as f64).collect();
    let mut document = meanwhile.document("Disks that nobody uses");
    let most = wakes.iter().copied().fold(0.0, f64::max);
    let title = format!("{disks} idle connected disks of one guest");
    let mut figures = vec![
        Figure::new("processor time of the service VM in 10 s", "ms", &[cpu * 10.0 / seconds as f64])
            .with_bar(20.0, 5.0),
        Figure::new("wake-ups a second of the thread with the most", "1/s", &[most]).with_bar(10.0, 1.0),
        Figure::new("wake-ups a second of all threads together", "1/s", &[wakes.iter().sum()]),
        Figure::new("memory of a disk: its worker's own", "KiB", &[worker_each]).with_bar(64.0, 40.0),
        Figure::new("the fall of MemAvailable for a disk, guest included", "KiB", &[fell]),
    ];
    // Whoever does anything is named.
    for (name, thread) in threads.iter().filter(|(_, thread)| thread.cpu_ns > 500_000 || thread.sleeps > seconds) {
        let wakes = thread.sleeps as f64 / seconds as f64;
        figures.push(Figure::new(format!("{name}: {:.1} ms, wake-ups", thread.cpu_ns as f64 / 1e6), "1/s", &[wakes]));
    }
    document.groups.push(Group { title, figures });
    document.notes.push(format!(
        "Counted for {seconds} s by /proc/PID/task/*/schedstat and status, keeper, supervisor and worker together. A \
         disk has one queue and a ring of one page; its worker's own memory is what no other process has mapped, its \
         journal among it. The fall of MemAvailable holds the guest's side and whatever else the machine did."
    ));
    document
}

fn main() -> ExitCode {
    tests::measure::bench("idle", &[], |words| Ok(measure(words)))
}

//! What an idle disk costs: the memory of its worker that is nobody else's, journal and counters included.

use super::rig::{self, Rig};

const DISKS: u64 = 24;
/// KiB that one idle disk of one queue and a ring of one page may cost.
const MOST: u64 = 64;

/// KiB of a process that no other process has mapped.
fn private(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a size")).sum()
}

fn available() -> i64 {
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("MemAvailable");
    line.trim().trim_end_matches(" kB").parse().expect("a size")
}

#[test]
fn an_idle_disk_costs_little() {
    let mut rig = Rig::new();
    let mut text = String::new();
    for disk in 0..=DISKS {
        let image = rig.image(&format!("{disk}.img"), 1);
        text += &format!("[[volume]]\nname = \"v{disk}\"\npath = \"{}\"\ndirect = false\n", image.display());
    }
    rig.serve("acme", &format!("{text}[backend]\ninitwait-dwell-ms = 0\n"));
    rig.guest("g1");
    let attach = |disk: u64| rig.run("attach", &["g1", &format!("acme:v{disk}")]).fine().to_owned();
    attach(0);
    let worker = rig::children(rig.supervisor("acme"), "worker");
    let [worker] = worker[..] else { panic!("{worker:?}") };
    let (before, there) = (private(worker), available());
    for disk in 1..=DISKS {
        attach(disk);
    }
    let each = (private(worker) - before) / DISKS;
    println!("an idle disk: {each} KiB of its worker; MemAvailable fell by {} KiB in all", there - available());
    assert!(each <= MOST, "{each} KiB");
}

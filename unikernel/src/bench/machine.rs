//! What a measurement ran on, and what else was going on there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// What the processor calls itself.
    pub cpu: String,
    /// Processors of the machine.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Windsor's version.
    pub windsor: String,
    /// The command line.
    pub command: Vec<String>,
}

fn read(path: &str) -> String {
    // What cannot be read is not known; a measurement is worth something without it.
    std::fs::read_to_string(path).unwrap_or_default()
}

impl Machine {
    /// This one.
    pub fn read() -> Machine {
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        Machine {
            cpu: model
                .and_then(|line| line.split_once(':'))
                .map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            windsor: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args().collect(),
        }
    }
}

/// How long some task of the machine waited for a processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    waited_us: u64,
    at_us: u64,
}

impl Pressure {
    /// Up to now (`/proc/pressure/cpu`).
    pub fn read() -> Pressure {
        let text = read("/proc/pressure/cpu");
        let some = text.lines().find(|line| line.starts_with("some")).unwrap_or_default();
        let total = some.rsplit("total=").next().and_then(|total| total.trim().parse().ok());
        let uptime = read("/proc/uptime");
        let uptime = uptime.split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok()).unwrap_or_default();
        Pressure { waited_us: total.unwrap_or_default(), at_us: (uptime * 1e6) as u64 }
    }

    /// The share of the time since `before` in per cent.
    pub fn since(self, before: &Pressure) -> f64 {
        let passed = self.at_us.saturating_sub(before.at_us).max(1);
        self.waited_us.saturating_sub(before.waited_us) as f64 * 100.0 / passed as f64
    }
}

/// What a thread has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Nanoseconds of processor time.
    pub cpu_ns: u64,
    /// Times it went to sleep of its own will: as often, it was woken.
    pub sleeps: u64,
    /// Times another took its processor.
    pub preemptions: u64,
}

/// The threads of a process and of all its descendants, by "process-name/thread-name id".
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Threads(pub BTreeMap<String, Thread>);

impl Threads {
    /// Of this process and its descendants.
    pub fn of(root: u32) -> Threads {
        let mut all = Threads::default();
        let mut wanted = vec![root];
        let parents = parents();
        while let Some(pid) = wanted.pop() {
            all.add(pid);
            wanted.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        }
        all
    }

    fn add(&mut self, pid: u32) {
        let command = read(&format!("/proc/{pid}/cmdline"));
        // `windsor serve`, `windsor supervisor`, `windsor worker`: the second word tells them apart.
        let role = command.split('\0').find(|word| ["serve", "supervisor", "worker"].contains(word)).unwrap_or("?");
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
        for task in tasks.flatten() {
            let dir = task.path().display().to_string();
            let status = read(&format!("{dir}/status"));
            let number = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
            };
            let times = read(&format!("{dir}/schedstat"));
            let thread = Thread {
                cpu_ns: times.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or_default(),
                sleeps: number("voluntary_ctxt_switches:"),
                preemptions: number("nonvoluntary_ctxt_switches:"),
            };
            let name = read(&format!("{dir}/comm"));
            self.0.insert(format!("{role}/{} {}", name.trim(), task.file_name().display()), thread);
        }
    }

    /// What each has used since.
    pub fn since(mut self, before: &Threads) -> Threads {
        for (name, thread) in &mut self.0 {
            let old = before.0.get(name).copied().unwrap_or_default();
            thread.cpu_ns = thread.cpu_ns.saturating_sub(old.cpu_ns);
            thread.sleeps = thread.sleeps.saturating_sub(old.sleeps);
            thread.preemptions = thread.preemptions.saturating_sub(old.preemptions);
        }
        self
    }
}

/// Every process with its parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let of = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = read(&format!("/proc/{pid}/stat"));
        // The name in brackets may hold anything.
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    };
    entries.flatten().filter_map(of).collect()
}

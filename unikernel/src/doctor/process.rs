//! What a daemon needs of the kernel that it runs on: `windsor serve`, and whoever develops with the embedded host.

use super::facts::{Facts, Where};
use super::{Finding, Level};

/// A worker locks its arena; less is not worth a disk.
const MEMLOCK: u64 = 8 << 20;
/// Several a queue.
const OPEN_FILES: u64 = 1024;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    // In dom0 the daemons are in other domains.
    if facts.place == Where::Dom0 {
        return Vec::new();
    }
    vec![kernel(facts), io_uring(facts), memlock(facts), open_files(facts)]
}

fn kernel(facts: &Facts) -> Finding {
    let fix = "boot Linux 6.1 or newer; 6.12 has fixed buffers over grants (Debian: linux-image-6.12-amd64)";
    match version(&facts.kernel) {
        Some(version) if version >= (6, 1) => Finding::ok("kernel", format!("Linux {}", facts.kernel)),
        Some(_) => Finding::new("kernel", Level::Error, format!("Linux {} is too old", facts.kernel), fix),
        None => Finding::new("kernel", Level::Warning, format!("\"{}\" is no version of Linux", facts.kernel), fix),
    }
}

/// Major and minor number.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn io_uring(facts: &Facts) -> Finding {
    match &facts.no_io_uring {
        None => Finding::ok("io_uring", "io_uring works"),
        Some(why) => {
            let fix = "sysctl -w kernel.io_uring_disabled=0; in a container: --security-opt seccomp=unconfined";
            Finding::new("io_uring", Level::Error, why.clone(), fix)
        }
    }
}

fn memlock(facts: &Facts) -> Finding {
    match facts.memlock {
        Some(bytes) if bytes < MEMLOCK => Finding::new(
            "memlock",
            Level::Warning,
            format!("{} KiB of memory may be locked: fixed buffers will be refused", bytes >> 10),
            "ulimit -l unlimited; with systemd LimitMEMLOCK=infinity",
        ),
        Some(bytes) => Finding::ok("memlock", format!("{} MiB of memory may be locked", bytes >> 20)),
        None => Finding::ok("memlock", "any amount of memory may be locked"),
    }
}

fn open_files(facts: &Facts) -> Finding {
    let text = format!("{} files may be open", facts.open_files);
    if facts.open_files < OPEN_FILES {
        return Finding::new("open-files", Level::Warning, text, "ulimit -n 65536; with systemd LimitNOFILE=65536");
    }
    Finding::ok("open-files", text)
}

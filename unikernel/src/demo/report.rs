//! What the demo has found, for people (a table) and for programs (JSON).

use std::fmt;

use blkback::stats::Stats;
use serde::Serialize;

use super::network::NetworkReport;
use super::orders::{Load, Measured};

/// Everything; `schema_version` changes when a field changes its meaning or goes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema_version: u32,
    /// What was served.
    pub disk: DiskReport,
    /// How data went between guest and disk, in the service VM's words.
    pub data_path: String,
    /// Whether the guest saw what is there.
    pub verify: Verify,
    /// The loads, in their order; none when the verification failed.
    pub phases: Vec<Phase>,
    /// What two guests did over the network; nothing when the verification failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkReport>,
}

impl Report {
    /// The complaint, when something is not as it should be.
    pub fn complaint(&self) -> Option<String> {
        self.verify.complaint().or_else(|| self.network.as_ref()?.complaint())
    }
}

/// What was served.
#[derive(Clone, Debug, Serialize)]
pub struct DiskReport {
    /// The file; none for a scratch image, which has no name any more.
    pub path: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// What the file system holds of a file with holes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated: Option<u64>,
    /// The guest may not write.
    pub read_only: bool,
    /// Past the page cache.
    pub direct: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffered_because: Option<String>,
}

/// Whether the guest saw what is there.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Verify {
    /// A file's hash, and the guest's of the same disk.
    Sha256 {
        /// Nothing differs.
        equal: bool,
        /// Computed without the guest.
        file: String,
        /// Computed by the guest.
        guest: String,
        /// How long the guest took.
        seconds: f64,
        /// Where they differ first, if that is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        differs: Option<Place>,
    },
    /// A pattern written, flushed and read back.
    Pattern {
        /// Nothing differs.
        equal: bool,
        /// How long writing and flushing took.
        write_seconds: f64,
        /// How long reading and checking took.
        read_seconds: f64,
        /// Where they differ first.
        #[serde(skip_serializing_if = "Option::is_none")]
        differs: Option<Place>,
    },
}

impl Verify {
    /// The complaint, when something differs.
    pub fn complaint(&self) -> Option<String> {
        let (differs, what) = match self {
            Verify::Sha256 { equal: false, differs, .. } => (differs, "the guest did not read what is in the file"),
            Verify::Pattern { equal: false, differs, .. } => (differs, "the guest did not read back what it wrote"),
            _ => return None,
        };
        Some(match differs {
            Some(place) => format!("{place} differs: {what}"),
            None => what.to_owned(),
        })
    }
}

/// A block of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its number, from 0.
    pub block: u64,
    /// Where it begins.
    pub byte: u64,
}

impl Place {
    /// By its number.
    pub fn of_block(block: u64) -> Place {
        Place { block, byte: block.saturating_mul(super::blocks::BLOCK as u64) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} (byte {})", self.block, self.byte)
    }
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What it is called.
    pub name: String,
    /// Bytes of a read.
    pub block_bytes: u32,
    /// Reads under way.
    pub depth: usize,
    /// How long it took.
    pub seconds: f64,
    /// Reads.
    pub ios: u64,
    /// Reads in a second.
    pub iops: f64,
    /// Megabytes (10^6) in a second.
    pub mb_per_s: f64,
    /// Median latency, as the guest sees it, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 reads took at most this.
    pub p99_us: f64,
    /// The backend's counters, divided by the guest's reads.
    pub per_io: PerIo,
}

/// What one read costs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PerIo {
    /// System calls of the backend's thread.
    pub backend_system_calls: f64,
    /// Events from the guest.
    pub notifications_in: f64,
    /// Events to the guest.
    pub notifications_out: f64,
    /// Pages moved by memcpy or grant copy.
    pub pages_copied: f64,
    /// Pages mapped.
    pub grants_mapped: f64,
}

impl Phase {
    /// From what the guest measured and the backend's counters before and after.
    pub fn new(load: Load, measured: Measured, before: &Stats, after: &Stats) -> Phase {
        let name = match (load.block >> 20, load.random) {
            (0, true) => format!("{} KiB random reads, depth {}", load.block >> 10, load.depth),
            (mib, _) => format!("{mib} MiB sequential reads, depth {}", load.depth),
        };
        let seconds = measured.seconds.max(1e-9);
        // The guest's reads, not the ring's: a large one may have been several requests.
        let per_io = |of: fn(&Stats) -> u64| of(after).saturating_sub(of(before)) as f64 / measured.ios.max(1) as f64;
        let iops = measured.ios as f64 / seconds;
        Phase {
            name,
            block_bytes: load.block,
            depth: load.depth,
            seconds: measured.seconds,
            ios: measured.ios,
            iops,
            mb_per_s: after.read_bytes.saturating_sub(before.read_bytes) as f64 / seconds / 1e6,
            p50_us: measured.p50_ns as f64 / 1e3,
            p99_us: measured.p99_ns as f64 / 1e3,
            per_io: PerIo {
                backend_system_calls: per_io(|stats| stats.system_calls),
                notifications_in: per_io(|stats| stats.notified_in),
                notifications_out: per_io(|stats| stats.notified_out),
                pages_copied: per_io(|stats| stats.pages_copied),
                grants_mapped: per_io(|stats| stats.pages_mapped),
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskReport { path, bytes, allocated, direct, buffered_because, .. } = &self.disk;
        let name = path.as_deref().unwrap_or("a scratch image");
        let access = if self.disk.read_only { "read-only" } else { "read-write" };
        let how = match (direct, buffered_because) {
            (true, _) => "direct I/O".to_owned(),
            (false, Some(why)) => format!("buffered I/O ({why})"),
            (false, None) => "buffered I/O".to_owned(),
        };
        let holes = allocated.map_or(String::new(), |bytes| {
            format!(", {} of it allocated (holes are read without the disk)", size(bytes))
        });
        writeln!(f, "disk       {name}, {}{holes}, {access}, {how}", size(*bytes))?;
        writeln!(f, "data path  {}", self.data_path)?;
        match &self.verify {
            Verify::Sha256 { equal, file, guest, seconds, .. } => {
                writeln!(f, "sha256     {file}  the file")?;
                let verdict = if *equal { "equal" } else { "DIFFERENT" };
                writeln!(f, "           {guest}  as the guest read it in {seconds:.1} s: {verdict}")?;
            }
            Verify::Pattern { equal, write_seconds, read_seconds, .. } => {
                let verdict = if *equal { "every block is right" } else { "DIFFERENT" };
                writeln!(
                    f,
                    "check      written and flushed in {write_seconds:.1} s, read back in {read_seconds:.1} s: {verdict}"
                )?;
            }
        }
        if self.phases.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        writeln!(f, "{:<32}{:>42}  {:>48}", "", "as the guest sees it", "per I/O, in the service VM")?;
        writeln!(
            f,
            "{:<32}{:>10}{:>10}{:>11}{:>11}  {:>9}{:>10}{:>11}{:>9}{:>9}",
            "", "IOPS", "MB/s", "p50 us", "p99 us", "syscalls", "notif in", "notif out", "copied", "mapped"
        )?;
        for phase in &self.phases {
            let PerIo { backend_system_calls, notifications_in, notifications_out, pages_copied, grants_mapped } =
                phase.per_io;
            writeln!(
                f,
                "{:<32}{:>10.0}{:>10.1}{:>11.1}{:>11.1}  {backend_system_calls:>9.2}{notifications_in:>10.2}\
                 {notifications_out:>11.2}{pages_copied:>9.2}{grants_mapped:>9.2}",
                phase.name, phase.iops, phase.mb_per_s, phase.p50_us, phase.p99_us
            )?;
        }
        match &self.network {
            Some(network) => write!(f, "\n{network}"),
            None => Ok(()),
        }
    }
}

/// A size for people.
fn size(bytes: u64) -> String {
    match bytes {
        b if b.is_multiple_of(1 << 30) => format!("{} GiB", b >> 30),
        b if b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b if b >= 1 << 24 => format!("{} MiB", b >> 20),
        b => format!("{b} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(differs: Option<Place>) -> Verify {
        Verify::Pattern { equal: differs.is_none(), write_seconds: 1.0, read_seconds: 1.0, differs }
    }

    #[test]
    fn a_difference_names_its_block() {
        assert_eq!(verify(None).complaint(), None);
        let text = verify(Some(Place::of_block(12345))).complaint().unwrap();
        assert!(text.starts_with("block 12345 (byte 50565120) differs"), "{text}");
    }

    #[test]
    fn costs_are_differences_by_reads() {
        let load = Load { block: 4096, depth: 32, random: true, seconds: 1 };
        let measured = Measured { ios: 100, seconds: 2.0, p50_ns: 1500, p99_ns: 9000 };
        let before = Stats { reads: 50, read_bytes: 4096 * 50, system_calls: 10, ..Stats::default() };
        let after = Stats { reads: 150, read_bytes: 4096 * 150, system_calls: 60, ..Stats::default() };
        let phase = Phase::new(load, measured, &before, &after);
        assert_eq!((phase.iops, phase.per_io.backend_system_calls), (50.0, 0.5));
        assert!((phase.mb_per_s - 0.2048).abs() < 1e-9);
        assert_eq!(phase.name, "4 KiB random reads, depth 32");
        let report = Report {
            schema_version: 1,
            disk: DiskReport {
                path: None,
                bytes: 1 << 30,
                allocated: Some(1 << 20),
                read_only: false,
                direct: true,
                buffered_because: None,
            },
            data_path: "arena".into(),
            verify: verify(None),
            phases: vec![phase],
            network: None,
        };
        let text = report.to_string();
        assert!(
            text.contains("1 GiB, 1 MiB of it allocated (holes are read without the disk)")
                && text.contains("direct I/O")
                && text.contains("IOPS"),
            "{text}"
        );
        assert_eq!(serde_json::to_value(&report).unwrap()["schema_version"], 1);
    }
}

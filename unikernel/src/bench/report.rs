//! What a bench has found: a table for people, and what programs get beside fio's own fields.

use std::fmt;

use blkback::stats::Stats;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::Bench;
use super::job::{Job, Ran, Side};
use super::machine::{Machine, Threads};

/// Everything.
#[derive(Clone, Debug)]
pub struct Report {
    /// The load on each queue.
    pub job: Job,
    /// Queues.
    pub numjobs: u16,
    /// Past the page cache.
    pub direct: bool,
    /// All reads.
    pub read: Half,
    /// All writes.
    pub write: Half,
    /// How long it took.
    pub seconds: f64,
    /// What is Windsor's own.
    pub own: Own,
}

/// Reads or writes.
#[derive(Clone, Debug)]
pub struct Half {
    /// Those that ended.
    pub ios: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// From being put to being seen to have ended, in nanoseconds.
    pub latencies: Histogram<u64>,
}

/// What fio has no words for.
#[derive(Clone, Debug, Serialize)]
pub struct Own {
    /// 1.
    pub schema_version: u32,
    /// How data went between guest and disk, in the service VM's words.
    pub data_path: String,
    /// Persistent grants were offered by the guest.
    pub persistent: bool,
    /// Pages granted for data, of each queue, used in random order.
    pub grants: usize,
    /// All requests of a batch with one store of the index, and waited for.
    pub lock_step: bool,
    /// How long the service VM polls before it sleeps, microseconds.
    pub poll_us: u64,
    /// Divided by the guest's requests.
    pub per_io: PerIo,
    /// Divided by the times the guest published requests.
    pub per_publish: PerIo,
    /// Share of the time in which some task of the machine waited for a processor, per cent.
    pub cpu_pressure: f64,
    /// The service VM's threads: what they used meanwhile.
    pub threads: Threads,
    /// On what.
    pub machine: Machine,
}

/// What something costs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PerIo {
    /// System calls of the backend, as Xen would see them.
    pub system_calls: f64,
    /// Events that arrived from the guest.
    pub notifications_in: f64,
    /// Events to the guest.
    pub notifications_out: f64,
    /// Times that requests were taken from the ring.
    pub batches: f64,
    /// Times that a thread of the service VM went to sleep.
    pub waits: f64,
    /// Microseconds of processor time of the service VM, kernel included.
    pub cpu_us: f64,
    /// Pages moved by memcpy or grant copy.
    pub pages_copied: f64,
    /// Calls of grant copy.
    pub copy_calls: f64,
    /// Calls that mapped grants.
    pub map_calls: f64,
    /// Calls that unmapped grants.
    pub unmap_calls: f64,
}

impl PerIo {
    fn new((before, after): (&Stats, &Stats), threads: &Threads, by: u64) -> PerIo {
        let by = by.max(1) as f64;
        let of = |of: fn(&Stats) -> u64| of(after).saturating_sub(of(before)) as f64 / by;
        PerIo {
            system_calls: of(|stats| stats.system_calls),
            notifications_in: of(|stats| stats.notified_in),
            notifications_out: of(|stats| stats.notified_out),
            batches: of(|stats| stats.batches),
            waits: threads.0.values().map(|thread| thread.sleeps).sum::<u64>() as f64 / by,
            cpu_us: threads.0.values().map(|thread| thread.cpu_ns).sum::<u64>() as f64 / by / 1e3,
            pages_copied: of(|stats| stats.pages_copied),
            copy_calls: of(|stats| stats.copy_calls),
            map_calls: of(|stats| stats.map_calls),
            unmap_calls: of(|stats| stats.unmap_calls),
        }
    }
}

impl Half {
    fn new<'a>(sides: impl Iterator<Item = &'a Side> + Clone) -> Result<Half, String> {
        Ok(Half {
            ios: sides.clone().map(|side| side.ios).sum(),
            errors: sides.clone().map(|side| side.errors).sum(),
            latencies: Side::histogram(sides)?,
        })
    }

    /// Of them in a second.
    pub fn iops(&self, seconds: f64) -> f64 {
        self.ios as f64 / seconds.max(1e-9)
    }
}

impl Report {
    /// From what both ends counted.
    ///
    /// # Errors
    /// When there is no memory.
    #[allow(clippy::too_many_arguments, reason = "one call, each of another kind")]
    pub fn new(
        bench: &Bench,
        job: Job,
        data_path: String,
        grants: usize,
        queues: &[Ran],
        stats: (&Stats, &Stats),
        threads: Threads,
        cpu_pressure: f64,
        machine: Machine,
    ) -> Result<Report, String> {
        let (read, write) =
            (Half::new(queues.iter().map(|queue| &queue.read))?, Half::new(queues.iter().map(|queue| &queue.write))?);
        let own = Own {
            schema_version: 1,
            data_path,
            persistent: bench.persistent,
            grants,
            lock_step: job.lock_step,
            poll_us: bench.poll_us,
            per_io: PerIo::new(stats, &threads, read.ios + write.ios),
            per_publish: PerIo::new(stats, &threads, queues.iter().map(|queue| queue.publishes).sum()),
            cpu_pressure,
            threads,
            machine,
        };
        let seconds = queues.iter().map(|queue| queue.seconds).fold(0.0, f64::max);
        Ok(Report { job, numjobs: bench.numjobs, direct: bench.direct, read, write, seconds, own })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { job, own, .. } = self;
        let step = if job.lock_step { ", lock-step" } else { "" };
        let cache = if self.direct { "direct" } else { "page cache" };
        writeln!(
            f,
            "{}, {} bytes, depth {}, {} queues{step}, {cache}, {}",
            job.rw.name(),
            job.bs,
            job.iodepth,
            self.numjobs,
            own.data_path
        )?;
        writeln!(
            f,
            "{:<7}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}{:>9}",
            "", "IOPS", "MB/s", "mean us", "p50 us", "p99 us", "p99.9 us", "errors"
        )?;
        for (name, half) in [("read", &self.read), ("write", &self.write)] {
            if half.ios == 0 {
                continue;
            }
            let us = |quantile: f64| half.latencies.value_at_quantile(quantile) as f64 / 1e3;
            writeln!(
                f,
                "{name:<7}{:>12.0}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>9}",
                half.iops(self.seconds),
                half.iops(self.seconds) * f64::from(job.bs) / 1e6,
                half.latencies.mean() / 1e3,
                us(0.5),
                us(0.99),
                us(0.999),
                half.errors
            )?;
        }
        writeln!(
            f,
            "{:<12}{:>9}{:>10}{:>11}{:>9}{:>8}{:>9}{:>9}{:>8}{:>8}",
            "service VM", "syscalls", "notif in", "notif out", "batches", "waits", "CPU us", "copied", "maps", "copies"
        )?;
        for (name, cost) in [("per I/O", &own.per_io), ("per publish", &own.per_publish)] {
            writeln!(
                f,
                "{name:<12}{:>9.3}{:>10.3}{:>11.3}{:>9.3}{:>8.3}{:>9.2}{:>9.2}{:>8.3}{:>8.3}",
                cost.system_calls,
                cost.notifications_in,
                cost.notifications_out,
                cost.batches,
                cost.waits,
                cost.cpu_us,
                cost.pages_copied,
                cost.map_calls,
                cost.copy_calls
            )?;
        }
        writeln!(f, "processors wanted and not had: {:.0} % of the time", own.cpu_pressure)
    }
}

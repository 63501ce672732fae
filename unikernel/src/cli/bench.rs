//! `windsor bench`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{FAILED, Failure, USAGE};
use crate::bench::job::{Job, Rw};
use crate::bench::{Bench, DataPath, There, fio, net, page, read};

/// Arguments of `windsor bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A load on a disk: a guest, a service VM and a host of its own, or a host that is there
    Blk(BlkArgs),
    /// Packets between two guests of one network: small ones there and back, TCP of 64 KiB one way
    Net(NetArgs),
    /// One HTML page with tables and plots, of what benches have written as JSON
    Report(ReportArgs),
}

/// Arguments of `windsor bench net`.
#[derive(Args, Debug)]
struct NetArgs {
    /// How long each of the two, in seconds
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    runtime: u64,
    /// A table, or JSON as `windsor bench report` reads it
    #[arg(long, value_enum, default_value_t = Format::Normal)]
    output_format: Format,
}

/// Arguments of `windsor bench report`.
#[derive(Args, Debug)]
struct ReportArgs {
    /// What `windsor bench blk --output-format json` printed, and what the benches of the sources wrote with --json
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The page
    #[arg(short = 'o', long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table.
    Normal,
    /// fio's JSON.
    Json,
}

/// Arguments of `windsor bench blk`: fio's words, and a few of our own.
#[derive(Args, Debug)]
struct BlkArgs {
    /// read, write, randread, randwrite or randrw
    #[arg(long, default_value = "randread")]
    rw: Rw,
    /// Bytes of a request: 512 to 1m, whole sectors
    #[arg(long, value_name = "BYTES", default_value = "4k", value_parser = bytes)]
    bs: u64,
    /// Requests under way on each queue
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=512))]
    iodepth: u32,
    /// Queues, each with a thread of the guest's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    numjobs: u16,
    /// How long, in seconds
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    runtime: u64,
    /// End earlier, after this many requests of each queue
    #[arg(long, value_name = "N")]
    number_ios: Option<u64>,
    /// Bytes of the disk that are used
    #[arg(long, value_name = "BYTES", default_value = "256m", value_parser = bytes)]
    size: u64,
    /// An image or block device to use instead of a scratch image in $TMPDIR; only writes change it
    #[arg(long, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// 1: past the page cache
    #[arg(long, value_name = "0|1", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    direct: u8,
    /// What places are drawn with
    #[arg(long, value_name = "N", default_value_t = 1)]
    randseed: u64,
    /// Where the service VM has the data
    #[arg(long, value_enum, default_value_t = DataPath::ZeroCopy)]
    data_path: DataPath,
    /// Without persistent grants
    #[arg(long)]
    no_persistent: bool,
    /// Publish N requests with one store of the index, wait for all of them, and so on (instead of --iodepth)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512), conflicts_with = "iodepth")]
    lock_step: Option<u32>,
    /// How long the service VM looks for work before it sleeps, in microseconds; 0 is event-driven
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1000))]
    poll_us: u64,
    /// A table, or fio's JSON
    #[arg(long, value_enum, default_value_t = Format::Normal)]
    output_format: Format,
    /// An embedded host that is there; the guest joins it and gets a disk
    #[arg(long, value_name = "DIR", requires = "volume")]
    dir: Option<PathBuf>,
    /// The name of the guest there
    #[arg(long, value_name = "NAME", default_value = "bench-guest", requires = "dir")]
    guest: String,
    /// The volume there
    #[arg(long, value_name = "VM:VOLUME", requires = "dir", value_parser = volume)]
    volume: Option<(String, String)>,
}

/// A number of bytes as fio has it: 4k, 1m, 2g.
fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if lower.ends_with('k') => (digits, 10),
        Some(digits) if lower.ends_with('m') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (lower.as_str(), 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.filter(|number| *number > 0).ok_or_else(|| "a number of bytes, such as 4096, 4k or 1m".to_owned())
}

fn volume(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once(':').filter(|(vm, volume)| !vm.is_empty() && !volume.is_empty());
    parts.map(|(vm, volume)| (vm.to_owned(), volume.to_owned())).ok_or_else(|| "VM:VOLUME, such as acme:db".to_owned())
}

/// Runs a bench and prints what it found; the exit code is 1 when a request failed.
///
/// # Errors
/// When it cannot be run to its end.
pub fn run(args: &BenchArgs) -> Result<i32, Failure> {
    let args = match &args.what {
        What::Blk(args) => args,
        What::Net(args) => return packets(args),
        What::Report(args) => return report(args),
    };
    let report = bench(args)?.run()?;
    let text = match args.output_format {
        Format::Normal => report.to_string(),
        Format::Json => format!("{:#}\n", fio::json(&report)),
    };
    print(&text)?;
    Ok(match report.read.errors + report.write.errors {
        0 => 0,
        errors => Failure::new(FAILED, format!("{errors} requests failed")).report(),
    })
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::new(FAILED, format!("stdout: {error}")))
}

fn packets(args: &NetArgs) -> Result<i32, Failure> {
    let found = net::run(args.runtime)?;
    let text = match args.output_format {
        Format::Normal => found.to_string(),
        Format::Json => {
            let value = serde_json::to_value(&found).map_err(|error| Failure::new(FAILED, error))?;
            format!("{value:#}\n")
        }
    };
    print(&text).map(|()| 0)
}

fn report(args: &ReportArgs) -> Result<i32, Failure> {
    let read: Result<Vec<_>, String> = args.files.iter().map(|path| read::file(path)).collect();
    let documents = read.map_err(|why| Failure::new(FAILED, why))?;
    let written = std::fs::write(&args.output, page::page(&documents));
    written.map_err(|error| Failure::new(FAILED, format!("{}: {error}", args.output.display())))?;
    Ok(0)
}

fn bench(args: &BlkArgs) -> Result<Bench, Failure> {
    let wrong = |text: &str| Err(Failure::new(USAGE, text));
    if !args.bs.is_multiple_of(512) || args.bs > 1 << 20 {
        return wrong("--bs: 512 bytes to 1m, whole sectors of 512");
    }
    if args.size < args.bs {
        return wrong("--size is less than --bs");
    }
    let there = match (&args.dir, &args.volume) {
        (Some(dir), Some((service, volume))) => Some(There {
            dir: dir.clone(),
            guest: args.guest.clone(),
            service: service.clone(),
            volume: volume.clone(),
        }),
        _ => None,
    };
    Ok(Bench {
        job: Job {
            rw: args.rw,
            bs: args.bs as u32,
            iodepth: args.lock_step.unwrap_or(args.iodepth) as usize,
            lock_step: args.lock_step.is_some(),
            runtime_ms: args.runtime * 1000,
            number_ios: args.number_ios,
            size: args.size,
            seed: args.randseed,
        },
        numjobs: args.numjobs,
        scratch: args.size.next_multiple_of(1 << 20),
        filename: args.filename.clone(),
        direct: args.direct == 1,
        data_path: args.data_path,
        persistent: !args.no_persistent,
        poll_us: args.poll_us,
        there,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_fio_reads_them() {
        let good = [("512", 512), ("4k", 4096), ("4K", 4096), ("1m", 1 << 20), ("2G", 2 << 30)];
        assert!(good.iter().all(|(text, number)| bytes(text) == Ok(*number)));
        assert!(
            ["", "k", "0", "-1", "4kb", "99999999999999999999", "18446744073709551615g"]
                .iter()
                .all(|text| bytes(text).is_err())
        );
        assert_eq!(volume("acme:db"), Ok(("acme".into(), "db".into())));
        assert!(["", "acme", ":db", "acme:"].iter().all(|text| volume(text).is_err()));
    }
}

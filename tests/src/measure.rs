//! What the benches share: their words, a file in the page cache, a CPU of their own, and where their figures go.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use unikernel::bench::figures::Document;

/// The words after `--`.
#[derive(Clone, Debug)]
pub struct Words {
    /// Fewer points, one short round: only to see that it works.
    pub short: bool,
    /// How often everything is measured, one after the other.
    pub rounds: usize,
    /// How long each time, whole seconds.
    pub seconds: u64,
    /// Where everything of a one-CPU measurement runs.
    pub cpu: usize,
    /// What to leave out everything else for.
    pub only: Option<Vec<String>>,
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
}

/// All that a bench of this name does: reads its words (`only` as for [`Words::read`]), measures, and gives what it found.
pub fn bench(name: &str, only: &[&str], measure: impl FnOnce(&Words) -> Result<Document, String>) -> ExitCode {
    let done = Words::read(only).and_then(|words| {
        let document = measure(&words)?;
        words.give(&document).map_err(|error| error.to_string())
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}

impl Words {
    /// Reads the command line.
    ///
    /// # Errors
    /// What is wrong with it, and the words that there are.
    pub fn read(only: &[&str]) -> Result<Words, String> {
        let mut words = Words { short: false, rounds: 7, seconds: 2, cpu: 0, only: None, json: None };
        let mut given = std::env::args().skip(1);
        while let Some(word) = given.next() {
            // cargo's own word.
            if word == "--bench" {
                continue;
            }
            if word == "--short" {
                (words.short, words.rounds, words.seconds) = (true, 1, 1);
                continue;
            }
            let value = given.next().ok_or_else(|| usage(only))?;
            let number = || value.parse::<usize>().ok().filter(|number| *number < 1000).ok_or_else(|| usage(only));
            match word.as_str() {
                "--rounds" => words.rounds = number()?.max(1),
                "--seconds" => words.seconds = number()?.max(1) as u64,
                "--cpu" => words.cpu = number()?,
                "--only" if value.split(',').all(|name| only.contains(&name)) => {
                    words.only = Some(value.split(',').map(str::to_owned).collect());
                }
                "--json" => words.json = Some(PathBuf::from(value)),
                _ => return Err(usage(only)),
            }
        }
        Ok(words)
    }

    /// Whether this one is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|its| its == name))
    }

    /// Prints the figures, and writes them where they shall go.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn give(&self, document: &Document) -> io::Result<()> {
        print!("{document}");
        match &self.json {
            Some(path) => std::fs::write(path, format!("{:#}\n", serde_json::to_value(document)?)),
            None => Ok(()),
        }
    }
}

fn usage(only: &[&str]) -> String {
    let mut text = "words: --short, --rounds N, --seconds S, --cpu N, --json FILE, --only LIST of ".to_owned();
    let _ = write!(text, "{}", only.join(","));
    text
}

/// This process and whatever it starts runs on one CPU, until the value is dropped.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// From now on.
    ///
    /// # Errors
    /// When there is no such CPU.
    pub fn to(cpu: usize) -> io::Result<Pinned> {
        let before = sched_getaffinity(None)?;
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one)?;
        Ok(Pinned { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// A file with random content that has just been written: it is in the page cache.
#[derive(Debug)]
pub struct Scratch(tempfile::NamedTempFile);

impl Scratch {
    /// Of so many MiB, in a directory on a file system with blocks behind it: reads from a tmpfs are not what they are
    /// elsewhere.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(dir: &str, mib: usize) -> io::Result<Scratch> {
        let mut file = tempfile::Builder::new().prefix("bench-").suffix(".img").tempfile_in(dir)?;
        let mut part = vec![0; 1 << 20];
        for number in 0..mib {
            // The same in every run.
            fastrand::Rng::with_seed(number as u64).fill(&mut part);
            file.write_all(&part)?;
        }
        // What is still to be written would be written while something is measured.
        file.as_file().sync_all()?;
        Ok(Scratch(file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A program that is killed when the value is dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it, with its complaints in a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Running> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?);
        Ok(Running(command.spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds of processor time that all children that were waited for have used, theirs included; in steps of 10 ms.
pub fn children_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in brackets may hold anything; cutime and cstime are fields 16 and 17 (proc(5)), in USER_HZ.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Seconds of processor time of the calling thread.
pub fn thread_cpu() -> f64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    times.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// The first line that a program says about its version; none when it is not there.
pub fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// What a program prints as JSON.
///
/// # Errors
/// When it fails, with what it said.
pub fn json(command: &mut Command) -> Result<Value, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    // Some versions of fio say something before it.
    let text = String::from_utf8_lossy(&output.stdout);
    let begin = text.find('{').unwrap_or_default();
    serde_json::from_str(&text[begin..]).map_err(|error| format!("{command:?}: {error}"))
}

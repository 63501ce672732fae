//! The processes of a demo or a bench and its directory: started one by one, and taken down together whatever happens.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::{TempDir, TempPath};
use xenstore::Client;

use crate::cli::{FAILED, Failure};
use crate::toolstack::sample::Sample;

/// How long the service VM may take to refresh its counters.
const SAMPLE: Duration = Duration::from_secs(10);
/// Longest directory in whose depth a socket can have a name (`sun_path` has 108 bytes).
const LONGEST_DIR: usize = 60;
/// How long a service VM may take to close its disks.
const SERVE_STOPS: Duration = Duration::from_secs(20);
/// How long a host may take.
const HOST_STOPS: Duration = Duration::from_secs(5);

/// One of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedded host.
    Host,
    /// The service VM's keeper.
    Serve,
    /// The guest with the disk.
    Guest,
    /// The two guests with cards.
    Cards,
    /// The bench's guest.
    BenchGuest,
}

impl Part {
    /// Its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Part::Host => "host",
            Part::Serve => "serve",
            Part::Guest => "guest",
            Part::Cards => "cards",
            Part::BenchGuest => "bench-guest",
        }
    }
}

/// Everything that has to go in the end.
#[derive(Default)]
struct All {
    dir: Option<TempDir>,
    scratch: Option<TempPath>,
    /// In the order of their start.
    children: Vec<(Part, Child)>,
    /// What they may still write to: nobody reads it.
    outputs: Vec<ChildStdout>,
    bar: Option<ProgressBar>,
    over: bool,
}

/// The parts; clones are the same. SIGINT, SIGTERM and SIGHUP take everything down and end the process.
#[derive(Clone)]
pub struct Parts {
    all: Arc<Mutex<All>>,
    dir: PathBuf,
}

impl Parts {
    /// A directory and nothing in it. To be called while the process has one thread.
    ///
    /// # Errors
    /// When there can be no directory or no thread.
    pub fn new() -> io::Result<Parts> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let wanted = std::env::temp_dir();
        let base = if wanted.as_os_str().len() > LONGEST_DIR { Path::new("/tmp") } else { &wanted };
        let made = tempfile::Builder::new().prefix("windsor-demo-").tempdir_in(base);
        let made = made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", base.display())))?;
        let dir = made.path().to_owned();
        let all = Arc::new(Mutex::new(All { dir: Some(made), ..All::default() }));
        let parts = Parts { all, dir };
        let watched = parts.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            let Ok(signal) = mask.wait() else { return };
            let mut all = watched.all();
            if !all.over {
                let left = all.end().err().map_or(String::new(), |left| format!(": {left}"));
                // Still under the lock: the other thread has nothing to say any more.
                std::process::exit(Failure::new(128 + signal as i32, format!("ended by {signal}{left}")).report());
            }
        })?;
        Ok(parts)
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes this file in the end, unless [`Parts::unlink`] did.
    pub fn keep(&self, scratch: TempPath) {
        self.all().scratch = Some(scratch);
    }

    /// Removes it now: whoever has it open keeps it.
    pub fn unlink(&self) {
        self.all().scratch = None;
    }

    /// Takes this bar off the screen in the end.
    pub fn show(&self, bar: &ProgressBar) {
        self.all().bar = Some(bar.clone());
    }

    /// Starts `windsor demo-part PART ARGS`; its stderr goes to a file of the directory. To be called by the main
    /// thread, for the children end with it.
    fn start(&self, part: Part, args: &[&Path], input: Stdio) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(FAILED, format!("{} cannot be started: {error}", part.name()));
        let log = File::create(self.log(part)).map_err(failed)?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["demo-part", "--parent"]).arg(std::process::id().to_string()).arg(part.name()).args(args);
        // A group of its own: a terminal's Ctrl-C is for us, who take things down in order.
        command.stdin(input).stdout(Stdio::piped()).stderr(log).process_group(0);
        let mut all = self.all();
        let child = command.spawn().map_err(failed)?;
        all.children.push((part, child));
        Ok(())
    }

    fn log(&self, part: Part) -> PathBuf {
        self.dir.join(part.name()).with_extension("log")
    }

    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    /// With its own last word and exit code when it does not become ready.
    pub fn daemon(&self, part: Part, args: &[&Path]) -> Result<(), Failure> {
        self.start(part, args, Stdio::null())?;
        let Some(mut output) = self.all().child(part).and_then(|child| child.stdout.take()) else {
            return Err(self.explain(part));
        };
        let mut line = Vec::new();
        let mut byte = [0];
        while matches!(output.read(&mut byte), Ok(1)) && byte != *b"\n" {
            line.extend_from_slice(&byte);
        }
        if line != b"ready" {
            return Err(self.explain(part));
        }
        self.all().outputs.push(output);
        Ok(())
    }

    /// Starts a part that takes orders.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn guest(&self, part: Part, args: &[&Path]) -> Result<(ChildStdin, BufReader<ChildStdout>), Failure> {
        self.start(part, args, Stdio::piped())?;
        let pipes = self.all().child(part).and_then(|child| Some((child.stdin.take()?, child.stdout.take()?)));
        let (orders, answers) = pipes.ok_or_else(|| Failure::new(FAILED, "the guest has no pipes"))?;
        Ok((orders, BufReader::new(answers)))
    }

    /// A part's process number, if it was started.
    pub fn pid(&self, part: Part) -> Option<u32> {
        self.all().child(part).map(|child| child.id())
    }

    /// Why a part ended: its last line and its exit code.
    pub fn explain(&self, part: Part) -> Failure {
        let code = self.all().child(part).and_then(|child| wait(child, Duration::from_secs(1)));
        let text = std::fs::read_to_string(self.log(part)).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim());
        let last = last.map(|line| line.strip_prefix("windsor: ").unwrap_or(line));
        match (code, last) {
            (Some(Some(code)), Some(last)) if code != 0 => Failure::new(code, last),
            (_, Some(last)) => Failure::new(FAILED, format!("{} has ended: {last}", part.name())),
            (_, None) => Failure::new(FAILED, format!("{} has ended without a word", part.name())),
        }
    }

    /// Has a service VM publish all its counters.
    ///
    /// # Errors
    /// When a part has ended meanwhile, or there is no answer.
    pub fn sample(&self, store: &mut Client, service: u16) -> Result<(), Failure> {
        let failed = |error: xenstore::Error| Failure::new(FAILED, error);
        let sample = Sample::ask(store, service).map_err(failed)?;
        let deadline = Instant::now() + SAMPLE;
        while !sample.is_answered(store).map_err(failed)? {
            if let Some(part) = self.ended() {
                return Err(self.explain(part));
            }
            if Instant::now() >= deadline {
                let why = format!("the service VM does not answer within {} s", SAMPLE.as_secs());
                return Err(Failure::new(FAILED, why));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The first part that has ended on its own.
    pub fn ended(&self) -> Option<Part> {
        let mut all = self.all();
        let ended = |(part, child): &mut (Part, Child)| matches!(child.try_wait(), Ok(Some(_))).then_some(*part);
        all.children.iter_mut().find_map(ended)
    }

    /// Takes everything down. Says what would not go.
    ///
    /// # Errors
    /// With what is left.
    pub fn end(&self) -> Result<(), Failure> {
        self.all().end().map_err(|left| Failure::new(FAILED, left))
    }
}

impl All {
    fn child(&mut self, part: Part) -> Option<&mut Child> {
        self.children.iter_mut().find(|(its, _)| *its == part).map(|(_, child)| child)
    }

    fn end(&mut self) -> Result<(), String> {
        self.over = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.scratch = None;
        let mut left = Vec::new();
        // The guests first, then who serves them, then the ground they stand on.
        while let Some((part, mut child)) = self.children.pop() {
            if stop(part, &mut child).is_none() {
                left.push(format!("process {} ({}) does not end", child.id(), part.name()));
            }
        }
        self.outputs.clear();
        if let Some(dir) = self.dir.take() {
            let path = dir.path().to_owned();
            if let Err(error) = dir.close() {
                left.push(format!("{} cannot be removed: {error}", path.display()));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }
}

/// Ends a child that nobody else has waited for; none when it would not.
fn stop(part: Part, child: &mut Child) -> Option<()> {
    if let Ok(Some(_)) = child.try_wait() {
        return Some(());
    }
    // Not waited for yet: the number is still the child's.
    let pid = Pid::from_raw(i32::try_from(child.id()).ok()?);
    let patience = match part {
        Part::Guest | Part::Cards | Part::BenchGuest => Duration::ZERO,
        Part::Serve => SERVE_STOPS,
        Part::Host => HOST_STOPS,
    };
    if !patience.is_zero() {
        // One that was stopped takes the signal only when it goes on.
        let _ = kill(pid, Signal::SIGTERM).and_then(|()| kill(pid, Signal::SIGCONT));
        if wait(child, patience).is_some() {
            return Some(());
        }
    }
    let _ = killpg(pid, Signal::SIGKILL);
    wait(child, HOST_STOPS).map(drop)
}

/// Waits for a child's end: its exit code if it has one.
fn wait(child: &mut Child, patience: Duration) -> Option<Option<i32>> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.code()),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

//! The log: a line an event on stderr, and the last of them in a memfd that outlives whoever wrote them.
//!
//! Inside a service VM each line on the console begins with its level, `<6>` and so on, as the kernel's own log has it.

pub mod voice;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{MemfdFlags, memfd_create};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::channel::wire::LogLine;

/// Set for the processes of a service VM, whose stderr is a console.
pub const CONSOLE: &str = "WINDSOR_CONSOLE";

/// Lines that are kept.
const SLOTS: u64 = 1024;
/// Bytes of a slot: number, time, level, length, text.
const SLOT: usize = 512;
const TEXT_AT: usize = 20;
/// Lines in one answer.
const PAGE: usize = 256;

type Reload = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Changes what the subscriber of this process lets through.
static CHANGE: OnceLock<Reload> = OnceLock::new();
static INIT: AtomicBool = AtomicBool::new(false);

/// Takes a line and its level, if it can.
type Relay = Box<dyn Fn(u8, &str) -> bool + Send + Sync>;

/// Where the lines of this process go instead.
static RELAY: OnceLock<Relay> = OnceLock::new();

/// The one of this process.
static KEPT: OnceLock<Mutex<Ring>> = OnceLock::new();

/// Sends the log to stderr, one line an event; `WINDSOR_LOG` (as in `debug` or `blkback=trace`) says how much.
pub fn start(default: &str) {
    let filter = EnvFilter::try_from_env("WINDSOR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let console = is_console();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Lines { console })
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // A second call, in a test, changes nothing.
    if builder.try_init().is_ok() {
        let _ = CHANGE.set(Box::new(move |filter| drop(handle.reload(filter))));
    }
}

/// Has so much logged from now on, unless the environment says otherwise.
///
/// # Errors
/// What is wrong with the words.
pub fn change(words: &str) -> Result<(), String> {
    let filter = filter(words)?;
    if std::env::var_os("WINDSOR_LOG").is_none()
        && let Some(change) = CHANGE.get()
    {
        change(filter);
    }
    Ok(())
}

/// What is to be logged, from words of an operator's.
///
/// # Errors
/// What is wrong with them.
pub fn filter(words: &str) -> Result<EnvFilter, String> {
    let plain = words.len() <= 200 && !words.contains(char::is_control);
    let parsed = plain.then(|| EnvFilter::builder().parse(words).ok()).flatten();
    parsed.ok_or_else(|| "it is a level such as debug, or MODULE=LEVEL, with commas between".to_owned())
}

/// Whether stderr is the console of a service VM.
pub fn is_console() -> bool {
    std::env::var_os(CONSOLE).is_some() || INIT.load(Ordering::Relaxed)
}

/// This process is PID 1 of a service VM.
pub fn as_init() {
    INIT.store(true, Ordering::Relaxed);
}

/// A line that is not an event, for processes that have no subscriber. A console that is gone must not end them.
pub fn line(level: u8, text: &str) {
    let level = if is_console() { format!("<{level}>") } else { String::new() };
    let _ = writeln!(io::stderr(), "{level}windsor: {text}");
}

/// Makes the memfd.
///
/// # Errors
/// What the kernel says.
pub fn create() -> io::Result<OwnedFd> {
    let file = File::from(memfd_create(c"windsor-log", MemfdFlags::CLOEXEC)?);
    file.set_len(SLOTS * SLOT as u64)?;
    Ok(file.into())
}

/// From now on the lines of this process are kept in `fd`, behind those that are there.
///
/// # Errors
/// What the kernel says.
pub fn keep(fd: OwnedFd) -> io::Result<()> {
    let ring = Ring::open(fd)?;
    let _ = KEPT.set(Mutex::new(ring));
    Ok(())
}

/// From now on the lines of this process, but for those that only help to debug it, go to `to`; those that it does not
/// take to stderr, as before.
pub fn relay(to: impl Fn(u8, &str) -> bool + Send + Sync + 'static) {
    let _ = RELAY.set(Box::new(to));
}

/// The lines behind number `after`, as many as fit an answer, and whether there are more.
pub fn lines(after: u64) -> (Vec<LogLine>, bool) {
    let Some(kept) = KEPT.get() else { return (Vec::new(), false) };
    kept.lock().unwrap_or_else(PoisonError::into_inner).read(after)
}

/// How syslog numbers a level.
fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// A line without its level, which has its own place.
fn without_level(line: &str) -> &str {
    let words = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
    let line = line.trim();
    words.iter().find_map(|word| line.strip_prefix(word)).map_or(line, str::trim_start)
}

/// Where the subscriber writes.
struct Lines {
    console: bool,
}

/// One line.
struct Line {
    level: u8,
    console: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { level: 6, console: self.console }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line {
        Line { level: number(*about.level()), console: self.console }
    }
}

impl Write for Line {
    /// Takes a whole line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.level <= number(Level::INFO)
            && let Some(relay) = RELAY.get()
            && relay(self.level, without_level(&String::from_utf8_lossy(bytes)))
        {
            return Ok(bytes.len());
        }
        let mut whole = Vec::with_capacity(bytes.len() + 4);
        if self.console {
            whole.extend_from_slice(format!("<{}>", self.level).as_bytes());
        }
        whole.extend_from_slice(bytes);
        // A terminal that went away must not end a daemon.
        let _ = io::stderr().write_all(&whole);
        if let Some(kept) = KEPT.get() {
            let text = String::from_utf8_lossy(bytes);
            kept.lock().unwrap_or_else(PoisonError::into_inner).append(self.level, &text);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The last lines, in a file of slots: line N in slot N mod [`SLOTS`].
struct Ring {
    file: File,
    last: u64,
}

impl Ring {
    fn open(fd: OwnedFd) -> io::Result<Ring> {
        let mut ring = Ring { file: fd.into(), last: 0 };
        for slot in 0..SLOTS {
            ring.last = ring.last.max(ring.slot(slot).map_or(0, |line| line.number));
        }
        Ok(ring)
    }

    fn append(&mut self, level: u8, text: &str) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        let text = without_level(text);
        let most = SLOT - TEXT_AT;
        let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let mut slot = [0; SLOT];
        self.last += 1;
        slot[..8].copy_from_slice(&self.last.to_le_bytes());
        slot[8..16].copy_from_slice(&time.to_le_bytes());
        slot[16] = level;
        slot[18..20].copy_from_slice(&(end as u16).to_le_bytes());
        slot[TEXT_AT..TEXT_AT + end].copy_from_slice(&text.as_bytes()[..end]);
        // A log that cannot be written has nowhere to say so.
        let _ = self.file.write_all_at(&slot, self.last % SLOTS * SLOT as u64);
    }

    fn slot(&self, at: u64) -> Option<LogLine> {
        let mut slot = [0; SLOT];
        self.file.read_exact_at(&mut slot, at * SLOT as u64).ok()?;
        let word = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
        let len = usize::from(u16::from_le_bytes([slot[18], slot[19]])).min(SLOT - TEXT_AT);
        let text = String::from_utf8_lossy(&slot[TEXT_AT..TEXT_AT + len]).into_owned();
        Some(LogLine { number: word(0)?, time_ms: word(8)?, level: slot[16], text })
    }

    fn read(&self, after: u64) -> (Vec<LogLine>, bool) {
        let first = (after.saturating_add(1)).max((self.last + 1).saturating_sub(SLOTS)).max(1);
        let wanted = (first..=self.last).take(PAGE);
        let lines: Vec<LogLine> =
            wanted.filter_map(|number| self.slot(number % SLOTS).filter(|line| line.number == number)).collect();
        let more = lines.last().is_some_and(|line| line.number < self.last);
        (lines, more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_outlive_their_writer() {
        let fd = create().unwrap();
        let mut ring = Ring::open(fd.try_clone().unwrap()).unwrap();
        assert_eq!(ring.read(0), (Vec::new(), false));
        for n in 0..1500 {
            ring.append(4, &format!("  WARN line {n}\n"));
        }
        drop(ring);
        let mut ring = Ring::open(fd).unwrap();
        let (lines, more) = ring.read(0);
        assert!(lines.len() == PAGE && more && lines[0].number == 477 && lines[0].text == "line 476");
        ring.append(6, &"\u{e9}".repeat(1000));
        let (lines, more) = ring.read(1499);
        assert_eq!((lines.len(), more), (2, false));
        assert_eq!((lines[0].text.as_str(), lines[0].level), ("line 1499", 4));
        assert!(lines[1].text.len() <= SLOT && lines[1].text.starts_with('\u{e9}') && lines[1].level == 6);
        assert_eq!(ring.read(1501), (Vec::new(), false));
        assert_eq!(ring.read(u64::MAX), (Vec::new(), false));
    }
}

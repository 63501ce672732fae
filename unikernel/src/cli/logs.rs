//! `windsor logs`: what a service VM has logged, over its request channel.

use std::time::Duration;

use clap::Args;

use super::{FAILED, Failure, Outcome, WorldArgs, print, print_json};
use crate::channel::client;
use crate::channel::wire::{Answer, Ask, LogLine};
use crate::toolstack::look;

/// Between two looks for more.
const PAUSE: Duration = Duration::from_millis(400);

/// Arguments of `windsor logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// The service VM; not needed where there is one
    vm: Option<String>,
    /// Go on with what is logged from now on
    #[arg(short, long)]
    follow: bool,
    /// For programs: an object a line
    #[arg(long)]
    json: bool,
}

/// Prints the log, the oldest line first.
///
/// # Errors
/// When there is no such VM, or it does not answer.
pub fn run(args: &LogsArgs) -> Outcome {
    let world = args.world.world()?;
    let vm = look::service(&mut crate::store::toolstack(&world)?, args.vm.as_deref())?;
    let mut after = 0;
    loop {
        let answer = client::ask(&world, vm.domid, &Ask::Logs { after });
        let (lines, more) = match answer {
            Ok(Answer::Logs { lines, more }) => (lines, more),
            Ok(other) => return Err(super::unexpected(other)),
            // A supervisor that is being started again: there will be more to say soon.
            Err(error) if args.follow && after > 0 && error.exit_code() != 3 => {
                eprintln!("windsor: {error}");
                (Vec::new(), false)
            }
            Err(error) => return Err(error.into()),
        };
        for line in &lines {
            if line.number > after + 1 && after > 0 {
                eprintln!("windsor: {} lines were lost", line.number - after - 1);
            }
            after = line.number;
            if args.json { print_json(line)? } else { print(&format!("{}\n", shown(line)))? }
        }
        if !more && !args.follow {
            return Ok(());
        }
        if !more {
            std::thread::sleep(PAUSE);
        }
    }
}

/// A line for people: time (UTC), level, text.
fn shown(line: &LogLine) -> String {
    let level = match line.level {
        3 => "error",
        4 => "warning",
        6 => "info",
        _ => "debug",
    };
    // A VM is no more to be trusted with a terminal than its guests are.
    let text: String = line.text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{} {level:<7} {text}", time(line.time_ms))
}

/// `2026-11-29T03:26:01.123Z`
fn time(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Civil from days: years of 365.2425 days that begin in March.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", of_day % 1000)
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::new(FAILED, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_with_their_time() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_795_922_761_123), "2026-11-29T03:26:01.123Z");
        let line = LogLine { number: 1, time_ms: 0, level: 4, text: "a\x1b[2Jb".into() };
        assert_eq!(shown(&line), "1970-01-01T00:00:00.000Z warning a?[2Jb");
    }
}

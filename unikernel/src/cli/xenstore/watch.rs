//! `windsor xenstore watch`.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use xenstore::Client;

use super::{Failure, failed_to_print, failure, print, print_json};
use crate::inspect::text::escape;

/// Exit code: nothing came in time.
const TIMED_OUT: i32 = 4;

/// Arguments of `watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// End after so many lines; each watch fires once at the beginning
    #[arg(short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// End after so long, with 4 if lines were to be counted and have not come
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
    /// For programs: an object for each event, one a line
    #[arg(long)]
    json: bool,
    /// Nodes, or @introduceDomain, @releaseDomain
    #[arg(required = true)]
    paths: Vec<String>,
}

/// Prints what changes.
pub fn watch(args: &WatchArgs, client: &mut Client, out: &mut dyn Write) -> Result<i32, Failure> {
    let timeout = args.timeout.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO));
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    for path in &args.paths {
        client.watch(path, path).map_err(failure)?;
    }
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let wait = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let Some(event) = client.next_event(wait).map_err(failure)? else {
            return Ok(if args.count.is_some() { TIMED_OUT } else { 0 });
        };
        if args.json {
            print_json(out, &json!({"path": event.path, "watch": event.token}))?;
        } else {
            print(out, &escape(event.path.as_bytes()))?;
        }
        out.flush().map_err(|error| failed_to_print(&error))?;
        left -= 1;
    }
    Ok(0)
}

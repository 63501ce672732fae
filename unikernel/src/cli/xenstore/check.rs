//! `windsor xenstore check`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use xenstore::Client;

use super::{FAILED, Failure, failure, print, print_json};
use crate::inspect::check;

/// Arguments of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// For programs: one object with every finding
    #[arg(long)]
    json: bool,
    /// How long something has to be wrong: devices on their way to Connected are in order
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    dwell: f64,
}

/// Prints what is wrong with devices; exit code 1 if anything is.
pub fn check(args: &CheckArgs, client: &mut Client, out: &mut dyn Write) -> Result<i32, Failure> {
    let dwell = Duration::try_from_secs_f64(args.dwell).unwrap_or(Duration::from_secs(1));
    let report = check::check(client, dwell).map_err(failure)?;
    if args.json {
        let findings = &report.findings;
        print_json(out, &json!({"schema_version": 1, "devices": report.devices, "findings": findings}))?;
    } else {
        for finding in &report.findings {
            print(out, &format!("{}: {} ({})", finding.node, finding.why, finding.source))?;
        }
        eprintln!("{} devices, {} findings", report.devices, report.findings.len());
    }
    Ok(if report.findings.is_empty() { 0 } else { FAILED })
}

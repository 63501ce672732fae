//! `windsor doctor`.

use clap::Args;

use super::{Failure, MISSING, Outcome, WorldArgs};
use crate::doctor::{self, Level, Only, facts};
use crate::vm::Places;
use crate::vm::places::{CONFIG_DIR, STATE_DIR};

/// Exit code: something does not work.
pub const UNWELL: i32 = 6;

/// Arguments of `windsor doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// Only what is about this service VM
    #[arg(long, value_name = "NAME", conflicts_with = "guest")]
    vm: Option<String>,
    /// Only what is about this guest
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Images and records of service VMs
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: std::path::PathBuf,
    /// Configurations of service VMs
    #[arg(long, value_name = "DIR", default_value = CONFIG_DIR)]
    config_dir: std::path::PathBuf,
}

/// Says what is as it should be on stdout, and what is not on stderr, with the fix. Returns the exit code.
///
/// # Errors
/// When nothing is known of the VM or guest that was named.
pub fn run(args: &DoctorArgs) -> Result<i32, Failure> {
    // No world at all is a fact, too.
    let world = args.world.world().ok();
    let places = Places { state: args.state_dir.clone(), config: args.config_dir.clone() };
    let only = Only { vm: args.vm.clone(), guest: args.guest.clone() };
    let findings = doctor::check(&facts::read(world.as_ref(), &places), &only);
    if let Some(name) = args.vm.as_ref().or(args.guest.as_ref())
        && findings.is_empty()
    {
        return Err(Failure::new(
            MISSING,
            format!("nothing is known of \"{name}\": see windsor vm list and windsor status"),
        ));
    }
    if args.json {
        print(&serde_json::json!({ "schema_version": 1, "findings": findings }))?;
    } else {
        for finding in &findings {
            let about = if finding.about.is_empty() { String::new() } else { format!("{}: ", finding.about) };
            let line = format!("{:<8} {:<18} {about}{}", finding.level.name(), finding.check, finding.text);
            let fix = if finding.fix.is_empty() { String::new() } else { format!("\n         fix: {}", finding.fix) };
            match finding.level {
                Level::Ok | Level::Note => println!("{line}{fix}"),
                Level::Warning | Level::Error => eprintln!("{line}{fix}"),
            }
        }
    }
    Ok(if findings.iter().any(|finding| finding.level == Level::Error) { UNWELL } else { 0 })
}

fn print(value: &serde_json::Value) -> Outcome {
    println!("{}", serde_json::to_string_pretty(value).map_err(|error| Failure::new(super::FAILED, error))?);
    Ok(())
}

//! `windsor host`.

use std::path::PathBuf;

use clap::Args;
use xenstore::server::Limits;

use super::{BUSY, FAILED, Failure, Outcome, USAGE, from_environment};
use crate::host;

/// Arguments of `windsor host`.
#[derive(Args, Debug)]
pub struct HostArgs {
    /// Directory of the host, made if it is not there (else $WINDSOR_DIR)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A limit of the store for each domain, as in nodes=20000; 0 is none (xenstore-control quota shows all of them)
    #[arg(long = "quota", value_name = "NAME=VALUE")]
    quotas: Vec<String>,
}

/// Runs an embedded host until SIGTERM or SIGINT.
///
/// # Errors
/// When the directory cannot be used.
pub fn run(args: &HostArgs) -> Outcome {
    super::log("info");
    let Some(dir) = args.dir.clone().or_else(from_environment) else {
        return Err(Failure::new(USAGE, "give the host a directory: --dir DIR"));
    };
    let mut limits = Limits::default();
    for quota in &args.quotas {
        let set = quota.split_once('=').and_then(|(name, value)| Some(limits.set(name, value.parse().ok()?)));
        if set != Some(true) {
            let names: Vec<&str> = Limits::names().collect();
            return Err(Failure::new(
                USAGE,
                format!("--quota {quota}: not NAME=NUMBER with one of {}", names.join(", ")),
            ));
        }
    }
    host::run(&dir, limits).map_err(|error| {
        let busy = error.kind() == std::io::ErrorKind::AddrInUse;
        Failure::new(if busy { BUSY } else { FAILED }, error)
    })
}

//! `windsor host`.

use std::path::PathBuf;

use clap::Args;

use super::{BUSY, FAILED, Failure, Outcome, USAGE, from_environment};
use crate::host;

/// Arguments of `windsor host`.
#[derive(Args, Debug)]
pub struct HostArgs {
    /// Directory of the host, made if it is not there (else $WINDSOR_DIR)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
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
    host::run(&dir).map_err(|error| {
        let busy = error.kind() == std::io::ErrorKind::AddrInUse;
        Failure::new(if busy { BUSY } else { FAILED }, error)
    })
}

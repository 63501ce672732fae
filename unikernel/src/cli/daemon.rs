//! The hidden subcommands: `supervisor`, which a keeper starts, and `worker`, which a supervisor starts.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use grant::DomId;

use super::{FAILED, Failure, MISSING, Outcome, WorldArgs};
use crate::config::Config;
use crate::keeper::Keeper;
use crate::metrics::serve::Listen;
use crate::supervisor::SupervisorError;
use crate::{supervisor, worker};

/// Arguments of `windsor supervisor`.
#[derive(Args, Debug)]
pub struct SupervisorArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// Our own domain, in the embedded world
    #[arg(long)]
    domid: Option<u16>,
    /// Seconds that guests are still served once the end was asked for
    #[arg(long, default_value_t = 0)]
    linger: u64,
    /// Where `windsor metrics serve` is to listen
    #[arg(long)]
    metrics: Option<Listen>,
}

/// Serves until SIGTERM.
///
/// # Errors
/// When the world, the store or the configuration cannot be used.
pub fn run_supervisor(args: &SupervisorArgs) -> Outcome {
    super::log("info");
    let keeper = Keeper::from_stdin().map_err(|error| Failure::new(FAILED, error))?;
    let config = Config::load(&args.config)?;
    let world = args.world.world()?;
    let options = supervisor::Options {
        own: args.domid.map(DomId),
        metrics: args.metrics.clone(),
        linger: Duration::from_secs(args.linger),
    };
    supervisor::run(world, options, config, keeper).map_err(|error| {
        let code = match &error {
            SupervisorError::NoStore(_) | SupervisorError::Unusable(_) => MISSING,
            SupervisorError::Store(_) | SupervisorError::System(_) => FAILED,
        };
        Failure::new(code, error)
    })
}

/// Serves one guest's disks until the supervisor hangs up.
///
/// # Errors
/// As [`worker::run`].
pub fn run_worker() -> Outcome {
    super::log("info");
    worker::run().map_err(|error| Failure::new(FAILED, format!("worker: {error}")))
}

//! `windsor serve`: the keeper of a supervisor, as PID 1 is one inside a service VM.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use grant::embedded::{self, GuestMemory, RegisterError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{BUSY, FAILED, Failure, MISSING, WorldArgs};
use crate::config::Config;
use crate::keeper::{self, Spec};
use crate::metrics::serve::Listen;
use crate::settings::MAX_LINGER;
use crate::supervisor::takeover::MEMORY;
use crate::world::World;

/// Arguments of `windsor serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// What to serve
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// Seconds that guests are still served after SIGTERM; a second one ends at once
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=MAX_LINGER))]
    linger: Option<u64>,
    /// Hand numbers to Prometheus: unix:PATH or 127.0.0.1:PORT
    #[arg(long, value_name = "WHERE")]
    metrics: Option<Listen>,
}

/// Runs a supervisor until SIGTERM or SIGINT, and returns its exit code.
///
/// # Errors
/// When the configuration is wrong, or there is no world to serve in.
pub fn run(args: &ServeArgs) -> Result<i32, Failure> {
    super::log("info");
    let config = Config::load(&args.config)?;
    let world = args.world.world()?;
    grant::caps::check_io_uring().map_err(|error| Failure::new(MISSING, error))?;
    raise_descriptor_limit();
    let mut words: Vec<std::ffi::OsString> = vec!["--config".into(), args.config.clone().into()];
    if let Some(listen) = &args.metrics {
        let text = match listen {
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Loopback(address) => address.to_string(),
        };
        words.extend(["--metrics".into(), text.into()]);
    }
    let mut kept = Vec::new();
    // The domain lives as long as this process, not as a supervisor.
    let _domain: Option<OwnedFd> = match &world {
        World::Xen => None,
        World::Embedded(dir) => {
            // Enough for the pages of a request channel, and those of one that a dead supervisor has left mapped.
            let memory = GuestMemory::new(1 << 20).map_err(|error| Failure::new(FAILED, error))?;
            let fd = memory.fd().try_clone_to_owned().map_err(|error| Failure::new(FAILED, error))?;
            kept.push((MEMORY, fd));
            let domain = embedded::register(dir, &config.vm.name, Some(&memory)).map_err(|error| {
                let code = match &error {
                    RegisterError::NoHost { .. } => MISSING,
                    RegisterError::NameTaken(_) => BUSY,
                    _ => FAILED,
                };
                Failure::new(code, error)
            })?;
            words.extend(["--dir".into(), dir.into()]);
            words.extend(["--domid".into(), domain.domid.to_string().into()]);
            Some(domain.connection)
        }
    };
    let linger = args.linger.or(config.vm.linger).unwrap_or(0);
    words.extend(["--linger".into(), linger.to_string().into()]);
    let mut spec = Spec::supervisor(words);
    spec.lingers = linger > 0;
    spec.limits.stop += Duration::from_secs(linger);
    let ended = keeper::run_with(&spec, kept, None).map_err(|error| Failure::new(FAILED, error))?;
    Ok(ended.code)
}

/// A disk takes a handful of descriptors in each of three processes: all that we may have, as PID 1 takes in a VM.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of file descriptors stays as it is");
    }
}

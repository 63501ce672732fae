//! The service VM's own bridges (`[[bridge]]`): made at the start, and what is to be in them looked for until it is there.

use std::io;
use std::time::{Duration, Instant};

use grant::tap;

use crate::config::Bridge;
use crate::supervisor::Supervisor;

/// How often a port that is not there is looked for.
const RETRY: Duration = Duration::from_secs(2);

/// What is wrong with the bridges, and when to look again.
#[derive(Debug, Default)]
pub struct Bridges {
    wrong: Vec<String>,
    /// Not before this.
    pub retry: Option<Instant>,
}

/// Makes a bridge, with its ports.
///
/// # Errors
/// A line with the name of what is missing.
fn make(bridge: &Bridge) -> io::Result<()> {
    tap::make_bridge(&bridge.name)?;
    for port in &bridge.ports {
        if !tap::exists(port)? {
            let text = format!("bridge {}: there is no interface {port}", bridge.name);
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        if !tap::is_port(port, &bridge.name) {
            tap::join_bridge(port, &bridge.name)?;
        }
        tap::set_up(port)?;
    }
    Ok(())
}

impl Supervisor {
    /// Makes what is not made yet. The log has it once.
    pub(in crate::supervisor) fn tend_bridges(&mut self, now: Instant) {
        if self.vifs.bridges.retry.is_some_and(|at| at > now) {
            return;
        }
        let wrong: Vec<String> =
            self.config.bridges.iter().filter_map(|bridge| make(bridge).err()).map(|error| error.to_string()).collect();
        for why in wrong.iter().filter(|why| !self.vifs.bridges.wrong.contains(why)) {
            tracing::error!("{why}; looked for every {} s", RETRY.as_secs());
        }
        if wrong.is_empty() && !self.vifs.bridges.wrong.is_empty() {
            tracing::info!("all bridges are as they should be");
        }
        // An interface may come and go, as cards of the service VM do; what is there costs one look.
        self.vifs.bridges.retry = (!self.config.bridges.is_empty()).then(|| now + RETRY);
        self.vifs.bridges.wrong = wrong;
    }
}

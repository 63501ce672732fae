//! The subcommands: their arguments, what they print, and what they exit with.

pub mod attach;
pub mod bench;
pub mod daemon;
pub mod demo;
pub mod detach;
pub mod doctor;
pub mod guest;
pub mod host;
pub mod image;
pub mod logs;
pub mod man;
pub mod metrics;
pub mod resume;
pub mod serve;
pub mod status;
pub mod top;
pub mod vm;
pub mod volume;
pub mod xenstore;

use std::path::PathBuf;

use clap::Args;

use crate::world::{DIR_VARIABLE, NoWorld, World};

/// Exit code: something went wrong.
pub const FAILED: i32 = 1;
/// Exit code: the command line or the configuration is wrong.
pub const USAGE: i32 = 2;
/// Exit code: something that must be there is not.
pub const MISSING: i32 = 3;

/// Exit code: somebody else has it.
pub const BUSY: i32 = 5;

/// Why a command failed: one line for stderr, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// What the process ends with.
    pub code: i32,
    /// The line.
    pub text: String,
}

impl Failure {
    /// A failure with a code of its own.
    pub fn new(code: i32, text: impl ToString) -> Failure {
        Failure { code, text: text.to_string() }
    }

    /// Says it on stderr and returns the code.
    pub fn report(&self) -> i32 {
        eprintln!("windsor: {}", self.text);
        self.code
    }
}

impl From<NoWorld> for Failure {
    fn from(error: NoWorld) -> Failure {
        Failure::new(MISSING, error)
    }
}

impl From<crate::store::NoStore> for Failure {
    fn from(error: crate::store::NoStore) -> Failure {
        Failure::new(MISSING, error)
    }
}

impl From<::xenstore::Error> for Failure {
    fn from(error: ::xenstore::Error) -> Failure {
        Failure::new(FAILED, format!("xenstore: {error}"))
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        let code = match &error {
            crate::config::ConfigError::Read { .. } => MISSING,
            crate::config::ConfigError::Wrong { .. } => USAGE,
        };
        Failure::new(code, error)
    }
}

impl From<crate::toolstack::Refusal> for Failure {
    fn from(error: crate::toolstack::Refusal) -> Failure {
        Failure::new(error.exit_code(), error)
    }
}

impl From<crate::channel::client::ChannelError> for Failure {
    fn from(error: crate::channel::client::ChannelError) -> Failure {
        Failure::new(error.exit_code(), error)
    }
}

impl From<crate::source::Refusal> for Failure {
    fn from(error: crate::source::Refusal) -> Failure {
        Failure::new(error.exit_code(), error)
    }
}

impl From<crate::image::manifest::Damage> for Failure {
    fn from(error: crate::image::manifest::Damage) -> Failure {
        use crate::image::manifest::Damage;
        let code = match &error {
            Damage::NoImage(_) => MISSING,
            Damage::Damaged(_) => FAILED,
        };
        Failure::new(code, error)
    }
}

impl From<crate::image::Error> for Failure {
    fn from(error: crate::image::Error) -> Failure {
        Failure::new(error.exit_code(), error)
    }
}

/// How a command ends.
pub type Outcome = Result<(), Failure>;

/// Which world a command speaks to.
#[derive(Args, Clone, Debug)]
pub struct WorldArgs {
    /// Directory of an embedded host (else $WINDSOR_DIR, else real Xen)
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
}

impl WorldArgs {
    /// Finds the world.
    ///
    /// # Errors
    /// When there is none.
    pub fn world(&self) -> Result<World, NoWorld> {
        let dir = self.dir.clone().or_else(from_environment);
        World::find(dir.as_deref())
    }
}

/// The directory that the environment names.
fn from_environment() -> Option<PathBuf> {
    std::env::var_os(DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

pub use crate::log::start as log;

/// An answer that is a refusal, or none to what was asked.
fn unexpected(answer: crate::channel::wire::Answer) -> Failure {
    match answer {
        crate::channel::wire::Answer::Refused { code, why } => Failure::new(code, why),
        _ => Failure::new(FAILED, "the service VM answers something else than it was asked"),
    }
}

/// Prints a value for programs.
///
/// # Errors
/// When it cannot be written as JSON.
fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string(value).map_err(|error| Failure::new(FAILED, error))?;
    print(&format!("{text}\n"))
}

/// Prints a text at once; whoever reads it may have gone, and that is the end of a command without a word.
///
/// # Errors
/// When it cannot be written.
fn print(text: &str) -> Outcome {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|error| Failure::new(FAILED, format!("stdout: {error}"))),
    }
}

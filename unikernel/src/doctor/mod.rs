//! `windsor doctor`: what is wrong with this host, its service VMs and their guests, each with the exact fix.
//!
//! [`facts`] reads everything once; the checks are functions over that, so that tests feed facts of their own.

mod boot;
mod devices;
pub mod facts;
mod process;
mod quota;
mod service;
mod xen;

#[cfg(test)]
mod tests;

use serde::Serialize;

pub use facts::Facts;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// To be known.
    Note,
    /// It works, and may not go on doing so, or is less safe than it can be.
    Warning,
    /// It does not work.
    Error,
}

impl Level {
    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// What one check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// The VM or guest it is about; empty for the host.
    pub about: String,
    /// How bad it is.
    pub level: Level,
    /// What is so.
    pub text: String,
    /// What to do about it; empty where nothing need be done.
    pub fix: String,
}

impl Finding {
    fn new(check: &'static str, level: Level, text: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, about: String::new(), level, text: text.into(), fix: fix.into() }
    }

    fn ok(check: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, text, "")
    }

    fn about(self, name: &str) -> Finding {
        Finding { about: name.to_owned(), ..self }
    }
}

/// Which findings are wanted.
#[derive(Clone, Debug, Default)]
pub struct Only {
    /// Those about this service VM.
    pub vm: Option<String>,
    /// Those about this guest.
    pub guest: Option<String>,
}

/// Everything that the facts tell, in the order of the groups.
pub fn check(facts: &Facts, only: &Only) -> Vec<Finding> {
    let groups: [fn(&Facts) -> Vec<Finding>; 6] =
        [process::check, xen::check, boot::check, quota::check, service::check, devices::check];
    let mut findings: Vec<Finding> = groups.iter().flat_map(|group| group(facts)).collect();
    for name in [&only.vm, &only.guest].into_iter().flatten() {
        findings.retain(|finding| finding.about == *name);
    }
    findings
}

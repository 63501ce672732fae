//! Saying that a test could not run. The test harness knows no such thing and shows nothing of a test that passes, so
//! the line goes straight to stderr, where `tests/run` finds and counts it.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Reports that `case` did not run, and why.
pub fn skip(case: &str, reason: &str) {
    // Without a stderr nobody is there to read it.
    let _ = std::io::stderr().write_all(format!("\nSKIP {case}: {reason}\n").as_bytes());
}

/// Whether `program` of the Debian package `package` is there; reports `case` as skipped if it is not.
pub fn installed(case: &str, program: &str, package: &str) -> bool {
    let mut command = Command::new(program);
    let there = command.arg("--version").stdin(Stdio::null()).output().is_ok();
    if !there {
        skip(case, &format!("{program} is missing: apt-get install {package}"));
    }
    there
}

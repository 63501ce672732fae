//! The embedded host.

use std::path::Path;

/// Runs one.
///
/// # Errors
/// Always.
pub fn run(_dir: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

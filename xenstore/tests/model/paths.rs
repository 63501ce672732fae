//! Paths: which are valid, what they stand for, what is above and below.
#![allow(dead_code, reason = "each test file uses some of it")]

use xenstore::wire::ErrorName;

/// Bytes of a path that do not lead to a domain's directory.
const LONGEST: usize = 2048;

/// What a path stands for when `domid` says it. Only watches may name what starts
/// with `@`, and that may be anything.
pub fn absolute(path: &[u8], domid: u16, special: bool) -> Result<String, ErrorName> {
    if special && path.starts_with(b"@") {
        let name = String::from_utf8_lossy(path).into_owned();
        return if path.len() > LONGEST { Err(ErrorName::Einval) } else { Ok(name) };
    }
    let text = std::str::from_utf8(path).map_err(|_| ErrorName::Einval)?;
    let known = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
    if !text.chars().all(known) {
        return Err(ErrorName::Einval);
    }
    let full = match text.chars().next() {
        Some('/') => text.to_owned(),
        Some('@') => return Err(ErrorName::Einval),
        _ => format!("{}/{text}", home(domid)),
    };
    let ends = full.ends_with('/') && full != "/";
    if ends || full.contains("//") || full.len() - prefix(&full) > LONGEST {
        return Err(ErrorName::Einval);
    }
    Ok(full)
}

/// Where the relative paths of a domain begin.
pub fn home(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// Bytes of `/local/domain/N/` at the start of a path.
fn prefix(path: &str) -> usize {
    let Some(rest) = path.strip_prefix("/local/domain/") else { return 0 };
    let digits = rest.bytes().take(5).take_while(u8::is_ascii_digit).count();
    let whole = digits > 0 && rest[digits..].starts_with('/');
    if whole { "/local/domain/".len() + digits + 1 } else { 0 }
}

/// What a node is in; the root is in itself.
pub fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &path[..at],
    }
}

/// The last name of a path.
pub fn name(path: &str) -> &str {
    &path[path.rfind('/').map_or(0, |at| at + 1)..]
}

/// A node in `path`.
pub fn child(path: &str, name: &str) -> String {
    if path == "/" { format!("/{name}") } else { format!("{path}/{name}") }
}

/// Whether `path` is `above` or somewhere in it. The special names are in nothing.
pub fn within(path: &str, above: &str) -> bool {
    above == "/" && path.starts_with('/')
        || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

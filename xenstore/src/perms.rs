//! Permissions of a node: the owner first, whose letter is everybody else's default, then entries for single domains.

use std::fmt;
use std::str::FromStr;

/// One entry: `n3`, `r0`, `w7`, `b12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// Whose.
    pub domid: u16,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

impl Permission {
    /// `n`: nothing, or the owner that lets nobody in.
    pub fn none(domid: u16) -> Permission {
        Permission { domid, read: false, write: false }
    }

    /// `r`: reads.
    pub fn read(domid: u16) -> Permission {
        Permission { domid, read: true, write: false }
    }

    /// `b`: reads and writes.
    pub fn both(domid: u16) -> Permission {
        Permission { domid, read: true, write: true }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

/// The text is no permission.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no permission: a letter of n, r, w, b and a domain number")]
pub struct BadPermission(String);

impl FromStr for Permission {
    type Err = BadPermission;

    fn from_str(text: &str) -> Result<Permission, BadPermission> {
        let bad = || BadPermission(text.chars().take(32).collect());
        let (read, write) = match text.as_bytes().first() {
            Some(b'n') => (false, false),
            Some(b'r') => (true, false),
            Some(b'w') => (false, true),
            Some(b'b') => (true, true),
            _ => return Err(bad()),
        };
        let digits = &text[1..];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(Permission { domid: digits.parse().map_err(|_| bad())?, read, write })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_read_as_they_are_written() {
        for text in ["n0", "r5", "w65535", "b3"] {
            assert_eq!(text.parse::<Permission>().unwrap().to_string(), text);
        }
        for text in ["", "n", "x1", "r-1", "r+1", "r65536", "r1 ", "b\u{e9}"] {
            assert!(text.parse::<Permission>().is_err(), "{text}");
        }
    }
}

//! The xenbus handshake between the two halves of a device (Xen's public `io/xenbus.h`).

pub mod backend;
pub mod frontend;

use std::fmt;

/// A device's state (`enum xenbus_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the header's")]
pub enum XenbusState {
    Unknown = 0,
    Initialising = 1,
    InitWait = 2,
    Initialised = 3,
    Connected = 4,
    Closing = 5,
    Closed = 6,
    Reconfiguring = 7,
    Reconfigured = 8,
}

impl XenbusState {
    /// From a node's value; whatever is no state is Unknown.
    pub fn parse(value: &[u8]) -> XenbusState {
        use XenbusState::*;
        match value {
            b"1" => Initialising,
            b"2" => InitWait,
            b"3" => Initialised,
            b"4" => Connected,
            b"5" => Closing,
            b"6" => Closed,
            b"7" => Reconfiguring,
            b"8" => Reconfigured,
            _ => Unknown,
        }
    }

    /// The number in a node.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_its_number_and_everything_else_is_unknown() {
        for number in 1..=8u8 {
            assert_eq!(XenbusState::parse(number.to_string().as_bytes()).number(), number);
        }
        for value in ["", "0", "9", "01", "1 ", "4\0", "-1", "x"] {
            assert_eq!(XenbusState::parse(value.as_bytes()), XenbusState::Unknown, "{value:?}");
        }
    }
}

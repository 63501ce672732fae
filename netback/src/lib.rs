//! One virtual network card. So far this is the protocol's wire format ([`proto`]); the device has a change of its own.
#![forbid(unsafe_code)]

pub mod proto;

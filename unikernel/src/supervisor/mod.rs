//! The supervisor of a service VM.

pub mod guest;
pub mod volume;

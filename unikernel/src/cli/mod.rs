//! The subcommands.

pub mod image;

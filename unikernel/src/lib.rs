//! The appliance and the command `windsor`.
#![forbid(unsafe_code)]

pub mod cli;
pub mod image;
pub mod init;
pub mod keeper;

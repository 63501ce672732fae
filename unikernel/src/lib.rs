//! The appliance and the command `windsor`.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod image;
pub mod init;
pub mod keeper;
pub mod message;
pub mod supervisor;
pub mod vdev;
pub mod worker;
pub mod world;

//! The appliance and the command `windsor`.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod demo;
pub mod device;
pub mod guest;
pub mod host;
pub mod image;
pub mod init;
pub mod inspect;
pub mod keeper;
pub mod message;
pub mod nbd;
pub mod publish;
pub mod store;
pub mod supervisor;
pub mod toolstack;
pub mod vdev;
pub mod vm;
pub mod worker;
pub mod world;

//! The appliance and the command `windsor`.
#![forbid(unsafe_code)]

pub mod bench;
pub mod channel;
pub mod cli;
pub mod config;
pub mod demo;
pub mod device;
pub mod doctor;
pub mod guest;
pub mod host;
pub mod image;
pub mod init;
pub mod inspect;
pub mod keeper;
pub mod log;
pub mod message;
pub mod metrics;
pub mod nbd;
pub mod publish;
pub mod settings;
pub mod source;
pub mod store;
pub mod supervisor;
pub mod toolstack;
pub mod vdev;
pub mod vm;
pub mod worker;
pub mod world;

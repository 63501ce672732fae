//! The command `windsor`.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use unikernel::cli::image::{self, ImageArgs};

/// Virtual machines that serve disks and networks to other virtual machines
#[derive(Parser)]
#[command(name = "windsor", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Images of service VMs
    Image(ImageArgs),
}

fn main() {
    if let Some(code) = unikernel::init::enter() {
        std::process::exit(code);
    }
    let Command::Image(args) = Arguments::parse().command;
    let code = image::run(args).unwrap_or_else(|error| {
        eprintln!("windsor: {error}");
        error.exit_code()
    });
    std::process::exit(code);
}

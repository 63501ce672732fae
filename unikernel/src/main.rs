//! The command `windsor`.
#![forbid(unsafe_code)]

use clap::{CommandFactory, Parser, Subcommand};
use unikernel::cli::attach::AttachArgs;
use unikernel::cli::bench::BenchArgs;
use unikernel::cli::daemon::SupervisorArgs;
use unikernel::cli::demo::{DemoArgs, DemoPartArgs};
use unikernel::cli::detach::DetachArgs;
use unikernel::cli::doctor::DoctorArgs;
use unikernel::cli::guest::GuestArgs;
use unikernel::cli::host::HostArgs;
use unikernel::cli::image::ImageArgs;
use unikernel::cli::logs::LogsArgs;
use unikernel::cli::man::{CompletionArgs, ManArgs};
use unikernel::cli::metrics::MetricsArgs;
use unikernel::cli::resume::ResumeArgs;
use unikernel::cli::serve::ServeArgs;
use unikernel::cli::status::StatusArgs;
use unikernel::cli::top::TopArgs;
use unikernel::cli::vm::VmArgs;
use unikernel::cli::volume::VolumeArgs;
use unikernel::cli::xenstore::XenstoreArgs;
use unikernel::cli::{
    attach, bench, daemon, demo, detach, doctor, guest, host, image, logs, man, metrics, resume, serve, status, top,
    vm, volume, xenstore,
};

/// Virtual machines that serve disks and networks to other virtual machines
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something named or needed is not there, 4 not Connected (or not
/// gone) in time, 5 busy, 6 doctor found errors.
#[derive(Parser)]
#[command(name = "windsor", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole thing on this machine: a disk goes through it, is checked and measured
    Demo(DemoArgs),
    /// Loads on the paravirtual path, measured at both ends
    Bench(BenchArgs),
    /// Embedded host: stands in for Xen and xenstored on any Linux
    Host(HostArgs),
    /// The daemon of a service VM
    Serve(ServeArgs),
    /// A guest on the embedded host: each of its disks is an NBD export
    Guest(GuestArgs),
    /// Give a guest a volume or a network: wait until its disk is Connected, or its card is offered
    Attach(AttachArgs),
    /// Take a disk or a card away from a guest and wait until it is gone
    Detach(DetachArgs),
    /// Every service VM, volume, network, disk and card: both xenbus states, why not connected, counters
    Status(StatusArgs),
    /// Say that a volume is well again: what waits for it is tried at once, and flushes that failed are forgotten
    Resume(ResumeArgs),
    /// What a service VM has logged
    Logs(LogsArgs),
    /// What every disk does now
    Top(TopArgs),
    /// Numbers for Prometheus
    Metrics(MetricsArgs),
    /// Volumes of a service VM: list, make, resize, remove
    Volume(VolumeArgs),
    /// Images of service VMs
    Image(ImageArgs),
    /// What is wrong with this host, its service VMs and guests, each with the fix
    Doctor(DoctorArgs),
    /// Service VMs, from dom0: create, start, stop, list
    Vm(VmArgs),
    /// Write the manual's pages
    Man(ManArgs),
    /// Print the completion script of a shell
    Completion(CompletionArgs),
    /// Look into any xenstore, embedded or real, and change it
    Xenstore(XenstoreArgs),
    /// Started by `serve` and by PID 1
    #[command(hide = true)]
    Supervisor(SupervisorArgs),
    /// Started by the supervisor, one for the disks of each guest and one for each network
    #[command(hide = true)]
    Worker,
    /// Started by `demo`
    #[command(hide = true)]
    DemoPart(DemoPartArgs),
}

fn main() {
    if let Some(code) = unikernel::init::enter() {
        std::process::exit(code);
    }
    let done = |()| 0;
    let ended = match Arguments::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::DemoPart(args) => demo::run_part(&args),
        Command::Host(args) => host::run(&args).map(done),
        Command::Serve(args) => serve::run(&args),
        Command::Guest(args) => guest::run(&args).map(done),
        Command::Attach(args) => attach::run(&args).map(done),
        Command::Detach(args) => detach::run(&args).map(done),
        Command::Status(args) => status::run(&args).map(done),
        Command::Resume(args) => resume::run(&args).map(done),
        Command::Logs(args) => logs::run(&args).map(done),
        Command::Top(args) => top::run(&args).map(done),
        Command::Metrics(args) => metrics::run(&args).map(done),
        Command::Volume(args) => volume::run(&args).map(done),
        Command::Image(args) => image::run(args).map(done),
        Command::Doctor(args) => doctor::run(&args),
        Command::Vm(args) => vm::run(args).map(done),
        Command::Man(args) => man::run(&args, Arguments::command()).map(done),
        Command::Completion(args) => man::completion(&args, Arguments::command()).map(done),
        Command::Xenstore(args) => xenstore::run(&args),
        Command::Supervisor(args) => daemon::run_supervisor(&args).map(done),
        Command::Worker => daemon::run_worker().map(done),
    };
    std::process::exit(ended.unwrap_or_else(|failure| failure.report()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_says_what_it_is() {
        let mut command = Arguments::command();
        command.build();
        command.clone().debug_assert();
        assert_eq!(man::without_help(&command, "windsor"), [""; 0]);
    }
}

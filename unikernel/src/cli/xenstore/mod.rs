//! `windsor xenstore`: look into any xenstore, embedded or real, and change it. The arguments and the output are those
//! of Debian's xenstore-* programs where there is one of the name.

mod check;
mod dump;
mod look;
mod watch;
mod write;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use grant::DomId;
use xenstore::wire::{ErrorName, MessageType};
use xenstore::{Client, Error};

use super::{FAILED, Failure, MISSING, USAGE, WorldArgs};
use crate::store;
use crate::world::World;

/// Arguments of `windsor xenstore`.
#[derive(Args, Debug)]
pub struct XenstoreArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// Act as this domain of the embedded host, with its rights; else as dom0
    #[arg(long, value_name = "DOMID", global = true)]
    domain: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a part of the store, as xenstore-ls does
    Ls(look::LsArgs),
    /// Names of a node's children, one a line
    List(look::ListArgs),
    /// Values, one a line
    Read(look::ReadArgs),
    /// Succeeds if every node is there
    Exists(look::PathsArgs),
    /// Write values, several in one transaction; missing parents are made
    Write(write::WriteArgs),
    /// Make nodes without a value
    Mkdir(look::PathsArgs),
    /// Remove nodes and what is below them, several in one transaction
    Rm(write::RmArgs),
    /// Say who may read and write a node
    Chmod(write::ChmodArgs),
    /// Tell what changes at and below nodes, one path a line
    Watch(watch::WatchArgs),
    /// Write a part of the store to stdout, without loss
    Dump(dump::DumpArgs),
    /// Make a part of the store what a dump says, in one transaction
    Restore(dump::RestoreArgs),
    /// Say which device nodes break the xenbus protocol, and why
    Check(check::CheckArgs),
}

/// Does it.
///
/// # Errors
/// With one line: what, which path, and the exit code.
pub fn run(args: &XenstoreArgs) -> Result<i32, Failure> {
    let world = args.world.world()?;
    let mut client = match (args.domain, &world) {
        (None | Some(0), _) => store::toolstack(&world)?,
        (Some(domid), World::Embedded(_)) => store::domain(&world, Some(DomId(domid)))?,
        (Some(_), World::Xen) => return Err(Failure::new(USAGE, "--domain is for an embedded host (--dir DIR)")),
    };
    let own = args.domain.unwrap_or(0);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let ended = perform(&args.command, &mut client, own, &mut out);
    let flushed = out.flush().map_err(|error| failed_to_print(&error));
    match ended.and_then(|code| flushed.map(|()| code)) {
        // Nobody reads on: what was asked for has been given.
        Err(failure) if failure.text.is_empty() => Ok(0),
        other => other,
    }
}

fn perform(command: &Command, client: &mut Client, own: u16, out: &mut dyn Write) -> Result<i32, Failure> {
    match command {
        Command::Ls(args) => look::ls(args, client, own, out),
        Command::List(args) => look::list(args, client, out),
        Command::Read(args) => look::read(args, client, out),
        Command::Exists(args) => look::exists(args, client),
        Command::Write(args) => write::write(args, client),
        Command::Mkdir(args) => write::mkdir(args, client),
        Command::Rm(args) => write::rm(args, client),
        Command::Chmod(args) => write::chmod(args, client),
        Command::Watch(args) => watch::watch(args, client, out),
        Command::Dump(args) => dump::dump(args, client, own, out),
        Command::Restore(args) => dump::restore(args, client),
        Command::Check(args) => check::check(args, client, out),
    }
}

/// A line for people: what was asked, of which node, and what to make of the answer.
fn failure(error: Error) -> Failure {
    let Error::Xenstore { operation, path, name } = &error else { return Failure::new(FAILED, error) };
    let node = if path.is_empty() { "the store" } else { path };
    let (code, why) = match name {
        ErrorName::Enoent if *operation == MessageType::Rm => (MISSING, "the node above it is not there"),
        ErrorName::Enoent => (MISSING, "no such node"),
        ErrorName::Eacces => (FAILED, "this domain may not (see its permissions: windsor xenstore ls -p)"),
        ErrorName::Eperm => (FAILED, "only dom0 may change a node's owner"),
        ErrorName::Einval => (USAGE, "not a path or permission that a store takes"),
        ErrorName::Enospc | ErrorName::Enomem => (FAILED, "the domain's quota is used up (xenstore-control quota)"),
        ErrorName::E2big => (FAILED, "too long for a message, or too many watches"),
        _ => (FAILED, "the store refused"),
    };
    Failure::new(code, format!("{node}: {why} ({name})"))
}

/// The end of stdout is no failure of ours; it has no text.
fn failed_to_print(error: &io::Error) -> Failure {
    let is_end = error.kind() == io::ErrorKind::BrokenPipe;
    Failure::new(FAILED, if is_end { String::new() } else { format!("stdout: {error}") })
}

/// Prints one line.
fn print(out: &mut dyn Write, line: &str) -> Result<(), Failure> {
    writeln!(out, "{line}").map_err(|error| failed_to_print(&error))
}

/// Prints one JSON value on one line.
fn print_json(out: &mut dyn Write, value: &serde_json::Value) -> Result<(), Failure> {
    print(out, &value.to_string())
}

/// Where a command without a path begins: all of it for dom0, its own directory for a domain.
fn root(path: Option<&str>, own: u16) -> String {
    match path {
        Some(path) => path.to_owned(),
        None if own == 0 => "/".to_owned(),
        None => format!("/local/domain/{own}"),
    }
}

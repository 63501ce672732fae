//! `windsor xenstore dump` and `restore`.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;

use clap::Args;
use xenstore::{Client, Error};

use super::{FAILED, Failure, MISSING, failed_to_print, failure, root};
use crate::inspect::dump::{Dump, DumpError};
use crate::inspect::restore;

/// Arguments of `dump`.
#[derive(Args, Debug)]
pub struct DumpArgs {
    /// Where to begin [default: everything; with --domain, that domain's directory]
    path: Option<String>,
}

/// Arguments of `restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// A file that `dump` wrote [default: stdin]
    file: Option<PathBuf>,
}

/// Writes a part of the store, as it was at one moment.
pub fn dump(args: &DumpArgs, client: &mut Client, own: u16, out: &mut dyn Write) -> Result<i32, Failure> {
    let root = root(args.path.as_deref(), own);
    let dump = client.transaction(|tx| Dump::take(tx, &root)).map_err(too_busy)?;
    dump.write(out).map_err(|error| failed_to_print(&error))?;
    Ok(0)
}

/// Makes a part of the store what it was.
pub fn restore(args: &RestoreArgs, client: &mut Client) -> Result<i32, Failure> {
    let file = args.file.as_ref().filter(|file| file.as_os_str() != "-");
    let name = file.map_or("stdin".to_owned(), |file| file.display().to_string());
    let dump = match file {
        Some(file) => {
            let file = File::open(file).map_err(|error| Failure::new(MISSING, format!("{name}: {error}")))?;
            Dump::read(&mut BufReader::new(file))
        }
        None => Dump::read(&mut std::io::stdin().lock()),
    };
    let dump = dump.map_err(|error| match error {
        DumpError::Wrong { .. } => Failure::new(FAILED, format!("{name}: {error}; nothing was changed")),
        DumpError::Io(error) => Failure::new(FAILED, format!("{name}: {error}")),
    })?;
    let done = client.transaction(|tx| restore::restore(tx, &dump)).map_err(too_busy)?;
    eprintln!(
        "{}: {} nodes removed with what was below them, {} made, {} changed",
        dump.root(),
        done.removed,
        done.made,
        done.changed
    );
    Ok(0)
}

fn too_busy(error: Error) -> Failure {
    match error {
        Error::Conflict { .. } => Failure::new(super::super::BUSY, format!("{error}: others change it all the time")),
        other => failure(other),
    }
}

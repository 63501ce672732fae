//! What changes nodes: write, mkdir, rm, chmod. Each is one transaction.

use std::io::Read as _;

use clap::Args;
use xenstore::wire::MessageType;
use xenstore::{Client, Error, Permission, Store};

use super::look::PathsArgs;
use super::{FAILED, Failure, USAGE, failure};
use crate::inspect::text::unescape;
use crate::inspect::tree;

/// Arguments of `write`.
#[derive(Args, Debug)]
pub struct WriteArgs {
    /// Values as they are; else \t \n \r \\ \123 \x7f stand for bytes
    #[arg(short = 'R', long)]
    raw: bool,
    /// The value of the one PATH is what stdin has, to its last byte
    #[arg(long)]
    stdin: bool,
    /// Nodes, each with its value; -- before a value that begins with a hyphen
    #[arg(required = true, value_name = "PATH VALUE", allow_negative_numbers = true)]
    words: Vec<String>,
}

/// Arguments of `rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// The nodes above too, as far as they are empty then
    #[arg(short)]
    tidy: bool,
    /// Nodes
    #[arg(required = true)]
    paths: Vec<String>,
}

/// Arguments of `chmod`.
#[derive(Args, Debug)]
pub struct ChmodArgs {
    /// Everything below too
    #[arg(short)]
    recursive: bool,
    /// Everything above too, but the root
    #[arg(short)]
    up: bool,
    /// The node
    path: String,
    /// A letter (n nothing, r read, w write, b both) and a domain: the owner with everybody's right, then exceptions
    #[arg(required = true)]
    perms: Vec<Permission>,
}

/// Writes values.
pub fn write(args: &WriteArgs, client: &mut Client) -> Result<i32, Failure> {
    let mut pairs: Vec<(&str, Vec<u8>)> = Vec::new();
    if args.stdin {
        let [path] = &args.words[..] else { return Err(Failure::new(USAGE, "--stdin goes with exactly one PATH")) };
        let mut value = Vec::new();
        let limit = xenstore::wire::PAYLOAD_MAX as u64 + 1;
        let read = std::io::stdin().lock().take(limit).read_to_end(&mut value);
        read.map_err(|error| Failure::new(FAILED, format!("stdin: {error}")))?;
        pairs.push((path, value));
    } else {
        for pair in args.words.chunks(2) {
            let [path, value] = pair else {
                return Err(Failure::new(USAGE, format!("{} has no value", pair[0])));
            };
            let value = if args.raw { value.clone().into_bytes() } else { unescape(value.as_bytes()) };
            pairs.push((path, value));
        }
    }
    if let Some((path, _)) =
        pairs.iter().find(|(path, value)| path.len() + 1 + value.len() > xenstore::wire::PAYLOAD_MAX)
    {
        let most = xenstore::wire::PAYLOAD_MAX;
        return Err(Failure::new(FAILED, format!("{path}: path and value have more than {most} bytes")));
    }
    match &pairs[..] {
        [(path, value)] => client.write(path, value),
        pairs => client.transaction(|tx| pairs.iter().try_for_each(|(path, value)| tx.write(path, value))),
    }
    .map_err(failure)?;
    Ok(0)
}

/// Makes nodes.
pub fn mkdir(args: &PathsArgs, client: &mut Client) -> Result<i32, Failure> {
    client.transaction(|tx| args.paths.iter().try_for_each(|path| tx.mkdir(path))).map_err(failure)?;
    Ok(0)
}

/// Removes nodes.
pub fn rm(args: &RmArgs, client: &mut Client) -> Result<i32, Failure> {
    client.transaction(|tx| args.paths.iter().try_for_each(|path| remove(tx, path, args.tidy))).map_err(failure)?;
    Ok(0)
}

fn remove<S: Store>(store: &mut S, path: &str, tidy: bool) -> Result<(), Error> {
    // Not the store's own rm, for which a missing parent is as good as removed.
    store.request(MessageType::Rm, path, &[path.as_bytes(), b"\0"])?;
    for above in tree::above(path).take_while(|_| tidy) {
        if !store.read(above)?.is_empty() || !store.directory(above)?.is_empty() {
            break;
        }
        store.rm(above)?;
    }
    Ok(())
}

/// Sets permissions.
pub fn chmod(args: &ChmodArgs, client: &mut Client) -> Result<i32, Failure> {
    let changed = client.transaction(|tx| {
        tx.set_perms(&args.path, &args.perms)?;
        if args.recursive {
            for entry in tree::below(tx, &args.path)? {
                tx.set_perms(&entry.path, &args.perms)?;
            }
        }
        tree::above(&args.path).take_while(|_| args.up).try_for_each(|above| tx.set_perms(above, &args.perms))
    });
    changed.map_err(failure)?;
    Ok(0)
}

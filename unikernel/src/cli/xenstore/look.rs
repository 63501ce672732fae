//! What only looks: ls, list, read, exists.

use std::io::{IsTerminal, Write};

use clap::Args;
use serde_json::{Value, json};
use xenstore::{Client, Store};

use super::{Failure, failure, print, print_json, root};
use crate::inspect::list::{self, Style};
use crate::inspect::text::escape;
use crate::inspect::tree::{self, Entry};

/// Arguments of `ls`.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Whole paths, nothing cut off
    #[arg(short)]
    full: bool,
    /// Permissions too
    #[arg(short)]
    perms: bool,
    /// For programs: one object with every node
    #[arg(long)]
    json: bool,
    /// Where to begin [default: everything; with --domain, that domain's directory]
    path: Option<String>,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Whole paths
    #[arg(short)]
    prefix: bool,
    /// Nodes
    #[arg(required = true)]
    paths: Vec<String>,
}

/// Arguments of `read`.
#[derive(Args, Debug)]
pub struct ReadArgs {
    /// Each value after its path
    #[arg(short)]
    prefix: bool,
    /// The bytes as they are, and nothing after them
    #[arg(short = 'R', long)]
    raw: bool,
    /// For programs: an object for each node, one a line
    #[arg(long, conflicts_with_all = ["raw", "prefix"])]
    json: bool,
    /// Nodes
    #[arg(required = true)]
    paths: Vec<String>,
}

/// Arguments of what only needs nodes.
#[derive(Args, Debug)]
pub struct PathsArgs {
    /// Nodes
    #[arg(required = true)]
    pub paths: Vec<String>,
}

/// Shows a part of the store.
pub fn ls(args: &LsArgs, client: &mut Client, own: u16, out: &mut dyn Write) -> Result<i32, Failure> {
    let entries = tree::below(client, &root(args.path.as_deref(), own)).map_err(failure)?;
    if args.json {
        let nodes: Vec<Value> = entries.iter().map(as_json).collect();
        print_json(out, &json!({"schema_version": 1, "nodes": nodes}))?;
        return Ok(0);
    }
    let style = Style { full: args.full, perms: args.perms, columns: columns() };
    entries.iter().try_for_each(|entry| print(out, &list::line(entry, style)))?;
    Ok(0)
}

/// A terminal's width but two, as xenstore-ls has it.
fn columns() -> usize {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout)).and_then(Result::ok);
    size.map_or(list::COLUMNS, |size| usize::from(size.ws_col).saturating_sub(2).max(20))
}

fn as_json(entry: &Entry) -> Value {
    let perms: Option<Vec<String>> = entry.perms.as_ref().map(|perms| perms.iter().map(ToString::to_string).collect());
    let mut node = value_as_json(&entry.path, entry.value.as_deref());
    node["perms"] = json!(perms);
    node
}

/// Text as it is; bytes that are none in hexadecimal.
fn value_as_json(path: &str, value: Option<&[u8]>) -> Value {
    match value.map(|value| (value, std::str::from_utf8(value))) {
        Some((_, Ok(text))) => json!({"path": path, "value": text}),
        Some((bytes, Err(_))) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"path": path, "value": null, "value_hex": hex})
        }
        None => json!({"path": path, "value": null}),
    }
}

/// Names of children.
pub fn list(args: &ListArgs, client: &mut Client, out: &mut dyn Write) -> Result<i32, Failure> {
    for path in &args.paths {
        for name in client.directory(path).map_err(failure)? {
            print(out, &if args.prefix { tree::join(path, &name) } else { name })?;
        }
    }
    Ok(0)
}

/// Values.
pub fn read(args: &ReadArgs, client: &mut Client, out: &mut dyn Write) -> Result<i32, Failure> {
    for path in &args.paths {
        let value = client.read(path).map_err(failure)?;
        if args.json {
            print_json(out, &value_as_json(path, Some(&value)))?;
        } else if args.raw {
            out.write_all(&value).map_err(|error| super::failed_to_print(&error))?;
        } else if args.prefix {
            print(out, &format!("{path}: {}", escape(&value)))?;
        } else {
            print(out, &escape(&value))?;
        }
    }
    Ok(0)
}

/// Fails with the first that is not there.
pub fn exists(args: &PathsArgs, client: &mut Client) -> Result<i32, Failure> {
    args.paths.iter().try_for_each(|path| client.read(path).map(drop)).map_err(failure)?;
    Ok(0)
}

//! A part of the store as a file: one node a line, parents before children, siblings in the order of the store.
//!
//! ```text
//! windsor-xenstore-dump 1 /local/domain/3
//! /local/domain/3<TAB>n0,r3<TAB>value
//! end 1
//! ```
//!
//! The first line names the format and the root, whose own line comes first; the last one counts the nodes. Values are written as xenstore-ls does,
//! so that any bytes survive. A file is read whole, and found right or wrong, before anything is done with it.

use std::collections::HashSet;
use std::io::{self, BufRead, Write};

use xenstore::wire::{ABS_PATH_MAX, PAYLOAD_MAX};
use xenstore::{Permission, Store};

use super::text::{escape, unescape};
use super::tree;

const FORMAT: &str = "windsor-xenstore-dump 1 ";
/// A value of the longest kind with each byte escaped, a path, and as many permissions as fit a message.
const LINE_MAX: usize = 4 * PAYLOAD_MAX + ABS_PATH_MAX + PAYLOAD_MAX;

/// A node of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Absolute.
    pub path: String,
    /// The owner first.
    pub perms: Vec<Permission>,
    /// Bytes.
    pub value: Vec<u8>,
}

/// A part of the store, the root first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// At least one: the root.
    pub nodes: Vec<Node>,
}

/// Why a dump is none.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is wrong.
    #[error("line {line}: {why}")]
    Wrong {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl Dump {
    /// Reads a part of the store.
    ///
    /// # Errors
    /// What the store says; a node that may not be read is an error, since it would be lost.
    pub fn take<S: Store + ?Sized>(store: &mut S, root: &str) -> Result<Dump, xenstore::Error> {
        let mut nodes = Vec::new();
        for entry in tree::at(store, root)? {
            let value = entry.value.map_or_else(|| store.read(&entry.path), Ok)?;
            let perms = entry.perms.map_or_else(|| store.get_perms(&entry.path), Ok)?;
            nodes.push(Node { path: entry.path, perms, value });
        }
        Ok(Dump { nodes })
    }

    /// The node that everything else is below.
    pub fn root(&self) -> &str {
        &self.nodes[0].path
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What writing said.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{FORMAT}{}", self.root())?;
        for node in &self.nodes {
            let perms: Vec<String> = node.perms.iter().map(ToString::to_string).collect();
            writeln!(out, "{}\t{}\t{}", node.path, perms.join(","), escape(&node.value))?;
        }
        writeln!(out, "end {}", self.nodes.len())
    }

    /// Reads a file. What it takes of memory is bounded by the file, and a line by what a node can be.
    ///
    /// # Errors
    /// [`DumpError`] with the line that is wrong.
    pub fn read(input: &mut dyn BufRead) -> Result<Dump, DumpError> {
        let mut lines = Lines { input, line: 0 };
        let first = lines.next()?.ok_or_else(|| lines.wrong("the file is empty"))?;
        let root = first.strip_prefix(FORMAT).ok_or_else(|| lines.wrong("not a dump of `windsor xenstore dump`"))?;
        check_path(root).map_err(|why| lines.wrong(why))?;
        let (mut nodes, mut known) = (Vec::new(), HashSet::new());
        loop {
            let line =
                lines.next()?.ok_or_else(|| lines.wrong("the file has been cut off: its last line is missing"))?;
            if let Some(count) = line.strip_prefix("end ") {
                if count != nodes.len().to_string() || nodes.is_empty() {
                    return Err(lines.wrong(format!("{} nodes, not {count}: some are missing", nodes.len())));
                }
                let more = lines.next()?.is_some();
                return if more { Err(lines.wrong("something follows the end")) } else { Ok(Dump { nodes }) };
            }
            let node = node(&line, nodes.is_empty().then_some(root), &known).map_err(|why| lines.wrong(why))?;
            known.insert(node.path.clone());
            nodes.push(node);
        }
    }
}

struct Lines<'a> {
    input: &'a mut dyn BufRead,
    line: usize,
}

impl Lines<'_> {
    fn wrong(&self, why: impl ToString) -> DumpError {
        DumpError::Wrong { line: self.line.max(1), why: why.to_string() }
    }

    fn next(&mut self) -> Result<Option<String>, DumpError> {
        self.line += 1;
        let mut bytes = Vec::new();
        let count = io::Read::take(&mut *self.input, LINE_MAX as u64 + 1).read_until(b'\n', &mut bytes)?;
        if count == 0 {
            return Ok(None);
        }
        if bytes.pop() != Some(b'\n') {
            let cut = "it has no end: the file has been cut off";
            return Err(self.wrong(if count > LINE_MAX { "it is longer than a node can be" } else { cut }));
        }
        match String::from_utf8(bytes) {
            Ok(line) if line.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) => Ok(Some(line)),
            _ => Err(self.wrong("it is not printable ASCII")),
        }
    }
}

fn node(line: &str, root: Option<&str>, known: &HashSet<String>) -> Result<Node, String> {
    let parts: Vec<&str> = line.split('\t').collect();
    let [path, perms, value] = parts[..] else { return Err("not a path, permissions and a value".into()) };
    check_path(path)?;
    match root {
        Some(root) if path != root => return Err(format!("the root, {root}, must come first")),
        Some(_) => {}
        None if known.contains(path) => return Err(format!("{path} comes twice")),
        None => {
            let above = path.rfind('/').map_or("/", |at| if at == 0 { "/" } else { &path[..at] });
            if !known.contains(above) {
                return Err(format!("{path} comes before the node above it, or that is not there"));
            }
        }
    }
    let perms: Result<Vec<Permission>, _> = perms.split(',').map(str::parse).collect();
    let perms = perms.map_err(|error| error.to_string())?;
    let bytes = unescape(value.as_bytes());
    if escape(&bytes) != value {
        return Err("the value is not written as a dump writes it".into());
    }
    if path.len() + 1 + bytes.len() > PAYLOAD_MAX {
        return Err(format!("path and value have more than {PAYLOAD_MAX} bytes"));
    }
    Ok(Node { path: path.to_owned(), perms, value: bytes })
}

/// As the store would have it (xenstore.txt): absolute, of its characters, no empty part.
fn check_path(path: &str) -> Result<(), String> {
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte));
    let whole = path == "/" || path.starts_with('/') && !path.ends_with('/') && !path.contains("//");
    if plain && whole && path.len() <= ABS_PATH_MAX {
        return Ok(());
    }
    Err(format!("{:?} is no absolute path of a store", path.chars().take(64).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Dump, String> {
        Dump::read(&mut text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read() {
        let perms = |text: &str| text.split(',').map(|entry| entry.parse().unwrap()).collect();
        let value: Vec<u8> = (0..=255).collect();
        let nodes = vec![
            Node { path: "/".into(), perms: perms("n0"), value: Vec::new() },
            Node { path: "/b".into(), perms: perms("n3,r0,b65535"), value },
            Node { path: "/a".into(), perms: perms("w1"), value: vec![7; 4093] },
        ];
        let (dump, mut file) = (Dump { nodes }, Vec::new());
        dump.write(&mut file).unwrap();
        assert_eq!(Dump::read(&mut &file[..]).unwrap(), dump);
    }

    #[test]
    fn a_wrong_file_is_told_with_its_line() {
        let long = format!("windsor-xenstore-dump 1 /\n/\tn0\t{}\n", "\\001".repeat(4096));
        let endless = format!("windsor-xenstore-dump 1 /\n/\tn0\t{}", "x".repeat(100_000));
        for (text, line, why) in [
            ("", 1, "empty"),
            ("something else\n", 1, "not a dump"),
            ("windsor-xenstore-dump 2 /\n/\tn0\t\n", 1, "not a dump"),
            ("windsor-xenstore-dump 1 a\n", 1, "no absolute path"),
            ("windsor-xenstore-dump 1 /a\n", 2, "cut off"),
            ("windsor-xenstore-dump 1 /a\n/\tn0\t\n", 2, "must come first"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\n/a/b\tn0\t\n", 3, "before the node above"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\n/a\tn0\t\n/a\tn0\t\n", 4, "twice"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\n/\tn0\t\n", 3, "twice"),
            ("windsor-xenstore-dump 1 /a\n/a\tn0\t\n/b\tn0\t\n", 3, "before the node above"),
            ("windsor-xenstore-dump 1 /\n/\tx0\t\n", 2, "no permission"),
            ("windsor-xenstore-dump 1 /\n/\t\t\n", 2, "no permission"),
            ("windsor-xenstore-dump 1 /\n/\tn0\n", 2, "permissions and a value"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\\q\n", 2, "not written as"),
            ("windsor-xenstore-dump 1 /\n/\tn0\tx", 2, "cut off"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\n", 3, "cut off"),
            ("windsor-xenstore-dump 1 /\nend 0\n", 2, "missing"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\nend 2\n", 3, "missing"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\nend 1\nend 1\n", 4, "follows"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\u{1}\n", 2, "printable"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\u{e9}\n", 2, "printable"),
            ("windsor-xenstore-dump 1 /\n/\tn0\t\n/a//b\tn0\t\n", 3, "no absolute path"),
            (&long, 2, "4096 bytes"),
            (&endless, 2, "longer than"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}: ")) && error.contains(why), "{text:.60?}: {error}");
        }
    }
}

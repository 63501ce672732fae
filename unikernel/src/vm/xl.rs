//! `xl` as a program: what it is asked, and what it answers.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::places::at;
use crate::toolstack::Refusal;

/// Longest part of `xl`'s complaint that goes into a message, in characters.
const LONGEST: usize = 300;

/// A way to run `xl`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Xl {
    /// Print what would be run on stdout, and run only what changes nothing.
    pub dry_run: bool,
}

/// A domain as `xl list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name; `(null)` of one that is dead but not gone.
    pub name: String,
    /// Its number.
    pub domid: u16,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The flags of xl's column State, such as `-b----`.
    pub flags: String,
}

impl Running {
    /// What the flags mean, most telling first.
    pub fn state(&self) -> &'static str {
        let has = |flag: char| self.flags.contains(flag);
        match () {
            () if has('d') => "dying",
            () if has('c') => "crashed",
            () if has('s') => "shut down",
            () if has('p') => "paused",
            () => "running",
        }
    }
}

impl Xl {
    /// Asks something that changes nothing.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] without `xl`, [`Refusal::Failed`] with its first complaint.
    pub fn output(&self, args: &[&str]) -> Result<String, Refusal> {
        let output = spawn(args)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Changes something; with `--dry-run` prints the line only.
    ///
    /// # Errors
    /// As [`Xl::output`].
    pub fn run(&self, args: &[&str]) -> Result<(), Refusal> {
        if self.dry_run {
            println!("{}", line(args));
            return Ok(());
        }
        spawn(args).map(drop)
    }

    /// Every domain, dom0 and dead ones too.
    ///
    /// # Errors
    /// As [`Xl::output`].
    pub fn list(&self) -> Result<Vec<Running>, Refusal> {
        Ok(parse_list(&self.output(&["list"])?))
    }

    /// The domain of a name.
    ///
    /// # Errors
    /// As [`Xl::output`].
    pub fn find(&self, name: &str) -> Result<Option<Running>, Refusal> {
        Ok(self.list()?.into_iter().find(|domain| domain.name == name))
    }

    /// Saves a domain, which ends it; when that fails it runs on, and no half of it is left.
    ///
    /// # Errors
    /// As [`Xl::output`], and when it has ended already.
    pub fn save(&self, name: &str, file: &Path) -> Result<(), Refusal> {
        let Some(running) = self.find(name)? else {
            return Err(Refusal::Failed(format!("{name} has ended")));
        };
        let saved = self.run(&["save", &running.domid.to_string(), &file.display().to_string()]);
        if saved.is_err() && self.find(name)?.is_some() && file.exists() {
            fs::remove_file(file).map_err(|error| at(file, &error))?;
        }
        saved
    }
}

fn spawn(args: &[&str]) -> Result<Output, Refusal> {
    let output = Command::new("xl").args(args).stdin(Stdio::null()).output().map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; is this dom0? Debian has it in xen-utils-4.17",
            _ => "",
        };
        Refusal::NotFound(format!("xl cannot be run ({error}){hint}"))
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let why = complaint(&String::from_utf8_lossy(&output.stderr));
    Err(Refusal::Failed(format!("{} failed ({}){why}", line(args), output.status)))
}

/// The first of xl's complaints, which is the cause; those that follow tell what it undid.
fn complaint(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines().find(|line| line.contains("error")).or_else(|| lines().next_back());
    // "libxl: error: libxl_create.c:1234:do_it: Domain 5:" says nothing to an operator.
    let plain = first.map(without_place);
    plain.map_or_else(String::new, |line| format!(": {}", line.chars().take(LONGEST).collect::<String>()))
}

fn without_place(line: &str) -> &str {
    let text = match line.split_once(": error: ") {
        Some((_, rest)) => {
            rest.split_once(": ").filter(|(place, _)| place.contains(".c:")).map_or(rest, |(_, text)| text)
        }
        None => line,
    };
    match text.strip_prefix("Domain ").and_then(|rest| rest.split_once(':')) {
        Some((number, text)) if number.bytes().all(|byte| byte.is_ascii_digit()) => text,
        _ => text,
    }
}

/// The command line as a shell takes it.
pub fn line(args: &[&str]) -> String {
    let plain = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/.,:=_-@+".contains(&byte))
    };
    let mut line = "xl".to_owned();
    for word in args {
        line.push(' ');
        match plain(word) {
            true => line.push_str(word),
            false => line.push_str(&format!("'{}'", word.replace('\'', "'\\''"))),
        }
    }
    line
}

/// Names may hold blanks; the five columns behind them never do.
fn parse_list(text: &str) -> Vec<Running> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, columns) = words.split_at(words.len().checked_sub(5)?);
        let &[domid, memory, vcpus, flags, _] = columns else { return None };
        Some(Running {
            name: name.join(" "),
            domid: domid.parse().ok()?,
            memory_mib: memory.parse().ok()?,
            vcpus: vcpus.parse().ok()?,
            flags: flags.to_owned(),
        })
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_xl() {
        let text = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n\
                    Domain-0                                     0  1280     1     r-----      19.4\n\
                    acme                                         1   128     2     -b----       2.0\n\
                    (null)                                       7     0     1     --ps-d       0.5\n\
                    two words                                    9   128     1     ---sc-       0.5\n";
        let domains = parse_list(text);
        let names: Vec<&str> = domains.iter().map(|domain| domain.name.as_str()).collect();
        assert_eq!(names, ["Domain-0", "acme", "(null)", "two words"]);
        assert_eq!((domains[1].domid, domains[1].memory_mib, domains[1].vcpus), (1, 128, 2));
        let states: Vec<&str> = domains.iter().map(Running::state).collect();
        assert_eq!(states, ["running", "running", "dying", "crashed"]);
    }

    #[test]
    fn one_complaint_without_its_place() {
        let stderr = "Parsing config from /x.cfg\n\
                      libxl: error: libxl_disk.c:222:disk_try_backend: Disk vdev=xvda failed to stat: /nosuch: No such file\n\
                      libxl: error: libxl_create.c:1709:domcreate_launch_dm: Domain 4:cannot go on\n";
        assert_eq!(complaint(stderr), ": Disk vdev=xvda failed to stat: /nosuch: No such file");
        assert_eq!(complaint("a\nfailed to free memory for the domain\n"), ": failed to free memory for the domain");
        assert_eq!(
            complaint("libxl: error: libxl_x.c:1:f: Domain 4:Domain with name exists\n"),
            ": Domain with name exists"
        );
        assert_eq!(complaint(""), "");
        assert_eq!(complaint(&"x".repeat(1000)).len(), LONGEST + 2);
    }

    #[test]
    fn a_line_for_a_shell() {
        assert_eq!(line(&["create", "/a b.cfg", "x='1'", ""]), "xl create '/a b.cfg' 'x='\\''1'\\''' ''");
        assert_eq!(line(&["block-attach", "3", "format=raw,vdev=xvda"]), "xl block-attach 3 format=raw,vdev=xvda");
    }
}

//! `windsor man` and `windsor completion`: made from the command's own tree, so that they cannot be behind it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{FAILED, Failure, Outcome};

/// Arguments of `windsor man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Directory for the pages, created if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Arguments of `windsor completion`.
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// For which shell; the script goes to stdout
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// The pages that are not about a command: name, section, and text in roff.
const PAGES: [(&str, &str, &str); 2] = [
    ("windsor.toml", "5", include_str!("man/windsor.toml.5")),
    ("windsor-xenstore-paths", "7", include_str!("man/windsor-xenstore-paths.7")),
];

/// Writes windsor.1 and a page for each subcommand, windsor.toml.5 and windsor-xenstore-paths.7, and says which.
///
/// # Errors
/// Those of the file system.
pub fn run(args: &ManArgs, command: Command) -> Outcome {
    let out = &args.out;
    fs::create_dir_all(out).map_err(|error| failed(out, &error))?;
    for (path, page) in pages(command).map_err(|error| failed(out, &error))? {
        let path = out.join(path);
        fs::write(&path, page).map_err(|error| failed(&path, &error))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(FAILED, format!("{}: {error}", path.display()))
}

/// Every page: file name and text.
fn pages(mut command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    page(&command, "windsor", &mut pages)?;
    for (name, section, text) in PAGES {
        let version = env!("CARGO_PKG_VERSION");
        let head = format!(".TH {name} {section} \"\" \"windsor {version}\"\n");
        pages.push((format!("{name}.{section}"), (head + text).into_bytes()));
    }
    Ok(pages)
}

fn page(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let below: Vec<&Command> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let named = command.clone().display_name(name);
    let mut text = Vec::new();
    Man::new(named).title(name).section("1").manual("Windsor").render(&mut text)?;
    text.extend(format!(".SH \"SEE ALSO\"\n{}\n", see_also(name, &below)).bytes());
    pages.push((format!("{name}.1"), text));
    for command in below {
        page(command, &format!("{name}-{}", command.get_name()), pages)?;
    }
    Ok(())
}

/// The page above, those below, and those of Xen.
fn see_also(name: &str, below: &[&Command]) -> String {
    let mut pages: Vec<String> = name.rsplit_once('-').map(|(above, _)| format!("{above}(1)")).into_iter().collect();
    pages.extend(below.iter().map(|command| format!("{name}-{}(1)", command.get_name())));
    pages.extend(["windsor.toml(5)", "windsor-xenstore-paths(7)", "xl(1)", "xl.cfg(5)"].map(str::to_owned));
    pages.join(", ").replace('-', "\\-")
}

/// Prints the script of a shell.
pub fn completion(args: &CompletionArgs, mut command: Command) -> Outcome {
    clap_complete::generate(args.shell, &mut command, "windsor", &mut io::stdout());
    Ok(())
}

/// Commands and options without a word of help, by their names; there must be none.
pub fn without_help(command: &Command, name: &str) -> Vec<String> {
    let mut missing = Vec::new();
    if command.get_about().is_none() {
        missing.push(name.to_owned());
    }
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_help().is_none()) {
        missing.push(format!("{name} {}", arg.get_id()));
    }
    for below in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        missing.extend(without_help(below, &format!("{name} {}", below.get_name())));
    }
    missing
}

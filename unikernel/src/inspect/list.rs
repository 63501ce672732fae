//! A part of the store as xenstore-ls prints it, to the letter.

use super::text::escape;
use super::tree::Entry;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Whole paths, nothing cut off (`-f`).
    pub full: bool,
    /// Permissions too (`-p`).
    pub perms: bool,
    /// Columns where the output is a terminal's.
    pub columns: usize,
}

/// Columns where it is not.
pub const COLUMNS: usize = 80;
/// What a value that is cut off costs beside its text.
const TAG: usize = 8;
/// Where permissions stand if there is room.
const PERMS: usize = 60;

/// One line, without its end.
pub fn line(entry: &Entry, style: Style) -> String {
    let mut line = if style.full { entry.path.clone() } else { short(entry, style) };
    let Some(value) = &entry.value else { return line + ":" + &perms(entry, style) };
    let room = if style.full { usize::MAX } else { style.columns.saturating_sub(TAG + line.len()) };
    let text = escape(value);
    if value.len() > room {
        line.push_str(&format!(" = \"{}\\...\"", &text[..room.min(text.len())]));
        return line + &perms(entry, style);
    }
    line.push_str(&format!(" = \"{text}\""));
    if style.perms {
        line.push(' ');
        while !style.full && line.len() < PERMS.min(style.columns) {
            line.push(if line.len() % 2 == 1 { '.' } else { ' ' });
        }
    }
    line + &perms(entry, style)
}

/// The last part of the path, indented.
fn short(entry: &Entry, style: Style) -> String {
    let indent = " ".repeat(entry.depth);
    let name = entry.path.rsplit('/').next().unwrap_or_default();
    let room = style.columns.saturating_sub(TAG + indent.len());
    indent + &name[..name.len().min(room)]
}

fn perms(entry: &Entry, style: Style) -> String {
    if !style.perms {
        return String::new();
    }
    let Some(perms) = &entry.perms else { return "  (?)".to_owned() };
    let perms: Vec<String> = perms.iter().map(ToString::to_string).collect();
    format!("  ({})", perms.join(","))
}

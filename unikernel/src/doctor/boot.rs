//! How Xen was booted: the rows of docs/blkback-security.md that say *boot*.

use super::facts::{Facts, Where};
use super::xen::options;
use super::{Finding, Level};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    if facts.place != Where::Dom0 || facts.no_xl.is_some() {
        return Vec::new();
    }
    let gnttab: Vec<&str> =
        options(facts).filter_map(|word| word.strip_prefix("gnttab=")).flat_map(|list| list.split(',')).collect();
    vec![version(&gnttab), transitive(&gnttab)]
}

const FIX: &str =
    "add gnttab=max-ver:1,no-transitive to GRUB_CMDLINE_XEN_DEFAULT in /etc/default/grub, then update-grub and reboot";

fn version(gnttab: &[&str]) -> Finding {
    let most = gnttab.iter().rev().find_map(|word| word.strip_prefix("max-ver:"));
    match most {
        Some("1") => Finding::ok("grant-version", "guests have grant tables of version 1 only"),
        _ => Finding::new(
            "grant-version",
            Level::Warning,
            "guests may switch to grant tables of version 2, which no guest needs and seven advisories were about (XSA-232, 255, 295, 379, 382, 384, 486)",
            FIX,
        ),
    }
}

fn transitive(gnttab: &[&str]) -> Finding {
    let last = gnttab.iter().rev().find(|word| word.contains("transitive"));
    match last {
        Some(&("no-transitive" | "transitive=0" | "transitive=no" | "transitive=off" | "transitive=false")) => {
            Finding::ok("transitive-grants", "no transitive grants")
        }
        // Version 1 has none.
        _ if gnttab.contains(&"max-ver:1") => Finding::ok("transitive-grants", "no transitive grants in version 1"),
        _ => Finding::new("transitive-grants", Level::Warning, "transitive grants are allowed (XSA-226, 411)", FIX),
    }
}

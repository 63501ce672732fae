//! Tables of what is tried against a backend (`docs/*-security.md`): made from the tags in the names of tests and from what
//! is said beside them, so that a test can keep them true.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Who answers for a row.
pub enum Answer {
    /// All tests with this tag in their name, `xsa_155` or `t08`.
    Tagged(&'static [&'static str]),
    /// These tests, and those with the row's tags.
    Named(&'static [&'static str], &'static [&'static str]),
    /// No test of ours can show it: whose it is, and why.
    Elsewhere(&'static str),
    /// A property of how hosts and service VMs are started, to be reported by `windsor doctor`.
    Boot(&'static str),
}

/// A row: what it is about, what is tried, who answers.
pub type Row = (&'static str, &'static str, Answer);

/// A document of several parts.
pub struct Table {
    /// What stands above.
    pub head: &'static str,
    /// Titles, and the rows below them.
    pub parts: &'static [(&'static str, &'static [Row])],
    /// Where it is, from the root of the workspace.
    pub path: &'static str,
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every test below some directories of the workspace: its name, and the file it is in.
///
/// # Panics
/// When they cannot be read.
pub fn tests(directories: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for directory in directories {
        tests_of(&root().join(directory), &mut found);
    }
    found.sort();
    found
}

fn tests_of(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_of(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let file = path.strip_prefix(root()).unwrap().display().to_string();
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                // Modules of tests are indented.
                if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
                    found.push((name.split('(').next().unwrap().to_owned(), file.clone()));
                }
                // Other attributes may stand between the two.
                is_test = line == "#[test]" || (is_test && line.starts_with("#["));
            }
        }
    }
}

/// `xsa_15` is no tag of `xsa_155_...`.
fn has_tag(name: &str, tag: &str) -> bool {
    name.split_once(tag).is_some_and(|(_, rest)| rest.starts_with('_'))
}

impl Table {
    /// Compares the file with what it should be, or writes it when `WINDSOR_BLESS` is set. Each test of `ours` must answer
    /// for something in it.
    ///
    /// # Panics
    /// When it is old, when a row has no test or names one that is not there, or when a test has no row.
    pub fn check(&self, tests: &[(String, String)], ours: impl Fn(&str, &str) -> bool) {
        let mut used = BTreeSet::new();
        let document = self.document(tests, &mut used);
        let path = root().join(self.path);
        if std::env::var_os("WINDSOR_BLESS").is_some() {
            std::fs::write(&path, &document).unwrap();
        }
        let unused = tests.iter().filter(|(name, file)| ours(name, file) && !used.contains(name));
        let unused: Vec<&String> = unused.map(|(name, _)| name).collect();
        assert!(unused.is_empty(), "no row for {unused:?}");
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == document, "{} is old: run this test with WINDSOR_BLESS=1", self.path);
    }

    /// What each row is about.
    pub fn about(&self) -> Vec<&'static str> {
        self.parts.iter().flat_map(|(_, rows)| rows.iter()).map(|(about, _, _)| *about).collect()
    }

    /// The advisories that have a row.
    pub fn advisories(&self) -> BTreeSet<u32> {
        let numbers =
            |text: &'static str| text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
        self.about().into_iter().filter(|about| about.starts_with("XSA")).flat_map(numbers).collect()
    }

    fn document(&self, tests: &[(String, String)], used: &mut BTreeSet<String>) -> String {
        let mut document = String::from(self.head);
        for (title, rows) in self.parts {
            write!(document, "\n## {title}\n\n| | What is tried | Tests |\n| --- | --- | --- |\n").unwrap();
            for (about, what, answer) in *rows {
                let (named, tags): (&[&str], &[&str]) = match answer {
                    Answer::Tagged(tags) => (&[], *tags),
                    Answer::Named(named, tags) => (named, tags),
                    Answer::Elsewhere(why) => {
                        writeln!(document, "| {about} | {what} | {why} |").unwrap();
                        continue;
                    }
                    Answer::Boot(why) => {
                        writeln!(document, "| {about} | {what} | *boot*: {why} |").unwrap();
                        continue;
                    }
                };
                let mut answers = BTreeSet::new();
                for name in named {
                    let test = tests.iter().find(|(test, _)| test == name);
                    answers.insert(test.unwrap_or_else(|| panic!("{about}: there is no test {name}")));
                }
                for tag in tags {
                    let before = answers.len();
                    answers.extend(tests.iter().filter(|(test, _)| has_tag(test, tag)));
                    assert!(answers.len() > before || tags.len() > 1, "{about}: no test has the tag {tag}");
                }
                assert!(!answers.is_empty(), "{about} has no test");
                used.extend(answers.iter().map(|(test, _)| test.clone()));
                let answers: Vec<String> = answers.iter().map(|(test, file)| format!("`{test}` ({file})")).collect();
                writeln!(document, "| {about} | {what} | {} |", answers.join("<br>")).unwrap();
            }
        }
        document
    }
}

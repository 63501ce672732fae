//! The table of cases, tests and flaws is kept true.

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../../../docs/xenstore-security.md");
const TESTS: [&str; 8] = [
    include_str!("depth.rs"),
    include_str!("frames.rs"),
    include_str!("memory.rs"),
    include_str!("quotas.rs"),
    include_str!("resets.rs"),
    include_str!("rights.rs"),
    include_str!("storms.rs"),
    include_str!("strange_paths.rs"),
];

/// Every test that the table names exists, every test of a case is in the table, and what the table says a test is for
/// is what stands above it.
#[test]
fn the_table_of_cases_names_the_tests_that_there_are() {
    let mut tests = BTreeSet::new();
    for source in TESTS {
        for (at, _) in source.match_indices("#[test]\nfn ") {
            let rest = &source[at + "#[test]\nfn ".len()..];
            tests.insert(&rest[..rest.find('(').unwrap()]);
        }
    }
    let rows: Vec<Vec<&str>> = TABLE
        .lines()
        .filter(|line| line.starts_with("| T"))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let named: BTreeSet<&str> = rows.iter().map(|row| row[2].trim_matches('`')).collect();
    let elsewhere: BTreeSet<&str> =
        named.iter().copied().filter(|name| !name.starts_with("t2") && !name.starts_with("t3")).collect();
    assert_eq!(
        elsewhere,
        BTreeSet::from(["path", "frames", "the_daemon_and_a_model_of_it_agree_over_a_long_random_life"])
    );
    let cases: BTreeSet<&str> = named.difference(&elsewhere).copied().collect();
    assert_eq!(cases, tests, "the table on the left, the sources on the right");
    for case in ["T26", "T27", "T28", "T29", "T30", "T31", "T32"] {
        assert!(rows.iter().any(|row| row[1] == case), "{case} has a row");
    }
}

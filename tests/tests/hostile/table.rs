//! `docs/blkback-security.md`: made from the tags in the names of tests and from what is said here, and kept true by a
//! test. `WINDSOR_BLESS=1 cargo test -p tests --test hostile table` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use Answer::{Boot, Elsewhere, Named, Tagged};

/// Who answers for a row.
enum Answer {
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
type Row = (&'static str, &'static str, Answer);

/// Part A1: block backends.
const BACKENDS: &[Row] = &[
    ("XSA-71", "error paths that never unmap", Tagged(&["xsa_71"])),
    ("XSA-142", "writes to a disk that is read-only", Tagged(&["xsa_142"])),
    (
        "XSA-155",
        "requests that change between two looks",
        Named(&["bytes_that_change_under_the_backend_change_what_is_asked_for_and_nothing_else"], &["xsa_155"]),
    ),
    ("XSA-180", "logs without end", Tagged(&["xsa_180"])),
    ("XSA-216", "what lies between the fields of a response", Tagged(&["xsa_216"])),
    ("XSA-229", "merged frames in a PV service VM", Boot("service VMs are PVH where they own no PCI device")),
    ("XSA-300", "mappings without bound", Tagged(&["xsa_300"])),
    (
        "XSA-349",
        "watch events without bound",
        Named(&["a_guest_that_floods_the_store_with_events_costs_no_memory_and_stops_nobody"], &["xsa_349"]),
    ),
    ("XSA-350", "connecting and disconnecting fast", Tagged(&["xsa_350"])),
    ("XSA-361", "one bad reference of a batch", Tagged(&["xsa_361"])),
    ("XSA-362", "mappings that fail", Tagged(&["xsa_362"])),
    ("XSA-365", "an error that a later part of the batch hides", Tagged(&["xsa_365"])),
    ("XSA-371", "what the repair of XSA-365 leaked", Tagged(&["xsa_371"])),
    ("Linux 4a8c31a1c6f5", "`ring-page-order` and `ring-refN` that do not fit", Tagged(&["linux_4a8c31a1c6f5"])),
    ("XSA-403, towards the guest", "buffers that bring another request's data", Tagged(&["xsa_403"])),
    ("XSA-406", "the kernel's list of foreign pages, on Arm", Elsewhere("the kernel's; x86 only here")),
    (
        "XSA-513",
        "sectors beyond a page, segments beyond a request",
        Named(
            &[
                "of_all_sector_pairs_exactly_the_36_valid_ones_are_executed",
                "of_all_segment_counts_exactly_those_that_fit_are_executed",
                "of_all_indirect_segment_counts_exactly_those_that_were_offered_are_executed",
            ],
            &["xsa_513"],
        ),
    ),
];

/// Part A3: what a backend must not do to its frontend.
const FRONTENDS: &[Row] = &[
    ("XSA-155, frontends", "ids that are not the request's", Tagged(&["xsa_155"])),
    ("XSA-391", "storms of events at the guest", Tagged(&["xsa_391"])),
    ("XSA-396", "grants that stay mapped after the answer", Tagged(&["xsa_396"])),
    ("XSA-403", "the rest of a page that is shared for a sector", Tagged(&["xsa_403"])),
    ("XSA-405", "sequences that netfront does not expect", Elsewhere("not about a block backend")),
    ("XSA-457, 465", "events while a guest comes back from suspend", Tagged(&["xsa_457"])),
    ("CVE-2026-43249", "states that race a teardown", Tagged(&["cve_2026_43249"])),
];

/// Part A4: the grant table.
const GRANTS: &[Row] = &[
    (
        "XSA-18, 24, 26, 50, 73, 134",
        "odd operations of the grant table",
        Elsewhere("Xen's; the backend maps, unmaps and copies, and nothing else"),
    ),
    (
        "XSA-218, 224, 228, 230, 234, 236",
        "the same grant mapped and unmapped in parallel",
        Tagged(&["xsa_218", "xsa_224", "xsa_228", "xsa_230", "xsa_234", "xsa_236"]),
    ),
    ("XSA-226, 411", "transitive grants", Boot("Xen's `gnttab=` without transitive grants; none are asked for here")),
    ("XSA-232, 268, 295, 379, 382, 384", "version 2 tables, status frames", Boot("Xen's `gnttab=max-ver:1`")),
    (
        "XSA-255, 486, 501",
        "changing the table's version",
        Boot("Xen's `gnttab=max-ver:1`; no version is ever set here"),
    ),
    ("XSA-227, 284", "page tables of PV guests, transfers", Boot("service VMs are PVH where they own no PCI device")),
    ("XSA-316, 318", "calls that fail and say they did not", Tagged(&["xsa_316", "xsa_318"])),
    ("XSA-380", "more mappings than can be undone in time", Tagged(&["xsa_380"])),
    ("XSA-394", "unmapping by halves", Tagged(&["t09"])),
    ("XSA-448, what followed", "copies of no bytes", Named(&[], &["t08_xsa_500"])),
    ("XSA-500", "copies of a page that is mapped", Tagged(&["xsa_500"])),
    ("XSA-363", "pages that the backend grants", Elsewhere("not about a block backend: the frontend grants all pages")),
];

/// Part A5: event channels.
const EVENTS: &[Row] = &[
    (
        "XSA-47, 107, 221, 338, 342",
        "odd operations of event channels",
        Elsewhere("Xen's; the backend binds, unbinds and notifies, and nothing else"),
    ),
    ("XSA-331", "a port that is closed while its event is handled", Tagged(&["xsa_331"])),
    ("XSA-332", "events at a high rate without work", Tagged(&["xsa_332"])),
    ("XSA-340, 343, 344, 358, 359, 496, 505", "taking down a domain with all it has", Tagged(&["xsa_340"])),
    ("XSA-441", "locks taken in two orders", Elsewhere("the guest kernel's; a queue takes no lock in its handler")),
    ("eventfds, embedded", "a peer that fills, drains or blocks what it shares with us", Tagged(&["t20"])),
];

/// Cases of the catalogue, section E.
const CASES: &[Row] = &[
    ("T1", "indexes of a ring", Tagged(&["t01"])),
    (
        "T2",
        "every byte changes all the time",
        Named(&["bytes_that_change_under_the_backend_change_what_is_asked_for_and_nothing_else"], &[]),
    ),
    (
        "T3",
        "segment counts and sector pairs",
        Named(
            &[
                "of_all_sector_pairs_exactly_the_36_valid_ones_are_executed",
                "of_all_segment_counts_exactly_those_that_fit_are_executed",
            ],
            &["xsa_513"],
        ),
    ),
    (
        "T4",
        "indirect requests",
        Named(&["of_all_indirect_segment_counts_exactly_those_that_were_offered_are_executed"], &["t04"]),
    ),
    ("T5", "ranges past the end; headers of image formats", Tagged(&["t05"])),
    ("T6", "unknown operations", Named(&["a_discard_that_was_not_offered_says_so"], &["t06"])),
    ("T7", "a read-only disk", Tagged(&["t07"])),
    ("T8", "references that are bad, foreign, revoked, the same", Tagged(&["t08"])),
    ("T9", "more references than are kept", Tagged(&["t09"])),
    ("T10", "memory that is taken away", Named(&["memory_that_can_change_its_size_is_refused"], &["t10"])),
    ("T11", "bytes that are nobody's business", Tagged(&["t11"])),
    ("T12", "ids, and responses that nobody takes", Tagged(&["t12"])),
    ("T13", "keys that cannot be", Tagged(&["t13"])),
    ("T14", "keys that change after Connected", Tagged(&["t14"])),
    ("T15", "states in every order", Named(&["a_guest_that_flaps_its_state_stops_nobody"], &["t15", "xsa_350"])),
    (
        "T16",
        "storms of writes",
        Named(&["a_guest_that_floods_the_store_with_events_costs_no_memory_and_stops_nobody"], &["t16"]),
    ),
    (
        "T17",
        "states that are none, directories that vanish",
        Named(&["a_guest_whose_nodes_vanish_without_a_word_is_let_go_of"], &["t17"]),
    ),
    ("T18", "a frontend that names another tenant", Tagged(&["t18"])),
    ("T19", "events without work", Tagged(&["t19"])),
    ("T20", "event channels that a peer spoils; requests without an event", Tagged(&["t20"])),
    ("T35", "a guest that dies with everything mapped", Tagged(&["t35"])),
    ("T37", "errors of the volume", Named(&["a_failed_flush_stays_failed_until_somebody_says_otherwise"], &["t37"])),
    (
        "T38",
        "no space on the volume",
        Named(
            &[
                "what_does_not_fit_is_an_error_and_what_was_flushed_stays",
                "a_held_request_waits_until_the_volume_is_well_and_loses_nothing",
                "a_disk_that_is_given_up_answers_what_it_held",
            ],
            &["t38"],
        ),
    ),
    ("T39", "completions in pieces", Tagged(&["t39"])),
    ("T41", "a volume that hangs", Tagged(&["t41"])),
    (
        "T42",
        "512 bytes on a medium of 4096",
        Named(
            &[
                "sectors_of_512_bytes_on_a_medium_of_4096",
                "guests_use_512_byte_sectors_on_a_4kn_drive_and_give_space_back",
            ],
            &[],
        ),
    ),
    (
        "T43",
        "discards, and sizes that change",
        Named(
            &[
                "a_discard_makes_a_hole_and_touches_nothing_else",
                "a_volume_that_grows_is_larger_for_the_guest_and_one_that_shrinks_is_not_smaller",
            ],
            &[],
        ),
    ),
    (
        "T44",
        "calls that fail, descriptors that run out",
        Named(&["surplus_descriptors_are_closed_and_their_sender_too", "host_without_descriptors_recovers"], &["t44"]),
    ),
    ("T45", "a neighbour beside a hostile guest: a figure, not a gate", Tagged(&["t45"])),
    ("T46", "whoever is stopped goes on", Tagged(&["t46"])),
];

const HEAD: &str = "# What is tried against the block backend

Each row is a flaw that a backend, a frontend or a hypervisor had (the Xen security advisory's number), or a case of our own catalogue, and the
tests that try the same here: the tag is in a test's name, or the test is named. The tests run a real backend in an embedded world
(`cargo test -p tests --test hostile`, and the files that are named); `WINDSOR_LONG=1` runs the full counts. After each test of that suite the
backend serves everybody else as before, has nothing mapped and has written at most 100 lines of log; where it runs inside the test it has no
descriptor and no port more either.

Rows that no test of ours can show say whose they are; *boot* marks how a host or a service VM is started, which `windsor doctor` reports.

This file is made from the tests: `WINDSOR_BLESS=1 cargo test -p tests --test hostile table`; a test says when it is old.
";

const PARTS: [(&str, &[Row]); 5] = [
    ("Block backends", BACKENDS),
    ("What a backend must not do to its guest", FRONTENDS),
    ("The grant table", GRANTS),
    ("Event channels", EVENTS),
    ("Cases", CASES),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every test below `directory`: its name, and the file it is in.
fn tests_of(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_of(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let file = path.strip_prefix(root()).unwrap().display().to_string();
            let mut is_test = false;
            for line in text.lines() {
                if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
                    found.push((name.split('(').next().unwrap().to_owned(), file.clone()));
                }
                // Other attributes may stand between the two.
                is_test = line == "#[test]" || (is_test && line.starts_with("#["));
            }
        }
    }
}

fn tests() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for directory in ["tests/tests", "grant/tests"] {
        tests_of(&root().join(directory), &mut found);
    }
    // What is tried against cards stands elsewhere.
    found.retain(|(_, file)| !file.starts_with("tests/tests/net/"));
    found.sort();
    found
}

/// `xsa_15` is no tag of `xsa_155_...`.
fn has_tag(name: &str, tag: &str) -> bool {
    name.split_once(tag).is_some_and(|(_, rest)| rest.starts_with('_'))
}

/// The file as it should be.
///
/// # Panics
/// When a row has no test, or names one that is not there.
fn document(tests: &[(String, String)], used: &mut BTreeSet<String>) -> String {
    let mut document = String::from(HEAD);
    for (title, rows) in PARTS {
        write!(document, "\n## {title}\n\n| | What is tried | Tests |\n| --- | --- | --- |\n").unwrap();
        for (about, what, answer) in rows {
            let (named, tags): (&[&str], &[&str]) = match answer {
                Tagged(tags) => (&[], tags),
                Named(named, tags) => (named, tags),
                Elsewhere(why) => {
                    writeln!(document, "| {about} | {what} | {why} |").unwrap();
                    continue;
                }
                Boot(why) => {
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

/// The table says what the tests are, and every test of this suite answers for something in it.
#[test]
fn the_table_is_what_the_tests_are() {
    let tests = tests();
    let mut used = BTreeSet::new();
    let document = document(&tests, &mut used);
    let path = root().join("docs/blkback-security.md");
    if std::env::var_os("WINDSOR_BLESS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let unused: Vec<&String> = tests
        .iter()
        .filter(|(name, file)| file.contains("/hostile/") && !file.ends_with("/table.rs") && !used.contains(name))
        .map(|(name, _)| name)
        .collect();
    assert!(unused.is_empty(), "no row for {unused:?}");
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == document, "docs/blkback-security.md is old: run this test with WINDSOR_BLESS=1");
}

/// No advisory of the parts that concern a block backend is forgotten, and no case.
#[test]
fn every_advisory_and_every_case_has_a_row() {
    let about: Vec<&str> = PARTS.iter().flat_map(|(_, rows)| rows.iter()).map(|(about, _, _)| *about).collect();
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let of_xsa: BTreeSet<u32> =
        about.iter().filter(|about| about.starts_with("XSA")).flat_map(|it| numbers(it)).collect();
    let advisories = [
        71, 142, 155, 180, 216, 229, 300, 349, 350, 361, 362, 365, 371, 403, 406, 513, 391, 396, 405, 457, 465, 18, 24,
        26, 50, 73, 134, 218, 224, 228, 230, 234, 236, 226, 411, 232, 268, 295, 379, 382, 384, 255, 486, 501, 227, 284,
        316, 318, 380, 394, 448, 500, 363, 47, 107, 221, 338, 342, 331, 332, 340, 343, 344, 358, 359, 496, 505, 441,
    ];
    for advisory in advisories {
        assert!(of_xsa.contains(&advisory), "XSA-{advisory} has no row");
    }
    let cases = (1..=20).chain([35, 37, 38, 39, 41, 42, 43, 44, 46]);
    for case in cases {
        assert!(about.contains(&format!("T{case}").as_str()), "T{case} has no row");
    }
}

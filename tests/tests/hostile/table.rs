//! `docs/blkback-security.md`: made from the tags in the names of tests and from what is said here, and kept true by a
//! test. `WINDSOR_BLESS=1 cargo test -p tests --test hostile table` writes it anew.

use tests::table::Answer::{Boot, Elsewhere, Named, Tagged};
use tests::table::{self, Row, Table};

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

const TABLE: Table = Table { head: HEAD, parts: &PARTS, path: "docs/blkback-security.md" };

/// The table says what the tests are, and every test of this suite answers for something in it.
#[test]
fn the_table_is_what_the_tests_are() {
    let mut tests = table::tests(&["tests/tests", "grant/tests"]);
    // What is tried against cards has a table of its own.
    tests.retain(|(_, file)| !file.starts_with("tests/tests/net/"));
    TABLE.check(&tests, |_, file| file.contains("/hostile/") && !file.ends_with("/table.rs"));
}

/// No advisory of the parts that concern a block backend is forgotten, and no case.
#[test]
fn every_advisory_and_every_case_has_a_row() {
    let (about, of_xsa) = (TABLE.about(), TABLE.advisories());
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

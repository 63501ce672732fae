//! `docs/netback-security.md`: made from the tags in the names of tests and from what is said here, and kept true by a
//! test. `WINDSOR_BLESS=1 cargo test -p tests --test net table` writes it anew.

use tests::table::Answer::{Boot, Elsewhere, Named, Tagged};
use tests::table::{self, Row, Table};

/// Part A2: network and other backends.
const BACKENDS: &[Row] = &[
    ("XSA-39", "indexes and fragments that make a loop without end", Tagged(&["xsa_39"])),
    ("XSA-43, 157", "logs without end", Tagged(&["xsa_43", "xsa_157"])),
    ("XSA-90", "an error in the middle of traffic", Tagged(&["xsa_90"])),
    ("XSA-270", "a hash mapping whose offset and length overflow", Tagged(&["xsa_270"])),
    ("XSA-362, 367", "pages that cannot be had, calls that fail", Tagged(&["xsa_362", "xsa_367"])),
    (
        "XSA-392",
        "a guest that posts no buffers, or one too few",
        Named(
            &[
                "a_packet_that_never_fits_is_dropped_in_the_end",
                "what_waits_for_a_card_is_bounded_however_many_queues_it_has",
            ],
            &["xsa_392"],
        ),
    ),
    ("XSA-423", "headers spread over slots", Tagged(&["xsa_423"])),
    ("XSA-424", "the path that drops, under load", Tagged(&["xsa_424"])),
    ("XSA-432", "few bytes in many slots", Tagged(&["xsa_432"])),
    ("XSA-448", "fragments of no bytes", Tagged(&["448"])),
    ("CVE-2026-45890", "no queues at all", Tagged(&["cve_2026_45890"])),
    (
        "no XSA: memory that runs out while a packet is put together",
        "grants that stay with the backend",
        Tagged(&["t44"]),
    ),
];

/// Of part A1, what is not about disks.
const EVERY: &[Row] = &[
    (
        "XSA-155",
        "slots that change between two looks",
        Named(&["t21_t23_the_corpus_of_transmit_rings_means_what_the_header_says"], &["xsa_155"]),
    ),
    ("XSA-180", "logs without end", Tagged(&["xsa_180"])),
    ("XSA-216", "what lies between the fields of a response", Tagged(&["xsa_216"])),
    ("XSA-229", "merged frames in a PV service VM", Boot("service VMs are PVH where they own no PCI device")),
    ("XSA-332", "events at a high rate without work", Tagged(&["xsa_332"])),
    ("XSA-349", "watch events without bound", Tagged(&["xsa_349"])),
    ("XSA-350", "states that change fast", Tagged(&["xsa_350"])),
    (
        "XSA-405",
        "sequences that netfront does not expect",
        Named(
            &[
                "every_length_is_counted_as_it_is_written",
                "extras_follow_the_first_slot_and_are_chained",
                "t12_every_id_is_answered_once_and_in_the_order_of_the_ring",
            ],
            &[],
        ),
    ),
    (
        "XSA-457, 465",
        "events while a guest comes back from suspend",
        Elsewhere("a guest that comes back reconnects; nothing is sent before it says Connected"),
    ),
];

/// Cases of the catalogue, section E.
const CASES: &[Row] = &[
    ("T1", "indexes of the three rings", Tagged(&["t01"])),
    ("T2", "slots that change all the time", Tagged(&["t02"])),
    ("T6", "everything wrong, again and again", Tagged(&["t06"])),
    ("T8", "references that are bad, foreign, read-only", Tagged(&["t08"])),
    ("T11", "bytes that are nobody's business", Tagged(&["t11"])),
    ("T12", "ids, and their order", Tagged(&["t12"])),
    ("T13", "keys that cannot be", Tagged(&["t13"])),
    ("T14", "keys that change after Connected", Tagged(&["t14"])),
    ("T15", "states in every order", Tagged(&["t15"])),
    ("T16", "storms of writes", Tagged(&["t16"])),
    ("T19", "events without work", Tagged(&["t19"])),
    (
        "T21",
        "every count of slots, every size; packets that cannot be followed",
        Named(&["what_is_learnt_is_bounded_moves_and_goes_with_its_card"], &["t21"]),
    ),
    ("T22", "slots of no bytes, headers of a byte each; what is worked on is right", Tagged(&["t22"])),
    ("T23", "segments of no kind, extra information without end", Tagged(&["t23"])),
    ("T24", "the control ring", Tagged(&["t24"])),
    ("T25", "no buffers under a flood", Tagged(&["t25"])),
    ("T44", "calls that fail", Tagged(&["t44"])),
    (
        "spoofing",
        "addresses, VLANs, routers and DHCP servers that a guest is not",
        Named(
            &[
                "a_spoofed_frame_is_dropped_before_its_payload_is_copied",
                "a_card_with_addresses_speaks_from_them_only",
                "vlans_do_not_hear_each_other_and_a_trunk_hears_all",
                "an_address_is_had_once",
            ],
            &[],
        ),
    ),
];

const HEAD: &str = "# What is tried against the network backend

Each row is a flaw that a backend or a hypervisor had (the Xen security advisory's number), or a case of our own catalogue, and the tests that
try the same here: the tag is in a test's name, or the test is named. Most of them run a real backend in an embedded world (`cargo test -p
tests --test net`); `WINDSOR_LONG=1` runs the full counts. Where a card is ended, its neighbours on the network still reach each other after it.

What a guest controls byte by byte is fuzzed too: `netback/fuzz` has the slots of the transmit ring, the requests of the control ring and the
bytes of frames, each against an expectation of its own; kept inputs are replayed by `cargo test -p netback --test corpus`.

One card's slots never wait for another guest: whatever a turn has taken is answered when it ends. What the cards of a network share is one
thread, so that a guest who sends as much as it can slows its neighbours down: give it a `rate`.

Rows that no test of ours can show say whose they are; *boot* marks how a host or a service VM is started, which `windsor doctor` reports.

This file is made from the tests: `WINDSOR_BLESS=1 cargo test -p tests --test net table`; a test says when it is old.
";

const TABLE: Table = Table {
    head: HEAD,
    parts: &[("Network backends", BACKENDS), ("Any backend", EVERY), ("Cases", CASES)],
    path: "docs/netback-security.md",
};

/// A tag of the catalogue or of an advisory.
fn is_tagged(name: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    name.contains("xsa_") || name.contains("cve_") || name.strip_prefix('t').is_some_and(|rest| digits(rest) == 2)
}

/// The table says what the tests are, and every test with a tag answers for something in it.
#[test]
fn the_table_is_what_the_tests_are() {
    let tests = table::tests(&["netback/src", "netback/tests", "tests/tests/net"]);
    TABLE.check(&tests, |name, file| is_tagged(name) && !file.ends_with("/table.rs"));
}

/// No advisory that concerns a network backend is forgotten, and no case.
#[test]
fn every_advisory_and_every_case_has_a_row() {
    let (about, advisories) = (TABLE.about(), TABLE.advisories());
    for advisory in [39, 43, 157, 90, 270, 362, 367, 392, 423, 424, 432, 448, 155, 180, 216, 229, 349, 350, 405] {
        assert!(advisories.contains(&advisory), "XSA-{advisory} has no row");
    }
    for case in [1, 2, 8, 11, 12, 13, 14, 15, 16, 19, 21, 22, 23, 24, 25] {
        assert!(about.contains(&format!("T{case}").as_str()), "T{case} has no row");
    }
}

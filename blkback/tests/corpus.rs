//! What fuzzing has kept, once more: the targets of `blkback/fuzz` with their corpora.

#[path = "../fuzz/body/mod.rs"]
mod body;
#[path = "../../tests/fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn the_corpus_of_slots_means_what_the_header_says() {
    replay("slot", body::slot::slot);
}

#[test]
fn the_corpus_of_rings_is_counted_as_the_header_says() {
    replay("ring", body::ring::ring);
}

#[test]
fn the_corpus_of_queues_is_answered_as_the_header_says() {
    replay("queue", body::queue::queue);
}

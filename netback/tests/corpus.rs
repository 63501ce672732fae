//! What fuzzing has kept, once more: the targets of `netback/fuzz` with their corpora.

#[path = "../fuzz/body/mod.rs"]
mod body;
#[path = "../../tests/fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn t21_t23_the_corpus_of_transmit_rings_means_what_the_header_says() {
    replay("transmit", body::transmit::transmit);
}

#[test]
fn t24_the_corpus_of_control_rings_is_answered_as_the_header_says() {
    replay("control", body::control::control);
}

#[test]
fn t22_the_corpus_of_frames_is_judged_and_worked_on_without_a_wrong_sum() {
    replay("frame", body::frame::frame);
}

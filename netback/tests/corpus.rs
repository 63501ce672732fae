//! What fuzzing has kept, once more: the targets of `netback/fuzz` with their corpora.

#[path = "../fuzz/body/mod.rs"]
mod body;

/// Replays a corpus, and says which input it was that broke something.
fn replay(corpus: &str, target: fn(&[u8])) {
    let directory = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")).join(corpus);
    let mut inputs: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() > 20, "{} inputs in {}", inputs.len(), directory.display());
    for input in inputs {
        let bytes = std::fs::read(&input).unwrap();
        let survived = std::panic::catch_unwind(|| target(&bytes));
        assert!(survived.is_ok(), "{}: {}", input.display(), bytes.escape_ascii());
    }
}

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

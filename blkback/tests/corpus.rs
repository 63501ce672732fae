//! What fuzzing has kept, once more: the targets of `blkback/fuzz` with their corpora.

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

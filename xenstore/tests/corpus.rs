//! What fuzzing has kept, once more: the targets of `xenstore/fuzz` with their corpora.

#[path = "../fuzz/body.rs"]
mod body;
#[path = "model/paths.rs"]
mod paths;
#[path = "../../tests/fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn the_corpus_of_frames_is_survived() {
    replay("frames", body::frames);
}

#[test]
fn the_corpus_of_paths_is_survived() {
    replay("path", body::path);
}

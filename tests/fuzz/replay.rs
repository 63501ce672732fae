//! What every crate with fuzz targets does with the inputs that fuzzing has kept. Included by path: these crates do not
//! depend on `tests`.

/// Replays a corpus, and says which input it was that broke something.
pub fn replay(corpus: &str, target: fn(&[u8])) {
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

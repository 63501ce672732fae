//! A disk's whole protocol against a reference: random requests of every kind, size and alignment, with every mixture
//! of features, guests that go and come back; then all sector pairs and segment counts; then a guest that changes its
//! ring while it is read. The guest speaks the ring by hand (`wire.rs`), and what a slot means is said by `validator.rs`.
//!
//! `WINDSOR_LONG` makes it a million requests, else there are 100,000. `WINDSOR_SEED` is the first session's seed, each
//! later one has the next.

mod exhaustive;
mod features;
mod flipper;
mod guest;
mod headers;
mod recorder;
mod reference;
mod session;
mod shrink;
mod steps;
mod validator;
mod volume;
mod wire;

use fastrand::Rng;

use features::Features;
use session::Stage;

/// Steps of a session.
const STEPS: usize = 700;

#[test]
fn the_disk_and_a_reference_of_it_agree_over_many_random_lives() {
    let seed = std::env::var("WINDSOR_SEED").map_or(1, |seed| seed.parse().expect("WINDSOR_SEED is a number"));
    let requests = if std::env::var_os("WINDSOR_LONG").is_some() { 1_000_000 } else { 100_000 };
    println!("the first seed is {seed}");
    let mut stage = Stage::new();
    let mut session = seed;
    while stage.tally.requests < requests {
        let mut random = Rng::with_seed(session);
        let features = Features::random(&mut random);
        let steps = steps::random(&mut random, &features, STEPS);
        if let Err(failure) = stage.play(&features, &steps) {
            println!("WINDSOR_SEED={session}: after {} steps: {}", failure.steps, failure.what);
            let (steps, failure) = shrink::shrink(&features, steps, failure);
            let lines: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
            panic!("WINDSOR_SEED={session} {features:?}\n{}\n{}", lines.join("\n"), failure.what);
        }
        session += 1;
    }
    let tally = stage.tally;
    println!("seeds {seed}..{session}: {tally:?}");
    for (count, at_least) in [
        (tally.indirect, 5000),
        (tally.refused, 5000),
        (tally.bad_grants, 500),
        (tally.barriers, 1000),
        (tally.discards, 1000),
        (tally.contested, 1000),
        (tally.unanswered, 100),
        (tally.reconnects, 100),
        (tally.deaths, 50),
        (tally.most_in_flight, 50),
    ] {
        assert!(count >= at_least, "too little of something happened: {tally:?}");
    }
}

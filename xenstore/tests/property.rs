//! A long random life of a store, shared by ten domains and dom0: whatever the daemon answers and tells, a model of it
//! (`model/`) says the same. The default is 100,000 steps, with `WINDSOR_LONG` a million; `WINDSOR_SEED` repeats a run,
//! and `WINDSOR_INTERVAL` says after how many steps the whole store is compared (1 finds the step that is to blame).

mod daemon;
mod model;
mod peer;
#[path = "property/steps.rs"]
mod steps;
#[path = "property/world.rs"]
mod world;

use xenstore::server::Limits;

use world::World;

/// So small that every one is reached again and again.
fn limits() -> Limits {
    Limits {
        nodes: 20,
        watches: 8,
        transactions: 3,
        node_size: 200,
        permissions: 4,
        write_rate: usize::MAX,
        transaction_nodes: 40,
        ..Limits::default()
    }
}

fn run(seed: u64, steps: u64) {
    let interval = std::env::var("WINDSOR_INTERVAL").map_or(2000, |steps| steps.parse().expect("a number of steps"));
    let mut world = World::new(seed, limits());
    for step in 0..steps {
        world.step();
        if step % interval == interval - 1 {
            world.compare_all();
        }
    }
    world.compare_all();
    println!("seed {seed}, {steps} steps: {}", world.summary());
    world.assert_everything_happened(steps);
}

#[test]
fn the_daemon_and_a_model_of_it_agree_over_a_long_random_life() {
    let seed = std::env::var("WINDSOR_SEED").map_or_else(|_| 3, |seed| seed.parse().expect("WINDSOR_SEED is a number"));
    let steps = if std::env::var_os("WINDSOR_LONG").is_some() { 1_000_000 } else { 100_000 };
    run(seed, steps);
}

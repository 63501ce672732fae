//! Our xenstored and the C xenstored 4.17, with the same random operations of dom0 and nine domains: everything that
//! either says to anybody is compared. What they are meant to disagree on stands in docs/xenstore-differences.md.
//!
//! Only for the long run, because it takes a C daemon that is not for every machine, and its time: the C daemon lets
//! domains write 200 times per second while anybody has a transaction open.

mod daemon;
mod oracle;

use oracle::ours::Ours;
use oracle::pair::{Divergence, Pair};
use oracle::shrink::shrink;
use oracle::steps::{Generator, Step, beginning};
use oracle::{Oracle, Program};
use xenstore::server::Limits;

/// Steps of the run.
const STEPS: usize = 100_000;
/// Steps with the same two daemons; then new ones begin anew, with the next seed.
const ROUND: usize = 2_000;

/// Limits that random operations meet often, for both.
fn limits() -> (Limits, Vec<String>) {
    let limits = Limits {
        nodes: 60,
        watches: 12,
        transactions: 4,
        transaction_nodes: 12,
        node_size: 256,
        path_max: 100,
        permissions: 4,
        ..Limits::default()
    };
    let arguments = [
        format!("--entry-nb={}", limits.nodes),
        // The C daemon lets one more through than it is told.
        format!("--watch-nb={}", limits.watches - 1),
        format!("--transaction={}", limits.transactions - 1),
        format!("--quota=transaction-nodes={}", limits.transaction_nodes),
        format!("--entry-size={}", limits.node_size),
        format!("--path-max={}", limits.path_max),
        format!("--perm-nb={}", limits.permissions),
    ];
    (limits, arguments.to_vec())
}

/// Lets steps happen to two fresh daemons; where they first disagree.
fn replay(program: &Program, steps: &[Step]) -> Option<(usize, Divergence)> {
    let (limits, arguments) = limits();
    let real = Oracle::start(program, &arguments).expect("the C daemon starts");
    let ours = Ours::start(limits).expect("ours starts");
    let mut pair = Pair::new(Box::new(real), Box::new(ours)).expect("connecting");
    steps.iter().enumerate().find_map(|(at, step)| pair.step(step).err().map(|divergence| (at, divergence)))
}

fn history(seed: u64) -> Vec<Step> {
    let (mut steps, mut generator) = (beginning(), Generator::new(seed));
    while steps.len() < ROUND {
        steps.extend(generator.steps());
    }
    steps
}

#[test]
fn ours_says_what_the_c_daemon_says() {
    let chosen = std::env::var("WINDSOR_SEED").ok().map(|seed| seed.parse::<u64>().expect("WINDSOR_SEED is a number"));
    if !daemon::is_long() && chosen.is_none() {
        return println!("the differential test of xenstored runs with WINDSOR_LONG set");
    }
    let program = match Program::find() {
        Ok(program) => program,
        Err(reason) => return daemon::skip("differential", &reason),
    };
    let first = chosen.unwrap_or_else(|| fastrand::u64(..) >> 16);
    let rounds = if daemon::is_long() { STEPS / ROUND } else { 1 } as u64;
    for seed in first..first + rounds {
        let steps = history(seed);
        let Some((at, divergence)) = replay(&program, &steps) else { continue };
        let count = steps.len();
        println!("WINDSOR_SEED={seed}, step {at} of {count}: {divergence:?}; looking for a shorter way there");
        let (steps, divergence) = shrink(&mut |steps| replay(&program, steps), steps[..=at].to_vec(), divergence);
        let lines: Vec<String> = steps.iter().map(|step| format!("  {step}\n")).collect();
        let Divergence { about, real, ours } = divergence;
        panic!(
            "WINDSOR_SEED={seed}, step {at} of {count}: {about}\n{}C daemon: {real}\nours:     {ours}",
            lines.concat()
        );
    }
    println!("{} steps from WINDSOR_SEED={first}: no difference", rounds as usize * ROUND);
}

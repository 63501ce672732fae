//! A session that goes wrong, made shorter while it still does.

use crate::features::Features;
use crate::session::{Failure, Stage};
use crate::steps::Step;

/// Sessions that are tried at most.
const TRIES: usize = 150;

/// The shortest session that was found which fails. What depends on chance may need to be tried twice.
pub fn shrink(features: &Features, mut steps: Vec<Step>, mut failure: Failure) -> (Vec<Step>, Failure) {
    let fails = |steps: &[Step]| {
        let mut stage = Stage::new();
        (0..2).find_map(|_| stage.play(features, steps).err())
    };
    steps.truncate(failure.steps);
    let (mut tries, mut chunk) = (0, steps.len() / 2);
    while chunk > 0 && tries < TRIES {
        let (mut at, before) = (0, steps.len());
        while at < steps.len() && tries < TRIES {
            tries += 1;
            let end = (at + chunk).min(steps.len());
            let shorter = [&steps[..at], &steps[end..]].concat();
            match fails(&shorter) {
                Some(found) => {
                    steps = shorter;
                    steps.truncate(found.steps);
                    failure = found;
                }
                None => at = end,
            }
        }
        if chunk == 1 && steps.len() == before {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    (steps, failure)
}

//! A history that ends in a disagreement, made shorter while it still does.

use super::pair::Divergence;
use super::steps::Step;

/// Histories that are tried at most.
const TRIES: usize = 200;

/// Where a history first goes wrong, if it does.
pub type Replay<'a> = dyn FnMut(&[Step]) -> Option<(usize, Divergence)> + 'a;

/// The shortest history that was found which ends like `divergence`.
pub fn shrink(replay: &mut Replay<'_>, mut steps: Vec<Step>, mut divergence: Divergence) -> (Vec<Step>, Divergence) {
    let (mut tries, mut chunk) = (0, steps.len() / 2);
    while chunk > 0 {
        let (mut at, before) = (0, steps.len());
        while at < steps.len() && tries < TRIES {
            tries += 1;
            let end = (at + chunk).min(steps.len());
            let shorter = [&steps[..at], &steps[end..]].concat();
            match replay(&shorter) {
                Some((last, found)) if found.is_like(&divergence) => {
                    steps = shorter;
                    steps.truncate(last + 1);
                    divergence = found;
                }
                _ => at = end,
            }
        }
        if chunk == 1 && steps.len() == before || tries >= TRIES {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    (steps, divergence)
}

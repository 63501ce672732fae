//! A service VM that looks for work before it sleeps, against itself without that: the guest sleeps in both.

use std::process::{Command, Stdio};

use grant::reactor::POLL;
use tests::measure::{Running, Words};
use unikernel::bench::figures::{Document, Figure, Group};

/// `iops` of a depth, with so many microseconds of polling.
pub fn run(
    document: &mut Document,
    words: &Words,
    mut iops: impl FnMut(u16, u64) -> Result<f64, String>,
) -> Result<(), String> {
    // What a service VM has that says nothing about it.
    let poll_us = POLL.as_micros() as u64;
    for (hogs, about, bar) in [(0, "no other load of ours", (1.5, 2.0)), (2, "two CPU hogs", (0.7, 0.9))] {
        let hog = || {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().map(Running)
        };
        let hogs: Vec<Running> = (0..hogs).map(|_| hog()).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let mut figures = Vec::new();
        for depth in [1, 2, 4] {
            let (mut without, mut with) = (Vec::new(), Vec::new());
            for _ in 0..words.rounds {
                without.push(iops(depth, 0)?);
                with.push(iops(depth, poll_us)?);
            }
            figures.push(Figure::new(format!("depth {depth}, event-driven"), "IOPS", &without));
            figures.push(Figure::new(format!("depth {depth}, polling"), "IOPS", &with));
            let ratio = Figure::ratio(format!("depth {depth}, polling / event-driven"), &with, &without);
            figures.push(ratio.with_bar(bar.0, bar.1));
        }
        drop(hogs);
        let title = format!("all CPUs, {about}, {poll_us} us of polling, reads of 4096 bytes");
        document.groups.push(Group { title, figures });
    }
    Ok(())
}

//! How fast a xenstored is on a Unix socket: ours and, where it can be had, the C daemon in the same run.
//!
//!   cargo bench -p xenstore [-- SECONDS]
//!
//! Each daemon is a process of its own. Rounds go by turns, ours and theirs; what is compared is the median of the ratios
//! of a round, with the smallest and the largest, since times on a busy machine say little. Everything is printed and
//! nothing is judged here.

#[path = "../../tests/daemon/mod.rs"]
mod daemon;
mod load;
#[path = "../../tests/oracle/mod.rs"]
#[allow(dead_code, reason = "only the daemon, not what compares it with ours")]
mod oracle;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use xenstore::server::{Limits, Server};

/// In the environment: this process is our daemon, at that socket.
const SERVE: &str = "WINDSOR_BENCH_XENSTORED";
const ROUNDS: usize = 7;

fn serve(socket: &Path) {
    let (mut server, handle) = Server::new(Limits::default()).unwrap();
    server.listen(socket).unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    std::thread::spawn(move || {
        // Whoever started us holds the other end; its end is ours.
        let _ = std::io::stdin().read_line(&mut String::new());
        handle.stop();
    });
    server.run().unwrap();
}

fn ours(socket: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.env(SERVE, socket).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    child
}

fn main() {
    if let Some(socket) = std::env::var_os(SERVE) {
        return serve(Path::new(&socket));
    }
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(0.5);
    let time = Duration::from_secs_f64(seconds);
    let dir = tempfile::tempdir().unwrap();
    let mut daemons = vec![("windsor", dir.path().join("ours"))];
    let mut child = ours(&daemons[0].1);
    let c = oracle::Program::find().and_then(|program| oracle::Oracle::start(&program, &[]).map_err(|e| e.to_string()));
    match &c {
        Ok(c) => daemons.push(("C xenstored", c.socket())),
        Err(reason) => println!("no C xenstored: {reason}"),
    }
    println!(
        "{:<26} {:>14} {:>14} {:>22} {:>10} {:>10}",
        "", "windsor /s", "C /s", "ratio (min..max)", "us CPU", "us CPU C"
    );
    for clients in [1, 10] {
        for (name, work) in load::WORKS {
            let rounds: Vec<Vec<load::Figure>> = (0..ROUNDS)
                .map(|_| daemons.iter().map(|(_, socket)| load::run(socket, clients, work, time)).collect())
                .collect();
            print_line(&format!("{name}, {clients} client{}", if clients == 1 { "" } else { "s" }), &rounds);
        }
    }
    println!();
    daemons.iter().for_each(|(name, socket)| load::large(name, socket));
    drop(child.stdin.take());
    child.wait().unwrap();
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn print_line(what: &str, rounds: &[Vec<load::Figure>]) {
    let of = |daemon: usize, value: fn(&load::Figure) -> f64| {
        median(rounds.iter().map(|round| value(&round[daemon])).collect()).0
    };
    let rate = |figure: &load::Figure| figure.per_second;
    let cpu = |figure: &load::Figure| figure.cpu_us;
    if rounds[0].len() < 2 {
        println!("{what:<26} {:>14.0} {:>14} {:>22} {:>10.1} {:>10}", of(0, rate), "-", "-", of(0, cpu), "-");
        return;
    }
    let (ratio, least, most) = median(rounds.iter().map(|round| round[0].per_second / round[1].per_second).collect());
    let ratio = format!("{ratio:.2} ({least:.2}..{most:.2})");
    println!(
        "{what:<26} {:>14.0} {:>14.0} {ratio:>22} {:>10.1} {:>10.1}",
        of(0, rate),
        of(1, rate),
        of(0, cpu),
        of(1, cpu)
    );
}

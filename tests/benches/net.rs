//! What packets from one guest to another cost under load, on the embedded host.
//!
//!   cargo bench -p tests --bench net [-- SECONDS]
//!
//! The sender keeps its ring full, the receiver posts what it has taken; both sleep when there is nothing to do, as guests
//! do. Calls are those that the backend would make on Xen: copies, waits, notifications. What an embedded host cannot
//! show is the price of a hypercall. Everything is printed and nothing is judged here; `net_counters` asserts what is
//! exact.
//!
//! A turn makes two copies (what is looked at, then all the rest) and tells both guests, whatever it carries: four calls,
//! of which two are events. The rest is what sleeping takes: a wait, reading the ports, unmasking them. A packet of 64 KiB
//! has 17 of a ring's 256 slots, so a turn carries 15 of them: while both guests sleep after each ringful, 4/15 calls and
//! 2/15 events per packet are the least, and more queues change nothing, for each has its turns and its events. On a wire
//! such a packet is 46.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netback::stats::Stats;
use tests::flow::{Shape, flow};
use tests::network::Network;

const SHAPES: [(&str, Shape); 4] = [
    ("60 bytes", Shape { len: 60, segment: 0, plain: false }),
    ("1514 bytes", Shape { len: 1514, segment: 0, plain: false }),
    ("64 KiB of TCP, kept whole", Shape { len: 65_226, segment: 1448, plain: false }),
    ("64 KiB of TCP, cut in software", Shape { len: 65_226, segment: 1448, plain: true }),
];

/// What a shape came to.
struct Figure {
    packets: usize,
    bytes: usize,
    time: Duration,
    sent: Stats,
    received: Stats,
}

fn run(shape: Shape, time: Duration) -> Figure {
    let mut network = Network::new();
    let (mut sender, mut receiver) = flow(&mut network, shape);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let (packets, bytes, receiver) = std::thread::scope(|scope| {
        let stop = &stop;
        let taking = scope.spawn(move || {
            let (mut packets, mut bytes) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let (more, len) = receiver.take();
                (packets, bytes) = (packets + more, bytes + len);
                if more == 0 {
                    receiver.wait();
                }
            }
            (packets, bytes, receiver)
        });
        while begun.elapsed() < time {
            sender.reap();
            if sender.put(usize::MAX) == 0 {
                sender.wait();
            }
        }
        while sender.out() > 0 {
            sender.wait();
            sender.reap();
        }
        stop.store(true, Ordering::Relaxed);
        taking.join().unwrap()
    });
    Figure { packets, bytes, time: begun.elapsed(), sent: sender.card.stats(), received: receiver.card.stats() }
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(2.0);
    println!(
        "{:<32} {:>11} {:>8} {:>13} {:>13} {:>12} {:>13} {:>26} {:>9}",
        "",
        "packets/s",
        "Gbit/s",
        "calls/packet",
        "events/packet",
        "copies/call",
        "packets/turn",
        "calls/turn: copy+tell+rest",
        "dropped"
    );
    for (name, shape) in SHAPES {
        let Figure { packets, bytes, time, sent, received } = run(shape, Duration::from_secs_f64(seconds));
        // What a sender has put, whatever it was cut into.
        let put = sent.sent_packets.max(1) as f64;
        let of = |what: fn(&Stats) -> u64| (what(&sent) + what(&received)) as f64;
        let turns = sent.batches.max(1) as f64;
        let [calls, copies, told] =
            [|stats: &Stats| stats.system_calls, |stats: &Stats| stats.copy_calls, |stats: &Stats| stats.notified_out]
                .map(of);
        let each = format!("{:.1}+{:.1}+{:.1}", copies / turns, told / turns, (calls - copies - told) / turns);
        println!(
            "{name:<32} {:>11.0} {:>8.2} {:>13.4} {:>13.4} {:>12.1} {:>13.1} {each:>26} {:>9}",
            packets as f64 / time.as_secs_f64(),
            bytes as f64 * 8e-9 / time.as_secs_f64(),
            calls / put,
            of(|stats| stats.notified_in + stats.notified_out) / put,
            of(|stats| stats.segments_copied) / copies.max(1.0),
            put / turns,
            received.dropped_no_room,
        );
    }
}

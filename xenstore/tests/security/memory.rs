//! T28 too: what the daemon keeps of clients that do their worst is so much per client, and goes with them.

use std::io::Write;

use xenstore::server::Limits;
use xenstore::wire::{MessageType, message};

use crate::daemon::{Daemon, is_long};
use crate::peer::Peer;
use crate::{again, alone, assert_serves, introduce, resident, start, words};

/// Sends what fits and does not wait.
fn push(peer: &mut Peer, kind: MessageType, transaction: u32, payload: &[u8]) -> bool {
    let bytes = message(kind as u32, 1, transaction, &[payload]).unwrap();
    // Half a message is as good: its client never says the rest.
    peer.socket().write(&bytes).is_ok_and(|count| count == bytes.len())
}

/// Ten thousand connections that come, do something and go, while one never reads: memory stays where it was.
#[test]
fn t28_reconnects_and_a_client_that_never_reads_leave_memory_where_it_was() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { write_rate: usize::MAX, ..Limits::default() });
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut deaf = introduce(&daemon, 3);
    deaf.request(MessageType::Watch, &words(&["data", "deaf"])).unwrap();
    deaf.socket().set_nonblocking(true).unwrap();
    while push(&mut deaf, MessageType::Read, 0, b"data\0") {}
    let mut visit = |n: usize| {
        let mut guest = again(&daemon, 3);
        for watch in 0..10 {
            guest.request(MessageType::Watch, &words(&["data", &format!("{n}-{watch}")])).unwrap();
        }
        let number = start(&mut guest).unwrap();
        let path = format!("data/{n}");
        guest.ask(MessageType::Write as u32, number, &words(&[&path])).unwrap();
        // A path of its own each time: an event that waits is not told twice, so others must not pile up either.
        dom0.request(MessageType::Write, &words(&[&format!("/local/domain/3/data/{n}")])).unwrap();
        dom0.request(MessageType::Rm, &words(&[&format!("/local/domain/3/data/{n}")])).unwrap();
        // Half a message, and gone.
        let _ = guest.socket().write(&[7; 9]);
    };
    let rounds = if is_long() { 10_000 } else { 1000 };
    // What is kept for everybody has its size when the first have gone, and the events of the deaf one are merged.
    let warm = rounds / 5;
    (0..warm).for_each(&mut visit);
    let before = resident();
    (warm..warm + rounds).for_each(&mut visit);
    let grown = resident().saturating_sub(before);
    println!("{rounds} reconnects: {before} kB, then {grown} kB more");
    assert!(grown < 1024, "{grown} kB more after {rounds} reconnects");
    assert_serves(&daemon);
}

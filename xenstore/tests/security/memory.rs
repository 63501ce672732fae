//! T28 too: what the daemon keeps of clients that do their worst is so much per client, and goes with them.

use std::io::Write;

use xenstore::server::Limits;
use xenstore::wire::{MessageType, message};

use crate::daemon::{Daemon, is_long};
use crate::peer::Peer;
use crate::{again, alone, assert_serves, held, introduce, resident, start, words};

/// Sends what fits and does not wait.
fn push(peer: &mut Peer, kind: MessageType, transaction: u32, payload: &[u8]) -> bool {
    let bytes = message(kind as u32, 1, transaction, &[payload]).unwrap();
    // Half a message is as good: its client never says the rest.
    peer.socket().write(&bytes).is_ok_and(|count| count == bytes.len())
}

/// XSA-326, 416: each client fills whatever it may (nodes, watches, transactions, answers and events that are not
/// read), and the daemon's memory is bounded by 2.5 MB for each.
#[test]
fn t28_memory_is_bounded_by_what_each_client_may_use() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { write_rate: usize::MAX, ..Limits::default() });
    let mut dom0 = Peer::connect(&daemon.socket());
    let clients: u16 = if is_long() { 40 } else { 10 };
    let value = [7; 1900];
    let mut all: Vec<(Peer, Peer)> =
        (1..=clients).map(|domid| (introduce(&daemon, domid), again(&daemon, domid))).collect();
    // What the clients themselves need, and what the daemon needs for them when they do nothing, is there.
    for (writer, deaf) in &mut all {
        writer.request(MessageType::Write, &[&b"data/1\0"[..], &value].concat()).unwrap();
        deaf.request(MessageType::Read, b"data/1\0").unwrap();
    }
    let (before, heap) = (resident(), held());
    for (writer, deaf) in &mut all {
        for n in 0..900 {
            let path = format!("data/{}/{n}", n / 30);
            let payload = [path.as_bytes(), b"\0", &value].concat();
            if writer.request(MessageType::Write, &payload).is_err() {
                break;
            }
        }
        let token = "t".repeat(3000);
        for n in 0..128 {
            if deaf.request(MessageType::Watch, &words(&["data", &format!("{n}{token}")])).is_err() {
                break;
            }
        }
        // These the client has read, and need not keep.
        deaf.events();
        while let Ok(number) = start(deaf) {
            for n in 0..1000 {
                let path = format!("data/{n}");
                let payload = [path.as_bytes(), b"\0", &value].concat();
                if deaf.ask(MessageType::Write as u32, number, &payload).is_err() {
                    break;
                }
            }
        }
        // From here on it reads nothing.
        deaf.socket().set_nonblocking(true).unwrap();
        while push(deaf, MessageType::Read, 0, b"data/1\0") {}
    }
    // What each of them is told, dom0 writes: many long paths, in everybody's directory.
    for domid in 1..=clients {
        for n in 0..200 {
            let path = format!("/local/domain/{domid}/data/{n}-{}", "x".repeat(1500));
            dom0.request(MessageType::Mkdir, &words(&[&path])).unwrap();
            dom0.request(MessageType::Rm, &words(&[&path])).unwrap();
        }
    }
    let grown = resident().saturating_sub(before);
    let most = usize::from(clients) * 2560;
    let heap = (held() - heap) >> 10;
    println!("{clients} clients: {heap} kB of heap, {grown} kB resident, of {most} kB");
    assert!(heap < most, "{heap} kB for {clients} clients");
    assert!(grown < most, "{grown} kB for {clients} clients");
    drop(all);
    assert_serves(&daemon);
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
        // A path of its own each time: an event that waits is not told twice, but this one is another.
        let path = format!("data/{n}-{}", "x".repeat(1900));
        guest.ask(MessageType::Write as u32, number, &words(&[&path])).unwrap();
        dom0.request(MessageType::Write, &words(&[&format!("/local/domain/3/{path}")])).unwrap();
        dom0.request(MessageType::Rm, &words(&[&format!("/local/domain/3/{path}")])).unwrap();
        // Half a message, and gone.
        let _ = guest.socket().write(&[7; 9]);
    };
    let rounds = if is_long() { 10_000 } else { 1000 };
    // Until the daemon keeps for the deaf one what it keeps of a client's events at most.
    let warm = 1000;
    (0..warm).for_each(&mut visit);
    let before = held();
    (warm..warm + rounds).for_each(&mut visit);
    let grown = held().saturating_sub(before);
    println!("{rounds} reconnects: {before} bytes, then {grown} more");
    assert!(grown < 64 << 10, "{grown} bytes more after {rounds} reconnects");
    assert_serves(&daemon);
}

//! T32: clients that start anew, over and over and at the worst moment.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use xenstore::server::Limits;
use xenstore::wire::{ErrorName, MessageType, message};

use crate::daemon::{Daemon, is_long};
use crate::peer::Peer;
use crate::{again, alone, assert_serves, commit, held, introduce, start, words};

/// XSA-330, 512: watches that outlive their reset, or their connection.
#[test]
fn t32_resets_and_reconnects_leave_memory_where_it_was() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { write_rate: usize::MAX, ..Limits::default() });
    let mut guest = introduce(&daemon, 3);
    let token = "t".repeat(200);
    let mut round = |n: usize| {
        for watch in 0..8 {
            guest.request(MessageType::Watch, &words(&[&format!("data/{n}/{watch}"), &token])).unwrap();
        }
        let number = start(&mut guest).unwrap();
        guest.ask(MessageType::Write as u32, number, &words(&["data/x"])).unwrap();
        let inside = if n.is_multiple_of(2) { 0 } else { number };
        guest.ask(MessageType::ResetWatches as u32, inside, b"\0").unwrap();
        if n.is_multiple_of(10) {
            guest = again(&daemon, 3);
        }
        guest.events();
    };
    let rounds = if is_long() { 100_000 } else { 10_000 };
    (0..rounds / 5).for_each(&mut round);
    let before = held();
    (0..rounds).for_each(&mut round);
    let grown = held().saturating_sub(before);
    println!("{rounds} resets, {} reconnects: {before} bytes, then {grown} more", rounds / 10);
    assert!(grown < 64 << 10, "{grown} bytes more after {rounds} resets");
    // Nothing of all those watches is left to hear of anything.
    let mut last = again(&daemon, 3);
    let watches = (0..200).map(|n| last.request(MessageType::Watch, &words(&["data", &n.to_string()])));
    assert_eq!(watches.take_while(Result::is_ok).count(), 128);
    assert_serves(&daemon);
}

/// XSA-484: a reset that is sent inside of a transaction ended the daemon.
#[test]
fn t32_a_reset_in_any_state_ends_watches_and_transactions() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut guest = introduce(&daemon, 3);
    for state in 0..4 {
        let numbers: Vec<u32> = (0..3).map(|_| start(&mut guest).unwrap()).collect();
        guest.request(MessageType::Watch, &words(&["data", "t"])).unwrap();
        guest.ask(MessageType::Write as u32, numbers[1], &words(&["data/never"])).unwrap();
        if state == 3 {
            // A transaction that is over already, and one there never was.
            commit(&mut guest, numbers[0]).unwrap();
        }
        let inside = [0, numbers[0], numbers[1], numbers[2]][state];
        guest.ask(MessageType::ResetWatches as u32, inside, b"\0").unwrap();
        for number in [inside, numbers[0], numbers[1], numbers[2]].into_iter().filter(|number| *number != 0) {
            assert_eq!(commit(&mut guest, number), Err(ErrorName::Enoent), "{number} is over");
            let more = guest.ask(MessageType::ResetWatches as u32, number, b"\0");
            assert_eq!(more, Err(ErrorName::Enoent));
        }
        guest.events();
        guest.request(MessageType::Write, &words(&["data/written"])).unwrap();
        assert_eq!(guest.events(), [], "nobody watches");
        assert_eq!(guest.request(MessageType::Directory, b"data\0").unwrap(), b"written\0");
        guest.request(MessageType::Rm, &words(&["data/written"])).unwrap();
        guest.request(MessageType::ResetWatches, b"\0").unwrap();
    }
    assert_serves(&daemon);
}

/// XSA-233, 425: lists that change while they are walked. Clients that go, and domains that end, while events for them
/// are fired and requests of theirs are on their way.
#[test]
fn t32_clients_and_domains_that_go_while_events_fire() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { write_rate: usize::MAX, ..Limits::default() });
    let mut watcher = Peer::connect(&daemon.socket());
    watcher.request(MessageType::Watch, &words(&["@releaseDomain", "end"])).unwrap();
    let releases = if is_long() { 2000 } else { 200 };
    // What is kept for everybody has its size after the first few.
    storm(&daemon, 50);
    watcher.events();
    let before = held();
    let (came, fired) = storm(&daemon, releases);
    let mut ends = watcher.events();
    assert!(!ends.is_empty());
    ends.retain(|(path, _)| path != "@releaseDomain");
    assert_eq!(ends, []);
    drop((ends, watcher));
    let grown = held().saturating_sub(before);
    println!("{releases} ends of a domain, {came} clients of it, {fired} writes that they watched: {grown} bytes more");
    assert!(came > 0 && fired > 0);
    assert!(grown < 64 << 10, "{grown} bytes more after {releases} ends");
    assert_serves(&daemon);
}

/// A domain that comes and goes, with clients that come and go, and somebody who writes what they watch; how many of
/// these there were.
fn storm(daemon: &Daemon, releases: usize) -> (u64, u64) {
    let mut dom0 = Peer::connect(&daemon.socket());
    let stop = AtomicBool::new(false);
    let counts = std::thread::scope(|scope| {
        let guests = scope.spawn(|| {
            let mut came = 0;
            while !stop.load(Ordering::Relaxed) {
                // The socket is not there between two lives of the domain.
                let Ok(socket) = UnixStream::connect(daemon.domain_socket(3)) else { continue };
                came += 1;
                flood(socket, came);
            }
            came
        });
        let writer = scope.spawn(|| {
            let mut peer = Peer::connect(&daemon.socket());
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let path = format!("/local/domain/3/data/{}", count % 50);
                peer.request(MessageType::Write, &words(&[&path])).unwrap();
                count += 1;
            }
            count
        });
        for turn in 0..releases {
            drop(introduce(daemon, 3));
            for n in 0..10 {
                dom0.request(MessageType::Rm, &words(&[&format!("/local/domain/3/data/{n}")])).unwrap();
            }
            // Half of them end by the host's word, half by a request, as a toolstack ends them.
            match turn % 2 {
                0 => daemon.handle.release(3).unwrap(),
                _ => drop(dom0.request(MessageType::Release, b"3\0").unwrap()),
            }
        }
        stop.store(true, Ordering::Relaxed);
        (guests.join().unwrap(), writer.join().unwrap())
    });
    dom0.request(MessageType::Rm, b"/local\0").unwrap();
    counts
}

/// Watches, listens a little, and is gone with requests on their way and answers not read.
fn flood(mut socket: UnixStream, number: u64) {
    let request = |kind: MessageType, payload: &[u8]| message(kind as u32, 1, 0, &[payload]).unwrap();
    let mut bytes = Vec::new();
    for n in 0..20 {
        bytes.extend(request(MessageType::Watch, &words(&["data", &n.to_string()])));
        bytes.extend(request(MessageType::Write, &words(&[&format!("data/{n}")])));
        bytes.extend(request(MessageType::TransactionStart, b"\0"));
        bytes.extend(request(MessageType::Rm, &words(&["data/1"])));
    }
    // What becomes of it is the daemon's to say: it may have closed the connection already.
    let _ = socket.write_all(&bytes[..bytes.len() - (number % 40) as usize]);
    if number.is_multiple_of(3) {
        let _ = socket.read(&mut [0; 1000]);
    }
}

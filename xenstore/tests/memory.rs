//! Clients that try to make the daemon remember more and more.

mod daemon;

use std::io::{Read, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use daemon::{Daemon, guest, refused, request};
use xenstore::Store;
use xenstore::wire::{ErrorName, HEADER, MessageType, message};

/// The memory of a whole process is looked at, so these tests take turns.
static ALONE: Mutex<()> = Mutex::new(());

/// Megabytes that this process, the server in it, has in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<usize>().unwrap() >> 10
}

#[test]
fn a_client_that_never_reads_costs_a_bounded_amount() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::new();
    let (mut victim, mut deaf) = guest(&daemon, 3);
    deaf.set_nonblocking(true).unwrap();
    victim.write("data/big", &[7; 2000]).unwrap();
    for n in 0..100 {
        deaf.write_all(&request(MessageType::Watch, n, format!("data\0{n}\0").as_bytes())).unwrap();
    }
    let before = resident();
    // Answers that are not read: at some point its requests are not read either.
    let read = request(MessageType::Read, 1, b"data/big\0");
    let mut written = 0;
    let mut full = 0;
    while full < 50 {
        match deaf.write(&read) {
            Ok(count) => written += count,
            Err(_) => {
                full += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    assert!(written < 2 << 20, "{written} bytes of requests were taken");
    // Events that are not read, each for another path, by 100 watches.
    for n in 0..2000 {
        let path = format!("data/{n}-{}", "x".repeat(1000));
        victim.write(&path, b"").unwrap();
        victim.rm(&path).unwrap();
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64, "{grown} MB more, where {} MB of events were fired", 100 * 4000 / 1000);
}

#[test]
fn a_flood_of_small_requests_does_not_pile_up_and_starves_nobody() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::new();
    let (_, flood) = guest(&daemon, 3);
    let mut victim = daemon.client();
    let before = resident();
    let mut reader = flood.try_clone().unwrap();
    let drain = std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while reader.read(&mut buffer).is_ok_and(|count| count > 0) {}
    });
    let mut writer = flood.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let block: Vec<u8> = (0..1000).flat_map(|n| request(MessageType::Read, n, b"q\0")).collect();
        while writer.write_all(&block).is_ok() {}
    });
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    while started.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        victim.write("/victim", b"x").unwrap();
        slowest = slowest.max(asked.elapsed());
    }
    let grown = resident().saturating_sub(before);
    flood.shutdown(std::net::Shutdown::Both).unwrap();
    writer.join().unwrap();
    drain.join().unwrap();
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert!(grown < 6, "{grown} MB more");
}

#[test]
fn what_a_transaction_holds_is_bounded_and_dies_with_its_client() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::new();
    let (mut client, mut raw) = guest(&daemon, 3);
    let start = request(MessageType::TransactionStart, 1, b"\0");
    (0..10).for_each(|_| raw.write_all(&start).unwrap());
    std::thread::sleep(Duration::from_millis(100));
    let too_many = client.transaction(|_| Ok(()));
    assert_eq!(refused(too_many), ErrorName::Enospc, "ten for all connections of a domain");
    let before = resident();
    let write = message(MessageType::Write as u32, 1, 1, &[b"data/same\0", &[1; 1000]]).unwrap();
    raw.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..50_000 {
        raw.write_all(&write).unwrap();
        raw.read_exact(&mut [0; HEADER]).unwrap();
        raw.read_exact(&mut [0; 3]).unwrap_or_default();
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 4, "{grown} MB more for one node written again and again");
    drop(raw);
    std::thread::sleep(Duration::from_millis(100));
    client.transaction(|tx| tx.write("data/free", b"")).unwrap();
    assert_eq!(client.directory("data").unwrap(), ["free"], "nothing of what was never committed");
}

//! Attacks on a xenstored, each the lesson of a flaw that the real ones had: cases T26 to T32. Which flaw is shown by
//! which test stands in `docs/xenstore-security.md`.

mod daemon;
mod peer;

#[path = "../fuzz/body.rs"]
mod body;
#[path = "security/depth.rs"]
mod depth;
#[path = "security/frames.rs"]
mod frames;
#[path = "security/memory.rs"]
mod memory;
#[path = "model/paths.rs"]
mod paths;
#[path = "security/quotas.rs"]
mod quotas;
#[path = "security/resets.rs"]
mod resets;
#[path = "security/rights.rs"]
mod rights;
#[path = "security/storms.rs"]
mod storms;
#[path = "security/strange_paths.rs"]
mod strange_paths;
#[path = "security/table.rs"]
mod table;

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use daemon::Daemon;
use peer::Peer;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use xenstore::wire::{ErrorName, MessageType};

/// The memory of the whole process is looked at, so the tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that this process, the server in it, holds: to the byte, where what the kernel counts hides what was free before.
fn held() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Kilobytes that this process has in memory, as the kernel counts.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

/// A domain with a directory `data` of its own.
fn introduce(daemon: &Daemon, domid: u16) -> Peer {
    let mut dom0 = Peer::connect(&daemon.socket());
    let data = format!("/local/domain/{domid}/data\0");
    dom0.request(MessageType::Mkdir, data.as_bytes()).unwrap();
    dom0.request(MessageType::SetPerms, format!("{data}n{domid}\0").as_bytes()).unwrap();
    daemon.handle.introduce(domid, &daemon.domain_socket(domid)).unwrap();
    again(daemon, domid)
}

/// One more connection of a domain.
fn again(daemon: &Daemon, domid: u16) -> Peer {
    Peer::connect(&daemon.domain_socket(domid))
}

/// Puts what was said in pieces together: path and arguments, each with its NUL.
fn words(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
}

/// A transaction's number.
fn start(peer: &mut Peer) -> Result<u32, ErrorName> {
    let number = peer.request(MessageType::TransactionStart, b"\0")?;
    Ok(std::str::from_utf8(&number).unwrap().trim_end_matches('\0').parse().unwrap())
}

/// How a transaction ends.
fn commit(peer: &mut Peer, transaction: u32) -> Result<(), ErrorName> {
    peer.ask(MessageType::TransactionEnd as u32, transaction, b"T\0").map(drop)
}

/// Whether the daemon still serves somebody new.
fn assert_serves(daemon: &Daemon) {
    let mut dom0 = Peer::connect(&daemon.socket());
    dom0.request(MessageType::Write, b"/alive\0yes").unwrap();
    assert_eq!(dom0.request(MessageType::Read, b"/alive\0").unwrap(), b"yes");
    dom0.request(MessageType::Rm, b"/alive\0").unwrap();
}

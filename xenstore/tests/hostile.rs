//! Clients that mean harm: whatever they send, or do not read, everybody else is served, and they are held to what a
//! domain may use.

mod daemon;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use daemon::{Daemon, SOON, guest, refused, request};
use xenstore::wire::{ErrorName, HEADER, Header, MessageType};
use xenstore::{Client, Permission, Store};

#[test]
fn a_client_that_reads_late_has_lost_nothing() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut late, _) = guest(&daemon, 3);
    late.watch("data", "d").unwrap();
    late.watch("data/far", "f").unwrap();
    let path = |n: usize| format!("/local/domain/3/data/{n}-{}", "x".repeat(800));
    for n in 0..3000 {
        dom0.write(&path(n % 1500), n.to_string().as_bytes()).unwrap();
    }
    dom0.write("/local/domain/3/data/far/below", b"").unwrap();
    let mut paths = Vec::new();
    while let Some(event) = late.next_event(SOON).unwrap() {
        paths.push((event.path, event.token));
    }
    // Each path, or its watch instead of it, has come after the last write.
    let says = |path: &str, token: &str| paths.iter().any(|(p, t)| t == token && (p == path || p == "data"));
    assert!((0..1500).all(|n| says(&path(n)["/local/domain/3/".len()..], "d")), "{} events", paths.len());
    assert!(paths.iter().any(|(p, t)| t == "f" && p.starts_with("data/far")), "before they were merged, and after");
    dom0.write("/local/domain/3/data/again", b"").unwrap();
    let event = late.next_event(SOON).unwrap().unwrap();
    assert_eq!((&*event.path, &*event.token), ("data/again", "d"), "one that has caught up is told exactly again");
}

#[test]
fn a_domain_has_so_many_connections_and_no_more() {
    let daemon = Daemon::new();
    let (mut first, _one) = guest(&daemon, 3);
    let connect = || UnixStream::connect(daemon.domain_socket(3)).unwrap();
    let mut others: Vec<UnixStream> = (0..62).map(|_| connect()).collect();
    first.write("data/x", b"1").unwrap();
    let mut one_too_many = connect();
    assert_eq!(one_too_many.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed at once");
    others.pop();
    let started = std::time::Instant::now();
    // Its place is free when the daemon has heard of its end.
    while Client::connect(&daemon.domain_socket(3)).unwrap().read("data/x").is_err() {
        assert!(started.elapsed().as_secs() < 30);
    }
    let mut other = daemon.domain(4);
    assert_eq!(refused(other.read("nothing")), ErrorName::Eacces, "others are not concerned");
}

#[test]
fn no_event_follows_the_answer_to_an_unwatch() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (_, mut raw) = guest(&daemon, 3);
    raw.write_all(&request(MessageType::Watch, 1, b"data\0t\0")).unwrap();
    raw.write_all(&request(MessageType::Watch, 2, b"data/kept\0t\0")).unwrap();
    // Fills the socket, so that events wait in the server.
    for n in 0..4000 {
        dom0.write(&format!("/local/domain/3/data/{n}"), b"").unwrap();
    }
    dom0.write("/local/domain/3/data/kept", b"").unwrap();
    raw.write_all(&request(MessageType::Unwatch, 3, b"/local/domain/3/data\0t\0")).unwrap();
    raw.set_read_timeout(SOON).unwrap();
    let (mut header, mut ended, mut kept) = ([0; HEADER], false, 0);
    while raw.read_exact(&mut header).is_ok() {
        let header = Header::decode(&header);
        let mut payload = vec![0; header.len as usize];
        raw.read_exact(&mut payload).unwrap();
        ended |= header.kind == MessageType::Unwatch as u32;
        if header.kind == MessageType::WatchEvent as u32 {
            let of_kept = payload.starts_with(b"data/kept\0");
            kept += u32::from(of_kept);
            assert!(!ended || of_kept, "{:?}", String::from_utf8_lossy(&payload));
        }
    }
    assert!(ended && kept >= 2, "{ended} {kept}: the other watch of the same token goes on");
}

#[test]
fn who_may_read_a_node_only_after_a_transaction_hears_of_it() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut guest, _) = guest(&daemon, 3);
    dom0.write("/hidden", b"").unwrap();
    dom0.set_perms("/hidden", &[Permission::none(0)]).unwrap();
    guest.watch("/hidden", "h").unwrap();
    assert!(guest.next_event(SOON).unwrap().is_some(), "at set-up");
    dom0.transaction(|tx| {
        tx.write("/hidden/for-3", b"1")?;
        tx.set_perms("/hidden/for-3", &[Permission::none(0), Permission::read(3)])?;
        tx.write("/hidden/not", b"1")
    })
    .unwrap();
    let mut heard = Vec::new();
    while let Some(event) = guest.next_event(SOON).unwrap() {
        heard.push(event.path);
    }
    assert_eq!(heard, ["/hidden/for-3"]);
    dom0.set_perms("/hidden/for-3", &[Permission::none(0), Permission::none(3)]).unwrap();
    assert_eq!(guest.next_event(SOON).unwrap().unwrap().path, "/hidden/for-3", "that it may not read any more");
    dom0.write("/hidden/for-3", b"2").unwrap();
    assert_eq!(guest.next_event(SOON).unwrap(), None);
}

//! Clients that mean harm: whatever they send, or do not read, everybody else is served, and they are held to what a
//! domain may use.

mod daemon;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use daemon::{Daemon, SOON, guest, refused, request};
use xenstore::wire::{ErrorName, HEADER, Header, MessageType, message};
use xenstore::{Client, Permission, Store};

#[test]
fn half_messages_and_nonsense_hurt_nobody() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let mut half = UnixStream::connect(daemon.socket()).unwrap();
    half.write_all(&[2, 0, 0, 0, 1]).unwrap();
    for len in [4097, 1 << 20, u32::MAX] {
        let mut long = UnixStream::connect(daemon.socket()).unwrap();
        long.write_all(&Header { kind: 2, request: 1, transaction: 0, len }.encode()).unwrap();
        assert_eq!(long.read(&mut [0; 64]).unwrap_or(0), 0, "{len} bytes: the connection is closed");
    }
    for kind in (0..64u32).chain([u32::MAX]) {
        let mut client = UnixStream::connect(daemon.socket()).unwrap();
        let mut answers = 0;
        for payload in [&b""[..], b"\0", b"\0\0\0", b"/x", b"/x\0", b"/x\0\0", b"/x\0-1\0", &[0xFF; 64], &[0; 4096]] {
            for transaction in [0, 9, u32::MAX] {
                client.write_all(&message(kind, 1, transaction, &[payload]).unwrap()).unwrap();
                answers += 1;
            }
        }
        let mut header = [0; HEADER];
        while answers > 0 {
            client.read_exact(&mut header).unwrap();
            let header = Header::decode(&header);
            client.read_exact(&mut vec![0; header.len as usize]).unwrap();
            // A watch that was accepted fires at once.
            answers -= u32::from(header.kind != MessageType::WatchEvent as u32);
        }
    }
    dom0.write("/alive", b"").unwrap();
}

#[test]
fn random_bytes_and_random_operations_leave_a_daemon_that_serves() {
    let daemon = Daemon::new();
    let (mut client, _) = guest(&daemon, 4);
    let mut random = fastrand::Rng::with_seed(26);
    for _ in 0..300 {
        let mut socket = UnixStream::connect(daemon.domain_socket(4)).unwrap();
        socket.set_nonblocking(true).unwrap();
        for _ in 0..50 {
            let text: Vec<u8> =
                (0..random.usize(0..200)).map(|_| *random.choice(b"ab/@-_\0\0 .0\xFF").unwrap()).collect();
            let mut bytes = message(random.u32(0..30), random.u32(..), random.u32(0..3), &[&text]).unwrap();
            if random.u8(0..40) == 0 {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            // Full, or closed on us: both are fine.
            let _ = socket.write(&bytes);
        }
    }
    client.write("data/alive", b"1").unwrap();
    assert_eq!(daemon.client().read("/local/domain/4/data/alive").unwrap(), b"1");
    assert_eq!(refused(daemon.client().read("/local/domain/5")), ErrorName::Enoent);
}

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
fn two_transactions_together_stay_below_the_quota() {
    let daemon = Daemon::new();
    let (mut one, _) = guest(&daemon, 3);
    let mut two = Client::connect(&daemon.domain_socket(3)).unwrap();
    for parent in ["a", "b"] {
        one.mkdir(&format!("data/{parent}")).unwrap();
    }
    let fill = |tx: &mut xenstore::Transaction<'_>, parent: &str| {
        (0..600).try_for_each(|n| tx.write(&format!("data/{parent}/{}/{n}", n / 100), b""))
    };
    let outcome = one.transaction(|tx| {
        fill(tx, "a")?;
        two.transaction(|tx| fill(tx, "b"))
    });
    assert_eq!(refused(outcome.map(drop)), ErrorName::Enospc, "each fits, both do not");
    assert!(one.directory("data/a").unwrap().is_empty(), "all or nothing");
}

#[test]
fn the_number_of_a_dead_domain_gives_no_rights() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut first, _) = guest(&daemon, 9);
    dom0.write("/shared", b"secret").unwrap();
    dom0.set_perms("/shared", &[Permission::none(0), Permission::both(9)]).unwrap();
    assert_eq!(first.read("/shared").unwrap(), b"secret");
    (0..500).for_each(|n| first.write(&format!("data/{}/{n}", n / 100), b"").unwrap());
    daemon.handle.release(9).unwrap();
    assert_eq!(dom0.get_perms("/shared").unwrap(), [Permission::none(0)]);
    let (mut second, _) = guest(&daemon, 9);
    assert_eq!(refused(second.read("/shared")), ErrorName::Eacces);
    (0..900).for_each(|n| second.write(&format!("data/{}/{n}", n / 100), b"").unwrap());
}

#[test]
fn rights_given_in_a_transaction_are_not_for_the_next_domain_of_the_number() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let _first = daemon.domain(9);
    dom0.write("/mine", b"secret").unwrap();
    let mut tries = 0;
    dom0.transaction(|tx| {
        tries += 1;
        if tries > 1 {
            return Ok(());
        }
        tx.set_perms("/mine", &[Permission::none(0), Permission::read(9)])?;
        tx.write("/mine/new", b"secret")?;
        daemon.handle.release(9).unwrap();
        let _second = daemon.domain(9);
        Ok(())
    })
    .unwrap();
    assert_eq!(tries, 2, "it was in conflict with the domain's end");
    let mut second = Client::connect(&daemon.domain_socket(9)).unwrap();
    for node in ["/mine", "/mine/new"] {
        assert_eq!(refused(second.read(node)), ErrorName::Eacces, "{node}");
    }
    daemon.handle.release(9).unwrap();
    let mut third = daemon.domain(9);
    dom0.set_perms("/mine", &[Permission::none(0), Permission::read(9)]).unwrap();
    assert_eq!(third.read("/mine").unwrap(), b"secret", "given after the end of the one before");
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
fn deep_paths_and_long_ones_are_cut_off_where_the_c_daemon_does() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut guest, _) = guest(&daemon, 3);
    let deep = "/d".repeat(1024);
    dom0.write(&deep, b"bottom").unwrap();
    assert_eq!(dom0.read(&deep).unwrap(), b"bottom");
    dom0.rm("/d").unwrap();
    assert_eq!(refused(dom0.write(&"/d".repeat(1025), b"")), ErrorName::Einval, "2048 bytes for a path");
    let below = format!("data/{}/{}", "x".repeat(1000), "y".repeat(1042));
    guest.write(&below, b"").unwrap();
    assert_eq!(refused(guest.write(&format!("{below}x"), b"")), ErrorName::Einval);
    let absolute = format!("/local/domain/3/{below}");
    assert_eq!(dom0.read(&absolute).unwrap(), b"", "what leads to the domain's directory does not count");
    for path in ["/local/domain/", "/local/domain/3/", "/local/domain//3", "/local/domain/123456/x/"] {
        assert_eq!(refused(dom0.read(path)), ErrorName::Einval, "{path}");
    }
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

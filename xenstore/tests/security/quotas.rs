//! T28: every limit is reached, outside and inside of a transaction; what held it goes, and all of it is free again.

use xenstore::server::Limits;
use xenstore::wire::{ErrorName, MessageType};

use crate::daemon::Daemon;
use crate::peer::Peer;
use crate::{again, alone, assert_serves, commit, introduce, start, words};

use ErrorName::{E2big, Einval, Enomem, Enospc};

fn write(peer: &mut Peer, transaction: u32, path: &str, value: &[u8]) -> Result<(), ErrorName> {
    let payload = [path.as_bytes(), b"\0", value].concat();
    peer.ask(MessageType::Write as u32, transaction, &payload).map(drop)
}

fn rm(peer: &mut Peer, transaction: u32, path: &str) -> Result<(), ErrorName> {
    peer.ask(MessageType::Rm as u32, transaction, &words(&[path])).map(drop)
}

/// How often something works until it is refused, and with what.
fn fill(mut more: impl FnMut(usize) -> Result<(), ErrorName>) -> (usize, ErrorName) {
    for count in 0..100_000 {
        if let Err(error) = more(count) {
            return (count, error);
        }
    }
    panic!("no limit");
}

/// XSA-272: a limit that was never applied. The nodes of a domain, however they come to be.
#[test]
fn t28_nodes_are_limited_and_free_again() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { nodes: 100, ..Limits::default() });
    let mut guest = introduce(&daemon, 3);
    for _ in 0..3 {
        // `data` is one of them.
        assert_eq!(fill(|n| write(&mut guest, 0, &format!("data/{n}"), b"")), (99, Enospc));
        assert_eq!(fill(|n| write(&mut again(&daemon, 3), 0, &format!("data/more-{n}"), b"")), (0, Enospc));
        assert_eq!(guest.request(MessageType::Mkdir, b"data/a/b\0"), Err(Enospc));
        write(&mut guest, 0, "data/7", b"what is there can be written").unwrap();
        (0..99).for_each(|n| rm(&mut guest, 0, &format!("data/{n}")).unwrap());
    }
    // Inside: given up by the connection's end, or by the transaction's.
    for round in 0..20 {
        let mut other = again(&daemon, 3);
        let number = start(&mut other).unwrap();
        assert_eq!(fill(|n| write(&mut other, number, &format!("data/{n}"), b"")), (99, Enospc));
        if round % 2 == 0 {
            other.ask(MessageType::TransactionEnd as u32, number, b"F\0").unwrap();
        }
    }
    // Two that fit, but not together.
    let mut other = again(&daemon, 3);
    for directory in ["data/a", "data/b"] {
        guest.request(MessageType::Mkdir, &words(&[directory])).unwrap();
    }
    let (one, two) = (start(&mut guest).unwrap(), start(&mut other).unwrap());
    (0..60).for_each(|n| write(&mut guest, one, &format!("data/a/{n}"), b"").unwrap());
    (0..60).for_each(|n| write(&mut other, two, &format!("data/b/{n}"), b"").unwrap());
    commit(&mut guest, one).unwrap();
    assert_eq!(commit(&mut other, two), Err(Enospc));
    assert_eq!(guest.request(MessageType::Directory, b"data/b\0").unwrap(), b"", "all or nothing");
    ["data/a", "data/b"].iter().for_each(|path| rm(&mut guest, 0, path).unwrap());
    // Committed, and removed by dom0: the domain has them back.
    let number = start(&mut guest).unwrap();
    (0..99).for_each(|n| write(&mut guest, number, &format!("data/{n}"), b"").unwrap());
    commit(&mut guest, number).unwrap();
    assert_eq!(write(&mut guest, 0, "data/more", b""), Err(Enospc));
    let mut dom0 = Peer::connect(&daemon.socket());
    (0..99).for_each(|n| rm(&mut dom0, 0, &format!("/local/domain/3/data/{n}")).unwrap());
    assert_eq!(fill(|n| write(&mut guest, 0, &format!("data/{n}"), b"")), (99, Enospc));
    assert_serves(&daemon);
}

/// XSA-414, 415: a node made by halves. The limit is hit at each level that a write makes.
#[test]
fn t28_a_limit_at_each_step_of_a_creation_leaves_nothing_by_halves() {
    let _alone = alone();
    for room in 0..5 {
        let daemon = Daemon::with(Limits { nodes: 1 + room, ..Limits::default() });
        let mut guest = introduce(&daemon, 3);
        for inside in [false, true] {
            let number = if inside { start(&mut guest).unwrap() } else { 0 };
            let made = write(&mut guest, number, "data/a/b/c/d", b"");
            assert_eq!(made, if room < 4 { Err(Enospc) } else { Ok(()) });
            if inside {
                commit(&mut guest, number).unwrap();
            }
            let listed = guest.request(MessageType::Directory, b"data\0").unwrap();
            assert_eq!(listed, if room < 4 { &b""[..] } else { b"a\0" });
            rm(&mut guest, 0, "data/a").unwrap();
            assert_eq!(fill(|n| write(&mut guest, 0, &format!("data/{n}"), b"")), (room, Enospc));
            (0..room).for_each(|n| rm(&mut guest, 0, &format!("data/{n}")).unwrap());
        }
        // The size of a node on the way: the parent's list, or the last one's value.
        let long = "x".repeat(1990);
        write(&mut guest, 0, "data", &[7; 1990]).unwrap();
        assert_eq!(write(&mut guest, 0, &format!("data/{long}/a"), b""), Err(Enospc));
        assert_eq!(write(&mut guest, 0, "data/a/b", &[7; 2048]), Err(Enospc));
        assert_eq!(guest.request(MessageType::Directory, b"data\0").unwrap(), b"");
        assert_serves(&daemon);
    }
}

/// XSA-326: watches without end.
#[test]
fn t28_watches_are_limited_and_free_again() {
    let _alone = alone();
    let daemon = Daemon::new();
    let watch =
        |peer: &mut Peer, n: usize| peer.request(MessageType::Watch, &words(&["data", &n.to_string()])).map(drop);
    introduce(&daemon, 3);
    for round in 0..20 {
        let mut one = again(&daemon, 3);
        assert_eq!(fill(|n| watch(&mut one, n)), (128, E2big));
        let mut two = again(&daemon, 3);
        assert_eq!(watch(&mut two, 0), Err(E2big), "for all connections of a domain");
        let number = start(&mut one).unwrap();
        let inside = one.ask(MessageType::Watch as u32, number, &words(&["data", "inside"]));
        assert_eq!(inside.map(drop), Err(E2big));
        assert_eq!(watch(&mut one, 0), Err(ErrorName::Eexist), "a limit does not hide what is there");
        match round % 3 {
            0 => drop(one.request(MessageType::ResetWatches, b"\0").unwrap()),
            1 => (0..128).for_each(|n| {
                one.request(MessageType::Unwatch, &words(&["data", &n.to_string()])).unwrap();
            }),
            _ => drop(one),
        }
        settle(&mut two);
        assert_eq!(fill(|n| watch(&mut two, n)), (128, E2big));
        drop(two);
        settle(&mut again(&daemon, 3));
    }
    assert_serves(&daemon);
}

/// The end of another connection was there before these requests are.
fn settle(peer: &mut Peer) {
    for _ in 0..3 {
        peer.request(MessageType::GetDomainPath, b"0\0").unwrap();
    }
}

/// XSA-326: transactions without end, and one that looks at everything.
#[test]
fn t28_transactions_and_what_they_look_at_are_limited_and_free_again() {
    let _alone = alone();
    let daemon = Daemon::new();
    let open = |peer: &mut Peer| start(peer).map(drop);
    introduce(&daemon, 3);
    for _ in 0..20 {
        let mut one = again(&daemon, 3);
        assert_eq!(fill(|_| open(&mut one)), (10, Enospc));
        let mut two = again(&daemon, 3);
        assert_eq!(open(&mut two), Err(Enospc), "for all connections of a domain");
        drop(one);
        settle(&mut two);
        assert_eq!(fill(|_| open(&mut two)), (10, Enospc));
        two.request(MessageType::ResetWatches, b"\0").unwrap();
        let number = start(&mut two).unwrap();
        let look = |peer: &mut Peer, n: usize| {
            let answer = peer.ask(MessageType::Read as u32, number, &words(&[&format!("data/{n}")]));
            if answer == Err(ErrorName::Enoent) { Ok(()) } else { answer.map(drop) }
        };
        // The directory is one of 1024.
        assert_eq!(fill(|n| look(&mut two, n)), (1023, Enospc));
        assert_eq!(commit(&mut two, number), Err(Enomem), "it is not what its client thinks it is");
        let number = start(&mut two).unwrap();
        write(&mut two, number, "data/whole", b"").unwrap();
        commit(&mut two, number).unwrap();
        drop(two);
        settle(&mut again(&daemon, 3));
    }
    assert_serves(&daemon);
}

/// XSA-272: limits of one node.
#[test]
fn t28_a_node_s_size_and_permissions_and_path_are_limited() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut guest = introduce(&daemon, 3);
    for inside in [false, true] {
        let number = if inside { start(&mut guest).unwrap() } else { 0 };
        let refused_from = (1900..2100).find(|size| write(&mut guest, number, "data", &vec![7; *size]).is_err());
        // 24 bytes for a node, 8 for a permission, and all of it is below 2048.
        assert_eq!(refused_from, Some(2048 - 24 - 8));
        assert_eq!(write(&mut guest, number, "data", &[7; 4000]), Err(Enospc));
        write(&mut guest, number, "data", &[7; 1000]).unwrap();
        let names = fill(|n| write(&mut guest, number, &format!("data/{n:0100}"), b""));
        assert_eq!(names, (10, Enospc), "names of children count");
        write(&mut guest, number, "data", b"").unwrap();
        let perms = |peer: &mut Peer, count: u16| {
            let all: String = (0..count).map(|n| format!("r{}\0", 3 + n)).collect();
            peer.ask(MessageType::SetPerms as u32, number, format!("data\0{all}").as_bytes()).map(drop)
        };
        perms(&mut guest, 5).unwrap();
        assert_eq!(perms(&mut guest, 6), Err(Enospc));
        assert_eq!(perms(&mut guest, 500), Err(Enospc));
        assert_eq!(write(&mut guest, number, &format!("data/{}", "x".repeat(2044)), b""), Err(Einval));
        if inside {
            guest.ask(MessageType::TransactionEnd as u32, number, b"F\0").unwrap();
        }
        rm(&mut Peer::connect(&daemon.socket()), 0, "/local/domain/3").unwrap();
        let mut dom0 = Peer::connect(&daemon.socket());
        dom0.request(MessageType::Mkdir, b"/local/domain/3/data\0").unwrap();
        dom0.request(MessageType::SetPerms, b"/local/domain/3/data\0n3\0").unwrap();
    }
    // dom0 has no limit but the message's.
    let mut dom0 = Peer::connect(&daemon.socket());
    write(&mut dom0, 0, "/large", &[7; 4000]).unwrap();
    assert_serves(&daemon);
}

/// XSA-326, 416: all that a domain makes the daemon remember counts, wherever it is; what it gives up does not.
#[test]
fn t28_memory_is_limited_and_free_again() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { memory: 64 << 10, memory_soft: 32 << 10, ..Limits::default() });
    introduce(&daemon, 3);
    let value = [7; 1500];
    let mut counts = Vec::new();
    for _ in 0..5 {
        let mut guest = again(&daemon, 3);
        let (nodes, error) = fill(|n| write(&mut guest, 0, &format!("data/{n}"), &value));
        assert_eq!(error, Enomem);
        // What gives memory back is not refused.
        (0..nodes).for_each(|n| rm(&mut guest, 0, &format!("data/{n}")).unwrap());
        let number = start(&mut guest).unwrap();
        let (inside, error) = fill(|n| write(&mut guest, number, &format!("data/{n}"), &value));
        assert_eq!(error, Enomem);
        drop(guest);
        let mut guest = again(&daemon, 3);
        settle(&mut guest);
        let token = "t".repeat(1500);
        let watch = |n: usize| guest.request(MessageType::Watch, &words(&[&format!("data/{n}"), &token])).map(drop);
        let (watches, error) = fill(watch);
        assert_eq!(error, Enomem);
        drop(guest);
        settle(&mut again(&daemon, 3));
        counts.push((nodes, inside, watches));
    }
    println!("nodes, inside of a transaction, watches: {counts:?}");
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    let (nodes, inside, watches) = counts[0];
    assert!((20..=44).contains(&nodes) && (10..=44).contains(&inside) && (10..=44).contains(&watches), "{counts:?}");
    assert_serves(&daemon);
}

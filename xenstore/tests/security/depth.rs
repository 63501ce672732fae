//! T29: trees as deep and as wide as they get. The daemon's thread has little of a stack.

use std::time::Instant;

use xenstore::server::Limits;
use xenstore::wire::MessageType;

use crate::daemon::{Daemon, is_long};
use crate::peer::Peer;
use crate::{alone, assert_serves, commit, introduce, start, words};

/// Bytes: enough for a walk that keeps its place elsewhere, too few for one frame per level.
const STACK: usize = 256 << 10;

/// XSA-418: removing a very deep tree by recursion ends the daemon. A path has 2048 bytes, so 1024 levels are all.
#[test]
fn t29_the_deepest_tree_is_removed_in_every_way() {
    let _alone = alone();
    let limits = Limits { nodes: usize::MAX, memory: usize::MAX, ..Limits::default() };
    let daemon = Daemon::with_stack(limits, STACK);
    let mut dom0 = Peer::connect(&daemon.socket());
    let deep = format!("{}\0", "/d".repeat(1024));
    let gone = |dom0: &mut Peer| dom0.request(MessageType::Directory, b"/\0").unwrap() == b"tool\0";
    for _ in 0..3 {
        dom0.request(MessageType::Write, deep.as_bytes()).unwrap();
        dom0.request(MessageType::Rm, b"/d\0").unwrap();
        assert!(gone(&mut dom0));
        let number = start(&mut dom0).unwrap();
        dom0.ask(MessageType::Write as u32, number, deep.as_bytes()).unwrap();
        commit(&mut dom0, number).unwrap();
        let number = start(&mut dom0).unwrap();
        dom0.ask(MessageType::Rm as u32, number, b"/d\0").unwrap();
        commit(&mut dom0, number).unwrap();
        assert!(gone(&mut dom0));
    }
    // Everybody who watches one of the nodes hears of its end, from the bottom up.
    dom0.request(MessageType::Write, deep.as_bytes()).unwrap();
    for depth in [1, 2, 512, 1024] {
        dom0.request(MessageType::Watch, &words(&[&"/d".repeat(depth), "t"])).unwrap();
    }
    assert_eq!(dom0.events().len(), 4);
    dom0.request(MessageType::Rm, b"/d\0").unwrap();
    let heard: Vec<usize> = dom0.events().iter().map(|(path, _)| path.len() / 2).collect();
    assert_eq!(heard, [1024, 512, 2, 1]);
    dom0.request(MessageType::ResetWatches, b"\0").unwrap();
    // A guest's own, many of them, go with their domain.
    let mut guest = introduce(&daemon, 3);
    for n in 0..if is_long() { 100 } else { 10 } {
        let path = format!("data/{n}{}\0", "/d".repeat(1019));
        guest.request(MessageType::Write, path.as_bytes()).unwrap();
    }
    daemon.handle.release(3).unwrap();
    assert_eq!(dom0.request(MessageType::Directory, b"/local/domain/3\0").unwrap(), b"");
    assert_serves(&daemon);
}

/// A hundred thousand nodes in one directory, and one in each of a thousand directories, ten deep and wide.
#[test]
fn t29_a_directory_of_a_hundred_thousand_is_made_listed_and_removed() {
    let _alone = alone();
    let daemon = Daemon::with_stack(Limits::default(), STACK);
    let mut dom0 = Peer::connect(&daemon.socket());
    let count = if is_long() { 100_000 } else { 10_000 };
    let began = Instant::now();
    for n in 0..count {
        dom0.request(MessageType::Mkdir, format!("/wide/{n}\0").as_bytes()).unwrap();
    }
    let (made, began) = (began.elapsed(), Instant::now());
    let (mut listed, mut offset) = (0, 0);
    loop {
        let part = dom0.request(MessageType::DirectoryPart, &words(&["/wide", &offset.to_string()])).unwrap();
        let at = part.iter().position(|byte| *byte == 0).unwrap() + 1;
        let last = part.ends_with(b"\0\0");
        let names = &part[at..part.len() - usize::from(last)];
        listed += names.iter().filter(|byte| **byte == 0).count();
        offset += names.len();
        if last {
            break;
        }
    }
    assert_eq!(listed, count);
    let (read, began) = (began.elapsed(), Instant::now());
    dom0.request(MessageType::Rm, b"/wide\0").unwrap();
    println!("{count} children: made in {made:?}, listed in {read:?}, removed in {:?}", began.elapsed());
    // Ten to the power of the depth: all of it goes with one request too.
    let levels = if is_long() { 5 } else { 4 };
    let mut paths = vec!["/bushy".to_owned()];
    for _ in 0..levels {
        paths = paths.iter().flat_map(|path| (0..10).map(move |n| format!("{path}/{n}"))).collect();
    }
    for path in &paths {
        dom0.request(MessageType::Mkdir, &words(&[path])).unwrap();
    }
    let began = Instant::now();
    dom0.request(MessageType::Rm, b"/bushy\0").unwrap();
    println!("{} leaves in a tree of ten each: removed in {:?}", paths.len(), began.elapsed());
    assert_eq!(dom0.request(MessageType::Directory, b"/\0").unwrap(), b"tool\0");
    assert_serves(&daemon);
}

//! How our client comes back to a daemon, step by step: against scripts that end at the worst moment.

mod script;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use script::Door;
use xenstore::compat::Compat;
use xenstore::wire::{ErrorName, HEADER, MessageType, message};
use xenstore::{Client, Error, Store, WatchEvent};
use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

/// Longer than any script takes.
const GRACE: Duration = Duration::from_secs(60);

fn survivor(door: &Door) -> Client {
    Client::connect(&door.socket()).unwrap().survive(GRACE)
}

fn event(path: &str, token: &str) -> WatchEvent {
    WatchEvent { path: path.into(), token: token.into() }
}

#[test]
fn a_daemon_that_is_not_quite_back_is_tried_again() {
    let door = Door::new();
    let mut client = survivor(&door).patience(Duration::from_millis(100));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut daemon = door.first();
            daemon.expect(MessageType::Read, b"/x\0");
            // Half an answer, which must not be the beginning of another one.
            daemon.0.write_all(&message(MessageType::Read as u32, 1, 0, &[b"half of it"]).unwrap()[..20]).unwrap();
            drop(daemon);
            // Takes us in and sends us away; takes us in and says nothing; breaks the protocol.
            drop(door.first());
            door.first().0.read_to_end(&mut Vec::new()).unwrap();
            door.first().0.write_all(&[0xFF; HEADER]).unwrap();
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Read, b"/x\0");
            daemon.answer(&header, b"value");
        });
        assert_eq!(client.read("/x").unwrap(), b"value");
        assert_eq!(client.generation(), 1, "only what came of it counts");
    });
}

#[test]
fn no_watch_is_lost_when_the_daemon_ends_while_they_are_registered() {
    let door = Door::new();
    let mut client = survivor(&door);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut daemon = door.first();
            for payload in [&b"/a\0one\0"[..], b"/a\0two\0", b"/b\0one\0"] {
                let header = daemon.expect(MessageType::Watch, payload);
                daemon.answer(&header, b"OK\0");
            }
            drop(daemon);
            // One watch, then none of the next, then all; events before and after the answers.
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Watch, b"/a\0one\0");
            daemon.answer(&header, b"OK\0");
            daemon.expect(MessageType::Watch, b"/a\0two\0");
            drop(daemon);
            let mut daemon = door.again();
            for (path, token) in [("/a", "one"), ("/a", "two"), ("/b", "one")] {
                let payload = format!("{path}\0{token}\0");
                let header = daemon.expect(MessageType::Watch, payload.as_bytes());
                if token == "two" {
                    daemon.say(MessageType::WatchEvent, 0, 0, payload.as_bytes());
                    daemon.answer(&header, b"OK\0");
                } else {
                    daemon.answer(&header, b"OK\0");
                    daemon.say(MessageType::WatchEvent, 0, 0, payload.as_bytes());
                }
            }
            daemon.next()
        });
        for (path, token) in [("/a", "one"), ("/a", "two"), ("/b", "one")] {
            client.watch(path, token).unwrap();
        }
        for expected in [event("/a", "one"), event("/a", "two"), event("/b", "one")] {
            assert_eq!(client.next_event(Some(GRACE)).unwrap(), Some(expected));
        }
        drop(client);
    });
}

#[test]
fn a_watch_that_was_asked_for_twice_is_there_and_one_that_was_ended_twice_is_not() {
    let door = Door::new();
    let mut client = survivor(&door);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The daemon ends with the request; the next one gets the watch as one to register, and the request again.
            door.first().expect(MessageType::Watch, b"/a\0t\0");
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Watch, b"/a\0t\0");
            daemon.answer(&header, b"OK\0");
            let header = daemon.expect(MessageType::Watch, b"/a\0t\0");
            daemon.refuse(&header, b"EEXIST\0");
            // Another one of the same name is none of this.
            let header = daemon.expect(MessageType::Watch, b"/a\0t\0");
            daemon.refuse(&header, b"EEXIST\0");
            daemon.expect(MessageType::Unwatch, b"/a\0t\0");
            drop(daemon);
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Watch, b"/a\0t\0");
            daemon.refuse(&header, b"EQUOTA\0");
            let header = daemon.expect(MessageType::Unwatch, b"/a\0t\0");
            daemon.refuse(&header, b"ENOENT\0");
            // Not registered, and not told of, any more.
            let header = daemon.expect(MessageType::Unwatch, b"/a\0t\0");
            daemon.refuse(&header, b"ENOENT\0");
            drop(daemon);
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Read, b"/x\0");
            daemon.answer(&header, b"");
        });
        client.watch("/a", "t").unwrap();
        assert_eq!(client.watch("/a", "t").unwrap_err().name(), Some(&ErrorName::Eexist));
        client.unwatch("/a", "t").unwrap();
        assert_eq!(client.next_event(Some(Duration::ZERO)).unwrap(), None);
        assert!(client.unwatch("/a", "t").unwrap_err().is_not_found());
        client.read("/x").unwrap();
    });
}

#[test]
fn a_depth_is_asked_for_of_each_daemon_that_may_know_it() {
    let door = Door::new();
    let mut client = survivor(&door);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (turn, is_new) in [true, false, true].into_iter().enumerate() {
                let mut daemon = if turn == 0 { door.first() } else { door.again() };
                let header = daemon.expect(MessageType::Watch, b"/a\0t\x001\0");
                if is_new {
                    daemon.answer(&header, b"OK\0");
                } else {
                    daemon.refuse(&header, b"EINVAL\0");
                    let header = daemon.expect(MessageType::Watch, b"/a\0t\0");
                    daemon.answer(&header, b"OK\0");
                }
                let header = daemon.expect(MessageType::Read, b"/x\0");
                daemon.answer(&header, b"");
            }
        });
        client.watch_depth("/a", "t", 1).unwrap();
        for generation in 0..3 {
            client.read("/x").unwrap();
            assert_eq!(client.generation(), generation);
        }
    });
}

#[test]
fn a_transaction_whose_end_was_not_heard_of_is_run_again() {
    let door = Door::new();
    let mut client = survivor(&door);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for is_last in [false, true] {
                let mut daemon = if is_last { door.again() } else { door.first() };
                let header = daemon.expect(MessageType::TransactionStart, b"\0");
                daemon.answer(&header, b"1\0");
                let header = daemon.expect(MessageType::Write, b"/a\x001");
                daemon.answer(&header, b"OK\0");
                let header = daemon.expect(MessageType::TransactionEnd, b"T\0");
                if is_last {
                    daemon.answer(&header, b"OK\0");
                }
            }
        });
        let mut runs = 0;
        client
            .transaction(|tx| {
                runs += 1;
                tx.write("/a", b"1")
            })
            .unwrap();
        assert_eq!(runs, 2);
    });
}

#[test]
fn a_body_that_does_not_mind_the_end_of_the_daemon_is_run_again_all_the_same() {
    let door = Door::new();
    let mut client = survivor(&door);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut daemon = door.first();
            let header = daemon.expect(MessageType::TransactionStart, b"\0");
            daemon.answer(&header, b"1\0");
            daemon.expect(MessageType::Read, b"/a\0");
            drop(daemon);
            let mut daemon = door.again();
            for (kind, payload, answer) in [
                (MessageType::TransactionStart, &b"\0"[..], &b"1\0"[..]),
                (MessageType::Read, b"/a\0", b"1"),
                (MessageType::Read, b"/b\0", b"2"),
                (MessageType::TransactionEnd, b"T\0", b"OK\0"),
            ] {
                let header = daemon.expect(kind, payload);
                daemon.answer(&header, answer);
            }
        });
        let read = client.transaction(|tx| Ok((tx.read("/a").unwrap_or_default(), tx.read("/b").unwrap_or_default())));
        assert_eq!(read.unwrap(), (b"1".to_vec(), b"2".to_vec()));
    });
}

#[test]
fn a_daemon_whose_directory_is_gone_does_not_come_back() {
    let door = Door::new();
    // Nobody waits that long for the test: it is the directory that ends it.
    let mut client = Client::connect(&door.socket()).unwrap().survive(Duration::from_secs(100_000));
    drop(door.first());
    drop(door);
    assert!(matches!(client.read("/x").unwrap_err(), Error::Connection { .. }));
    assert!(matches!(client.next_event(None).unwrap_err(), Error::Connection { .. }));
}

#[test]
fn whoever_polls_needs_not_know_of_new_connections() {
    let door = Door::new();
    let mut client = survivor(&door);
    let number = client.as_fd().as_raw_fd();
    let is_readable = |client: &Client| {
        let no_time = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&no_time)).unwrap() == 1
    };
    let mut daemon = door.first();
    assert!(!is_readable(&client));
    std::thread::scope(|scope| {
        let script = scope.spawn(|| {
            let header = daemon.expect(MessageType::Read, b"/x\0");
            // An answer that is none: the connection is given up, and that can be seen.
            daemon.say(MessageType::Write, header.request, 0, b"OK\0");
            assert!(daemon.next().is_none());
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Read, b"/x\0");
            daemon.answer(&header, b"value");
            daemon
        });
        assert_eq!(client.read("/x").unwrap(), b"value");
        let mut daemon = script.join().unwrap();
        assert_eq!((client.as_fd().as_raw_fd(), client.generation()), (number, 1));
        assert!(!is_readable(&client));
        daemon.say(MessageType::WatchEvent, 0, 0, b"/a\0t\0");
        assert!(is_readable(&client));
        assert_eq!(client.next_event(None).unwrap(), Some(event("/a", "t")));
        drop(daemon);
        assert!(is_readable(&client), "the end can be seen too");
    });
    let mut client = client.survive(Duration::ZERO);
    assert!(client.read("/x").is_err());
    assert!(is_readable(&client), "and stays to be seen");
}

#[test]
fn a_span_ends_with_the_connection_it_was_begun_on() {
    let door = Door::new();
    let client = Compat::new(survivor(&door));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut daemon = door.first();
            let header = daemon.expect(MessageType::TransactionStart, b"\0");
            daemon.answer(&header, b"1\0");
            drop(daemon);
            let mut daemon = door.again();
            let header = daemon.expect(MessageType::Read, b"/x\0");
            daemon.answer(&header, b"value");
            // The same number, which is another transaction.
            let header = daemon.expect(MessageType::TransactionStart, b"\0");
            daemon.answer(&header, b"1\0");
            let header = daemon.expect(MessageType::Write, b"/a\x002");
            assert_eq!(header.transaction, 1);
            daemon.answer(&header, b"OK\0");
            let header = daemon.expect(MessageType::TransactionEnd, b"T\0");
            daemon.answer(&header, b"OK\0");
            assert!(daemon.next().is_none(), "and nothing of the first one");
        });
        let first = client.transaction().unwrap();
        assert_eq!(&*client.read("/x").unwrap(), "value");
        let second = client.transaction().unwrap();
        assert_eq!(first.write("/a", "1").unwrap_err().kind(), ErrorKind::WouldBlock);
        second.write("/a", "2").unwrap();
        assert_eq!(first.commit().unwrap_err().kind(), ErrorKind::WouldBlock);
        second.commit().unwrap();
        drop(client);
    });
}

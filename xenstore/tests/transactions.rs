//! Our client's transactions: run again until nobody has interfered, never left open.

mod daemon;
mod script;

use std::io::Read;
use std::time::Duration;

use daemon::Daemon;
use script::{Script, against};
use xenstore::wire::MessageType;
use xenstore::{Error, Store};

#[test]
fn a_transaction_ends_however_it_goes() {
    let (mut client, script) = against(|mut daemon| {
        let (mut started, mut ended, mut how) = (0, 0, Vec::new());
        while let Some((header, payload)) = daemon.next() {
            if header.kind == MessageType::TransactionStart as u32 {
                started += 1;
                daemon.answer(&header, format!("{started}\0").as_bytes());
            } else if header.kind == MessageType::TransactionEnd as u32 {
                ended += 1;
                assert_eq!(header.transaction, started);
                how.push(payload[0]);
                // Somebody interferes in the first two.
                match started {
                    1 | 2 if payload == b"T\0" => daemon.refuse(&header, b"EAGAIN\0"),
                    _ => daemon.answer(&header, b"OK\0"),
                }
            } else if payload.starts_with(b"/again") && started == 3 {
                daemon.refuse(&header, b"EAGAIN\0");
            } else if payload.starts_with(b"/bad") {
                daemon.refuse(&header, b"EACCES\0");
            } else {
                daemon.answer(&header, b"OK\0");
            }
        }
        assert_eq!(started, ended);
        String::from_utf8(how).unwrap()
    });
    let mut tries = 0;
    let result = client.transaction(|tx| {
        tries += 1;
        tx.write("/again", b"")?;
        Ok(tries)
    });
    assert_eq!(result.unwrap(), 4, "two conflicts at the end and one on the way");
    assert!(client.transaction(|tx| tx.write("/bad", b"")).unwrap_err().is_permission());
    drop(client);
    assert_eq!(script.join().unwrap(), "TTFTF");
}

#[test]
fn a_transaction_in_conflict_for_ever_is_given_up() {
    let (mut client, script) = against(|mut daemon| {
        while let Some((header, _)) = daemon.next() {
            match header.kind == MessageType::TransactionStart as u32 {
                true => daemon.answer(&header, b"1\0"),
                false => daemon.refuse(&header, b"EAGAIN\0"),
            }
        }
    });
    let error = client.transaction(|_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    drop(client);
    script.join().unwrap();
}

#[test]
fn a_body_that_panics_leaves_no_transaction_open() {
    let (mut client, script) = against(|mut daemon| {
        let mut kinds = Vec::new();
        while let Some((header, payload)) = daemon.next() {
            kinds.push((header.kind, header.transaction, payload));
            daemon.answer(&header, b"7\0");
        }
        kinds
    });
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        client.transaction::<()>(|_| panic!("in the middle")).unwrap();
    }));
    assert!(panicked.is_err());
    drop(client);
    let kinds = script.join().unwrap();
    assert_eq!(kinds[1], (MessageType::TransactionEnd as u32, 7, b"F\0".to_vec()));
}

/// Answers until the client goes; what it has asked.
fn obliging(mut daemon: Script) -> Vec<(MessageType, u32, Vec<u8>)> {
    let mut asked = Vec::new();
    while let Some((header, payload)) = daemon.next() {
        daemon.answer(&header, b"7\0");
        asked.push((MessageType::from_number(header.kind).unwrap(), header.transaction, payload));
    }
    asked
}

#[test]
fn what_the_body_says_is_said_and_the_transaction_is_ended() {
    let (mut client, script) = against(obliging);
    let error = client
        .transaction::<()>(|tx| {
            tx.write("/a", b"")?;
            Err(Error::NotUtf8 { path: "of the body".into() })
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "xenstore: the value of of the body is not UTF-8");
    drop(client);
    let asked = script.join().unwrap();
    assert_eq!(asked.last().unwrap(), &(MessageType::TransactionEnd, 7, b"F\0".to_vec()));
    assert_eq!(asked.len(), 3);
}

#[test]
fn a_transaction_that_a_new_daemon_behind_the_device_does_not_know_is_run_again() {
    // The C daemon's word for it and oxenstored's; what is read meanwhile is not there, or fails too.
    for word in [&b"ENOENT\0"[..], b"EIO\0"] {
        let (mut client, script) = against(move |mut daemon| {
            let mut ends = Vec::new();
            while let Some((header, payload)) = daemon.next() {
                let is_known = header.transaction == 0 || header.transaction == 3;
                if header.kind == MessageType::TransactionEnd as u32 {
                    ends.push(payload[0]);
                }
                match header.kind == MessageType::TransactionStart as u32 {
                    true => daemon.answer(&header, [b"1\0", b"2\0", b"3\0"][ends.len()]),
                    false if is_known => daemon.answer(&header, b"value"),
                    false => daemon.refuse(&header, word),
                }
            }
            ends
        });
        let mut runs = 0;
        let value = client.transaction(|tx| {
            runs += 1;
            // The first run notices, the second does not.
            if runs == 2 { tx.read("/a").or(Ok(Vec::new())) } else { tx.read("/a") }
        });
        assert_eq!((value.unwrap(), runs), (b"value".to_vec(), 3));
        drop(client);
        assert_eq!(script.join().unwrap(), b"FTT");
    }
}

#[test]
fn a_transaction_whose_daemon_falls_silent_is_ended_by_the_end_of_the_connection() {
    let (client, script) = against(|mut daemon| {
        let header = daemon.expect(MessageType::TransactionStart, b"\0");
        daemon.answer(&header, b"1\0");
        daemon.expect(MessageType::Write, b"/a\0");
        // Until the client lets go, which still is there then.
        daemon.0.read_to_end(&mut Vec::new()).unwrap()
    });
    let mut client = client.patience(Duration::from_millis(50));
    let error = client.transaction(|tx| tx.write("/a", b"")).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut), "{error:?}");
    assert_eq!(script.join().unwrap(), 0, "nothing more is said on this connection");
    assert!(matches!(client.read("/a").unwrap_err(), Error::Connection { .. }));
}

#[test]
fn clients_in_each_others_way_all_finish() {
    const TURNS: u32 = 50;
    const CLIENTS: u32 = 4;
    let daemon = Daemon::new();
    daemon.client().write("/count", b"0").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = daemon.client();
                for _ in 0..TURNS {
                    client
                        .transaction(|tx| {
                            let count: u32 = tx.read_string("/count")?.parse().unwrap();
                            // Everybody has read before anybody has written.
                            std::thread::yield_now();
                            tx.write("/count", (count + 1).to_string().as_bytes())
                        })
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(daemon.client().read_string("/count").unwrap(), (TURNS * CLIENTS).to_string());
}

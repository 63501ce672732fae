//! Our client against daemons that follow a script: allowed but unusual ones, and hostile ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use xenstore::wire::{ErrorName, HEADER, Header, MessageType, message};
use xenstore::{Client, Error, Store};

/// The daemon's end.
struct Script(UnixStream);

impl Script {
    fn request(&mut self) -> (Header, Vec<u8>) {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).unwrap();
        let header = Header::decode(&header);
        let mut payload = vec![0; header.len as usize];
        self.0.read_exact(&mut payload).unwrap();
        (header, payload)
    }

    fn say(&mut self, kind: MessageType, request: u32, transaction: u32, payload: &[u8]) {
        self.0.write_all(&message(kind as u32, request, transaction, &[payload]).unwrap()).unwrap();
    }

    fn answer(&mut self, to: &Header, payload: &[u8]) {
        self.0.write_all(&message(to.kind, to.request, to.transaction, &[payload]).unwrap()).unwrap();
    }

    fn refuse(&mut self, to: &Header, name: &[u8]) {
        self.say(MessageType::Error, to.request, to.transaction, name);
    }
}

fn against<T: Send + 'static>(script: impl FnOnce(Script) -> T + Send + 'static) -> (Client, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Client::from_fd(ours.into()).unwrap(), spawn(move || script(Script(theirs))))
}

#[test]
fn answers_of_others_and_events_in_between_are_put_where_they_belong() {
    let (mut client, script) = against(|mut daemon| {
        let (header, _) = daemon.request();
        daemon.say(MessageType::WatchEvent, 0, 0, b"/a\0t\0");
        daemon.say(MessageType::Read, header.request.wrapping_add(7), 0, b"of somebody else");
        daemon.say(MessageType::WatchEvent, 0, 0, b"/b\0t\0");
        daemon.say(MessageType::WatchEvent, 0, 0, b"/a\0t\0");
        // A message in pieces, cut in the middle of the header.
        let whole = message(header.kind, header.request, 0, &[b"value"]).unwrap();
        daemon.0.write_all(&whole[..7]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        daemon.0.write_all(&whole[7..]).unwrap();
        daemon.say(MessageType::WatchEvent, 0, 0, b"/c\0t\0");
    });
    assert_eq!(client.read("/x").unwrap(), b"value");
    script.join().unwrap();
    let mut paths = Vec::new();
    while let Some(event) = client.queued_event() {
        paths.push(event.path);
    }
    // Whether the last one was read together with the answer is up to the kernel.
    if paths.len() == 2 {
        paths.extend(client.next_event(Some(Duration::from_secs(1))).unwrap().map(|event| event.path));
    }
    assert_eq!(paths, ["/a", "/b", "/c"], "each, in order, and none twice");
}

#[test]
fn old_kernels_answer_watches_without_a_number() {
    let (mut client, script) = against(|mut daemon| {
        let (header, payload) = daemon.request();
        assert_eq!((header.kind, payload), (MessageType::Watch as u32, b"/a\0t\0".to_vec()));
        daemon.say(MessageType::Watch, 0, 0, b"OK\0");
        daemon.say(MessageType::WatchEvent, 0, 0, b"/a\0t\0");
    });
    client.watch("/a", "t").unwrap();
    assert_eq!(client.next_event(Some(Duration::from_secs(1))).unwrap().unwrap().path, "/a");
    script.join().unwrap();
}

#[test]
fn errors_name_the_operation_the_path_and_whatever_the_daemon_said() {
    let (mut client, script) = against(|mut daemon| {
        for name in [&b"EQUOTA\0"[..], b"ENOENT", b"", &[0x1B; 4096]] {
            let (header, _) = daemon.request();
            daemon.refuse(&header, name);
        }
    });
    assert_eq!(client.write("/x", b"").unwrap_err().to_string(), "xenstore: Write /x: EQUOTA");
    assert!(client.read("/x").unwrap_err().is_not_found());
    assert!(client.read("/x").unwrap_err().name().is_some());
    let escape = client.mkdir("/x").unwrap_err().to_string();
    assert!(escape.chars().all(|letter| !letter.is_control()), "{escape:?}");
    script.join().unwrap();
}

#[test]
fn a_daemon_that_breaks_the_protocol_is_an_error_at_once() {
    let broken: [fn(&mut Script, &Header); 5] = [
        |daemon, header| {
            let header = Header { len: u32::MAX, ..*header };
            daemon.0.write_all(&header.encode()).unwrap();
        },
        |daemon, header| daemon.say(MessageType::Write, header.request, 0, b"OK\0"),
        |daemon, header| {
            let whole = message(header.kind, header.request, 0, &[b"half"]).unwrap();
            daemon.0.write_all(&whole[..18]).unwrap();
        },
        |_, _| {},
        |daemon, header| daemon.0.write_all(&header.encode()[..3]).unwrap(),
    ];
    for break_it in broken {
        let (mut client, script) = against(move |mut daemon| {
            let (header, _) = daemon.request();
            break_it(&mut daemon, &header);
        });
        let error = client.read("/x").unwrap_err();
        assert!(matches!(error, Error::Protocol(_) | Error::Connection { .. }), "{error:?}");
        script.join().unwrap();
    }
}

#[test]
fn a_transaction_ends_however_it_goes() {
    let (mut client, script) = against(|mut daemon| {
        let (mut started, mut ended, mut how) = (0, 0, Vec::new());
        while let Some((header, payload)) = next(&mut daemon) {
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

fn next(daemon: &mut Script) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER];
    daemon.0.read_exact(&mut header).ok()?;
    let header = Header::decode(&header);
    let mut payload = vec![0; header.len as usize];
    daemon.0.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

#[test]
fn a_transaction_in_conflict_for_ever_is_given_up() {
    let (mut client, script) = against(|mut daemon| {
        while let Some((header, _)) = next(&mut daemon) {
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
fn a_listing_in_parts_starts_anew_when_the_directory_changes() {
    let (mut client, script) = against(|mut daemon| {
        let (header, _) = daemon.request();
        daemon.refuse(&header, b"E2BIG\0");
        for (offset, part) in [("0", &b"7\0a\0b\0"[..]), ("4", b"8\0d\0\0"), ("0", b"8\0c\0"), ("2", b"8\0d\0\0")] {
            let (header, payload) = daemon.request();
            assert_eq!(payload, format!("/dir\0{offset}\0").as_bytes());
            daemon.answer(&header, part);
        }
        let (header, _) = daemon.request();
        daemon.refuse(&header, b"E2BIG\0");
        let (header, _) = daemon.request();
        daemon.answer(&header, b"no generation");
    });
    assert_eq!(client.directory("/dir").unwrap(), ["c", "d"]);
    assert!(matches!(client.directory("/dir").unwrap_err(), Error::Protocol(_)));
    script.join().unwrap();
}

#[test]
fn what_is_too_long_for_the_wire_is_refused_here() {
    let (mut client, _script) = against(|daemon| daemon);
    let error = client.write("/x", &[0; 4096]).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error().is_some()), "{error:?}");
    assert_ne!(error.name(), Some(&ErrorName::E2big));
}

#[test]
fn a_message_in_single_bytes_and_many_at_once_are_the_same_to_us() {
    let (mut client, script) = against(|mut daemon| {
        let (header, _) = daemon.request();
        let mut bytes = message(MessageType::WatchEvent as u32, 0, 0, &[b"/a\0t\0"]).unwrap();
        bytes.extend(message(header.kind, header.request, 0, &[b"value"]).unwrap());
        for byte in bytes {
            daemon.0.write_all(&[byte]).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
        let (header, _) = daemon.request();
        let mut bytes: Vec<u8> = (0..500)
            .flat_map(|n| message(MessageType::WatchEvent as u32, 0, 0, &[format!("/{n}\0t\0").as_bytes()]).unwrap())
            .collect();
        bytes.extend(message(header.kind, header.request, 0, &[b"second"]).unwrap());
        daemon.0.write_all(&bytes).unwrap();
    });
    assert_eq!(client.read("/x").unwrap(), b"value");
    assert_eq!(client.read("/x").unwrap(), b"second");
    script.join().unwrap();
    let events = std::iter::from_fn(|| client.queued_event()).count();
    assert_eq!(events, 501);
}

#[test]
fn a_body_that_panics_leaves_no_transaction_open() {
    let (mut client, script) = against(|mut daemon| {
        let mut kinds = Vec::new();
        while let Some((header, payload)) = next(&mut daemon) {
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

#[test]
fn what_only_newer_daemons_have_is_asked_for_and_done_without() {
    let (mut client, script) = against(|mut daemon| {
        let mut asked = Vec::new();
        while let Some((header, payload)) = next(&mut daemon) {
            let kind = MessageType::from_number(header.kind).unwrap();
            match (kind, asked.len()) {
                (MessageType::GetFeature, 0) => daemon.answer(&header, b"7\0"),
                (MessageType::GetQuota, 2) => daemon.answer(&header, b"nodes watches\0"),
                (MessageType::GetQuota, 3) => daemon.answer(&header, b"1000\0"),
                (MessageType::Watch | MessageType::SetQuota, _) => daemon.answer(&header, b"OK\0"),
                _ => daemon.refuse(&header, b"ENOSYS\0"),
            }
            asked.push((kind, String::from_utf8(payload).unwrap()));
        }
        asked
    });
    client.watch_depth("/a", "t", 1).unwrap();
    assert_eq!(client.quotas().unwrap().unwrap(), ["nodes", "watches"]);
    assert_eq!(client.quota(Some(5), "nodes").unwrap(), Some(1000));
    assert!(client.set_quota(None, "nodes", 20).unwrap());
    // And one of before.
    client.watch_depth("/b", "t", 1).unwrap();
    assert_eq!(client.features(Some(5)).unwrap(), None);
    assert!(!client.set_features(5, 1).unwrap());
    assert_eq!(client.quota(None, "nodes").unwrap(), None);
    drop(client);
    let asked = script.join().unwrap();
    let of = |kind| asked.iter().filter(|(asked, _)| *asked == kind).map(|(_, payload)| &**payload).collect::<Vec<_>>();
    assert_eq!(of(MessageType::Watch), ["/a\0t\x001\0", "/b\0t\0"], "with its depth where there is such a thing");
    assert_eq!(of(MessageType::GetQuota), ["\0", "5\0nodes\0", "nodes\0"]);
    assert_eq!(of(MessageType::SetQuota), ["nodes\x0020\0"]);
    assert_eq!(of(MessageType::GetFeature), ["\0", "\0", "5\0"]);
    assert_eq!(of(MessageType::SetFeature), ["5\x001\0"]);
}

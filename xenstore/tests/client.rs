//! Our client against daemons that follow a script: allowed but unusual ones, and hostile ones.

mod script;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use script::{Script, against};
use xenstore::wire::{ErrorName, Header, MessageType, PAYLOAD_MAX, message};
use xenstore::{Client, Error, Store};

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
fn old_kernels_answer_watches_without_a_number_and_nothing_else() {
    let (mut client, script) = against(|mut daemon| {
        daemon.expect(MessageType::Watch, b"/a\0t\0");
        daemon.say(MessageType::Watch, 0, 0, b"OK\0");
        daemon.say(MessageType::WatchEvent, 0, 0, b"/a\0t\0");
        daemon.expect(MessageType::Watch, b"/b\0t\0");
        daemon.say(MessageType::Error, 0, 0, b"EINVAL\0");
        daemon.expect(MessageType::Unwatch, b"/a\0t\0");
        daemon.say(MessageType::Unwatch, 0, 0, b"OK\0");
        let header = daemon.expect(MessageType::Read, b"/x\0");
        daemon.say(MessageType::Read, 0, 0, b"of nobody");
        daemon.say(MessageType::Error, 0, 0, b"EIO\0");
        daemon.answer(&header, b"ours");
    });
    client.watch("/a", "t").unwrap();
    assert_eq!(client.next_event(Some(Duration::from_secs(1))).unwrap().unwrap().path, "/a");
    assert_eq!(client.watch("/b", "t").unwrap_err().name(), Some(&ErrorName::Einval));
    client.unwatch("/a", "t").unwrap();
    assert_eq!(client.read("/x").unwrap(), b"ours");
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
fn a_daemon_without_parts_of_listings_has_listings_that_are_too_long() {
    let (mut client, script) = against(|mut daemon| {
        let header = daemon.expect(MessageType::Directory, b"/dir\0");
        daemon.refuse(&header, b"E2BIG\0");
        let header = daemon.expect(MessageType::DirectoryPart, b"/dir\x000\0");
        daemon.refuse(&header, b"ENOSYS\0");
    });
    assert_eq!(client.directory("/dir").unwrap_err().to_string(), "xenstore: Directory /dir: E2BIG");
    script.join().unwrap();
}

#[test]
fn what_does_not_fit_a_message_is_not_sent() {
    let (mut client, script) = against(|mut daemon| daemon.next());
    let error = client.write("/x", &[0; PAYLOAD_MAX]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "xenstore: Write \"/x\" cannot be asked: 4099 bytes are more than a message holds here"
    );
    // A NUL would make another request of it: a write to /x of what is left, a watch with a depth, two words.
    let unfit = [
        client.write("/x\0/y", b"").unwrap_err(),
        client.watch("/x", "t\x001").unwrap_err(),
        client.watch("/x\0", "t").unwrap_err(),
        client.unwatch("/x", "t\0").unwrap_err(),
        client.control(&["quota", "set\0nodes"]).unwrap_err(),
        client.transaction(|tx| tx.rm("/x\0")).unwrap_err(),
    ];
    assert!(unfit[..5].iter().all(|error| matches!(error, Error::Unfit { .. })), "{unfit:?}");
    drop(client);
    let first = script.join().unwrap().map(|(header, _)| header.kind);
    assert_eq!(first, Some(MessageType::TransactionStart as u32), "nothing of all that");
}

#[test]
fn the_kernels_device_takes_shorter_messages_and_refuses_by_the_write() {
    // Both are devices: one that takes everything, and one whose writes fail as a write of WATCH over a quota does.
    let mut null = Client::open_device(Path::new("/dev/null")).unwrap();
    assert!(matches!(null.write("/x", &[0; 4078]).unwrap_err(), Error::Unfit { .. }));
    // With its header it has 4096 bytes: sent, and never answered.
    assert!(matches!(null.write("/x", &[0; 4077]).unwrap_err(), Error::Connection { .. }));
    let mut full = Client::open_device(Path::new("/dev/full")).unwrap();
    for _ in 0..2 {
        assert_eq!(full.watch("/x", "t").unwrap_err().to_string(), "xenstore: Watch /x: ENOSPC");
        let error = full.read("/x").unwrap_err();
        assert!(matches!(error, Error::Io { operation: MessageType::Read, .. }), "{error:?}");
    }
}

#[test]
fn what_only_newer_daemons_have_is_asked_for_and_done_without() {
    let (mut client, script) = against(|mut daemon| {
        // One of Xen 4.22.
        for (kind, payload, answer) in [
            (MessageType::Watch, &b"/a\0t\x001\0"[..], &b"OK\0"[..]),
            (MessageType::GetFeature, b"", b"7\0"),
            (MessageType::GetFeature, b"5\0", b"3\0"),
            (MessageType::SetFeature, b"5\x001\0", b"OK\0"),
            (MessageType::GetQuota, b"", b"nodes watches\0"),
            (MessageType::GetQuota, b"5\0nodes\0", b"4294967295\0"),
            (MessageType::SetQuota, b"nodes\x0020\0", b"OK\0"),
            (MessageType::SetQuota, b"5\0nodes\x0020\0", b"OK\0"),
        ] {
            let header = daemon.expect(kind, payload);
            daemon.answer(&header, answer);
        }
        let header = daemon.expect(MessageType::GetQuota, b"nodes\0");
        daemon.answer(&header, b"many\0");
        // One that tells its features only to dom0.
        let header = daemon.expect(MessageType::GetFeature, b"");
        daemon.refuse(&header, b"EACCES\0");
        // And one of before.
        let header = daemon.expect(MessageType::Watch, b"/b\0t\x002\0");
        daemon.refuse(&header, b"EINVAL\0");
        let header = daemon.expect(MessageType::Watch, b"/b\0t\0");
        daemon.answer(&header, b"OK\0");
        while let Some((header, _)) = daemon.next() {
            daemon.refuse(&header, b"ENOSYS\0");
        }
    });
    client.watch_depth("/a", "t", 1).unwrap();
    assert_eq!((client.features(None).unwrap(), client.features(Some(5)).unwrap()), (Some(7), Some(3)));
    assert!(client.set_features(5, 1).unwrap());
    assert_eq!(client.quotas().unwrap().unwrap(), ["nodes", "watches"]);
    assert_eq!(client.quota(Some(5), "nodes").unwrap(), Some(u32::MAX));
    assert!(client.set_quota(None, "nodes", 20).unwrap());
    assert!(client.set_quota(Some(5), "nodes", 20).unwrap());
    assert!(matches!(client.quota(None, "nodes").unwrap_err(), Error::Protocol(_)));
    assert_eq!(client.features(None).unwrap(), None);
    client.watch_depth("/b", "t", 2).unwrap();
    assert_eq!((client.features(Some(5)).unwrap(), client.quotas().unwrap()), (None, None));
    assert_eq!(client.quota(None, "nodes").unwrap(), None);
    assert!(!client.set_features(5, 1).unwrap());
    assert!(!client.set_quota(None, "nodes", 20).unwrap());
    drop(client);
    script.join().unwrap();
}

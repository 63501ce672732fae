//! T26: what is no message, or a message that means nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use xenstore::wire::{ErrorName, HEADER, Header, MessageType, message};

use crate::daemon::{Daemon, is_long};
use crate::peer::Peer;
use crate::{again, alone, assert_serves, body, introduce, words};

/// XSA-420: a length that is negative when it is taken for a signed number. Also one more than there may be.
#[test]
fn t26_a_bad_length_ends_its_connection_and_no_other() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut other = introduce(&daemon, 4);
    let mut half = UnixStream::connect(daemon.domain_socket(4)).unwrap();
    half.write_all(&[2, 0, 0, 0, 1]).unwrap();
    for socket in [daemon.socket(), daemon.domain_socket(4)] {
        for len in [4097, 1 << 20, i32::MAX as u32, 1 << 31, (1 << 31) | 4, u32::MAX - 15, u32::MAX] {
            let mut long = UnixStream::connect(&socket).unwrap();
            long.write_all(&Header { kind: 2, request: 1, transaction: 0, len }.encode()).unwrap();
            assert_eq!(long.read(&mut [0; 64]).unwrap_or(0), 0, "{len} bytes: the connection is closed");
        }
    }
    assert_eq!(other.request(MessageType::Directory, b"data\0").unwrap(), b"");
    assert_serves(&daemon);
    half.write_all(&[0; HEADER - 5]).unwrap();
    half.read_exact(&mut [0; HEADER]).unwrap();
}

/// Every type there is, and those there are not, with payloads that do not fit: each gets one answer.
#[test]
fn t26_every_type_with_every_bad_payload_is_answered_once() {
    let _alone = alone();
    let daemon = Daemon::new();
    drop(introduce(&daemon, 4));
    let payloads = [
        &b""[..],
        b"\0",
        b"\0\0\0",
        b"/x",
        b"/x\0",
        b"/x\0\0",
        b"/x\0-1\0",
        b"data\0n4\0",
        b"4\0",
        b"4\x004\x004\0",
        b"-1\0",
        b"99999\0",
        &[0xFF; 64],
        &[0xFF; 4096],
        &[0; 4096],
    ];
    for socket in [daemon.socket(), daemon.domain_socket(4)] {
        for kind in (0..40).chain([1 << 31, u32::MAX]) {
            let mut peer = Peer::connect(&socket);
            for payload in payloads {
                for transaction in [0, 9, u32::MAX] {
                    // The peer checks that the answer is whole and to this request. A domain that is released has no
                    // connection any more; it is back for the next one.
                    let answer = peer.send(kind, transaction, payload).and_then(|()| peer.answer(kind, transaction));
                    assert!(answer.is_ok() || kind == MessageType::Release as u32, "{kind} {}", payload.escape_ascii());
                }
            }
        }
        let _ = daemon.handle.introduce(4, &daemon.domain_socket(4));
    }
    assert_serves(&daemon);
}

/// XSA-72: a reply that is longer than a message.
#[test]
fn t26_a_listing_longer_than_a_message_is_refused_and_comes_in_parts() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    let names: Vec<String> = (0..1000).map(|n| format!("{n}-{}", "x".repeat(200))).collect();
    for name in &names {
        dom0.request(MessageType::Mkdir, format!("/long/{name}\0").as_bytes()).unwrap();
    }
    assert_eq!(dom0.request(MessageType::Directory, b"/long\0"), Err(ErrorName::E2big));
    let mut listed = Vec::new();
    loop {
        let offset = listed.len().to_string();
        let part = dom0.request(MessageType::DirectoryPart, &words(&["/long", &offset])).unwrap();
        let at = part.iter().position(|byte| *byte == 0).unwrap() + 1;
        match part[at..].strip_suffix(b"\0\0") {
            Some(last) => break listed.extend([last, b"\0"].concat()),
            None => listed.extend(&part[at..]),
        }
    }
    assert_eq!(listed, words(&names.iter().map(|name| &**name).collect::<Vec<_>>()));
    // A value of the longest kind fits exactly, and the path that goes with it does not.
    let value = vec![7; 4096 - b"/v\0".len()];
    dom0.request(MessageType::Write, &[&b"/v\0"[..], &value].concat()).unwrap();
    assert_eq!(dom0.request(MessageType::Read, b"/v\0").unwrap(), value);
}

/// XSA-325: who breaks the protocol is muted, but not forgotten: its end is still told.
#[test]
fn t26_a_domain_that_breaks_the_protocol_is_known_until_its_end() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    dom0.request(MessageType::Watch, &words(&["@releaseDomain", "end"])).unwrap();
    assert_eq!(dom0.events().len(), 1);
    let mut good = introduce(&daemon, 4);
    let mut bad = again(&daemon, 4);
    bad.request(MessageType::Watch, &words(&["data", "t"])).unwrap();
    let wrong = Header { kind: 2, request: 1, transaction: 0, len: u32::MAX };
    bad.socket().write_all(&wrong.encode()).unwrap();
    assert!(bad.answer(2, 0).is_err(), "closed");
    assert_eq!(dom0.request(MessageType::IsDomainIntroduced, b"4\0").unwrap(), b"T\0");
    good.request(MessageType::Write, b"data/a\0still served").unwrap();
    assert!(dom0.events().is_empty(), "it is not dead");
    daemon.handle.release(4).unwrap();
    assert_eq!(dom0.events(), [("@releaseDomain".to_owned(), "end".to_owned())]);
    assert_eq!(dom0.request(MessageType::IsDomainIntroduced, b"4\0").unwrap(), b"F\0");
}

/// Sessions at random: pieces of messages, whole ones, clients that come and go and do not read.
#[test]
fn t26_random_sessions_leave_a_daemon_that_serves() {
    let _alone = alone();
    let mut random = fastrand::Rng::with_seed(26);
    for _ in 0..if is_long() { 100_000 } else { 3_000 } {
        let mut input = Vec::new();
        for _ in 0..random.usize(1..30) {
            let kind = *random.choice(&[1, 2, 3, 4, 5, 6, 7, 11, 11, 12, 13, 14, 14, 21, 22, 31]).unwrap();
            let text: Vec<u8> = match random.u8(0..4) {
                0 => (0..random.usize(0..60)).map(|_| *random.choice(b"d/@-_\0\0 .0\xFF").unwrap()).collect(),
                _ => [*random.choice(&["/d", "/d/a", "/d/a/b", "/", "x"]).unwrap(), "\0", "n1\0"].concat().into(),
            };
            let bytes = if random.bool() {
                [&[kind][..], &text].concat()
            } else {
                let mut bytes = message(kind.into(), random.u32(..), random.u32(0..3), &[&text]).unwrap();
                if random.u8(0..10) == 0 {
                    let at = random.usize(0..bytes.len());
                    bytes[at] = random.u8(..);
                }
                bytes
            };
            let how = random.u8(..) & 0xB | if bytes[0] == kind && bytes.len() == text.len() + 1 { 4 } else { 0 };
            input.extend([how | random.u8(0..3) << 4, u8::try_from(bytes.len()).unwrap()]);
            input.extend(bytes);
        }
        body::frames(&input);
    }
}

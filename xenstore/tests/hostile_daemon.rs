//! Our client against daemons that send whatever they like, whenever they like.

mod script;

use std::io::Write;
use std::time::{Duration, Instant};

use script::against;
use xenstore::wire::{HEADER, Header, MessageType, PAYLOAD_MAX, message};
use xenstore::{Error, Store};

/// What a daemon has to say may come in any order but a request's answer last, and in any pieces.
#[test]
fn everything_is_put_where_it_belongs_however_it_comes() {
    const ROUNDS: u32 = 200;
    let (mut client, script) = against(|mut daemon| {
        let mut random = fastrand::Rng::with_seed(1);
        let mut event = 0u32;
        for round in 0..ROUNDS {
            let (header, _) = daemon.request();
            let mut bytes = Vec::new();
            for _ in 0..random.usize(..20) {
                let number = random.u32(1..1_000_000).wrapping_add(header.request);
                bytes.extend(
                    match random.usize(..3) {
                        0 => message(MessageType::Error as u32, number, 0, &[b"ENOENT\0"]),
                        1 => {
                            message(random.u32(..40), number, random.u32(..), &[&vec![7; random.usize(..PAYLOAD_MAX)]])
                                .filter(|message| message[0] != MessageType::WatchEvent as u8)
                        }
                        _ => {
                            event += 1;
                            message(MessageType::WatchEvent as u32, 0, 0, &[format!("/{event}\0t\0").as_bytes()])
                        }
                    }
                    .unwrap_or_default(),
                );
            }
            bytes.extend(message(header.kind, header.request, 0, &[round.to_string().as_bytes()]).unwrap());
            while !bytes.is_empty() {
                let most = [1, 3, 17, 5000][random.usize(..4)];
                let piece = random.usize(1..=bytes.len().min(most));
                daemon.0.write_all(&bytes[..piece]).unwrap();
                bytes.drain(..piece);
            }
        }
        event
    });
    for round in 0..ROUNDS {
        assert_eq!(client.read_string("/x").unwrap(), round.to_string());
    }
    let sent = script.join().unwrap();
    let events: Vec<String> = std::iter::from_fn(|| client.queued_event()).map(|event| event.path).collect();
    assert_eq!(events, (1..=sent).map(|number| format!("/{number}")).collect::<Vec<_>>());
}

#[test]
fn noise_is_an_error_and_no_harm() {
    for seed in 0..300 {
        let (client, script) = against(move |mut daemon| {
            let mut random = fastrand::Rng::with_seed(seed);
            let (asked, _) = daemon.request();
            for _ in 0..random.usize(1..50) {
                let most = [8, 4000, 5000, u32::MAX][random.usize(..4)];
                let len = random.u32(..most);
                let header = Header {
                    kind: random.u32(..30),
                    request: [asked.request, 0, random.u32(..)][random.usize(..3)],
                    transaction: random.u32(..2),
                    len,
                };
                let mut bytes = header.encode().to_vec();
                bytes.extend((0..len.min(6000)).map(|_| random.u8(..)));
                bytes.truncate(random.usize(..=4 * bytes.len()));
                if daemon.0.write_all(&bytes).is_err() {
                    break;
                }
            }
        });
        let mut client = client.patience(Duration::from_secs(20));
        // Whatever that says: there is an end, and the next request has one too.
        let _ = client.read("/x");
        let _ = client.read("/x");
        while let Some(event) = client.queued_event() {
            assert!(event.path.len() + event.token.len() <= 3 * PAYLOAD_MAX);
        }
        drop(client);
        script.join().unwrap();
    }
}

/// Says the same until nobody listens.
fn chatter(mut to: impl Write, says: &[u8]) {
    while to.write_all(says).is_ok() {}
}

#[test]
fn a_daemon_that_talks_without_end_and_answers_nothing_is_late() {
    for says in [
        message(MessageType::WatchEvent as u32, 0, 0, &[b"/a\0t\0"]).unwrap(),
        message(MessageType::Read as u32, u32::MAX, 0, &[b"of another life"]).unwrap(),
    ] {
        let (client, script) = against(move |daemon| chatter(daemon.0, &says));
        let mut client = client.patience(Duration::from_millis(100));
        let error = client.read("/x").unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut),
            "{error:?}"
        );
        script.join().unwrap();
    }
}

#[test]
fn a_daemon_that_talks_without_end_and_does_not_listen_is_late() {
    let says = message(MessageType::WatchEvent as u32, 0, 0, &[b"/a\0t\0"]).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // As full as it gets: there is no room for a request.
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; HEADER]).is_ok() {}
    let script = std::thread::spawn(move || chatter(theirs, &says));
    let mut client = xenstore::Client::from_fd(ours.into()).unwrap().patience(Duration::from_millis(100));
    let error = client.read("/x").unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut), "{error:?}");
    script.join().unwrap();
}

#[test]
fn answers_to_nobody_do_not_make_a_look_at_events_a_long_one() {
    let says = message(MessageType::Read as u32, 99, 0, &[b"of another life"]).unwrap();
    let (mut client, script) = against(move |daemon| chatter(daemon.0, &says));
    for _ in 0..100 {
        assert_eq!(client.next_event(Some(Duration::ZERO)).unwrap(), None);
    }
    let started = Instant::now();
    assert_eq!(client.next_event(Some(Duration::from_millis(20))).unwrap(), None);
    assert!(started.elapsed() >= Duration::from_millis(20));
    drop(client);
    script.join().unwrap();
}

#[test]
fn a_flood_of_events_takes_no_more_than_a_few_mebibytes() {
    const FLOOD: u32 = 100_000;
    let (mut client, script) = against(|mut daemon| {
        let (header, _) = daemon.request();
        daemon.answer(&header, b"OK\0");
        let (header, _) = daemon.request();
        for number in 0..FLOOD {
            let event = format!("/a/{number}/{}\0t\0", "x".repeat(2000));
            daemon.say(MessageType::WatchEvent, 0, 0, event.as_bytes());
        }
        daemon.answer(&header, b"value");
    });
    client.watch("/a", "t").unwrap();
    let before = resident();
    assert_eq!(client.read("/x").unwrap(), b"value");
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for {FLOOD} events");
    assert_eq!(client.queued_event().unwrap().path, "/a", "look at everything");
    assert_eq!(client.queued_event(), None);
    script.join().unwrap();
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

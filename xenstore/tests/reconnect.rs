//! A client whose daemon ends and comes back: nothing is lost but what the daemon itself has forgotten.

mod daemon;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daemon::{SOON, is_long, refused};
use xenstore::server::{Limits, Server, ServerHandle};
use xenstore::wire::{ErrorName, MessageType};
use xenstore::{Client, Error, Store, Transaction, WatchEvent};

/// Long enough for a daemon of a test to come back.
const GRACE: Duration = Duration::from_secs(20);

/// A daemon that can be started again at the same place.
struct Restarted {
    dir: tempfile::TempDir,
    running: Option<(ServerHandle, JoinHandle<()>)>,
}

impl Restarted {
    fn new() -> Restarted {
        let mut daemon = Restarted { dir: tempfile::tempdir().unwrap(), running: None };
        daemon.start(Limits::default());
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn start(&mut self, limits: Limits) {
        let (mut server, handle) = Server::new(limits).unwrap();
        server.listen(&self.socket()).unwrap();
        self.running = Some((handle, std::thread::spawn(move || server.run().unwrap())));
    }

    fn stop(&mut self) {
        let (handle, thread) = self.running.take().unwrap();
        handle.stop();
        thread.join().unwrap();
    }

    fn restart(&mut self) {
        self.stop();
        self.start(Limits::default());
    }
}

impl Drop for Restarted {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
    }
}

fn survivor(socket: &Path) -> Client {
    Client::connect(socket).unwrap().survive(GRACE)
}

fn event(path: &str, token: &str) -> WatchEvent {
    WatchEvent { path: path.into(), token: token.into() }
}

#[test]
fn watches_fire_again_and_go_on() {
    let mut daemon = Restarted::new();
    let mut client = survivor(&daemon.socket());
    for (path, token) in [("/a", "one"), ("/a", "two"), ("@releaseDomain", "gone"), ("/ended", "x")] {
        client.watch(path, token).unwrap();
        client.next_event(SOON).unwrap().unwrap();
    }
    client.unwatch("/ended", "x").unwrap();
    daemon.restart();
    let again: Vec<WatchEvent> = (0..3).map(|_| client.next_event(Some(GRACE)).unwrap().unwrap()).collect();
    assert_eq!(again, [event("/a", "one"), event("/a", "two"), event("@releaseDomain", "gone")]);
    assert_eq!(client.generation(), 1);
    client.write("/a/b", b"1").unwrap();
    assert_eq!(client.next_event(SOON).unwrap(), Some(event("/a/b", "one")));
    assert_eq!(client.next_event(SOON).unwrap(), Some(event("/a/b", "two")));
    assert_eq!(client.next_event(SOON).unwrap(), None);
    assert_eq!(refused(client.watch("/a", "one")), ErrorName::Eexist, "it is there");
}

#[test]
fn requests_wait_for_the_daemon_and_those_that_cannot_be_repeated_say_so() {
    let mut daemon = Restarted::new();
    let mut client = survivor(&daemon.socket());
    client.write("/kept", b"0").unwrap();
    daemon.stop();
    let started = Instant::now();
    let socket = daemon.socket();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut daemon = daemon;
        daemon.start(Limits::default());
        daemon
    });
    client.write("/new", b"1").unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(client.read_optional("/kept").unwrap(), None, "what the daemon forgot is not ours to write again");
    assert_eq!(Client::connect(&socket).unwrap().read("/new").unwrap(), b"1");
    let mut daemon = later.join().unwrap();
    daemon.restart();
    let error = client.control(&["check"]).unwrap_err();
    assert!(matches!(&error, Error::Io { operation: MessageType::Control, .. }), "{error:?}");
    assert_eq!(client.control(&["check"]).unwrap(), "OK", "the connection is there again");
}

#[test]
fn an_interrupted_transaction_is_run_again() {
    let mut daemon = Restarted::new();
    let mut client = survivor(&daemon.socket());
    let mut runs = 0;
    client
        .transaction(|tx| {
            runs += 1;
            tx.write("/t/a", b"1")?;
            if runs == 1 {
                daemon.restart();
            }
            tx.write("/t/b", b"2")
        })
        .unwrap();
    assert_eq!(runs, 2);
    let mut other = Client::connect(&daemon.socket()).unwrap();
    assert_eq!((other.read("/t/a").unwrap(), other.read("/t/b").unwrap()), (b"1".to_vec(), b"2".to_vec()));
}

#[test]
fn a_watch_that_is_not_taken_again_is_told_once_and_kept() {
    let mut daemon = Restarted::new();
    let long = format!("/{}", "x".repeat(200));
    let mut client = survivor(&daemon.socket());
    client.watch(&long, "long").unwrap();
    client.watch("/a", "a").unwrap();
    daemon.stop();
    daemon.start(Limits { path_max: 100, ..Limits::default() });
    // The events of before are still there: they were never taken.
    let mut said = Vec::new();
    loop {
        match client.next_event(SOON) {
            Ok(Some(event)) => said.push(event.token),
            Ok(None) => break,
            Err(error) => said.push(error.name().unwrap().to_string()),
        }
    }
    assert_eq!(said.iter().filter(|said| *said == "EINVAL").count(), 1, "{said:?}");
    assert_eq!(said.last().unwrap(), "a", "{said:?}");
    daemon.restart();
    let tokens: Vec<String> = (0..2).map(|_| client.next_event(Some(GRACE)).unwrap().unwrap().token).collect();
    assert_eq!(tokens, ["long", "a"]);
}

#[test]
fn a_daemon_that_stays_away_is_an_error_in_time_and_at_once_for_those_who_do_not_wait() {
    let mut daemon = Restarted::new();
    let mut patient = Client::connect(&daemon.socket()).unwrap().survive(Duration::from_millis(300));
    let mut hasty = Client::connect(&daemon.socket()).unwrap();
    let unnamed = daemon.running.as_ref().unwrap().0.connect().unwrap();
    let mut unnamed = Client::from_fd(unnamed).unwrap().survive(GRACE);
    daemon.stop();
    let started = Instant::now();
    assert!(matches!(hasty.read("/x").unwrap_err(), Error::Connection { .. }));
    assert!(matches!(unnamed.next_event(None).unwrap_err(), Error::Connection { .. }), "it leads nowhere");
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(matches!(patient.transaction(|tx| tx.read("/x")).unwrap_err(), Error::Connection { .. }));
    assert!(matches!(patient.next_event(None).unwrap_err(), Error::Connection { .. }));
    daemon.start(Limits::default());
    assert_eq!(patient.read_optional("/x").unwrap(), None, "asked again, it looks again");
}

#[test]
fn the_last_value_is_seen_however_often_the_daemon_is_started_again() {
    let mut daemon = Restarted::new();
    let socket = daemon.socket();
    let restarts = if is_long() { 100 } else { 10 };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = survivor(&socket);
            let mut turn = 0u64;
            while !over.load(Ordering::Relaxed) {
                turn += 1;
                let value = turn.to_string();
                let all = |tx: &mut Transaction<'_>| {
                    (0..3).try_for_each(|n| tx.write(&format!("/load/{n}"), value.as_bytes()))
                };
                client.transaction(all).unwrap();
            }
            client.write("/load/last", turn.to_string().as_bytes()).unwrap();
            (turn, client.generation())
        });
        let watchers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = survivor(&socket);
                    client.watch("/load", "w").unwrap();
                    loop {
                        assert_eq!(client.next_event(Some(GRACE)).unwrap().expect("a watch went to sleep").token, "w");
                        let all = client.transaction(|tx| {
                            (0..3).map(|n| tx.read_optional(&format!("/load/{n}"))).collect::<Result<Vec<_>, _>>()
                        });
                        let all = all.unwrap();
                        assert!(all.iter().all(|value| *value == all[0]), "half a transaction: {all:?}");
                        if let Some(last) = client.read_optional("/load/last").unwrap() {
                            return (String::from_utf8(last).unwrap(), client.generation());
                        }
                    }
                })
            })
            .collect();
        for _ in 0..restarts {
            // In the middle of what they do, and not before the load has come back.
            let mut client = Client::connect(&socket).unwrap();
            let started = Instant::now();
            while client.read_optional("/load/0").unwrap().is_none() {
                assert!(started.elapsed() < GRACE, "nobody came back");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(fastrand::u64(..20_000)));
            daemon.restart();
        }
        over.store(true, Ordering::Relaxed);
        let (turns, generation) = writer.join().unwrap();
        assert!((1..=restarts).contains(&generation), "{generation}");
        for watcher in watchers {
            let (last, generation) = watcher.join().unwrap();
            assert_eq!(last, turns.to_string());
            assert!((1..=restarts).contains(&generation), "{generation}");
        }
    });
}

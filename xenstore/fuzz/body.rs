//! What both fuzz targets do with an input; `tests/corpus.rs` does the very same with the kept ones.
#![allow(dead_code, reason = "each target uses one of the two")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use xenstore::server::{Limits, Server};
use xenstore::wire::{HEADER, Header, MessageType, PAYLOAD_MAX, message};

use super::paths::absolute;

/// A daemon that is driven round by round, without a thread, with dom0 and one domain.
struct Daemon {
    server: Server,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Daemon {
        // In memory, if there is such a place: the sockets are files, and on a disk those would take most of the time.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        // Small, so that a short input reaches them.
        let limits = Limits {
            nodes: 12,
            watches: 4,
            transactions: 2,
            transaction_nodes: 8,
            node_size: 256,
            write_rate: usize::MAX,
            ..Limits::default()
        };
        let (mut server, _) = Server::new(limits).unwrap();
        server.listen(&dir.path().join("socket")).unwrap();
        server.introduce(1, &dir.path().join("domain-1")).unwrap();
        let mut daemon = Daemon { server, dir };
        let mut dom0 = daemon.connect(0);
        for (kind, payload) in [(MessageType::Mkdir, &b"/d\0"[..]), (MessageType::SetPerms, b"/d\0n1\0r0\0")] {
            daemon.ask(&mut dom0, kind, payload);
        }
        daemon
    }

    /// One more client; the domain is there again if it was released.
    fn connect(&mut self, domid: u16) -> UnixStream {
        let socket = self.server.connect(domid).or_else(|_| {
            self.server.introduce(domid, &self.dir.path().join("domain-1"))?;
            self.server.connect(domid)
        });
        let socket = UnixStream::from(socket.unwrap());
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// Until there is nothing more to do for it.
    fn settle(&mut self) {
        while self.server.turn(false).unwrap().unwrap_or(0) > 0 {}
    }

    /// The type and the payload of the answer.
    fn ask(&mut self, socket: &mut UnixStream, kind: MessageType, payload: &[u8]) -> (u32, Vec<u8>) {
        socket.write_all(&message(kind as u32, 7, 0, &[payload]).unwrap()).unwrap();
        self.settle();
        let answers = messages(socket).expect("the connection is open");
        let answer = answers.into_iter().find(|(header, _)| header.kind != MessageType::WatchEvent as u32);
        let (header, payload) = answer.expect("every request is answered");
        assert_eq!(header.request, 7, "echoed");
        (header.kind, payload)
    }

    /// Every node that is listed is there, once, and what dom0 may ask is answered.
    fn check(&mut self) {
        let mut dom0 = self.connect(0);
        let mut todo = vec!["/".to_owned()];
        while let Some(path) = todo.pop() {
            let (kind, names) = self.ask(&mut dom0, MessageType::Directory, format!("{path}\0").as_bytes());
            assert_eq!(kind, MessageType::Directory as u32, "{path}: {}", names.escape_ascii());
            let names = String::from_utf8(names).unwrap();
            let mut names: Vec<&str> = names.split_terminator('\0').collect();
            todo.extend(names.iter().map(|name| format!("{}/{name}", path.trim_end_matches('/'))));
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{path} lists a child twice");
        }
    }
}

/// What has come on a socket, all of it whole messages; `None` at its end.
fn messages(socket: &mut UnixStream) -> Option<Vec<(Header, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = socket.read_to_end(&mut bytes).map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true);
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
        let header = Header::decode(header);
        let len = header.len as usize;
        assert!(len <= PAYLOAD_MAX && len <= after.len(), "{header:?} with {} bytes", after.len());
        messages.push((header, after[..len].to_vec()));
        rest = &after[len..];
    }
    assert!(rest.is_empty(), "half a header");
    (!end).then_some(messages)
}

/// A session of a few clients. The input is cut into pieces: a byte that says who and how, a byte with the length, and
/// that many bytes, sent as they are or as the payload of a message that is well-formed.
pub fn frames(mut input: &[u8]) {
    let mut daemon = Daemon::new();
    let mut clients: Vec<UnixStream> = [0, 1, 1].into_iter().map(|domid| daemon.connect(domid)).collect();
    while let Some(([how, len], rest)) = input.split_first_chunk::<2>() {
        let (bytes, after) = rest.split_at(rest.len().min(usize::from(*len)));
        input = after;
        let who = usize::from(how & 3);
        let Some(client) = clients.get_mut(who) else {
            // The fourth is nobody: one of the others comes again.
            let who = usize::from(*len) % clients.len();
            clients[who] = daemon.connect(u16::from(who > 0));
            continue;
        };
        // Full, or closed on us: both are fine.
        let _ = match (how & 4, bytes) {
            (0, _) | (_, []) => client.write(bytes),
            (_, [kind, payload @ ..]) => {
                let transaction = u32::from(how >> 4);
                client.write(&message(u32::from(*kind), 1, transaction, &[payload]).unwrap())
            }
        };
        daemon.settle();
        // Some never read.
        if how & 8 == 0 && messages(client).is_none() {
            clients[who] = daemon.connect(u16::from(who > 0));
        }
    }
    drop(clients);
    daemon.settle();
    daemon.check();
}

/// One path, said by dom0 and by a domain: it is refused as none at all by every operation, or by none.
pub fn path(input: &[u8]) {
    if input.contains(&0) || input.len() > 4000 {
        return;
    }
    let mut daemon = Daemon::new();
    for domid in [0, 1] {
        let mut client = daemon.connect(domid);
        let argument = [input, b"\0"].concat();
        for kind in [MessageType::Read, MessageType::Directory, MessageType::Write, MessageType::Mkdir, MessageType::Rm]
        {
            let (_, payload) = daemon.ask(&mut client, kind, &argument);
            let root = kind == MessageType::Rm && input == b"/";
            let bad = absolute(input, domid, false).is_err() || root && domid == 0;
            assert_eq!(payload == b"EINVAL\0", bad, "{kind:?} {}: {}", input.escape_ascii(), payload.escape_ascii());
        }
        let watched = [input, b"\0token\0"].concat();
        let bad = absolute(input, domid, true).is_err();
        for (kind, refused) in [(MessageType::Watch, "EINVAL\0"), (MessageType::Unwatch, "ENOENT\0")] {
            let (_, payload) = daemon.ask(&mut client, kind, &watched);
            let expected = if bad { refused } else { "OK\0" };
            assert_eq!(payload, expected.as_bytes(), "{kind:?} {}", input.escape_ascii());
        }
    }
    daemon.check();
}

//! What is kept, and the answers about it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags};

use super::wire::{MAX_KEY, Reply, Request, receive, send};

/// The most keys: the supervisor reads hostile input and must not be able to use up its keeper.
const MAX_KEYS: usize = 4096;

/// Descriptors by key. Nothing here looks at what they are.
#[derive(Debug, Default)]
pub struct Store {
    kept: BTreeMap<String, Vec<OwnedFd>>,
}

impl Store {
    /// One that has something from the start.
    pub fn of(kept: Vec<(&str, OwnedFd)>) -> Store {
        Store { kept: kept.into_iter().map(|(key, fd)| (key.to_owned(), vec![fd])).collect() }
    }

    /// Answers what waits in `socket`, at most `limit` requests. `false` when the other side has closed.
    ///
    /// # Errors
    /// Something that is not a request, or a reply that nobody reads: the connection is of no more use.
    pub fn answer(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<bool> {
        for _ in 0..limit {
            let (reply, fds) = match receive(socket, RecvFlags::DONTWAIT) {
                Ok(Some((request, fds))) => self.apply(request, fds),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                    (Reply::Refused { why: format!("the keeper cannot keep them: {error}") }, Vec::new())
                }
                Err(error) => return Err(error),
            };
            // A supervisor that died after its request must not keep the ones behind it from being read.
            match send(socket, &reply, &fds, SendFlags::DONTWAIT) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn apply(&mut self, request: Request, fds: Vec<OwnedFd>) -> (Reply, Vec<BorrowedFd<'_>>) {
        match request {
            Request::Keep { key } if key.len() > MAX_KEY => {
                (Reply::Refused { why: format!("a key has at most {MAX_KEY} bytes") }, Vec::new())
            }
            Request::Keep { key } if self.kept.len() >= MAX_KEYS && !self.kept.contains_key(&key) => {
                (Reply::Refused { why: format!("{MAX_KEYS} keys are in use") }, Vec::new())
            }
            Request::Keep { key } => {
                self.kept.insert(key, fds);
                (Reply::Done, Vec::new())
            }
            Request::Forget { key } => {
                self.kept.remove(&key);
                (Reply::Done, Vec::new())
            }
            Request::Next { after } => {
                let from = after.map_or(Bound::Unbounded, Bound::Excluded);
                match self.kept.range::<String, _>((from, Bound::Unbounded)).next() {
                    Some((key, fds)) => (Reply::Kept { key: key.clone() }, fds.iter().map(AsFd::as_fd).collect()),
                    None => (Reply::Done, Vec::new()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Keeper;
    use super::super::wire::MAX_FDS;
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{Read, Write};
    use std::thread;

    /// Runs `supervisor` against a store in another thread, which gives the store back.
    fn with_store(mut store: Store, supervisor: impl FnOnce(&Keeper)) -> Store {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let keeper = thread::spawn(move || {
            loop {
                let mut fds = [rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, None).unwrap();
                if !store.answer(ours.as_fd(), 3).unwrap() {
                    return store;
                }
            }
        });
        supervisor(&Keeper::new(theirs));
        keeper.join().unwrap()
    }

    #[test]
    fn descriptors_outlive_the_connection() {
        let (mut reader, writer) = io::pipe().unwrap();
        let store = with_store(Store::default(), |keeper| {
            assert!(keeper.list().unwrap().is_empty());
            keeper.keep("b", &[writer.as_fd()]).unwrap();
            keeper.keep("a", &[]).unwrap();
            keeper.keep("c", &[reader.as_fd(), writer.as_fd()]).unwrap();
            keeper.forget("c").unwrap();
            keeper.forget("never there").unwrap();
            drop(writer);
        });
        let store = with_store(store, |keeper| {
            let kept = keeper.list().unwrap();
            let shape: Vec<_> = kept.iter().map(|(key, fds)| (key.as_str(), fds.len())).collect();
            assert_eq!(shape, [("a", 0), ("b", 1)]);
            let (_, mut fds) = kept.into_iter().nth(1).unwrap();
            std::fs::File::from(fds.remove(0)).write_all(b"alive").unwrap();
            keeper.forget("b").unwrap();
        });
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "alive");
        assert_eq!(store.kept.len(), 1);
    }

    #[test]
    fn the_same_key_replaces_and_closes() {
        let (mut reader, writer) = io::pipe().unwrap();
        with_store(Store::default(), |keeper| {
            keeper.keep("fence", &[writer.as_fd()]).unwrap();
            drop(writer);
            keeper.keep("fence", &[]).unwrap();
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        });
    }

    #[test]
    fn a_full_message_of_descriptors_passes_and_one_more_does_not() {
        let null = std::fs::File::open("/dev/null").unwrap();
        with_store(Store::default(), |keeper| {
            keeper.keep("many", &[null.as_fd(); MAX_FDS]).unwrap();
            assert_eq!(keeper.list().unwrap()[0].1.len(), MAX_FDS);
            assert!(keeper.keep("more", &[null.as_fd(); MAX_FDS + 1]).is_err());
            assert!(keeper.keep(&"k".repeat(MAX_KEY + 1), &[]).is_err());
            keeper.keep(&"k".repeat(MAX_KEY), &[]).unwrap();
        });
    }

    #[test]
    fn keys_are_bounded() {
        let mut store = Store::default();
        for index in 0..MAX_KEYS {
            assert!(matches!(store.apply(Request::Keep { key: index.to_string() }, Vec::new()).0, Reply::Done));
        }
        assert!(matches!(store.apply(Request::Keep { key: "0".into() }, Vec::new()).0, Reply::Done));
        assert!(matches!(store.apply(Request::Keep { key: "x".into() }, Vec::new()).0, Reply::Refused { .. }));
    }

    #[test]
    fn nonsense_ends_the_connection() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::send(&theirs, b"{\"keep\":", SendFlags::empty()).unwrap();
        assert_eq!(Store::default().answer(ours.as_fd(), 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

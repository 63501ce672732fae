//! The server against clients that speak by hand, well and badly.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// A disk in memory that answers the last job first, once it has `hold` of them.
struct Memory {
    data: Mutex<Vec<u8>>,
    info: Info,
    held: Mutex<Vec<Job>>,
    hold: usize,
    log: Mutex<Vec<(Command, u64, usize, bool)>>,
}

impl Export for Memory {
    fn info(&self) -> Info {
        self.info
    }

    fn submit(&self, job: Job) {
        let mut held = self.held.lock().unwrap();
        held.push(job);
        if held.len() < self.hold {
            return;
        }
        while let Some(mut job) = held.pop() {
            let (at, len) = (job.offset as usize, job.buffer.len());
            self.log.lock().unwrap().push((job.command, job.offset, len, job.fua));
            let mut data = self.data.lock().unwrap();
            match job.command {
                Command::Read => job.buffer.copy_from_slice(&data[at..at + len]),
                Command::Write => data[at..at + len].copy_from_slice(&job.buffer),
                Command::Flush => {}
                Command::Trim(0) => unreachable!("an empty trim is answered by the server"),
                // Lost on the way.
                Command::Trim(_) => continue,
            }
            job.ticket.finish(Ok(()), job.buffer);
        }
    }
}

struct One(Arc<Memory>);

impl Exports for One {
    fn names(&self) -> Vec<String> {
        vec!["xvda".to_owned()]
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Export>> {
        ["", "xvda"].contains(&name).then(|| Arc::clone(&self.0) as Arc<dyn Export>)
    }
}

const SIZE: u64 = 1 << 20;
const INFO: Info =
    Info { size: SIZE, min_block: 512, preferred_block: 4096, read_only: false, flush: true, trim: true };

struct Fixture {
    disk: Arc<Memory>,
    server: Server,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn fixture(info: Info, hold: usize) -> Fixture {
    let disk = Arc::new(Memory {
        data: Mutex::new((0..SIZE).map(|at| (at / 512) as u8).collect()),
        info,
        held: Mutex::default(),
        hold,
        log: Mutex::default(),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let server = Server::start(&path, Arc::new(One(Arc::clone(&disk)))).unwrap();
    Fixture { disk, server, path, _dir: dir }
}

impl Fixture {
    fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(take(&mut stream, 18), b"NBDMAGICIHAVEOPT\x00\x03");
        stream
    }

    /// A client past its handshake.
    fn go(&self) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(&option(wire::OPT_GO, &info_data(b"xvda", &[]))).unwrap();
        while reply(&mut stream).0 != wire::REP_ACK {}
        stream
    }
}

fn take(stream: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// True when the other side has hung up, without another word.
fn hung_up(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn info_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name);
    bytes.extend((wanted.len() as u16).to_be_bytes());
    bytes.extend(wanted.iter().flat_map(|item| item.to_be_bytes()));
    bytes
}

/// Kind and data of an option's reply.
fn reply(stream: &mut UnixStream) -> (u32, Vec<u8>) {
    let head = take(stream, 20);
    assert_eq!(head[..8], wire::OPTION_REPLY_MAGIC.to_be_bytes());
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    (word(12), take(stream, word(16) as usize))
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Error and cookie of a simple reply.
fn answer(stream: &mut UnixStream) -> (u32, u64) {
    let head = take(stream, 16);
    assert_eq!(head[..4], wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
    (error, u64::from_be_bytes(head[8..].try_into().unwrap()))
}

#[test]
fn golden_bytes_of_a_whole_session() {
    let fixture = fixture(INFO, 1);
    let mut stream = fixture.connect();
    stream.write_all(b"\0\0\0\x03").unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").unwrap();
    let export = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\x10\0\0\x01\x2d";
    assert_eq!(take(&mut stream, export.len()), export);
    let sizes = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0e\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0";
    assert_eq!(take(&mut stream, sizes.len()), sizes);
    let ack = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";
    assert_eq!(take(&mut stream, ack.len()), ack);
    stream.write_all(b"\x25\x60\x95\x13\0\0\0\0ABCDEFGH\0\0\0\0\0\0\x04\0\0\0\x02\0").unwrap();
    assert_eq!(take(&mut stream, 16), b"\x67\x44\x66\x98\0\0\0\0ABCDEFGH");
    assert_eq!(take(&mut stream, 512), [2; 512]);
    stream.write_all(b"\x25\x60\x95\x13\0\0\0\x02ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    assert!(hung_up(&mut stream));
}

#[test]
fn the_old_way_in_has_zeroes_unless_they_are_not_wanted() {
    let fixture = fixture(INFO, 1);
    for (flags, len) in [(1u32, 134), (3, 10)] {
        let mut stream = fixture.connect();
        stream.write_all(&flags.to_be_bytes()).unwrap();
        stream.write_all(&option(wire::OPT_EXPORT_NAME, b"xvda")).unwrap();
        let bytes = take(&mut stream, len);
        assert_eq!(bytes[..8], SIZE.to_be_bytes());
        assert!(bytes[10..].iter().all(|byte| *byte == 0));
        stream.write_all(&request(wire::CMD_READ, 0, 1, 0, 512)).unwrap();
        assert_eq!(answer(&mut stream), (0, 1));
    }
}

#[test]
fn options_are_answered_in_their_own_way() {
    let fixture = fixture(INFO, 1);
    let mut stream = fixture.connect();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    let mut ask = |bytes: Vec<u8>| {
        stream.write_all(&bytes).unwrap();
        let mut kinds = Vec::new();
        loop {
            let (kind, data) = reply(&mut stream);
            kinds.push((kind, data));
            if kind != wire::REP_SERVER && kind != wire::REP_INFO {
                return kinds;
            }
        }
    };
    let list = ask(option(wire::OPT_LIST, b""));
    assert_eq!(list, [(wire::REP_SERVER, b"\0\0\0\x04xvda".to_vec()), (wire::REP_ACK, vec![])]);
    for (bytes, kind) in [
        (option(wire::OPT_LIST, b"x"), wire::REP_ERR_INVALID),
        // Structured replies, TLS, contexts, and what nobody has thought of yet.
        (option(8, b""), wire::REP_ERR_UNSUP),
        (option(5, b""), wire::REP_ERR_UNSUP),
        (option(10, &[0; 12]), wire::REP_ERR_UNSUP),
        (option(u32::MAX, &[0; 16384]), wire::REP_ERR_UNSUP),
        (option(wire::OPT_GO, &info_data(b"xvdb", &[])), wire::REP_ERR_UNKNOWN),
        (option(wire::OPT_GO, &info_data(b"\xff", &[])), wire::REP_ERR_INVALID),
        (option(wire::OPT_GO, &info_data(&[b'x'; 5000], &[])), wire::REP_ERR_INVALID),
        (option(wire::OPT_GO, b""), wire::REP_ERR_INVALID),
        (option(wire::OPT_GO, b"\xff\xff\xff\xffxvda\0\0"), wire::REP_ERR_INVALID),
        (option(wire::OPT_GO, b"\0\0\0\x04xvda\0\x05\0\0"), wire::REP_ERR_INVALID),
        (option(wire::OPT_GO, b"\0\0\0\x04xvda\0\0\0\0"), wire::REP_ERR_INVALID),
    ] {
        assert_eq!(ask(bytes)[0].0, kind);
    }
    let info = ask(option(wire::OPT_INFO, &info_data(b"xvda", &[wire::INFO_NAME, 99])));
    assert_eq!(info[2].1, b"\0\x01xvda");
    assert_eq!(ask(option(wire::OPT_ABORT, b""))[0].0, wire::REP_ACK);
    assert!(hung_up(&mut stream));
}

#[test]
fn a_handshake_that_breaks_the_protocol_is_hung_up_on() {
    let fixture = fixture(INFO, 1);
    let mut long = option(wire::OPT_LIST, b"");
    long[12..16].copy_from_slice(&(1u32 << 20).to_be_bytes());
    for (flags, bytes) in [
        (0u32, vec![]),
        (2, vec![]),
        (7, vec![]),
        (1 << 31 | 1, vec![]),
        (3, b"IHAVEOPS\0\0\0\x03\0\0\0\0".to_vec()),
        (3, long),
        (3, option(wire::OPT_EXPORT_NAME, b"xvdb")),
        (3, option(wire::OPT_EXPORT_NAME, b"\xff")),
    ] {
        let mut stream = fixture.connect();
        stream.write_all(&flags.to_be_bytes()).unwrap();
        // The server may be quicker than we are.
        let _ = stream.write_all(&bytes);
        assert!(hung_up(&mut stream), "{flags} {bytes:?}");
    }
    // A thousand questions are too many.
    let mut stream = fixture.connect();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    for _ in 0..1024 {
        stream.write_all(&option(99, b"")).unwrap();
        assert_eq!(reply(&mut stream).0, wire::REP_ERR_UNSUP);
    }
    assert!(hung_up(&mut stream));
}

#[test]
fn requests_that_cannot_be_are_answered_and_the_next_one_is_served() {
    let fixture = fixture(INFO, 1);
    let mut stream = fixture.go();
    for (command, flags, offset, len, errno) in [
        (wire::CMD_READ, 0, SIZE, 512, Errno::Invalid),
        (wire::CMD_READ, 0, SIZE - 512, 1024, Errno::Invalid),
        (wire::CMD_READ, 0, u64::MAX - 511, 512, Errno::Invalid),
        (wire::CMD_READ, 0, 1, 512, Errno::Invalid),
        (wire::CMD_READ, 0, 0, 511, Errno::Invalid),
        (wire::CMD_READ, 1 << 15, 0, 512, Errno::Invalid),
        (wire::CMD_WRITE, 0, SIZE, 512, Errno::NoSpace),
        (wire::CMD_WRITE, 0, 0, 513, Errno::Invalid),
        (wire::CMD_TRIM, 0, SIZE, u32::MAX, Errno::NoSpace),
        // Write zeroes, block status, and what nobody has thought of yet.
        (6, 0, 0, 512, Errno::Invalid),
        (7, 0, 0, 512, Errno::Invalid),
        (u16::MAX, 0, 0, 512, Errno::Invalid),
    ] {
        stream.write_all(&request(command, flags, 5, offset, len)).unwrap();
        if command == wire::CMD_WRITE {
            stream.write_all(&vec![1; len as usize]).unwrap();
        }
        assert_eq!(answer(&mut stream), (errno as u32, 5), "{command} {offset} {len}");
    }
    for command in [wire::CMD_READ, wire::CMD_WRITE, wire::CMD_TRIM] {
        stream.write_all(&request(command, 0, 6, 0, 0)).unwrap();
        assert_eq!(answer(&mut stream), (0, 6), "nothing to do");
    }
    assert!(fixture.disk.log.lock().unwrap().is_empty());
    stream.write_all(&request(wire::CMD_READ, 0, 7, 512, 512)).unwrap();
    assert_eq!(answer(&mut stream), (0, 7));
}

#[test]
fn requests_that_break_the_protocol_are_hung_up_on() {
    let fixture = fixture(INFO, 1);
    let mut magic = request(wire::CMD_READ, 0, 1, 0, 512);
    magic[0] = 0;
    for bytes in [magic, request(wire::CMD_READ, 0, 1, 0, MAX_REQUEST + 1), request(wire::CMD_WRITE, 0, 1, 0, u32::MAX)]
    {
        let mut stream = fixture.go();
        stream.write_all(&bytes).unwrap();
        assert!(hung_up(&mut stream));
    }
    // Half a request, half a payload.
    for bytes in [&request(wire::CMD_WRITE, 0, 1, 0, 512)[..10], &request(wire::CMD_WRITE, 0, 1, 0, 512)] {
        let mut stream = fixture.go();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        if bytes.len() == Request::LEN {
            // Its ticket answers although nobody did the job.
            assert_eq!(answer(&mut stream), (Errno::Io as u32, 1));
        }
        assert!(hung_up(&mut stream));
    }
    assert!(fixture.disk.log.lock().unwrap().is_empty());
}

use super::wire::Request;

#[test]
fn a_read_only_disk_says_so() {
    let fixture = fixture(Info { read_only: true, flush: false, ..INFO }, 1);
    let mut stream = fixture.connect();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(&option(wire::OPT_GO, &info_data(b"", &[]))).unwrap();
    let flags = wire::FLAG_HAS_FLAGS | wire::FLAG_READ_ONLY | wire::FLAG_CAN_MULTI_CONN;
    assert_eq!(reply(&mut stream).1[10..], flags.to_be_bytes());
    while reply(&mut stream).0 != wire::REP_ACK {}
    stream.write_all(&request(wire::CMD_WRITE, 0, 1, 0, 512)).unwrap();
    stream.write_all(&[0; 512]).unwrap();
    assert_eq!(answer(&mut stream), (Errno::NotPermitted as u32, 1));
    stream.write_all(&request(wire::CMD_FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(answer(&mut stream), (Errno::Invalid as u32, 2));
}

#[test]
fn answers_come_in_any_order_with_their_cookies_and_data() {
    let fixture = fixture(INFO, 3);
    let mut stream = fixture.go();
    let mut all = Vec::new();
    for cookie in 0..3 {
        all.extend(request(wire::CMD_READ, 0, cookie, cookie * 512, 512));
    }
    stream.write_all(&all).unwrap();
    for cookie in [2u64, 1, 0] {
        assert_eq!(answer(&mut stream), (0, cookie));
        assert_eq!(take(&mut stream, 512), [cookie as u8; 512]);
    }
}

#[test]
fn fua_reaches_writes_and_trims_and_a_lost_job_is_an_error() {
    let fixture = fixture(INFO, 1);
    let mut stream = fixture.go();
    stream.write_all(&request(wire::CMD_WRITE, wire::CMD_FLAG_FUA, 1, 0, 512)).unwrap();
    stream.write_all(&[9; 512]).unwrap();
    assert_eq!(answer(&mut stream), (0, 1));
    stream.write_all(&request(wire::CMD_READ, wire::CMD_FLAG_FUA, 2, 0, 512)).unwrap();
    assert_eq!(answer(&mut stream), (0, 2));
    assert_eq!(take(&mut stream, 512), [9; 512]);
    stream.write_all(&request(wire::CMD_TRIM, wire::CMD_FLAG_FUA, 3, 0, 1 << 20)).unwrap();
    assert_eq!(answer(&mut stream), (Errno::Io as u32, 3));
    let log = fixture.disk.log.lock().unwrap().clone();
    let trim = (Command::Trim(1 << 20), 0, 0, true);
    assert_eq!(log, [(Command::Write, 0, 512, true), (Command::Read, 0, 512, false), trim]);
}

#[test]
fn a_client_that_takes_no_answers_is_bounded_and_hurts_nobody() {
    let fixture = fixture(INFO, 1);
    let mut deaf = fixture.go();
    deaf.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let read = request(wire::CMD_READ, 0, 1, 0, SIZE as u32);
    let sent = (0..100_000).take_while(|_| deaf.write_all(&read).is_ok()).count();
    // The budget, what the sockets hold, and the reader's own buffer.
    assert!(sent < 20_000, "{sent} requests were read for somebody who takes no answers");
    let taken = fixture.disk.log.lock().unwrap().len();
    assert!(taken < 1100, "{taken} jobs were started");
    let mut stream = fixture.go();
    stream.write_all(&request(wire::CMD_READ, 0, 1, 512, 512)).unwrap();
    assert_eq!(answer(&mut stream), (0, 1));
}

#[test]
fn stopping_answers_what_is_under_way() {
    let fixture = fixture(INFO, 2);
    let mut stream = fixture.go();
    stream.write_all(&request(wire::CMD_READ, 0, 1, 512, 512)).unwrap();
    while fixture.disk.held.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    let (disk, path) = (Arc::clone(&fixture.disk), fixture.path.clone());
    let stop = std::thread::spawn(move || fixture.server.stop(Duration::from_secs(20)));
    while path.exists() {
        std::thread::yield_now();
    }
    for job in std::mem::take(&mut *disk.held.lock().unwrap()) {
        job.ticket.finish(Err(Errno::Io), job.buffer);
    }
    assert_eq!(answer(&mut stream), (Errno::Io as u32, 1));
    assert!(hung_up(&mut stream));
    stop.join().unwrap();
}

#[test]
fn a_path_in_use_is_left_alone_and_a_dead_one_is_taken_over() {
    let fixture = fixture(INFO, 1);
    let exports = || Arc::new(One(Arc::clone(&fixture.disk)));
    assert!(matches!(Server::start(&fixture.path, exports()), Err(StartError::InUse(_))));
    let file = fixture.path.with_extension("file");
    std::fs::write(&file, b"precious").unwrap();
    assert!(matches!(Server::start(&file, exports()), Err(StartError::NotASocket(_))));
    let dead = fixture.path.with_extension("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    drop(Server::start(&dead, exports()).unwrap());
    let missing = fixture.path.join("no/such/dir");
    assert!(matches!(Server::start(&missing, exports()), Err(StartError::Io { .. })));
    let mut stream = fixture.go();
    stream.write_all(&request(wire::CMD_READ, 0, 1, 0, 512)).unwrap();
    assert_eq!(answer(&mut stream), (0, 1));
}

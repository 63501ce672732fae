//! Plays a recording against our server: every connection of it is one here, the requests are sent one by one in the
//! order in which the C daemon took them, and what comes back is compared for each connection, in its order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xenstore::server::{Limits, Server, ServerHandle};
use xenstore::wire::{HEADER, Header, MessageType, message};

use super::trace::{Message, Step};

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests that were sent.
    pub requests: usize,
    /// Answers that are the same.
    pub answers: usize,
    /// Events that are the same.
    pub events: usize,
    /// Events that the C daemon did not send, because the same one still waited to be read. Ours are read at once.
    pub repeated: usize,
    /// Messages for connections that were closed before the C daemon came to send them.
    pub unread: usize,
    /// `@releaseDomain` for a domain that has shut down and is still there: whoever embeds our server knows when its
    /// domains shut down, and tells it of those that are gone.
    pub shutdowns: usize,
    /// What differs, a line for each.
    pub differences: Vec<String>,
}

/// Lines between what fills a message for a connection and the connection's end, if the C daemon has not sent it: it
/// takes a request of each connection, then sends.
const UNREAD: usize = 64;

/// For an answer: far more than a domain waits that has written too much.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the recording has of a connection.
#[derive(Default)]
struct Expected {
    /// What the C daemon sent, with the lines.
    messages: VecDeque<(usize, Message)>,
    /// The line of the connection's end.
    end: Option<usize>,
}

struct Connection {
    link: UnixStream,
    ring: Option<u16>,
    /// What has come and is no whole message.
    input: Vec<u8>,
    expected: Expected,
    /// Lines of events that came here already and, in the recording, come later.
    early: Vec<(usize, Message)>,
    /// The recording's transactions, and ours.
    transactions: HashMap<u32, u32>,
    /// One of its domains has shut down, which we are not told of.
    may_hear_of_shutdown: bool,
    /// Answers that came.
    answered: usize,
    /// Our server has hung up.
    is_closed: bool,
}

struct Player {
    server: Server,
    // The server lives as long as somebody can tell it something.
    _handle: ServerHandle,
    _dir: tempfile::TempDir,
    /// dom0's, to tell of domains that are gone.
    toolstack: UnixStream,
    /// Of connections that have not begun.
    expected: HashMap<u32, Expected>,
    connections: BTreeMap<u32, Connection>,
    report: Report,
}

/// Plays it from the daemon's beginning.
pub fn play(steps: &[(usize, Step)]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, handle) = Server::new(Limits::default()).unwrap();
    server.listen(&dir.path().join("socket")).unwrap();
    let toolstack = UnixStream::from(server.connect(0).unwrap());
    let mut player = Player {
        server,
        _handle: handle,
        _dir: dir,
        toolstack,
        expected: expected(steps),
        connections: BTreeMap::new(),
        report: Report::default(),
    };
    for (at, (line, step)) in steps.iter().enumerate() {
        player.step(*line, step, &steps[at + 1..]);
    }
    player.report
}

fn expected(steps: &[(usize, Step)]) -> HashMap<u32, Expected> {
    let mut all: HashMap<u32, Expected> = HashMap::new();
    for (line, step) in steps {
        match step {
            Step::Told { connection, message } => {
                all.entry(*connection).or_default().messages.push_back((*line, message.clone()));
            }
            Step::End { connection } => all.entry(*connection).or_default().end = Some(*line),
            _ => {}
        }
    }
    all
}

impl Player {
    fn step(&mut self, line: usize, step: &Step, rest: &[(usize, Step)]) {
        match step {
            Step::Begin { connection, ring } => match self.server.connect(ring.unwrap_or(0)) {
                Ok(fd) => self.begin(*connection, UnixStream::from(fd), *ring),
                Err(error) => self.differs(line, &format!("connection {connection}, {ring:?}: {error}")),
            },
            Step::End { connection } => {
                let Some(Connection { ring, .. }) = self.connections.remove(connection) else { return };
                if let Some(domid) = ring {
                    let request = [domid.to_string().as_bytes(), b"\0"].concat();
                    self.toolstack
                        .write_all(&message(MessageType::Release as u32, 0, 0, &[&request]).unwrap())
                        .unwrap();
                }
                self.settle(line);
            }
            Step::Request { connection, transaction, message } => {
                self.request(line, *connection, *transaction, message)
            }
            Step::Told { connection, message } => self.must_have_come(line, *connection, message),
            Step::Changed => {
                let still_there = !deaths(rest, &self.connections);
                self.connections.values_mut().for_each(|connection| connection.may_hear_of_shutdown = still_there);
            }
        }
    }

    fn begin(&mut self, number: u32, link: UnixStream, ring: Option<u16>) {
        link.set_nonblocking(true).unwrap();
        let connection = Connection {
            link,
            ring,
            input: Vec::new(),
            expected: self.expected.remove(&number).unwrap_or_default(),
            early: Vec::new(),
            transactions: HashMap::new(),
            may_hear_of_shutdown: false,
            answered: 0,
            is_closed: false,
        };
        self.connections.insert(number, connection);
    }

    fn request(&mut self, line: usize, number: u32, transaction: u32, request: &Message) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return self.differs(line, "a request on a connection that is not there");
        };
        let ours = *connection.transactions.get(&transaction).unwrap_or(&transaction);
        let bytes = message(request.kind as u32, line as u32, ours, &[&request.payload]).unwrap();
        let answered = connection.answered;
        self.report.requests += 1;
        if let Err(error) = connection.link.write_all(&bytes) {
            return self.differs(line, &format!("connection {number}: {error}"));
        }
        let start = Instant::now();
        self.settle(line);
        while self.connections[&number].answered == answered {
            if start.elapsed() > PATIENCE || self.connections[&number].is_closed {
                return self.differs(line, &format!("connection {number}: no answer to {request:?}"));
            }
            // One that has written too much waits.
            std::thread::sleep(Duration::from_millis(1));
            self.settle(line);
        }
    }

    /// Lets the server do all it can, and takes what it sends.
    fn settle(&mut self, line: usize) {
        while self.server.turn(false).unwrap() != Some(0) {}
        for number in self.spoken_to() {
            let connection = self.connections.get_mut(&number).unwrap();
            if let Err(error) = connection.take() {
                connection.is_closed = true;
                self.report.differences.push(format!("line {line}: connection {number}: {error}"));
            }
            while let Some(message) = connection.message() {
                connection.compare(line, number, message, &mut self.report);
            }
        }
    }

    /// The connections that have something to read: one call, for there are many, and on an emulated machine each is slow.
    fn spoken_to(&self) -> Vec<u32> {
        let open = self.connections.iter().filter(|(_, connection)| !connection.is_closed);
        let (numbers, mut links): (Vec<u32>, Vec<PollFd<'_>>) =
            open.map(|(number, connection)| (*number, PollFd::new(&connection.link, PollFlags::IN))).unzip();
        poll(&mut links, Some(&Timespec::default())).unwrap();
        let spoken_to = numbers.iter().zip(&links).filter(|(_, link)| !link.revents().is_empty());
        spoken_to.map(|(number, _)| *number).collect()
    }

    /// The C daemon has sent this now, so that ours must have done so before.
    fn must_have_come(&mut self, line: usize, number: u32, message: &Message) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.early.retain(|(at, _)| *at > line);
        if connection.expected.messages.front().is_none_or(|(at, _)| *at > line) {
            return;
        }
        if connection.pass_over_shutdown() {
            self.report.shutdowns += 1;
        } else {
            connection.expected.messages.pop_front();
            self.differs(line, &format!("connection {number}: ours has not sent {message:?}"));
        }
    }

    fn differs(&mut self, line: usize, what: &str) {
        self.report.differences.push(format!("line {line}: {what}"));
    }
}

/// The rings that end before anything else happens are those of domains that are gone.
fn deaths(rest: &[(usize, Step)], connections: &BTreeMap<u32, Connection>) -> bool {
    let next = rest.iter().take_while(|(_, step)| !matches!(step, Step::Request { .. } | Step::Changed));
    next.into_iter().any(|(_, step)| match step {
        Step::End { connection } => connections.get(connection).is_some_and(|connection| connection.ring.is_some()),
        _ => false,
    })
}

impl Connection {
    /// Takes in what is there.
    fn take(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 4096];
        while !self.is_closed {
            match self.link.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next whole message.
    fn message(&mut self) -> Option<Message> {
        let header = Header::decode(self.input.first_chunk::<HEADER>()?);
        let end = HEADER + header.len as usize;
        let payload = self.input.get(HEADER..end)?.to_vec();
        self.input.drain(..end);
        Some(Message { kind: MessageType::from_number(header.kind).expect("a type of ours"), payload })
    }

    /// Compares with what the C daemon sent next.
    fn compare(&mut self, line: usize, number: u32, ours: Message, report: &mut Report) {
        self.answered += usize::from(!ours.is_event());
        // A shutdown's event that waited in the C daemon as this request came went out before its answer.
        if !ours.is_event() && self.pass_over_shutdown() {
            report.shutdowns += 1;
        }
        let next = self.expected.messages.front();
        if next.is_some_and(|(_, theirs)| self.is_same(theirs, &ours)) {
            let (at, theirs) = self.expected.messages.pop_front().unwrap();
            if theirs.is_event() {
                report.events += 1;
                self.early.push((at, theirs));
            } else {
                report.answers += 1;
                self.learn(&theirs, &ours);
            }
        } else if self.early.iter().any(|(at, told)| *at > line && *told == ours) {
            report.repeated += 1;
        } else if next.is_none() && self.expected.end.is_some_and(|end| end - line < UNREAD) {
            report.unread += 1;
        } else {
            report.differences.push(format!("line {line}: connection {number}: ours {ours:?}, C {next:?}"));
            if !ours.is_event() {
                self.skip_answer();
            }
        }
    }

    /// Takes the next message away if it tells of a domain that has shut down and is still there.
    fn pass_over_shutdown(&mut self) -> bool {
        let of_shutdown =
            |(_, message): &(usize, Message)| message.is_event() && message.payload.starts_with(b"@releaseDomain\0");
        if !self.may_hear_of_shutdown || !self.expected.messages.front().is_some_and(of_shutdown) {
            return false;
        }
        self.may_hear_of_shutdown = false;
        self.expected.messages.pop_front();
        true
    }

    fn is_same(&self, theirs: &Message, ours: &Message) -> bool {
        // Who counts transactions is the daemon's business.
        theirs == ours || theirs.kind == MessageType::TransactionStart && theirs.kind == ours.kind
    }

    fn learn(&mut self, theirs: &Message, ours: &Message) {
        if theirs.kind == MessageType::TransactionStart {
            let number = |message: &Message| {
                let text = message.payload.strip_suffix(b"\0").unwrap();
                std::str::from_utf8(text).unwrap().parse::<u32>().unwrap()
            };
            self.transactions.insert(number(theirs), number(ours));
        }
    }

    /// Goes on behind the answer that differs.
    fn skip_answer(&mut self) {
        if let Some(at) = self.expected.messages.iter().position(|(_, message)| !message.is_event()) {
            self.expected.messages.drain(..=at);
        }
    }
}

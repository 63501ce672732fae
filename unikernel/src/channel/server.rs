//! The VM's end of a channel. Nothing here waits, and whatever dom0 does has a bound: one question at a time, answers
//! of a size that is known, so many questions a second.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use grant::{Access, DomId, EventChannel, GrantAccess, Granted, Port};

use super::ring::{self, Broken, Head, Inlet, Outlet, PAGES};
use super::wire::{self, HEAD, MAX_ASK, Place, VERSION};

/// Questions a second, on average.
pub const RATE: u32 = 20;
/// Questions at once.
const BURST: u32 = 40;
/// Between two looks at what dom0 has sent: notifications that come faster than that wait.
const PAUSE: Duration = Duration::from_millis(1);
/// An answer of which nothing was read for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(30);

/// A question: its number, and its body.
pub type Question = (u32, Vec<u8>);

/// The VM's end.
pub struct Server {
    /// Granted for as long as this lives.
    granted: Granted,
    head: Head,
    asks: Inlet,
    answers: Outlet,
    events: Box<dyn EventChannel>,
    port: Port,
    /// Whom we listen to.
    session: u32,
    /// It broke the protocol: nothing is heard until somebody else attaches.
    broken: bool,
    /// The question as far as it is here.
    input: Vec<u8>,
    /// The answer as far as it is not gone.
    output: Vec<u8>,
    sent: usize,
    /// Since when nothing of the answer was read.
    stuck: Option<Instant>,
    /// Questions that may be taken now, and as of when.
    tokens: f64,
    filled: Instant,
    /// The port has reported and is masked until then.
    masked: Option<Instant>,
}

impl Server {
    /// Grants the pages to dom0 and makes the event channel.
    ///
    /// # Errors
    /// What the world says; `NotFound` where there is no gntalloc.
    pub fn new(access: &mut dyn GrantAccess, mut events: Box<dyn EventChannel>, now: Instant) -> io::Result<Server> {
        let dom0 = DomId(0);
        let granted = access.grant(dom0, PAGES, Access::ReadWrite)?;
        let parts = ring::found(&granted.memory.pages(), VERSION.into());
        let (head, asks, answers) = parts.map_err(io::Error::other)?;
        let port = events.alloc_unbound(dom0)?;
        Ok(Server {
            granted,
            head,
            asks,
            answers,
            events,
            port,
            session: 0,
            broken: true,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            stuck: None,
            tokens: f64::from(BURST),
            filled: now,
            masked: None,
        })
    }

    /// What is to be announced.
    pub fn place(&self) -> Place {
        let refs = self.granted.refs.iter().map(|gref| gref.0).collect();
        Place { version: VERSION, port: self.port.0, refs }
    }

    /// Readable when dom0 has done something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// When [`Server::turn`] has something to do without an event.
    pub fn timer(&self) -> Option<Instant> {
        let lacking = (self.tokens < 1.0 && !self.broken).then(|| self.filled + Duration::from_secs(1) / RATE);
        let stuck = self.stuck.map(|since| since + PATIENCE);
        [self.masked, lacking, stuck].into_iter().flatten().min()
    }

    /// Does what there is to do; a question, if there is one that may be taken now. To be called until there is none.
    pub fn turn(&mut self, now: Instant) -> Option<Question> {
        if let Err(error) = self.hear(now) {
            tracing::debug!(%error, "the request channel's events");
        }
        self.refill(now);
        let wanted = self.head.wanted();
        if wanted != self.session {
            self.attach(wanted);
        }
        match self.exchange(now) {
            Ok(question) => question,
            Err(broken) => {
                self.give_up(&broken.to_string());
                None
            }
        }
    }

    /// Answers a question.
    pub fn answer(&mut self, id: u32, body: &[u8], now: Instant) {
        if self.broken {
            return;
        }
        self.output = wire::pieces(id, body);
        self.sent = 0;
        if let Err(broken) = self.send(now) {
            self.give_up(&broken.to_string());
        }
    }

    /// Takes the port's events; it reports again after a pause.
    fn hear(&mut self, now: Instant) -> io::Result<()> {
        let mut ports = Vec::new();
        self.events.pending(&mut ports)?;
        if !ports.is_empty() {
            self.masked.get_or_insert(now + PAUSE);
        }
        if self.masked.is_some_and(|until| until <= now) {
            self.masked = None;
            self.events.unmask(&[self.port])?;
        }
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * f64::from(RATE)).min(f64::from(BURST));
        self.filled = now;
    }

    /// Listens to somebody else from now on; 0 is nobody.
    fn attach(&mut self, token: u32) {
        self.input = Vec::new();
        self.output = Vec::new();
        self.sent = 0;
        self.stuck = None;
        self.broken = token == 0;
        self.session = token;
        self.asks.reset();
        self.answers.reset();
        self.head.listen_to(token);
        self.notify();
    }

    fn exchange(&mut self, now: Instant) -> Result<Option<Question>, Broken> {
        if self.broken {
            return Ok(None);
        }
        self.send(now)?;
        if self.broken || !self.output.is_empty() || self.tokens < 1.0 {
            return Ok(None);
        }
        if !self.fill(HEAD)? {
            return Ok(None);
        }
        let mut bytes = [0; HEAD];
        bytes.copy_from_slice(&self.input[..HEAD]);
        let head = wire::Head::parse(bytes);
        if head.version != VERSION {
            let why = format!("version {} of the request channel is not spoken here, but {VERSION}", head.version);
            self.refuse(head.id, &why, now);
            return Ok(None);
        }
        if head.len as usize > MAX_ASK || !head.last {
            self.refuse(head.id, &format!("a question is one piece of at most {MAX_ASK} bytes"), now);
            return Ok(None);
        }
        if !self.fill(HEAD + head.len as usize)? {
            return Ok(None);
        }
        self.tokens -= 1.0;
        let body = self.input.split_off(HEAD);
        self.input = Vec::new();
        Ok(Some((head.id, body)))
    }

    /// Has `count` bytes of input, if they have come.
    fn fill(&mut self, count: usize) -> Result<bool, Broken> {
        let had = self.input.len();
        if had < count {
            self.input.resize(count, 0);
            let read = self.asks.read(&mut self.input[had..])?;
            self.input.truncate(had + read);
            if read > 0 {
                self.notify();
            }
        }
        Ok(self.input.len() >= count)
    }

    /// Says what is wrong, and hears nothing more: where the next question begins is not known.
    fn refuse(&mut self, id: u32, why: &str, now: Instant) {
        let answer = wire::Answer::Refused { code: 1, why: why.to_owned() };
        let body = serde_json::to_vec(&answer).unwrap_or_default();
        self.answer(id, &body, now);
        self.give_up(why);
    }

    fn give_up(&mut self, why: &str) {
        tracing::debug!(why, "whoever used the request channel is not listened to any more");
        self.broken = true;
        self.input = Vec::new();
        self.output = Vec::new();
        self.stuck = None;
    }

    /// Sends as much as there is room for.
    fn send(&mut self, now: Instant) -> Result<(), Broken> {
        if self.output.is_empty() {
            return Ok(());
        }
        let count = self.answers.write(&self.output[self.sent..])?;
        self.sent += count;
        if count > 0 {
            self.stuck = None;
            self.notify();
        }
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        } else if now.saturating_duration_since(*self.stuck.get_or_insert(now)) >= PATIENCE {
            self.give_up("an answer is not read");
        }
        Ok(())
    }

    fn notify(&mut self) {
        // Nobody may be there any more.
        if let Err(error) = self.events.notify(self.port) {
            tracing::debug!(%error, "the request channel's other end was not told");
        }
    }
}

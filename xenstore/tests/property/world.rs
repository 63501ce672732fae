//! The daemon with its clients on one side, the model on the other, and everything that goes to both.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use xenstore::server::Limits;
use xenstore::wire::MessageType;

use crate::daemon::Daemon;
use crate::model::Model;
use crate::peer::{Answer, Peer};
use crate::steps::{self, DOMAINS, Request};

/// Requests that are shown when something differs.
const SHOWN: usize = 60;

/// One connection on both sides.
struct Client {
    peer: Peer,
    model: usize,
    domid: u16,
    open: Vec<u32>,
}

pub struct World {
    daemon: Daemon,
    model: Model,
    random: Rng,
    clients: Vec<Client>,
    /// Who goes on for a while.
    current: usize,
    alive: [bool; DOMAINS as usize + 1],
    log: VecDeque<String>,
    counts: BTreeMap<String, u64>,
    events: u64,
    seed: u64,
}

impl World {
    pub fn new(seed: u64, limits: Limits) -> World {
        let daemon = Daemon::with(limits);
        let mut dom0 = Peer::connect(&daemon.socket());
        let model = Model::new(limits, dump(&mut dom0));
        let mut world = World {
            daemon,
            model,
            random: Rng::with_seed(seed),
            clients: Vec::new(),
            current: 0,
            alive: [false; DOMAINS as usize + 1],
            log: VecDeque::new(),
            counts: BTreeMap::new(),
            events: 0,
            seed,
        };
        (0..3).for_each(|_| world.connect(0));
        (1..=DOMAINS).for_each(|domid| world.introduce(domid));
        world
    }

    /// One thing that happens to the store.
    pub fn step(&mut self) {
        if self.random.u8(0..5) == 0 {
            self.current = self.random.usize(0..self.clients.len());
        }
        let domid = self.clients[self.current].domid;
        match self.random.u16(0..1000) {
            0..=1 => self.release(),
            2..=5 => self.reconnect(),
            6..=9 => self.compare(0, MessageType::ResetWatches as u32, b"\0".to_vec()),
            10..=69 => {
                let payload = steps::watch(&mut self.random);
                self.compare(0, MessageType::Watch as u32, payload);
            }
            70..=109 => {
                let payload = steps::watch(&mut self.random);
                self.compare(0, MessageType::Unwatch as u32, payload);
            }
            110..=159 => self.start(),
            160..=219 => self.end(),
            227..=229 => self.tell_of_domains(),
            // Guests have somewhere to write, whatever has been removed.
            220..=223 => {
                let domid = self.random.u16(1..=DOMAINS);
                self.furnish(domid);
            }
            224..=226 => {
                let (kind, payload) = steps::on_nodes(&mut self.random, domid);
                self.compare(0x7fff_0000, kind, payload);
            }
            _ => {
                let transaction = if self.random.u8(0..4) == 0 { 0 } else { self.transaction() };
                let (kind, payload) = steps::on_nodes(&mut self.random, domid);
                self.compare(transaction, kind, payload);
            }
        }
        let dead = (1..=DOMAINS).find(|domid| !self.alive[usize::from(*domid)]);
        if let Some(domid) = dead.filter(|_| self.random.u8(0..50) == 0) {
            self.introduce(domid);
        }
    }

    /// What a toolstack says of domains, and what others say who may not.
    fn tell_of_domains(&mut self) {
        let (domid, other) = (self.random.u16(0..=DOMAINS + 1), self.random.u16(0..=DOMAINS + 1));
        let (kind, payload) = match self.random.u8(0..8) {
            0..=2 => (MessageType::SetTarget, format!("{domid}\0{other}\0")),
            3 => (MessageType::IsDomainIntroduced, format!("{domid}\0")),
            4 => (MessageType::Resume, format!("{domid}\0")),
            5 => (MessageType::SetTarget, format!("{domid}\0")),
            6 => (MessageType::Introduce, format!("{domid}\x000\x000\0")),
            _ if domid <= DOMAINS && (domid == 0 || self.alive[usize::from(domid)]) => {
                (MessageType::Introduce, format!("{domid}\x000\x001\0"))
            }
            _ => return,
        };
        let again = kind == MessageType::Introduce && domid != 0;
        let answer = self.ask(0, kind as u32, payload.into_bytes());
        if again && answer.is_ok() {
            self.clients.iter_mut().filter(|client| client.domid == domid).for_each(|client| client.open.clear());
        }
    }

    /// One of the current client's transactions, or none.
    fn transaction(&mut self) -> u32 {
        self.random.choice(&self.clients[self.current].open).copied().unwrap_or(0)
    }

    fn start(&mut self) {
        let number = self.ask(0, MessageType::TransactionStart as u32, b"\0".to_vec());
        if let Ok(number) = number {
            let text = std::str::from_utf8(&number).unwrap();
            let number = text.trim_end_matches('\0').parse().unwrap();
            let client = &mut self.clients[self.current];
            self.model.started(client.model, number);
            client.open.push(number);
        }
    }

    fn end(&mut self) {
        let transaction = self.transaction();
        let how: &[u8] = match self.random.u8(0..20) {
            0 => b"\0",
            1..=3 => b"F\0",
            _ => b"T\0",
        };
        let answer = self.ask(transaction, MessageType::TransactionEnd as u32, how.to_vec());
        if how != b"\0" && transaction != 0 {
            self.clients[self.current].open.retain(|open| *open != transaction);
            let outcome = answer.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&how[..1]).into());
            *self.counts.entry(format!("end {outcome}")).or_default() += 1;
        }
    }

    /// What is answered matters only in that both sides say the same.
    fn compare(&mut self, transaction: u32, kind: u32, payload: Vec<u8>) {
        let _ = self.ask(transaction, kind, payload);
    }

    /// To both sides: the same is answered, and everybody is told the same.
    fn ask(&mut self, transaction: u32, kind: u32, payload: Vec<u8>) -> Answer {
        let request: Request = (kind, payload);
        let (model, domid) = (self.clients[self.current].model, self.clients[self.current].domid);
        let expected = self.model.ask(model, request.0, transaction, &request.1);
        let said = format!("client {model} of {domid}: {}, transaction {transaction}", shown(&request));
        self.log(format!("{said} -> {}", answer(&expected)));
        let sent = self.clients[self.current].peer.send(request.0, transaction, &request.1);
        let got = sent.and_then(|()| self.clients[self.current].peer.answer(request.0, transaction));
        let got = got.unwrap_or_else(|error| self.fail(&format!("{said}: {error}")));
        let kind = MessageType::from_number(kind);
        let outcome = got.as_ref().map_or_else(|error| error.to_string(), |_| "OK".into());
        *self.counts.entry(format!("{outcome}{}", if transaction == 0 { "" } else { " inside" })).or_default() += 1;
        let same = match (kind, &got, &expected) {
            // The number is the daemon's to choose.
            (Some(MessageType::TransactionStart), Ok(_), Ok(_)) => true,
            // So is what stands before the first NUL; the last is the list's end.
            (Some(MessageType::DirectoryPart), Ok(got), Ok(expected)) => {
                let at = got.iter().position(|byte| *byte == 0);
                at.is_some_and(|at| got[at + 1..].strip_suffix(b"\0") == Some(expected))
            }
            _ => got == expected,
        };
        if !same {
            self.fail(&format!("{said}: answered {}, expected {}", answer(&got), answer(&expected)));
        }
        // What a request means to its own client is told before the answer; only a watch comes first.
        let early = self.clients[self.current].peer.waiting();
        let told = if kind == Some(MessageType::Watch) { 0 } else { self.model.waiting_of(model) };
        if early != told {
            self.fail(&format!("{said}: {early} events before the answer, expected {told}"));
        }
        self.tell();
        if self.clients[self.current].open.is_empty() || kind != Some(MessageType::ResetWatches) {
            return got;
        }
        self.clients[self.current].open.clear();
        got
    }

    /// A request of dom0 that makes the world what it should be.
    fn set(&mut self, client: usize, kind: MessageType, payload: &str) {
        let current = std::mem::replace(&mut self.current, client);
        let answer = self.ask(0, kind as u32, payload.as_bytes().to_vec());
        assert!(answer.is_ok(), "{payload:?}");
        self.current = current;
    }

    /// Everybody hears what the model says, in its order.
    fn tell(&mut self) {
        for model in self.model.waiting() {
            let expected = self.model.events(model);
            let at = self.clients.iter().position(|client| client.model == model).unwrap();
            for (number, event) in expected.iter().enumerate() {
                let got = self.clients[at].peer.event();
                let same = got.as_ref().is_ok_and(|got| got == event);
                if !same {
                    let of = self.clients[at].domid;
                    self.fail(&format!("client {model} of {of}: event {got:?}, expected {number} of {expected:?}"));
                }
                self.events += 1;
            }
        }
    }

    fn connect(&mut self, domid: u16) {
        let socket = if domid == 0 { self.daemon.socket() } else { self.daemon.domain_socket(domid) };
        let (peer, model) = (Peer::connect(&socket), self.model.connect(domid));
        self.clients.push(Client { peer, model, domid, open: Vec::new() });
        // Its place among those that hear of something is settled with the first answer.
        self.current = self.clients.len() - 1;
        let answer = self.ask(0, MessageType::GetDomainPath as u32, b"0\0".to_vec());
        assert!(answer.is_ok());
    }

    fn reconnect(&mut self) {
        if self.current < 3 && self.random.u8(0..3) != 0 {
            return;
        }
        let client = self.clients.remove(self.current);
        self.log(format!("client {} of {} goes", client.model, client.domid));
        self.model.close(client.model);
        drop(client.peer);
        self.settle();
        self.connect(client.domid);
        // The first is dom0's, always.
        self.clients.sort_by_key(|client| client.domid);
        self.current = 0;
    }

    /// What a closed connection held is free when the daemon has come around to it: its end was there before these
    /// requests were.
    fn settle(&mut self) {
        for _ in 0..3 {
            assert!(self.clients[0].peer.request(MessageType::GetDomainPath, b"0\0").is_ok());
        }
    }

    fn introduce(&mut self, domid: u16) {
        self.log(format!("introduce {domid}"));
        self.daemon.handle.introduce(domid, &self.daemon.domain_socket(domid)).unwrap();
        self.alive[usize::from(domid)] = true;
        self.model.introduce(domid);
        self.tell();
        self.furnish(domid);
        for _ in 0..self.random.usize(1..=3) {
            self.connect(domid);
        }
        self.clients.sort_by_key(|client| client.domid);
        self.current = 0;
    }

    /// What a toolstack makes for a domain.
    fn furnish(&mut self, domid: u16) {
        let neighbour = domid % DOMAINS + 1;
        let data = (format!("/local/domain/{domid}/data\0"), format!("n{domid}\0"));
        let dev = (format!("/local/domain/{domid}/dev\0"), format!("n{domid}\0b{neighbour}\0"));
        for (path, perms) in [data, dev, ("/shared\0".to_owned(), "b0\0".to_owned())] {
            self.set(0, MessageType::Mkdir, &path);
            self.set(0, MessageType::SetPerms, &format!("{path}{perms}"));
        }
    }

    fn release(&mut self) {
        let domid = self.random.u16(1..=DOMAINS);
        if !self.alive[usize::from(domid)] {
            return;
        }
        self.log(format!("release {domid}"));
        self.clients.retain(|client| client.domid != domid);
        self.current = 0;
        self.daemon.handle.release(domid).unwrap();
        self.alive[usize::from(domid)] = false;
        self.model.release(domid);
        *self.counts.entry("released".into()).or_default() += 1;
        self.tell();
    }

    /// Every node, as dom0 sees it, and that nobody was told anything else.
    pub fn compare_all(&mut self) {
        for at in 0..self.clients.len() {
            let more = self.clients[at].peer.events();
            if !more.is_empty() {
                let (model, domid) = (self.clients[at].model, self.clients[at].domid);
                self.fail(&format!("client {model} of {domid} heard more: {more:?}"));
            }
        }
        let (got, expected) = (dump(&mut self.clients[0].peer), self.model.dump());
        if let Some((got, expected)) = got.iter().zip(&expected).find(|(got, expected)| got != expected) {
            self.fail(&format!("the store has {got:?}, expected {expected:?}"));
        }
        if got.len() != expected.len() {
            self.fail(&format!("{} nodes, expected {}", got.len(), expected.len()));
        }
    }

    fn log(&mut self, line: String) {
        if self.log.len() == SHOWN {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    fn fail(&self, what: &str) -> ! {
        let log: Vec<&str> = self.log.iter().map(|line| &**line).collect();
        panic!("{}\n\nWINDSOR_SEED={}: {what}", log.join("\n"), self.seed);
    }

    pub fn summary(&self) -> String {
        format!("{} events, {:?}", self.events, self.counts)
    }

    /// A run in which something never happened has not tested it.
    pub fn assert_everything_happened(&self, steps: u64) {
        let outcomes = [
            "OK",
            "OK inside",
            "EACCES",
            "ENOENT",
            "EINVAL",
            "EPERM",
            "EEXIST",
            "E2BIG",
            "ENOSPC",
            "ENOSPC inside",
            "ENOSYS",
            "end T",
            "end F",
            "end EAGAIN",
            "end ENOSPC",
            "released",
        ];
        for outcome in outcomes {
            let count = self.counts.get(outcome).copied().unwrap_or(0);
            assert!(count >= steps / 20_000, "{count} times {outcome}: {}", self.summary());
        }
    }
}

/// All nodes, each before those in it: path, value, children, permissions.
fn dump(dom0: &mut Peer) -> Vec<(String, Vec<u8>, Vec<String>, String)> {
    let mut todo = vec!["/".to_owned()];
    let mut all = Vec::new();
    while let Some(path) = todo.pop() {
        let argument = format!("{path}\0").into_bytes();
        let mut ask = |kind| dom0.request(kind, &argument).unwrap_or_else(|error| panic!("{path}: {error}"));
        let value = ask(MessageType::Read);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let children = text(ask(MessageType::Directory));
        let children: Vec<String> = children.split_terminator('\0').map(str::to_owned).collect();
        let perms = text(ask(MessageType::GetPerms));
        todo.extend(children.iter().rev().map(|name| crate::model::paths::child(&path, name)));
        all.push((path, value, children, perms));
    }
    all
}

fn shown((kind, payload): &Request) -> String {
    let kind = MessageType::from_number(*kind).map_or_else(|| kind.to_string(), |kind| format!("{kind:?}"));
    let more = if payload.len() > 80 { format!("... {} bytes", payload.len()) } else { String::new() };
    format!("{kind} {}{more}", payload[..payload.len().min(80)].escape_ascii())
}

fn answer(answer: &Answer) -> String {
    match answer {
        Ok(payload) => format!("{:?}", payload.escape_ascii().to_string()),
        Err(error) => error.to_string(),
    }
}

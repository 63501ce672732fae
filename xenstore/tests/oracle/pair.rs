//! Both daemons side by side: each step happens to both, and whatever they say is compared before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use xenstore::wire::{Header, MessageType, message};

use super::World;
use super::differences;
use super::link::{Link, Message};
use super::steps::{BUILT, CLIENTS, DOMAINS, Inside, Step, is_dom0};

/// What a daemon has said to one client for one request: events and the answer in their order, or that it hung up.
type Said = Result<Vec<Message>, String>;

/// The two do not agree.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// What was compared.
    pub about: String,
    /// What the C daemon said.
    pub real: String,
    /// What ours said.
    pub ours: String,
}

impl Divergence {
    /// True for what may be the same fault, reached on another way.
    pub fn is_like(&self, other: &Divergence) -> bool {
        let kind = |text: &str| text.split_whitespace().next().map(str::to_owned);
        self.about == other.about && kind(&self.real) == kind(&other.real) && kind(&self.ours) == kind(&other.ours)
    }
}

struct Side {
    world: Box<dyn World>,
    links: Vec<Option<Box<dyn Link>>>,
}

impl Side {
    fn connect(&mut self, who: usize) -> io::Result<()> {
        self.links[who] = None;
        let link = if is_dom0(who) { self.world.dom0() } else { self.world.domain(who as u16) };
        self.links[who] = Some(link?);
        Ok(())
    }

    fn send(&mut self, who: usize, bytes: &[u8]) -> Result<(), String> {
        let link = self.links[who].as_mut().ok_or("not connected")?;
        link.send(bytes).map_err(|error| format!("sending: {error}"))
    }

    /// Everything up to the answer to a request.
    fn hear(&mut self, who: usize, request: u32) -> Said {
        let link = self.links[who].as_mut().ok_or("not connected")?;
        let mut said = Vec::new();
        loop {
            let message = link.receive().map_err(|error| format!("after {said:?}: {error}"))?;
            let answer = !message.is_event();
            if answer && message.header.request != request {
                return Err(format!("an answer to {} where {request} was asked", message.header.request));
            }
            said.push(message);
            if answer {
                return Ok(said);
            }
        }
    }
}

/// The two, and what is known of both.
pub struct Pair {
    real: Side,
    ours: Side,
    /// Each client's open transactions by the numbers that the two gave them.
    transactions: Vec<Vec<[u32; 2]>>,
    /// Clients that may have watches.
    watching: [bool; CLIENTS],
    /// Whom each domain acts for, or did.
    targets: BTreeMap<u16, BTreeSet<u16>>,
    /// Domains of whom there was another one before.
    reborn: BTreeSet<u16>,
    request: u32,
}

impl Pair {
    /// Side by side from the beginning.
    pub fn new(real: Box<dyn World>, ours: Box<dyn World>) -> io::Result<Pair> {
        let side = |world| Side { world, links: (0..CLIENTS).map(|_| None).collect() };
        let mut pair = Pair {
            real: side(real),
            ours: side(ours),
            transactions: vec![Vec::new(); CLIENTS],
            watching: [false; CLIENTS],
            targets: BTreeMap::new(),
            reborn: BTreeSet::new(),
            request: 0,
        };
        for who in (0..CLIENTS).filter(|who| is_dom0(*who)) {
            pair.connect(who)?;
        }
        for domid in BUILT {
            pair.both(|side| side.world.build(domid))?;
        }
        Ok(pair)
    }

    /// Lets a step happen to both.
    ///
    /// # Errors
    /// Where they disagree.
    ///
    /// # Panics
    /// When the system fails.
    pub fn step(&mut self, step: &Step) -> Result<(), Divergence> {
        match step {
            Step::Ask { who, inside, kind, payload } => self.ask(*who, *inside, *kind, payload).map(drop),
            Step::Again { who } if is_dom0(*who) => {
                self.connect(*who).expect("connecting");
                self.settle()
            }
            Step::Again { who } => self.introduce(*who as u16),
            Step::Introduce { domid } if self.is_there(*domid) => Ok(()),
            Step::Introduce { domid } => {
                self.introduce(*domid)?;
                self.connect(usize::from(*domid)).expect("connecting");
                Ok(())
            }
            // The C daemon does not let a domain go while another one acts for it.
            Step::Release { domid } | Step::Destroy { domid } if self.is_target(*domid) => Ok(()),
            Step::Overlong { who } if self.is_target(*who as u16) => Ok(()),
            Step::Release { domid } => {
                self.end_transactions()?;
                let there = self.is_there(*domid);
                self.forget(usize::from(*domid));
                self.release(*domid)?;
                if there { self.gone(*domid) } else { Ok(()) }
            }
            Step::Destroy { domid } if !self.is_there(*domid) => Ok(()),
            Step::Destroy { domid } => {
                self.end_transactions()?;
                self.forget(usize::from(*domid));
                self.both(|side| side.world.destroy(*domid)).expect("destroying a domain");
                self.gone(*domid)
            }
            Step::Overlong { who } => self.overlong(*who),
            Step::Audit => self.audit(),
        }
    }

    /// Nobody goes on with a transaction over a domain's end: what it has seen may name the domain.
    fn end_transactions(&mut self) -> Result<(), Divergence> {
        for who in 0..CLIENTS {
            while !self.transactions[who].is_empty() {
                self.ask(who, Inside::Open(0), MessageType::TransactionEnd as u32, b"F\0")?;
            }
        }
        Ok(())
    }

    /// Once both know that a domain has gone, there is another of its number.
    fn gone(&mut self, domid: u16) -> Result<(), Divergence> {
        self.ask(0, Inside::None, MessageType::IsDomainIntroduced as u32, format!("{domid}\0").as_bytes())?;
        self.settle()?;
        self.targets.remove(&domid);
        self.reborn.insert(domid);
        // Without any write until the next one comes, that one would inherit rights from the C daemon.
        self.ask(0, Inside::None, MessageType::Write as u32, b"/s\0another")?;
        self.forget_the_dead()?;
        self.both(|side| side.world.build(domid)).expect("building a domain");
        Ok(())
    }

    fn both(&mut self, mut act: impl FnMut(&mut Side) -> io::Result<()>) -> io::Result<()> {
        act(&mut self.real).and_then(|()| act(&mut self.ours))
    }

    fn is_target(&self, domid: u16) -> bool {
        self.targets.values().any(|targets| targets.contains(&domid))
    }

    fn is_there(&self, domid: u16) -> bool {
        self.real.links[usize::from(domid)].is_some()
    }

    /// A client has neither watches nor transactions any more.
    fn begin_anew(&mut self, who: usize) {
        self.transactions[who].clear();
        self.watching[who] = false;
    }

    fn forget(&mut self, who: usize) {
        self.begin_anew(who);
        self.real.links[who] = None;
        self.ours.links[who] = None;
    }

    fn connect(&mut self, who: usize) -> io::Result<()> {
        self.begin_anew(who);
        self.both(|side| side.connect(who))
    }

    /// Releases a domain. The C daemon lets go of a connection only when its loop has passed it: what the end of the domain's
    /// nodes fires may come before the answer, or after it. All of it comes, in the same order.
    fn release(&mut self, domid: u16) -> Result<(), Divergence> {
        let payload = format!("{domid}\0").into_bytes();
        let kind = MessageType::Release as u32;
        let answers = self.exchange(0, kind, [0; 2], &payload);
        let settled = self.exchange(0, MessageType::GetDomainPath as u32, [0; 2], b"1\0");
        let joined = |first: Said, rest: Said| {
            let mut all = plain(first, 0)?;
            all.extend(plain(rest, 0)?);
            all.sort_by_key(Message::is_event);
            Ok(all)
        };
        compare(kind, &payload, joined(answers.0, settled.0), joined(answers.1, settled.1))?;
        self.settle()
    }

    fn introduce(&mut self, domid: u16) -> Result<(), Divergence> {
        self.begin_anew(usize::from(domid));
        let payload = format!("{domid}\x001\x001\0").into_bytes();
        self.ask(0, Inside::None, MessageType::Introduce as u32, &payload).map(drop)
    }

    /// Sends a request to both and compares what comes back, to the client and to everybody who watches. The C daemon's
    /// answer is returned.
    fn ask(&mut self, who: usize, inside: Inside, kind: u32, payload: &[u8]) -> Result<Message, Divergence> {
        let nothing = Message { header: Header { kind, request: 0, transaction: 0, len: 0 }, payload: Vec::new() };
        if self.real.links[who].is_none() {
            return Ok(nothing);
        }
        let open = &self.transactions[who];
        let (at, numbers) = match inside {
            Inside::Open(which) if !open.is_empty() => (Some(which % open.len()), open[which % open.len()]),
            Inside::Bogus => (None, [77_777; 2]),
            _ => (None, [0; 2]),
        };
        if differences::answers_with_stale_errno(kind, payload) {
            let (real, ours) = self.exchange(who, MessageType::Read as u32, [0; 2], b"//\0");
            compare(MessageType::Read as u32, b"//\0", plain(real, 0), plain(ours, 0))?;
        }
        let (real, ours) = self.exchange(who, kind, numbers, payload);
        let (real, ours) = (plain(real, numbers[0]), plain(ours, numbers[1]));
        let answer = |said: &Said| said.as_ref().ok().and_then(|said| said.iter().find(|one| !one.is_event()).cloned());
        let (Some(theirs), Some(mine)) = (answer(&real), answer(&ours)) else {
            return compare(kind, payload, real, ours).map(|()| nothing);
        };
        if kind == MessageType::TransactionStart as u32 && theirs.error().is_none() && mine.error().is_none() {
            let number = |answer: &Message| {
                let text = String::from_utf8_lossy(&answer.payload).into_owned();
                text.trim_end_matches('\0').parse().unwrap_or_else(|_| panic!("{answer:?}"))
            };
            self.transactions[who].push([number(&theirs), number(&mine)]);
        } else {
            compare(kind, payload, real, ours)?;
        }
        if differences::is_torn(kind, &theirs, &mine) {
            // From here on the two see different things in there; nobody can commit it.
            let number = [self.transactions[who].remove(at.expect("it is in a transaction"))];
            let ended = self.exchange(who, MessageType::TransactionEnd as u32, number[0], b"F\0");
            assert!(ended.0.is_ok() && ended.1.is_ok(), "{ended:?}");
            return Ok(theirs);
        }
        self.note(who, kind, at, payload, &theirs);
        let silent = [MessageType::Read, MessageType::Directory, MessageType::GetPerms, MessageType::DirectoryPart];
        if !silent.iter().any(|silent| *silent as u32 == kind) {
            self.settle()?;
        }
        Ok(theirs)
    }

    /// What an answer means for what the client has.
    fn note(&mut self, who: usize, kind: u32, at: Option<usize>, payload: &[u8], answer: &Message) {
        match MessageType::from_number(kind) {
            Some(MessageType::Watch) => self.watching[who] = true,
            Some(MessageType::SetTarget) if answer.error().is_none() => {
                let domids = String::from_utf8_lossy(payload).into_owned();
                let domids: Vec<u16> = domids.split_terminator('\0').filter_map(|domid| domid.parse().ok()).collect();
                self.targets.entry(domids[0]).or_default().insert(domids[1]);
            }
            Some(MessageType::ResetWatches) if answer.error().is_none() => self.begin_anew(who),
            Some(MessageType::TransactionEnd) if payload == b"T\0" || payload == b"F\0" => {
                at.map(|at| self.transactions[who].remove(at));
            }
            _ => {}
        }
    }

    fn exchange(&mut self, who: usize, kind: u32, numbers: [u32; 2], payload: &[u8]) -> (Said, Said) {
        self.request += 1;
        let request = self.request;
        let bytes = numbers.map(|number| message(kind, request, number, &[payload]).expect("it fits a message"));
        let sent = (self.real.send(who, &bytes[0]), self.ours.send(who, &bytes[1]));
        (sent.0.and_then(|()| self.real.hear(who, request)), sent.1.and_then(|()| self.ours.hear(who, request)))
    }

    /// All events that are under way arrive, and are compared: whoever may have watches asks something that changes
    /// nothing, and what comes before the answer is everything.
    fn settle(&mut self) -> Result<(), Divergence> {
        for who in 0..CLIENTS {
            if self.watching[who] {
                let (real, ours) = self.exchange(who, MessageType::GetDomainPath as u32, [0; 2], b"1\0");
                compare(MessageType::WatchEvent as u32, b"", plain(real, 0), plain(ours, 0))?;
            }
        }
        Ok(())
    }

    fn overlong(&mut self, who: usize) -> Result<(), Divergence> {
        if self.real.links[who].is_none() {
            return Ok(());
        }
        self.end_transactions()?;
        let header = Header { kind: MessageType::Read as u32, request: 1, transaction: 0, len: 4097 }.encode();
        let said = |side: &mut Side| {
            side.send(who, &header)?;
            side.hear(who, 1)
        };
        let (real, ours) = (said(&mut self.real), said(&mut self.ours));
        for (said, name) in [(&real, "the C daemon"), (&ours, "ours")] {
            assert!(said.is_err(), "{name} has answered to a message that is too long: {said:?}");
        }
        if is_dom0(who) {
            return self.step(&Step::Again { who });
        }
        // For the C daemon a domain has lost its ring until it is released.
        let domid = who as u16;
        self.step(&Step::Release { domid }).and_then(|()| self.step(&Step::Introduce { domid }))
    }

    /// The paths of all nodes.
    fn paths(&mut self) -> Result<Vec<String>, Divergence> {
        let mut paths = vec!["/".to_owned()];
        let mut at = 0;
        while let Some(path) = paths.get(at) {
            let payload = format!("{path}\0").into_bytes();
            let above = path.trim_end_matches('/').to_owned();
            let names = self.ask(0, Inside::None, MessageType::Directory as u32, &payload)?.payload;
            let names = String::from_utf8_lossy(&names).into_owned();
            paths.extend(names.split_terminator('\0').map(|name| format!("{above}/{name}")));
            at += 1;
        }
        Ok(paths)
    }

    /// The C daemon goes on showing, and counting, what was granted to a domain that has gone; ours forgets it. From here
    /// on both do.
    fn forget_the_dead(&mut self) -> Result<(), Divergence> {
        for path in self.paths()? {
            let payload = format!("{path}\0").into_bytes();
            let (real, ours) = self.exchange(0, MessageType::GetPerms as u32, [0; 2], &payload);
            let last = |said: &Said| said.as_ref().ok().and_then(|said| said.last().cloned());
            match (last(&real), last(&ours)) {
                (Some(theirs), Some(mine)) if differences::is_without_the_dead(&self.reborn, &theirs, &mine) => {
                    let payload = [payload, mine.payload].concat();
                    self.ask(0, Inside::None, MessageType::SetPerms as u32, &payload)?;
                }
                _ => compare(MessageType::GetPerms as u32, &payload, plain(real, 0), plain(ours, 0))?,
            }
        }
        Ok(())
    }

    /// Reads the whole store on both.
    fn audit(&mut self) -> Result<(), Divergence> {
        for path in self.paths()? {
            let payload = format!("{path}\0").into_bytes();
            self.ask(0, Inside::None, MessageType::Read as u32, &payload)?;
            self.ask(0, Inside::None, MessageType::GetPerms as u32, &payload)?;
        }
        for domid in DOMAINS {
            let payload = format!("{domid}\0").into_bytes();
            self.ask(0, Inside::None, MessageType::IsDomainIntroduced as u32, &payload)?;
        }
        Ok(())
    }
}

/// Without what each daemon numbers as it likes.
fn plain(said: Said, transaction: u32) -> Said {
    let mut said = said?;
    for message in &mut said {
        if message.header.transaction != transaction && !message.is_event() {
            return Err(format!("{message:?} is not about transaction {transaction}"));
        }
        message.header.transaction = 0;
    }
    Ok(said)
}

fn compare(kind: u32, payload: &[u8], mut real: Said, mut ours: Said) -> Result<(), Divergence> {
    let about = MessageType::from_number(kind).map_or_else(|| format!("type {kind}"), |kind| format!("{kind:?}"));
    for said in [&mut real, &mut ours] {
        said.iter_mut().flatten().for_each(forget_generation);
    }
    match (&real, &ours) {
        (Ok(theirs), Ok(mine)) if theirs == mine => Ok(()),
        (Ok(theirs), Ok(mine)) if differences::is_meant(kind, payload, theirs, mine) => Ok(()),
        _ => Err(Divergence { about, real: text(&real), ours: text(&ours) }),
    }
}

/// DIRECTORY_PART begins with a number that means something only to the daemon that gave it.
fn forget_generation(message: &mut Message) {
    if message.header.kind == MessageType::DirectoryPart as u32 {
        let end = message.payload.iter().position(|byte| *byte == 0).unwrap_or(0);
        message.payload.drain(..end);
        message.header.len = 0;
    }
}

fn text(said: &Said) -> String {
    match said {
        Ok(said) => {
            let lines: Vec<String> = said.iter().map(|message| format!("{message:?}")).collect();
            lines.join(" | ")
        }
        Err(error) => format!("nothing: {error}"),
    }
}

//! What happens to both daemons: steps that mean something whatever came before them, so that any of them can be left
//! out, and the generator that makes them up.

use std::fmt;

use fastrand::Rng;
use xenstore::wire::MessageType;

/// Clients: 0 is dom0, 1 to 9 are domains, 10 is dom0 on another socket.
pub const CLIENTS: usize = 11;
/// Domains that may be there.
pub const DOMAINS: std::ops::RangeInclusive<u16> = 1..=9;

/// Domains that the hypervisor has: the C daemon takes no other for the owner of a node.
pub const BUILT: std::ops::RangeInclusive<u16> = 1..=12;

/// True for a client that is dom0.
pub fn is_dom0(who: usize) -> bool {
    who == 0 || who == CLIENTS - 1
}

/// In which transaction something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// In none.
    None,
    /// In one of the client's open ones, in none if it has no open one.
    Open(usize),
    /// In one that nobody has opened.
    Bogus,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client asks, whatever the bytes.
    Ask { who: usize, inside: Inside, kind: u32, payload: Vec<u8> },
    /// A client of dom0's hangs up and comes again; a domain is introduced a second time.
    Again { who: usize },
    /// dom0 introduces a domain that is new.
    Introduce { domid: u16 },
    /// dom0 releases a domain.
    Release { domid: u16 },
    /// A domain is destroyed without a word.
    Destroy { domid: u16 },
    /// A client announces more bytes than a message may have, and starts anew when the daemon has hung up on it.
    Overlong { who: usize },
    /// dom0 reads everything.
    Audit,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step::Ask { who, inside, kind, payload } = self else { return write!(f, "{self:?}") };
        match who {
            0 => write!(f, "dom0")?,
            10 => write!(f, "dom0'")?,
            domid => write!(f, "dom{domid}")?,
        }
        match inside {
            Inside::None => {}
            Inside::Open(which) => write!(f, " in open transaction {which}")?,
            Inside::Bogus => write!(f, " in bogus transaction")?,
        }
        match MessageType::from_number(*kind) {
            Some(kind) => write!(f, ": {kind:?}")?,
            None => write!(f, ": type {kind}")?,
        }
        match payload.len() {
            0..=200 => write!(f, " \"{}\"", payload.escape_ascii()),
            len => write!(f, " \"{}...\" ({len} bytes)", payload[..80].escape_ascii()),
        }
    }
}

/// A request outside of transactions.
pub fn ask(who: usize, kind: MessageType, payload: &[u8]) -> Step {
    Step::Ask { who, inside: Inside::None, kind: kind as u32, payload: payload.to_vec() }
}

/// What a toolstack does first: every domain has its directory, and there is one for all.
pub fn beginning() -> Vec<Step> {
    let mut steps = vec![ask(0, MessageType::Mkdir, b"/s\0"), ask(0, MessageType::SetPerms, b"/s\0b0\0")];
    for domid in DOMAINS {
        steps.extend(home(domid));
        steps.push(Step::Introduce { domid });
    }
    steps
}

/// A domain's own directory.
fn home(domid: u16) -> [Step; 2] {
    [
        ask(0, MessageType::Mkdir, format!("/local/domain/{domid}\0").as_bytes()),
        ask(0, MessageType::SetPerms, format!("/local/domain/{domid}\0n{domid}\0").as_bytes()),
    ]
}

/// Makes up steps.
pub struct Generator(Rng);

impl Generator {
    /// The same number, the same steps.
    pub fn new(seed: u64) -> Generator {
        Generator(Rng::with_seed(seed))
    }

    /// The next ones; several that belong together now and then.
    pub fn steps(&mut self) -> Vec<Step> {
        let domid = self.domid();
        match self.0.u32(0..2000) {
            0..4 => vec![Step::Destroy { domid }],
            4..8 => vec![Step::Release { domid }],
            8..20 => vec![Step::Introduce { domid }],
            20..30 => [&home(domid)[..], &[Step::Introduce { domid }]].concat(),
            30..36 => vec![Step::Again { who: self.0.usize(0..CLIENTS) }],
            36..40 => vec![Step::Overlong { who: self.0.usize(0..CLIENTS) }],
            40..44 => vec![Step::Audit],
            44..50 => self.storm(),
            _ => vec![self.request()],
        }
    }

    fn domid(&mut self) -> u16 {
        self.0.u16(DOMAINS)
    }

    /// One domain does one thing often, until a limit stops it.
    fn storm(&mut self) -> Vec<Step> {
        let (who, inside) = (usize::from(self.domid()), self.inside());
        let (kind, count) = *self.choose(&[
            (MessageType::Mkdir, 60),
            (MessageType::Watch, 20),
            (MessageType::TransactionStart, 6),
            (MessageType::Read, 40),
        ]);
        let steps = (0..count).map(|at| {
            let payload = match kind {
                MessageType::Mkdir => format!("storm/{at}\0"),
                MessageType::Read => format!("a/{at}\0"),
                MessageType::Watch => format!("storm\0{at}\0"),
                _ => "\0".to_owned(),
            };
            Step::Ask { who, inside, kind: kind as u32, payload: payload.into_bytes() }
        });
        let mut steps: Vec<Step> = steps.collect();
        let end = [(MessageType::Rm, &b"storm\0"[..]), (MessageType::ResetWatches, b"\0")];
        steps.extend(end.map(|(kind, payload)| ask(who, kind, payload)));
        steps
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.0.usize(0..from.len())]
    }

    fn inside(&mut self) -> Inside {
        match self.0.u32(0..100) {
            0..65 => Inside::None,
            65..99 => Inside::Open(self.0.usize(0..3)),
            _ => Inside::Bogus,
        }
    }

    fn request(&mut self) -> Step {
        use MessageType::*;
        // dom0 is one of many here: what it does is refused least, so it shows least.
        let who = self.0.usize(0..CLIENTS);
        let path = self.path();
        let mut inside = self.inside();
        let (kind, mut payload) = match self.0.u32(0..100) {
            0..12 => (Read, vec![path]),
            12..34 => (Write, vec![path]),
            34..42 => (Mkdir, vec![path]),
            42..50 => (Rm, vec![path]),
            50..55 => (Directory, vec![path]),
            55..58 => {
                let offsets: [&[u8]; 7] = [b"0", b"0", b"2", b"1", b"40", b"5000", b"x"];
                (DirectoryPart, vec![path, self.choose(&offsets).to_vec()])
            }
            58..63 => (GetPerms, vec![path]),
            63..72 => {
                let mut permissions = self.permissions();
                if path == b"/" {
                    // When its owner goes, the C daemon removes all that is below it.
                    permissions.insert(0, b"r0".to_vec());
                }
                (SetPerms, [vec![path], permissions].concat())
            }
            72..79 => (Watch, self.watch(path)),
            79..83 => (Unwatch, self.watch(path)),
            83..89 => {
                if self.0.u32(0..20) > 0 {
                    inside = Inside::None;
                }
                (TransactionStart, vec![b"".to_vec()])
            }
            89..96 => {
                let ends: [&[u8]; 8] = [b"T", b"T", b"T", b"T", b"T", b"F", b"X", b""];
                inside = Inside::Open(self.0.usize(0..3));
                (TransactionEnd, vec![self.choose(&ends).to_vec()])
            }
            _ => self.rare(who),
        };
        let mut bytes: Vec<u8> = payload.drain(..).flat_map(|part| [part, vec![0]].concat()).collect();
        if kind == Write {
            bytes.extend(self.value());
        }
        let mut kind = kind as u32;
        let spoilt = self.0.u32(0..100) < 3;
        if spoilt {
            self.spoil(&mut kind, &mut bytes);
        }
        // CONTROL is answered for people, by each daemon in its own words; an odd number may stand for another domain.
        if is_dom0(who) && [Control, SetTarget, Introduce, Release].iter().any(|kind2| *kind2 as u32 == kind) && spoilt
        {
            kind = Read as u32;
        }
        Step::Ask { who, inside, kind, payload: bytes }
    }

    fn rare(&mut self, who: usize) -> (MessageType, Vec<Vec<u8>>) {
        use MessageType::*;
        let number = self.number();
        match self.0.u32(0..9) {
            0 | 1 => (GetDomainPath, vec![number]),
            2 => (IsDomainIntroduced, vec![number]),
            3 => (ResetWatches, vec![vec![]]),
            4 => (SetTarget, [self.domid(), self.domid()].map(|domid| domid.to_string().into_bytes()).to_vec()),
            5 => (Resume, vec![number]),
            // dom0's own are steps of their own; what others ask is refused.
            6 if !is_dom0(who) => (Introduce, vec![number, b"1".to_vec(), b"1".to_vec()]),
            7 if !is_dom0(who) => (Release, vec![number]),
            8 if !is_dom0(who) => (Control, vec![b"help".to_vec()]),
            _ => (GetDomainPath, vec![number]),
        }
    }

    fn number(&mut self) -> Vec<u8> {
        match self.0.u32(0..20) {
            0 => {
                self.choose(&[&b""[..], b"x", b"-1", b"5x", b" 3", b"99999", b"32752", b"007", b"4294967297"]).to_vec()
            }
            _ => self.0.u32(0..13).to_string().into_bytes(),
        }
    }

    /// Something is wrong with a request.
    fn spoil(&mut self, kind: &mut u32, payload: &mut Vec<u8>) {
        match self.0.u32(0..7) {
            0 => drop(payload.pop()),
            1 => payload.clear(),
            2 => payload.extend(b"more\0"),
            3 => payload.extend(b"\0"),
            4 => *kind = *self.choose(&[15, 16, 20, 23, 24, 25, 26, 27, 100, 0xffff, u32::MAX]),
            5 => payload.truncate(self.0.usize(0..=payload.len())),
            _ => {
                let at = self.0.usize(0..=payload.len());
                payload.insert(at, self.0.u8(..));
            }
        }
        payload.truncate(4096);
    }

    fn path(&mut self) -> Vec<u8> {
        let mut path = match self.0.u32(0..100) {
            0..45 => String::new(),
            45..65 => "/s".to_owned(),
            65..88 => format!("/local/domain/{}", self.0.u32(0..11)),
            88..90 => "/local/domain".to_owned(),
            90..93 => "/".to_owned(),
            93..95 => "/new".to_owned(),
            95..97 => return self.choose(&[&b"@releaseDomain"[..], b"@introduceDomain", b"@other", b"@"]).to_vec(),
            _ => return self.odd_path(),
        };
        for at in 0..self.0.u32(0..4) {
            if !(path.is_empty() && at == 0 || path.ends_with('/')) {
                path.push('/');
            }
            path.push(*self.choose(&['a', 'b', 'c', 'd']));
        }
        if path.is_empty() { b"a".to_vec() } else { path.into_bytes() }
    }

    fn odd_path(&mut self) -> Vec<u8> {
        let long = "long/".repeat(20);
        match self.0.u32(0..6) {
            0 => format!("{long}{}", "x".repeat(self.0.usize(0..40))).into_bytes(),
            1 => format!("/local/domain/3/{long}{}", "x".repeat(self.0.usize(0..40))).into_bytes(),
            2 => format!("/local/domain/33333/{}", "x".repeat(self.0.usize(80..140))).into_bytes(),
            _ => {
                let odd: [&[u8]; 16] = [
                    b"",
                    b"//",
                    b"/a//b",
                    b"a//b",
                    b"a/",
                    b"/a/",
                    b".",
                    b"a.b",
                    b"a b",
                    b"\xff",
                    b"/@a",
                    b"a@b",
                    b"a-_Z9",
                    b"/local/domain/007",
                    b"/local/domain/1x/a",
                    b"/tool/xenstored",
                ];
                self.choose(&odd).to_vec()
            }
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.0.u32(0..20) {
            0 => vec![],
            1 => b"a\0b\0".to_vec(),
            2 => vec![b'v'; self.0.usize(150..300)],
            3 if self.0.u32(0..4) == 0 => vec![b'w'; self.0.usize(1800..2100)],
            _ => self.0.u32(0..100).to_string().into_bytes(),
        }
    }

    fn permissions(&mut self) -> Vec<Vec<u8>> {
        let count = *self.choose(&[1, 1, 1, 2, 2, 3, 4, 5, 6]);
        let entry = |_| match self.0.u32(0..40) {
            0 => self.choose(&[&b""[..], b"r", b"x1", b"rx", b"r1x", b"R1"]).to_vec(),
            _ => format!("{}{}", self.choose(&["n", "r", "w", "b", "b"]), self.0.u32(0..11)).into_bytes(),
        };
        (0..count).map(entry).collect()
    }

    fn watch(&mut self, path: Vec<u8>) -> Vec<Vec<u8>> {
        let tokens: [&[u8]; 8] = [b"1", b"1", b"2", b"2", b"3", b"t/x y.", b"", b"1x"];
        let mut watch = vec![path, self.choose(&tokens).to_vec()];
        if self.0.u32(0..30) == 0 {
            watch.push(b"1".to_vec());
        }
        watch
    }
}

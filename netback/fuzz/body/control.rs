//! Requests of a control ring, one after another, and packets steered in between: answers, hashes and queues are those of
//! netif.h, "Control messages".

use netback::hash::Steering;
use netback::headers::Headers;
use netback::proto::NetifCtrlRequest;

use super::Input;

/// The page that can be had.
const PAGE: u32 = 9;

/// What a frontend has chosen, as the header says it.
#[derive(Default)]
struct Chosen {
    toeplitz: bool,
    flags: u32,
    key: Vec<u8>,
    mapping: Vec<u32>,
}

pub fn control(input: &[u8]) {
    let mut input = Input(input);
    let queues = u16::from(input.byte() % 16) + 1;
    let mut steering = Steering::new(queues);
    let mut chosen = Chosen::default();
    // A ring has no more at a time, and the state is small.
    for number in 0..256 {
        if input.is_empty() {
            break;
        }
        let kind = u16::from(input.byte() % 12);
        if kind == 11 {
            let frame = frame(&mut input);
            let headers = Headers::parse(&frame).expect("a header");
            assert_eq!(
                steering.steer(&headers).map(|(queue, hash)| (queue as u32, hash.map(|it| (it.kind, it.value)))),
                {
                    let hash = chosen.hash(&frame);
                    chosen.is_on().then(|| (chosen.queue(hash.map_or(0, |it| it.1), queues), hash))
                }
            );
            continue;
        }
        let data = [number_of(&mut input), number_of(&mut input), number_of(&mut input)];
        let content = input.bytes(usize::from(input.0.first().copied().unwrap_or(0)));
        let page: Vec<u8> = (0..4096).map(|at| content.get(at).copied().unwrap_or(0)).collect();
        let request = NetifCtrlRequest { id: number, kind, data };
        let response = steering.request(&request, &mut |gref, to| {
            assert!(!to.is_empty() && to.len() <= 4096, "copies of no bytes, or of more than a page");
            to.copy_from_slice(&page[..to.len()]);
            gref.0 == PAGE
        });
        assert_eq!((response.id, response.kind), (number, kind));
        assert_eq!((response.status, response.data), chosen.act(kind, data, &page, queues));
    }
}

/// Small numbers, and some that are not.
fn number_of(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        250 => u32::MAX,
        251 => 0x8000_0000,
        252 => u32::MAX - u32::from(input.byte()),
        253 => 0x4000_0000 + u32::from(input.byte()),
        small => small.into(),
    }
}

/// An IP packet, TCP or not, a fragment or not.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let (shape, addresses) = (input.byte(), input.bytes(36));
    let mut frame = vec![2; 12];
    let protocol = if shape & 2 == 0 { 6 } else { 17 };
    if shape & 1 == 0 {
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, if shape & 4 == 0 { 0 } else { 0x20 }, 0, 64, protocol, 0, 0]);
        frame.extend(&addresses[..8]);
    } else {
        frame.extend([0x86, 0xDD, 0x60, 0, 0, 0, 0, 0, protocol, 64]);
        frame.extend(&addresses[..32]);
    }
    frame.extend(&addresses[32..36]);
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
    if shape & 8 != 0 {
        frame.truncate(14 + usize::from(shape >> 4));
    }
    frame
}

impl Chosen {
    fn is_on(&self) -> bool {
        self.toeplitz && self.flags != 0
    }

    fn act(&mut self, kind: u16, data: [u32; 3], page: &[u8], queues: u16) -> (u32, u32) {
        let done = |fine: bool| if fine { (0, 0) } else { (2, 0) };
        match (kind, data) {
            (1, _) if !self.toeplitz => (1, 0),
            (1, _) => (0, 15),
            (2, [flags, ..]) => {
                let fine = self.toeplitz && flags < 16;
                if fine {
                    self.flags = flags;
                }
                done(fine)
            }
            (3, [_, 41..=u32::MAX, _]) => (3, 0),
            (3, [gref, len, _]) => {
                let fine = len == 0 || gref == PAGE;
                if fine {
                    self.key = page[..len as usize].to_vec();
                }
                done(fine)
            }
            (4, _) => (0, 128),
            (5, [size, ..]) => {
                if size <= 128 {
                    self.mapping = vec![0; size as usize];
                }
                done(size <= 128)
            }
            (6, [gref, len, offset]) => {
                let words = |at: u64| {
                    let at = at as usize * 4;
                    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
                };
                let inside = u64::from(len) + u64::from(offset) <= self.mapping.len() as u64;
                let fine =
                    inside && (len == 0 || gref == PAGE) && (0..u64::from(len)).all(|at| words(at) < u32::from(queues));
                if fine {
                    for at in 0..u64::from(len) {
                        self.mapping[offset as usize + at as usize] = words(at);
                    }
                }
                done(fine)
            }
            (7, [algorithm, ..]) => {
                if algorithm < 2 {
                    self.toeplitz = algorithm == 1;
                }
                done(algorithm < 2)
            }
            _ => (1, 0),
        }
    }

    /// Kind and value, from the bytes.
    fn hash(&self, frame: &[u8]) -> Option<(u8, u32)> {
        let v6 = frame[12] == 0x86;
        let (at, addresses, ports, protocol) =
            if v6 { (22, 32, 54, *frame.get(20)?) } else { (26, 8, 34, *frame.get(23)?) };
        // An IP header must be there.
        let source = frame.get(at..at + addresses)?;
        let fragment = !v6 && frame[20] & 0x20 != 0;
        let (whole, part) = if v6 { (3, 2) } else { (1, 0) };
        let tcp = protocol == 6 && !fragment && frame.len() >= ports + 20;
        if tcp && self.flags & 1 << whole != 0 {
            let input = [source, &frame[ports..ports + 4]].concat();
            return Some((whole, self.toeplitz(&input)));
        }
        (self.flags & 1 << part != 0).then(|| (part, self.toeplitz(source)))
    }

    /// "If (left-most bit of Buffer[] is 1) Value ^= left-most 32 bits of Key[]", and both are shifted.
    fn toeplitz(&self, input: &[u8]) -> u32 {
        let bit = |bytes: &[u8], at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
        let mut value = 0;
        for at in (0..input.len() * 8).filter(|&at| bit(input, at)) {
            value ^= (0..32).fold(0u32, |word, next| word << 1 | u32::from(bit(&self.key, at + next)));
        }
        value
    }

    fn queue(&self, hash: u32, queues: u16) -> u32 {
        match self.mapping.len() as u32 {
            0 => hash % u32::from(queues),
            size => self.mapping[(hash % size) as usize],
        }
    }
}

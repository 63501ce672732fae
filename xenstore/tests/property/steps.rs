//! Random requests: paths that collide, permissions that matter, values too large, now and then nonsense.

use fastrand::Rng;
use xenstore::wire::MessageType;

/// Domains besides dom0.
pub const DOMAINS: u16 = 10;

/// Type and payload of a request.
pub type Request = (u32, Vec<u8>);

/// A path that others use too, with its NUL.
pub fn path(random: &mut Rng) -> Vec<u8> {
    let mut path = match random.u8(0..40) {
        0..=15 => "data".to_owned(),
        16..=21 => "dev".to_owned(),
        22..=25 => format!("/local/domain/{}/data", random.u16(0..=DOMAINS)),
        26..=31 => format!("/local/domain/{}/dev", random.u16(0..=DOMAINS)),
        32..=37 => "/shared".to_owned(),
        38 => format!("/local/domain/{}", random.u16(0..=DOMAINS)),
        _ => return odd_path(random),
    };
    for _ in 0..*random.choice(&[0, 1, 1, 2, 2, 3]).expect("not empty") {
        path += &format!("/{}", name(random));
    }
    path += "\0";
    path.into_bytes()
}

fn name(random: &mut Rng) -> String {
    match random.u8(0..30) {
        0 => random.choice(["x", "y"]).expect("not empty").repeat(random.usize(20..60)),
        _ => random
            .choice(["a", "a", "a", "a", "b", "b", "b", "c", "c", "d", "e-1", "_@f"])
            .expect("not empty")
            .to_owned(),
    }
}

fn odd_path(random: &mut Rng) -> Vec<u8> {
    let odd = [
        "",
        "/",
        "//",
        "/local",
        "/local/domain",
        "/local/domain/",
        "data/",
        "data//a",
        "a.b",
        "a b",
        "@releaseDomain",
        "/shared/",
        "/local/domain/1/",
        "/local/domain/99999/x",
        "/no/such/thing",
        "/shared/:",
        "@",
        "@no such",
        "\u{e9}",
    ];
    [random.choice(odd).expect("not empty").as_bytes(), b"\0"].concat()
}

/// A request on nodes, which may stand in a transaction.
pub fn on_nodes(random: &mut Rng, domid: u16) -> Request {
    use MessageType::*;
    let mut payload = path(random);
    let kind = match random.u8(0..100) {
        0..=29 => {
            payload.extend(value(random));
            Write
        }
        30..=47 => Read,
        48..=55 => Directory,
        56..=57 => {
            payload.extend(random.choice(["0\0", "0\0", "2\0", "1000\0"]).expect("not empty").as_bytes());
            DirectoryPart
        }
        58..=67 => Mkdir,
        68..=79 => Rm,
        80..=87 => GetPerms,
        88..=97 => {
            payload.extend(perms(random, domid));
            SetPerms
        }
        98 => {
            payload = b"7\0".to_vec();
            GetDomainPath
        }
        _ => return nonsense(random, payload),
    };
    (kind as u32, payload)
}

fn value(random: &mut Rng) -> Vec<u8> {
    let len = match random.u8(0..40) {
        0 => random.usize(100..400),
        1..=9 => 0,
        _ => random.usize(1..8),
    };
    (0..len).map(|_| random.u8(..)).collect()
}

fn perms(random: &mut Rng, domid: u16) -> Vec<u8> {
    let mut all = String::new();
    // Only dom0 may give a node to somebody else, and what a guest may not do is soon known.
    let owner = if domid == 0 || random.u8(0..10) == 0 { random.u16(0..=DOMAINS) } else { domid };
    for entry in 0..random.usize(1..=4) + usize::from(random.u8(0..10) == 0) {
        let domid = if entry == 0 { owner } else { random.u16(0..=DOMAINS) };
        all += &format!("{}{domid}\0", random.choice(["n", "r", "r", "w", "b", "b"]).expect("not empty"));
    }
    all.into_bytes()
}

/// What the wrong things in a payload are answered with.
fn nonsense(random: &mut Rng, mut payload: Vec<u8>) -> Request {
    match random.u8(0..5) {
        0 => drop(payload.pop()),
        1 => payload.extend(b"more\0and more\0"),
        2 => payload.clear(),
        3 => payload.extend(b"x3\0"),
        _ => payload.extend(b"n\0r-1\0"),
    }
    // Without those that the daemon's state does not follow from, and those with answers of their own.
    let kinds = [1, 2, 3, 11, 12, 13, 14, 15, 16, 20, 22, 27, 1000, u32::MAX];
    (*random.choice(&kinds).expect("not empty"), payload)
}

/// A path to watch and one of few tokens, so that the same comes up again.
pub fn watch(random: &mut Rng) -> Vec<u8> {
    let mut payload = match random.u8(0..12) {
        0 => b"@releaseDomain\0".to_vec(),
        1 => b"@introduceDomain\0".to_vec(),
        2 => b"/\0".to_vec(),
        _ => path(random),
    };
    payload.extend(random.choice(["t0\0", "t1\0", "t2\0", "\0"]).expect("not empty").as_bytes());
    payload
}

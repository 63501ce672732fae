//! T27: every corner that a path can have.

use xenstore::wire::{ErrorName, MessageType};

use crate::daemon::Daemon;
use crate::peer::{Answer, Peer};
use crate::{alone, assert_serves, introduce};

use ErrorName::{Eacces, Einval, Enoent};

/// What a reader is told.
fn outcome(answer: Answer) -> Option<ErrorName> {
    answer.err()
}

/// XSA-323, 324, 481: paths that once ended a daemon. What dom0 and what domain 3 is told when it reads them.
#[test]
fn t27_every_corner_of_a_path_has_an_answer() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut guest = introduce(&daemon, 3);
    let table: &[(&[u8], Option<ErrorName>, Option<ErrorName>)] = &[
        (b"", Some(Einval), Some(Einval)),
        (b"/", None, Some(Eacces)),
        (b"//", Some(Einval), Some(Einval)),
        (b"/local", None, Some(Eacces)),
        (b"/local/", Some(Einval), Some(Einval)),
        (b"/local/domain", None, Some(Eacces)),
        (b"/local/domain/", Some(Einval), Some(Einval)),
        (b"/local//domain", Some(Einval), Some(Einval)),
        (b"/local/domain//3", Some(Einval), Some(Einval)),
        (b"/local/domain/3", None, Some(Eacces)),
        (b"/local/domain/3/", Some(Einval), Some(Einval)),
        (b"/local/domain/3//data", Some(Einval), Some(Einval)),
        (b"/local/domain/3/data", None, None),
        (b"/local/domain/3/data/", Some(Einval), Some(Einval)),
        (b"/local/domain/3/data/x", Some(Enoent), Some(Enoent)),
        (b"/local/domain/03/data", Some(Enoent), Some(Eacces)),
        (b"/local/domain/4/data", Some(Enoent), Some(Eacces)),
        (b"/local/domain/65535/x", Some(Enoent), Some(Eacces)),
        (b"/local/domain/99999/x", Some(Enoent), Some(Eacces)),
        (b"/local/domain/4294967299/data", Some(Enoent), Some(Eacces)),
        (b"/local/domain/-1/data", Some(Enoent), Some(Eacces)),
        (b"/local/domain/x/data", Some(Enoent), Some(Eacces)),
        (b"/local/domain3/data", Some(Enoent), Some(Eacces)),
        (b"local/domain/3/data", Some(Enoent), Some(Eacces)),
        (b"data", Some(Enoent), None),
        (b"data/", Some(Einval), Some(Einval)),
        (b"data//x", Some(Einval), Some(Einval)),
        (b".", Some(Einval), Some(Einval)),
        (b"..", Some(Einval), Some(Einval)),
        (b"/local/../local", Some(Einval), Some(Einval)),
        (b"data/../data", Some(Einval), Some(Einval)),
        (b"/a b", Some(Einval), Some(Einval)),
        (b"/a:b", Some(Einval), Some(Einval)),
        (b"/a\\b", Some(Einval), Some(Einval)),
        (b"/a%s%n", Some(Einval), Some(Einval)),
        (b"/a\nb", Some(Einval), Some(Einval)),
        (b"/a\x7F", Some(Einval), Some(Einval)),
        (b"/\xFF", Some(Einval), Some(Einval)),
        (b"/\xC3\xA9", Some(Einval), Some(Einval)),
        (b"/-_@-", Some(Enoent), Some(Eacces)),
        (b"@", Some(Einval), Some(Einval)),
        (b"@releaseDomain", Some(Einval), Some(Einval)),
        (b"@introduceDomain/x", Some(Einval), Some(Einval)),
        (b"/@releaseDomain", Some(Enoent), Some(Eacces)),
        // More than one string, and none at all.
        (b"data\0", Some(Einval), Some(Einval)),
        (b"/local\0/local", Some(Einval), Some(Einval)),
        (b"\0", Some(Einval), Some(Einval)),
    ];
    for (path, for_dom0, for_guest) in table {
        let argument = [path, &b"\0"[..]].concat();
        for kind in [MessageType::Read, MessageType::Directory, MessageType::GetPerms] {
            // Permissions of the special names are the one thing about them that a later Xen tells.
            if kind == MessageType::GetPerms && path.starts_with(b"@") {
                continue;
            }
            assert_eq!(outcome(dom0.request(kind, &argument)), *for_dom0, "dom0 {kind:?} {}", path.escape_ascii());
            assert_eq!(outcome(guest.request(kind, &argument)), *for_guest, "guest {kind:?} {}", path.escape_ascii());
        }
        // No operation thinks otherwise of what is a path at all.
        let bad = *for_dom0 == Some(Einval);
        for (kind, payload) in [
            (MessageType::SetPerms, [&argument, &b"n3\0"[..]].concat()),
            (MessageType::DirectoryPart, [&argument, &b"0\0"[..]].concat()),
        ] {
            let got = outcome(guest.request(kind, &payload)) == Some(Einval);
            assert_eq!(got, bad, "{kind:?} {}", path.escape_ascii());
        }
    }
    assert_eq!(dom0.request(MessageType::Read, b"/local"), Err(Einval), "no NUL at all");
    assert_eq!(dom0.request(MessageType::Rm, b"/\0"), Err(Einval));
    assert_serves(&daemon);
}

/// How long a path may be: 2048 bytes, without what leads to a domain's directory.
#[test]
fn t27_a_path_is_too_long_exactly_where_it_is() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut guest = introduce(&daemon, 3);
    let sized = |len: usize| format!("/{}\0", "x".repeat(len - 1));
    for (len, fits) in [(2047, true), (2048, true), (2049, false), (3072, false), (3073, false), (4095, false)] {
        let path = sized(len);
        for kind in [MessageType::Read, MessageType::Directory, MessageType::GetPerms, MessageType::Rm] {
            let (mut of_dom0, mut of_guest) = (Enoent, Eacces);
            if !fits {
                (of_dom0, of_guest) = (Einval, Einval);
            }
            if kind == MessageType::Rm && fits {
                dom0.request(kind, path.as_bytes()).unwrap();
            } else {
                assert_eq!(dom0.request(kind, path.as_bytes()), Err(of_dom0), "{len}");
            }
            assert_eq!(guest.request(kind, path.as_bytes()), Err(of_guest), "{len}");
        }
    }
    // In two names: a directory's list counts for its size.
    let below = format!("data/{}/{}", "x".repeat(1000), "x".repeat(1042));
    guest.request(MessageType::Write, format!("{below}\0").as_bytes()).unwrap();
    assert_eq!(guest.request(MessageType::Write, format!("{below}x\0").as_bytes()), Err(Einval));
    let absolute = format!("/local/domain/3/{below}");
    assert_eq!(dom0.request(MessageType::Read, format!("{absolute}\0").as_bytes()).unwrap(), b"");
    assert_eq!(dom0.request(MessageType::Write, format!("{absolute}x\0").as_bytes()), Err(Einval));
    assert_eq!(dom0.request(MessageType::Watch, format!("{absolute}x\0t\0").as_bytes()), Err(Einval));
    dom0.request(MessageType::Watch, format!("{absolute}\0t\0").as_bytes()).unwrap();
    assert_eq!(dom0.events(), [(absolute, "t".to_owned())]);
    assert_serves(&daemon);
}

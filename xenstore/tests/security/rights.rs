//! T31: who may see and do what, and what is left of that when a number is used again.

use xenstore::server::Limits;
use xenstore::wire::{ErrorName, MessageType};

use crate::daemon::Daemon;
use crate::peer::Peer;
use crate::{alone, assert_serves, commit, introduce, start, words};

use ErrorName::{Eacces, Eagain, Einval, Enospc, Eperm};

fn ask(peer: &mut Peer, kind: MessageType, arguments: &[&str]) -> Result<Vec<u8>, ErrorName> {
    peer.request(kind, &words(arguments))
}

/// XSA-115: watches told of nodes that their owner may not read.
#[test]
fn t31_what_may_not_be_read_is_neither_answered_nor_told() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut guest = introduce(&daemon, 3);
    let mut other = introduce(&daemon, 4);
    ask(&mut other, MessageType::Write, &["data/secret"]).unwrap();
    let secret = "/local/domain/4/data/secret";
    for kind in [MessageType::Read, MessageType::Directory, MessageType::GetPerms, MessageType::Mkdir, MessageType::Rm]
    {
        for path in [secret, "/local/domain/4/data", "/local/domain/4/data/no-such", "/local/domain/4", "/local", "/"] {
            assert_eq!(ask(&mut guest, kind, &[path]), Err(Eacces), "{kind:?} {path}");
        }
    }
    assert_eq!(ask(&mut guest, MessageType::Write, &[secret]), Err(Eacces));
    assert_eq!(ask(&mut guest, MessageType::SetPerms, &[secret, "b3"]), Err(Eacces));
    // To watch it is no fault; all that is ever told is that the watch is there.
    let watched = ["/", "/local", "/local/domain/4", secret, "@releaseDomain", "@introduceDomain"];
    for path in watched {
        ask(&mut guest, MessageType::Watch, &[path, "w"]).unwrap();
    }
    assert_eq!(guest.events().len(), watched.len());
    ask(&mut other, MessageType::Write, &["data/secret"]).unwrap();
    ask(&mut other, MessageType::Write, &["data/more/below"]).unwrap();
    ask(&mut other, MessageType::SetPerms, &["data/secret", "n4", "r0"]).unwrap();
    ask(&mut other, MessageType::Rm, &["data/secret"]).unwrap();
    let number = start(&mut dom0).unwrap();
    dom0.ask(MessageType::Write as u32, number, &words(&[secret])).unwrap();
    commit(&mut dom0, number).unwrap();
    drop(introduce(&daemon, 5));
    daemon.handle.release(5).unwrap();
    daemon.handle.release(4).unwrap();
    assert_eq!(guest.events(), []);
    // Until it may: then, and when it may not any more, it is told.
    ask(&mut dom0, MessageType::Write, &["/told"]).unwrap();
    ask(&mut dom0, MessageType::SetPerms, &["/told", "n0", "r3"]).unwrap();
    ask(&mut dom0, MessageType::SetPerms, &["/told", "n0"]).unwrap();
    ask(&mut dom0, MessageType::Write, &["/told"]).unwrap();
    let told = ("/told".to_owned(), "w".to_owned());
    assert_eq!(guest.events(), [told.clone(), told]);
    assert_serves(&daemon);
}

/// XSA-322, 419: the next domain with a number had what the last one owned or was allowed.
#[test]
fn t31_the_next_domain_of_a_number_inherits_nothing() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut first = introduce(&daemon, 9);
    let mut friend = introduce(&daemon, 4);
    ask(&mut dom0, MessageType::Write, &["/shared/deep"]).unwrap();
    for path in ["/shared", "/shared/deep"] {
        ask(&mut dom0, MessageType::SetPerms, &[path, "n0", "b9"]).unwrap();
    }
    ask(&mut friend, MessageType::SetPerms, &["data", "n4", "r9", "r5"]).unwrap();
    // Its own nodes in other places, and others' in its own.
    ask(&mut first, MessageType::Write, &["/shared/own/below"]).unwrap();
    ask(&mut dom0, MessageType::Write, &["/local/domain/9/data/of-dom0/below"]).unwrap();
    ask(&mut dom0, MessageType::SetPerms, &["/local/domain/9/data/of-dom0", "n0"]).unwrap();
    // Rights on their way in transactions that are open when it ends.
    let number = start(&mut dom0).unwrap();
    for (kind, arguments) in [
        (MessageType::SetPerms, &["/shared/deep", "n0", "w9"][..]),
        (MessageType::Write, &["/late"]),
        (MessageType::SetPerms, &["/late", "n9"]),
    ] {
        dom0.ask(kind as u32, number, &words(arguments)).unwrap();
    }
    daemon.handle.release(9).unwrap();
    assert!(first.send(MessageType::Read as u32, 0, b"data\0").and_then(|()| first.answer(2, 0)).is_err(), "closed");
    assert_eq!(commit(&mut dom0, number), Err(Eagain));
    assert_eq!(ask(&mut dom0, MessageType::GetPerms, &["/shared"]).unwrap(), b"n0\0");
    assert_eq!(ask(&mut dom0, MessageType::GetPerms, &["/local/domain/4/data"]).unwrap(), b"n4\0r5\0");
    assert_eq!(ask(&mut dom0, MessageType::Directory, &["/shared"]).unwrap(), b"deep\0");
    assert_eq!(ask(&mut dom0, MessageType::Directory, &["/local/domain/9"]).unwrap(), b"");
    daemon.handle.introduce(9, &daemon.domain_socket(9)).unwrap();
    let mut second = Peer::connect(&daemon.domain_socket(9));
    for path in ["/shared", "/shared/deep", "/late", "/local/domain/4/data", "data", "data/of-dom0"] {
        assert_eq!(ask(&mut second, MessageType::Read, &[path]), Err(Eacces), "{path}");
        assert_eq!(ask(&mut second, MessageType::Write, &[path]), Err(Eacces), "{path}");
    }
    // What is given between the two is meant for the second.
    daemon.handle.release(9).unwrap();
    ask(&mut dom0, MessageType::SetPerms, &["/shared", "n0", "r9"]).unwrap();
    daemon.handle.introduce(9, &daemon.domain_socket(9)).unwrap();
    let mut third = Peer::connect(&daemon.domain_socket(9));
    assert_eq!(ask(&mut third, MessageType::Directory, &["/shared"]).unwrap(), b"deep\0");
    assert_serves(&daemon);
}

/// A device model acts for its guest (SET_TARGET), and not for the next domain of the guest's number: it neither does
/// what that one may, nor do its watches see what that one sees.
#[test]
fn t31_who_acted_for_a_dead_domain_does_not_act_for_the_next() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut model = introduce(&daemon, 8);
    drop(introduce(&daemon, 3));
    ask(&mut dom0, MessageType::SetTarget, &["8", "3"]).unwrap();
    ask(&mut model, MessageType::Watch, &["/local/domain/3", "w"]).unwrap();
    ask(&mut model, MessageType::Write, &["/local/domain/3/data/a"]).unwrap();
    let told = |path: &str| (format!("/local/domain/3{path}"), "w".to_owned());
    assert_eq!(model.events(), [told(""), told("/data/a")]);
    daemon.handle.release(3).unwrap();
    model.events();
    let mut next = introduce(&daemon, 3);
    ask(&mut next, MessageType::Write, &["data/secret"]).unwrap();
    assert_eq!(model.events(), []);
    assert_eq!(ask(&mut model, MessageType::Read, &["/local/domain/3/data/secret"]), Err(Eacces));
    assert_eq!(ask(&mut model, MessageType::Write, &["/local/domain/3/data/secret"]), Err(Eacces));
    // Nor does the next one have a device model that the last one had.
    daemon.handle.release(8).unwrap();
    assert_eq!(ask(&mut introduce(&daemon, 8), MessageType::Read, &["/local/domain/3/data"]), Err(Eacces));
    assert_serves(&daemon);
}

/// XSA-483: the next domain with a number began with what the last one had used up.
#[test]
fn t31_the_next_domain_of_a_number_has_all_that_one_may_use() {
    let _alone = alone();
    let limits = Limits { nodes: 20, watches: 5, transactions: 3, memory: 256 << 10, ..Limits::default() };
    let daemon = Daemon::with(limits);
    let mut dom0 = Peer::connect(&daemon.socket());
    ask(&mut dom0, MessageType::Mkdir, &["/shared"]).unwrap();
    for round in 0..100 {
        ask(&mut dom0, MessageType::SetPerms, &["/shared", "n0", "b9"]).unwrap();
        let mut guest = introduce(&daemon, 9);
        let place = ["data", "/shared"][round % 2];
        let nodes = (0..30).map(|n| ask(&mut guest, MessageType::Mkdir, &[&format!("{place}/{n}")]));
        assert_eq!(nodes.take_while(Result::is_ok).count(), 19);
        let watches = (0..10).map(|n| ask(&mut guest, MessageType::Watch, &["data", &n.to_string()]));
        assert_eq!(watches.take_while(Result::is_ok).count(), 5);
        let transactions = (0..10).map(|_| start(&mut guest));
        assert_eq!(transactions.take_while(Result::is_ok).count(), 3);
        daemon.handle.release(9).unwrap();
        assert_eq!(ask(&mut dom0, MessageType::Directory, &["/shared"]).unwrap(), b"");
    }
    // Nobody else pays for it either.
    let mut other = introduce(&daemon, 4);
    assert_eq!((0..30).map_while(|n| ask(&mut other, MessageType::Mkdir, &[&format!("data/{n}")]).ok()).count(), 19);
}

/// XSA-352, 353: a guest that gave its nodes away, and a root that was nobody's.
#[test]
fn t31_only_dom0_changes_an_owner_and_the_root_is_a_node_as_others_are() {
    let _alone = alone();
    let daemon = Daemon::with(Limits { nodes: 20, ..Limits::default() });
    let mut dom0 = Peer::connect(&daemon.socket());
    let mut guest = introduce(&daemon, 3);
    let mut other = introduce(&daemon, 4);
    for owner in ["n4", "b0", "w65535"] {
        assert_eq!(ask(&mut guest, MessageType::SetPerms, &["data", owner]), Err(Eperm));
    }
    let number = start(&mut guest).unwrap();
    assert_eq!(guest.ask(MessageType::SetPerms as u32, number, &words(&["data", "n4"])), Err(Eperm));
    guest.ask(MessageType::TransactionEnd as u32, number, b"F\0").unwrap();
    // To write is not to own.
    ask(&mut other, MessageType::SetPerms, &["data", "n4", "b3"]).unwrap();
    assert_eq!(ask(&mut guest, MessageType::SetPerms, &["/local/domain/4/data", "n3"]), Err(Eacces));
    for (kind, arguments) in [
        (MessageType::SetPerms, &["/", "n3"][..]),
        (MessageType::SetPerms, &["/", "n0", "b3"]),
        (MessageType::Write, &["/"]),
        (MessageType::Rm, &["/"]),
        (MessageType::Mkdir, &["/new"]),
        (MessageType::Directory, &["/"]),
        (MessageType::SetPerms, &["@releaseDomain", "n3"]),
    ] {
        assert!(matches!(ask(&mut guest, kind, arguments), Err(Eacces | Einval)), "{kind:?} {arguments:?}");
    }
    assert_eq!(ask(&mut dom0, MessageType::Rm, &["/"]), Err(Einval));
    // dom0 gives a node away: it counts for the new owner, and no more for the old one.
    let mut made = 0;
    while ask(&mut guest, MessageType::Mkdir, &[&format!("data/{made}")]).is_ok() {
        made += 1;
    }
    assert_eq!(made, 19);
    ask(&mut dom0, MessageType::SetPerms, &["/local/domain/3/data/0", "n4"]).unwrap();
    ask(&mut guest, MessageType::Mkdir, &["data/more"]).unwrap();
    assert_eq!(ask(&mut guest, MessageType::Mkdir, &["data/most"]), Err(Enospc));
    assert_eq!((0..30).map_while(|n| ask(&mut other, MessageType::Mkdir, &[&format!("data/{n}")]).ok()).count(), 18);
    // Even the root; it falls back to dom0, and takes nothing else along but what was the dead one's.
    ask(&mut dom0, MessageType::SetPerms, &["/", "n3"]).unwrap();
    ask(&mut dom0, MessageType::Mkdir, &["/of-3"]).unwrap();
    daemon.handle.release(3).unwrap();
    assert_eq!(ask(&mut dom0, MessageType::GetPerms, &["/"]).unwrap(), b"n0\0");
    assert_eq!(ask(&mut dom0, MessageType::Directory, &["/"]).unwrap(), b"tool\0local\0");
    let mut third = introduce(&daemon, 3);
    assert_eq!(ask(&mut third, MessageType::Directory, &["/"]), Err(Eacces));
    assert_serves(&daemon);
}

/// XSA-417: no record of a domain is no reason to allow anything. XSA-57: what dom0 keeps for a guest is only read.
#[test]
fn t31_what_was_not_given_is_denied() {
    let _alone = alone();
    let daemon = Daemon::new();
    let mut dom0 = Peer::connect(&daemon.socket());
    // Entries for domains that have never been there, and first in a list that another one is in too.
    ask(&mut dom0, MessageType::Write, &["/for-nobody"]).unwrap();
    ask(&mut dom0, MessageType::SetPerms, &["/for-nobody", "n0", "b77", "b78"]).unwrap();
    let mut guest = introduce(&daemon, 3);
    assert_eq!(ask(&mut guest, MessageType::Read, &["/for-nobody"]), Err(Eacces));
    // The first entry that names a domain decides.
    ask(&mut dom0, MessageType::SetPerms, &["/for-nobody", "n0", "n3", "b3"]).unwrap();
    assert_eq!(ask(&mut guest, MessageType::Read, &["/for-nobody"]), Err(Eacces));
    for kind in [
        MessageType::Control,
        MessageType::Introduce,
        MessageType::Release,
        MessageType::IsDomainIntroduced,
        MessageType::Resume,
        MessageType::SetTarget,
    ] {
        assert_eq!(ask(&mut guest, kind, &["3", "0", "1"]), Err(Eacces), "{kind:?}");
        assert_eq!(ask(&mut guest, kind, &["3"]), Err(Eacces), "{kind:?}");
    }
    let console = "/local/domain/3/console";
    ask(&mut dom0, MessageType::Write, &["/local/domain/3/console/tty"]).unwrap();
    for path in [console, "/local/domain/3/console/tty"] {
        ask(&mut dom0, MessageType::SetPerms, &[path, "n0", "r3"]).unwrap();
    }
    for path in ["console", "console/tty", "console/new"] {
        for kind in [MessageType::Write, MessageType::Mkdir, MessageType::Rm] {
            assert_eq!(ask(&mut guest, kind, &[path]), Err(Eacces), "{kind:?} {path}");
        }
        assert_eq!(ask(&mut guest, MessageType::SetPerms, &[path, "b3"]), Err(Eacces));
        let number = start(&mut guest).unwrap();
        assert_eq!(guest.ask(MessageType::Write as u32, number, &words(&[path])), Err(Eacces));
        commit(&mut guest, number).unwrap();
    }
    assert_eq!(ask(&mut guest, MessageType::Read, &["console/tty"]).unwrap(), b"");
    assert_serves(&daemon);
}

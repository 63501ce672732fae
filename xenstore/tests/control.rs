//! What only dom0 may ask of our server, at the wire: domains by message, features, quotas, CONTROL.

mod daemon;

use daemon::{Daemon, SOON, guest, refused};
use xenstore::wire::{ErrorName, MessageType};
use xenstore::{Client, Error, Permission, Store};

fn ask(client: &mut Client, kind: MessageType, words: &[&str]) -> Result<String, Error> {
    let payload: String = words.iter().map(|word| format!("{word}\0")).collect();
    let answer = client.request(kind, "", &[payload.as_bytes()])?;
    Ok(String::from_utf8(answer).unwrap().trim_end_matches('\0').to_owned())
}

#[test]
fn domains_come_and_go_by_message() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let introduced = |dom0: &mut Client| ask(dom0, MessageType::IsDomainIntroduced, &["7"]).unwrap();
    dom0.watch("@introduceDomain", "come").unwrap();
    dom0.watch("@releaseDomain", "gone").unwrap();
    while dom0.next_event(SOON).unwrap().is_some() {}
    assert_eq!(ask(&mut dom0, MessageType::IsDomainIntroduced, &["32752"]).unwrap(), "T", "DOMID_SELF");
    assert_eq!(introduced(&mut dom0), "F");
    assert_eq!(refused(ask(&mut dom0, MessageType::Release, &["7"])), ErrorName::Enoent);
    for words in [&["7"][..], &["7", "1", "0"], &["x", "1", "2"]] {
        assert_eq!(refused(ask(&mut dom0, MessageType::Introduce, words)), ErrorName::Einval, "{words:?}");
    }
    assert_eq!(ask(&mut dom0, MessageType::Introduce, &["0", "1", "2"]).unwrap(), "OK", "it is there");
    assert_eq!(ask(&mut dom0, MessageType::Introduce, &["7", "1234", "5"]).unwrap(), "OK");
    assert_eq!(dom0.next_event(SOON).unwrap().unwrap().token, "come");
    assert_eq!(introduced(&mut dom0), "T");
    let mut seven = Client::connect(&daemon.domain_socket(7)).unwrap();
    seven.watch("data", "lost").unwrap();
    assert_eq!(ask(&mut dom0, MessageType::Introduce, &["7", "1234", "5"]).unwrap(), "OK");
    let unwatched = seven.request(MessageType::Unwatch, "data", &[b"data\0lost\0"]);
    assert_eq!(refused(unwatched), ErrorName::Enoent, "it was introduced again, and begins anew");
    assert_eq!(ask(&mut dom0, MessageType::Resume, &["7"]).unwrap(), "OK");
    assert_eq!(refused(ask(&mut dom0, MessageType::Resume, &["0"])), ErrorName::Einval);
    for kind in [MessageType::Introduce, MessageType::Release, MessageType::SetTarget, MessageType::Control] {
        assert_eq!(refused(ask(&mut seven, kind, &["7", "1", "2"])), ErrorName::Eacces, "{kind:?}");
    }
    assert_eq!(ask(&mut dom0, MessageType::Release, &["7"]).unwrap(), "OK");
    assert_eq!(dom0.next_event(SOON).unwrap().unwrap().token, "gone", "only once");
    assert_eq!(dom0.next_event(SOON).unwrap(), None);
    assert!(seven.read("data").is_err());
    assert!(!daemon.domain_socket(7).exists());
}

#[test]
fn the_special_nodes_have_permissions_and_nothing_else() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut three, mut four) = (daemon.domain(3), daemon.domain(4));
    [&mut three, &mut four].into_iter().for_each(|domain| domain.watch("@releaseDomain", "gone").unwrap());
    dom0.set_perms("@releaseDomain", &[Permission::none(0), Permission::read(3)]).unwrap();
    for name in ["@introduceDomain2", "@"] {
        assert_eq!(refused(dom0.set_perms(name, &[Permission::none(0)])), ErrorName::Einval);
    }
    assert_eq!(refused(three.set_perms("@releaseDomain", &[Permission::both(3)])), ErrorName::Einval);
    assert_eq!(refused(dom0.read("@releaseDomain")), ErrorName::Einval);
    [&mut three, &mut four].into_iter().for_each(|domain| drop(domain.next_event(SOON).unwrap()));
    daemon.domain(5);
    daemon.handle.release(5).unwrap();
    assert_eq!(three.next_event(SOON).unwrap().unwrap().path, "@releaseDomain");
    assert_eq!(four.next_event(SOON).unwrap(), None);
    daemon.handle.release(3).unwrap();
    let mut next = daemon.domain(3);
    next.watch("@releaseDomain", "gone").unwrap();
    next.next_event(SOON).unwrap();
    daemon.handle.release(4).unwrap();
    assert_eq!(next.next_event(SOON).unwrap(), None, "the right was the other domain's");
}

#[test]
fn a_device_model_acts_for_its_guest_until_the_guest_is_gone() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut guest, _) = guest(&daemon, 3);
    let mut model = daemon.domain(4);
    guest.write("data/x", b"1").unwrap();
    dom0.write("/for-3", b"r").unwrap();
    dom0.set_perms("/for-3", &[Permission::none(0), Permission::read(3)]).unwrap();
    model.watch("/local/domain/3/data", "w").unwrap();
    model.next_event(SOON).unwrap();
    assert_eq!(refused(model.read("/local/domain/3/data/x")), ErrorName::Eacces);
    assert_eq!(refused(ask(&mut dom0, MessageType::SetTarget, &["4", "9"])), ErrorName::Enoent);
    assert_eq!(refused(ask(&mut dom0, MessageType::SetTarget, &["4", "0"])), ErrorName::Einval, "nobody becomes dom0");
    ask(&mut dom0, MessageType::SetTarget, &["4", "3"]).unwrap();
    assert_eq!(model.read("/local/domain/3/data/x").unwrap(), b"1");
    assert_eq!(model.read("/for-3").unwrap(), b"r");
    assert_eq!(refused(model.write("/for-3", b"w")), ErrorName::Eacces);
    guest.write("data/x", b"2").unwrap();
    assert_eq!(model.next_event(SOON).unwrap().unwrap().path, "/local/domain/3/data/x");
    daemon.handle.release(3).unwrap();
    assert_eq!(model.next_event(SOON).unwrap().unwrap().path, "/local/domain/3/data", "it saw it go");
    daemon.domain(3);
    dom0.mkdir("/local/domain/3/data").unwrap();
    dom0.set_perms("/local/domain/3/data", &[Permission::none(3)]).unwrap();
    dom0.write("/local/domain/3/data/secret", b"1").unwrap();
    assert_eq!(model.next_event(SOON).unwrap(), None, "its watches see no more than it does");
    dom0.set_perms("/for-3", &[Permission::none(0), Permission::read(3)]).unwrap();
    assert_eq!(refused(model.read("/for-3")), ErrorName::Eacces, "the next domain 3 is somebody else");
}

#[test]
fn quotas_are_shown_set_and_held() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut guest, _) = guest(&daemon, 3);
    let names = ask(&mut dom0, MessageType::GetQuota, &[]).unwrap();
    assert!(names.split(' ').any(|name| name == "transaction-nodes"), "{names}");
    for name in names.split(' ') {
        let limit: usize = ask(&mut dom0, MessageType::GetQuota, &[name]).unwrap().parse().unwrap();
        assert_eq!(ask(&mut dom0, MessageType::GetQuota, &["3", name]).unwrap(), limit.to_string());
        ask(&mut dom0, MessageType::SetQuota, &["3", name, "0"]).unwrap();
        assert_eq!(ask(&mut dom0, MessageType::GetQuota, &["3", name]).unwrap(), "0", "no limit");
        ask(&mut dom0, MessageType::SetQuota, &["3", name, &limit.to_string()]).unwrap();
    }
    ask(&mut dom0, MessageType::SetQuota, &["3", "watches", "2"]).unwrap();
    assert_eq!(ask(&mut dom0, MessageType::GetQuota, &["watches"]).unwrap(), "128", "of that domain only");
    (0..2).for_each(|n| guest.watch("data", &n.to_string()).unwrap());
    assert_eq!(refused(guest.watch("data", "2")), ErrorName::E2big);
    ask(&mut dom0, MessageType::SetQuota, &["watches", "3"]).unwrap();
    assert_eq!(refused(guest.watch("data", "2")), ErrorName::E2big, "the default is for domains to come");
    ask(&mut dom0, MessageType::Control, &["quota", "set", "watches", "3"]).unwrap();
    guest.watch("data", "2").unwrap();
    for words in [&["colour"][..], &["9", "nodes", "x"], &["3", "nodes", "4", "5"]] {
        assert!(ask(&mut dom0, MessageType::SetQuota, words).is_err(), "{words:?}");
    }
    assert_eq!(refused(ask(&mut guest, MessageType::GetQuota, &["nodes"])), ErrorName::Eacces);
    let shown = ask(&mut dom0, MessageType::Control, &["quota"]).unwrap();
    assert!(shown.starts_with("Quota settings:\n") && shown.contains("watches          :        3 "), "{shown}");
    let used = ask(&mut dom0, MessageType::Control, &["quota", "3"]).unwrap();
    assert!(used.contains("watches          :        3\n"), "{used}");
}

#[test]
fn memory_is_bounded_whatever_it_is_used_for() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut guest, _) = guest(&daemon, 3);
    ask(&mut dom0, MessageType::SetQuota, &["3", "memory", "100000"]).unwrap();
    let fill = |guest: &mut Client| {
        (0..1000).map(|n| guest.write(&format!("data/{n}"), &[1; 1000])).take_while(Result::is_ok).count()
    };
    let nodes = fill(&mut guest);
    assert!((60..100).contains(&nodes), "{nodes} of 1000 bytes");
    assert_eq!(refused(guest.watch("data", "w")), ErrorName::Enomem);
    assert_eq!(refused(guest.transaction(|_| Ok(()))), ErrorName::Enomem);
    assert_eq!(guest.read("data/0").unwrap(), [1; 1000], "what needs no more still works");
    guest.rm("data/0").unwrap();
    guest.rm("data/1").unwrap();
    guest.watch("data", "w").unwrap();
    (2..nodes).for_each(|n| guest.rm(&format!("data/{n}")).unwrap());
    let in_transaction = guest.transaction(|tx| (0..1000).try_for_each(|n| tx.write(&format!("data/{n}"), &[1; 1000])));
    assert_eq!(refused(in_transaction), ErrorName::Enomem);
    assert_eq!(guest.directory("data").unwrap(), Vec::<String>::new());
    guest.unwatch("data", "w").unwrap();
    assert_eq!(fill(&mut guest), nodes, "all of it is back");
}

#[test]
fn features_and_control_answer() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let mut guest = daemon.domain(3);
    for client in [&mut dom0, &mut guest] {
        let own = ask(client, MessageType::GetFeature, &[]).unwrap();
        assert_eq!(own, "0", "those of the ring page, which sockets do not have");
    }
    assert_eq!(ask(&mut dom0, MessageType::GetFeature, &["3"]).unwrap(), "0");
    assert_eq!(refused(ask(&mut guest, MessageType::GetFeature, &["3"])), ErrorName::Eacces);
    assert_eq!(refused(ask(&mut dom0, MessageType::GetFeature, &["9"])), ErrorName::Enoent);
    assert_eq!(refused(ask(&mut dom0, MessageType::SetFeature, &["3", "1"])), ErrorName::Einval);
    assert_eq!(refused(ask(&mut dom0, MessageType::SetFeature, &["3", "0"])), ErrorName::Ebusy);
    let help = ask(&mut dom0, MessageType::Control, &["help"]).unwrap();
    assert!(help.contains("quota"), "{help}");
    for words in [&["check"][..], &["log", "on"], &["print", "hello"]] {
        assert_eq!(ask(&mut dom0, MessageType::Control, words).unwrap(), "OK", "{words:?}");
    }
    assert!(ask(&mut dom0, MessageType::Control, &["memreport"]).unwrap().contains("nodes"));
    for words in [&["nonsense"][..], &["log"], &["quota", "set", "nodes"], &[]] {
        assert_eq!(refused(ask(&mut dom0, MessageType::Control, words)), ErrorName::Einval, "{words:?}");
    }
}

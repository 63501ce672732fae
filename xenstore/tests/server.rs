//! Our client against our server: the semantics of the C daemon.

mod daemon;

use daemon::{Daemon, SOON, refused};
use xenstore::wire::ErrorName;
use xenstore::{Client, Permission, Store};

#[test]
fn nodes_are_written_listed_and_removed_as_the_c_daemon_does() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    dom0.write("/a/b/c", b"\xff\x00value").unwrap();
    assert_eq!(dom0.read("/a/b/c").unwrap(), b"\xff\x00value");
    assert_eq!(dom0.read("/a/b").unwrap(), b"", "parents are made, empty");
    dom0.mkdir("/a/z").unwrap();
    dom0.mkdir("/a/b").unwrap();
    dom0.write("/a/a", b"").unwrap();
    assert_eq!(dom0.directory("/a").unwrap(), ["b", "z", "a"], "in the order of creation");
    assert_eq!(refused(dom0.read("/a/x")), ErrorName::Enoent);
    dom0.rm("/a/x").unwrap();
    assert!(dom0.request(xenstore::wire::MessageType::Rm, "/q/x", &[b"/q/x\0"]).is_err());
    assert_eq!(refused(dom0.rm("/")), ErrorName::Einval);
    for path in ["", "/a/", "//a", "/a//b", "/a b", "/a.b", "/a:b", "@releaseDomain"] {
        assert_eq!(refused(dom0.read(path)), ErrorName::Einval, "{path}");
    }
    dom0.rm("/a").unwrap();
    assert_eq!(dom0.directory("/").unwrap(), ["tool"], "what the C daemon begins with");
    assert_eq!(dom0.read_optional("/a/b/c").unwrap(), None);
    assert_eq!(dom0.domain_path(17).unwrap(), "/local/domain/17");
}

#[test]
fn a_long_directory_comes_in_parts() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let names: Vec<String> = (0..1200).map(|n| format!("a-rather-long-name-{n}")).collect();
    names.iter().for_each(|name| dom0.write(&format!("/long/{name}"), b"x").unwrap());
    assert_eq!(dom0.directory("/long").unwrap(), names);
}

#[test]
fn a_backend_cannot_write_below_its_frontend() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let (mut back, mut front) = (daemon.domain(1), daemon.domain(2));
    let f = "/local/domain/2/device/vbd/51712";
    dom0.mkdir(f).unwrap();
    dom0.set_perms(f, &[Permission::none(2), Permission::read(1)]).unwrap();
    dom0.write(&format!("{f}/state"), b"1").unwrap();
    assert_eq!(back.read(&format!("{f}/state")).unwrap(), b"1", "children inherit");
    assert_eq!(refused(back.write(&format!("{f}/state"), b"4")), ErrorName::Eacces);
    assert_eq!(refused(back.write(&format!("{f}/new"), b"4")), ErrorName::Eacces);
    assert_eq!(refused(back.rm(f)), ErrorName::Eacces);
    front.write("device/vbd/51712/state", b"3").unwrap();
    assert_eq!(back.read(&format!("{f}/state")).unwrap(), b"3");
    front.write("device/vbd/51712/ring-ref", b"8").unwrap();
    let perms = dom0.get_perms(&format!("{f}/ring-ref")).unwrap();
    assert_eq!(perms, [Permission::none(2), Permission::read(1)]);
    assert_eq!(refused(front.set_perms("device/vbd/51712", &[Permission::none(1)])), ErrorName::Eperm);
    dom0.set_perms("/local", &[Permission::none(0)]).unwrap();
    assert_eq!(refused(back.read("/local/nothing")), ErrorName::Eacces, "names do not leak");
}

#[test]
fn watches_fire_at_once_below_for_removals_and_only_for_those_who_may_see() {
    let daemon = Daemon::new();
    let (mut dom0, mut watcher) = (daemon.client(), daemon.client());
    let mut guest = daemon.domain(5);
    dom0.mkdir("/local/domain/5/data").unwrap();
    dom0.set_perms("/local/domain/5/data", &[Permission::none(5)]).unwrap();
    watcher.watch("/a", "t").unwrap();
    let next = |client: &mut Client| client.next_event(SOON).unwrap().map(|event| (event.path, event.token));
    let is = |path: &str, token: &str| Some((path.to_owned(), token.to_owned()));
    assert_eq!(next(&mut watcher), is("/a", "t"), "at set-up");
    assert_eq!(refused(watcher.watch("/a", "t")), ErrorName::Eexist);
    dom0.write("/a/b/c", b"1").unwrap();
    assert_eq!(next(&mut watcher), is("/a/b/c", "t"));
    watcher.watch("/a/b/c", "deep").unwrap();
    assert_eq!(next(&mut watcher), is("/a/b/c", "deep"));
    dom0.rm("/a").unwrap();
    let mut two = [next(&mut watcher), next(&mut watcher)];
    two.sort();
    assert_eq!(two, [is("/a", "t"), is("/a/b/c", "deep")]);
    guest.watch("data", "mine").unwrap();
    guest.watch("/vault/secret", "theirs").unwrap();
    assert_eq!(next(&mut guest), is("data", "mine"));
    assert_eq!(next(&mut guest), is("/vault/secret", "theirs"));
    dom0.write("/vault/secret", b"x").unwrap();
    dom0.set_perms("/vault", &[Permission::none(0)]).unwrap();
    dom0.set_perms("/vault/secret", &[Permission::none(0)]).unwrap();
    while next(&mut guest).is_some() {}
    dom0.write("/vault/secret", b"y").unwrap();
    dom0.write("/local/domain/5/data/x", b"y").unwrap();
    assert_eq!(next(&mut guest), is("data/x", "mine"), "relative stays relative, and nothing of the secret");
    watcher.unwatch("/a", "t").unwrap();
    assert_eq!(refused(watcher.unwatch("/a", "t")), ErrorName::Enoent);
    watcher.watch("@releaseDomain", "dead").unwrap();
    assert_eq!(next(&mut watcher), is("@releaseDomain", "dead"));
    daemon.handle.release(5).unwrap();
    assert_eq!(next(&mut watcher), is("@releaseDomain", "dead"));
}

#[test]
fn transactions_are_seen_whole_or_not_at_all() {
    let daemon = Daemon::new();
    let (mut one, mut two) = (daemon.client(), daemon.client());
    two.watch("/t", "w").unwrap();
    two.next_event(SOON).unwrap();
    let mut tries = 0;
    one.transaction(|tx| {
        tries += 1;
        tx.write("/t/a", b"1")?;
        tx.write("/t/a", b"2")?;
        tx.write("/t/b", b"3")?;
        if tries == 1 {
            assert_eq!(two.read_optional("/t/a").unwrap(), None);
            two.write("/t/a", b"other")?;
        }
        assert_eq!(tx.read("/t/a")?, b"2");
        Ok(())
    })
    .unwrap();
    assert_eq!(tries, 2, "two creators of the same node are in conflict");
    assert_eq!(two.read("/t/a").unwrap(), b"2");
    let mut paths = Vec::new();
    while let Some(event) = two.next_event(SOON).unwrap() {
        paths.push(event.path);
    }
    assert_eq!(paths, ["/t/a", "/t/b"], "one for each node");
    let failed = one.transaction(|tx| {
        tx.write("/t/c", b"")?;
        tx.read("/nowhere")
    });
    assert_eq!(refused(failed), ErrorName::Enoent);
    assert_eq!(two.read_optional("/t/c").unwrap(), None);
    assert_eq!(two.directory("/t").unwrap(), ["a", "b"]);
}

#[test]
fn a_dead_domain_takes_its_nodes_along_and_its_number_starts_afresh() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let mut guest = daemon.domain(7);
    dom0.mkdir("/local/domain/7/data").unwrap();
    dom0.set_perms("/local/domain/7/data", &[Permission::none(7)]).unwrap();
    (0..999).for_each(|n| guest.write(&format!("data/{}", n % 50), b"x").unwrap());
    daemon.handle.release(7).unwrap();
    assert_eq!(dom0.read_optional("/local/domain/7/data").unwrap(), None);
    assert!(guest.read("data/1").is_err(), "its connections are closed");
    let mut again = daemon.domain(7);
    assert_eq!(refused(again.write("data/1", b"x")), ErrorName::Eacces, "nothing is inherited");
}

/// As libxl takes the nodes of a device away while its backend's domain dies: it need not look again.
#[test]
fn the_end_of_a_domain_with_rights_to_a_node_is_in_the_way_of_its_writer_only() {
    let daemon = Daemon::new();
    let (mut dom0, mut other) = (daemon.client(), daemon.client());
    let _backend = daemon.domain(7);
    for path in ["/gone", "/kept"] {
        dom0.mkdir(path).unwrap();
        dom0.set_perms(path, &[Permission::none(0), Permission::read(7)]).unwrap();
    }
    let mut attempts = 0;
    dom0.transaction(|tx| {
        attempts += 1;
        tx.read("/kept")?;
        tx.rm("/gone")?;
        if attempts == 1 {
            daemon.handle.release(7).unwrap();
        }
        Ok(())
    })
    .unwrap();
    assert_eq!((attempts, other.read_optional("/gone").unwrap()), (1, None));
    let _backend = daemon.domain(8);
    other.set_perms("/kept", &[Permission::none(0), Permission::read(8)]).unwrap();
    attempts = 0;
    dom0.transaction(|tx| {
        attempts += 1;
        tx.write("/kept", b"new")?;
        if attempts == 1 {
            daemon.handle.release(8).unwrap();
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(attempts, 2, "the first would have brought the entry back");
    assert_eq!(other.get_perms("/kept").unwrap(), [Permission::none(0)]);
}

#[test]
fn quotas_have_the_c_daemon_s_errors() {
    let daemon = Daemon::new();
    let mut dom0 = daemon.client();
    let mut guest = daemon.domain(3);
    dom0.mkdir("/local/domain/3/data").unwrap();
    dom0.set_perms("/local/domain/3/data", &[Permission::none(3)]).unwrap();
    let nodes =
        (0..2000).map(|n| guest.write(&format!("data/d{}/{n}", n / 100), b"")).take_while(Result::is_ok).count();
    assert!((900..1000).contains(&nodes), "{nodes}");
    assert_eq!(refused(guest.write("data/more", b"")), ErrorName::Enospc);
    assert_eq!(refused(guest.write("data", &[0; 2100])), ErrorName::Enospc);
    let watches = (0..200).map(|n| guest.watch("data", &n.to_string())).take_while(Result::is_ok).count();
    assert_eq!(watches, 128);
    assert_eq!(refused(guest.watch("data", "more")), ErrorName::E2big);
    let perms: Vec<Permission> = (0..6).map(|n| Permission::read(3 + n)).collect();
    assert_eq!(refused(guest.set_perms("data", &perms)), ErrorName::Enospc);
    dom0.write("/free", &[0; 4000]).unwrap();
}

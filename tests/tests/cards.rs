//! The control plane of network cards, through the real binary: attach and detach, what is refused and how it is said,
//! what may change while a card is served, and who survives whose death.

#[path = "rig/card.rs"]
mod card;
mod rig;

use card::{A, B, Guest, LAN, backend, cards, passes, phase, read, wait_for};
use grant::embedded;
use grant::{DomId, tap};
use rig::{Rig, children, eventually, signal_to};
use rustix::process::Signal;
use xenstore::Store;

#[test]
fn attach_writes_what_libxl_does_and_detach_leaves_no_node() {
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{LAN}mtu = 9000\n"));
    let guest = Guest::new(&rig, "g1");
    let id = guest.domid();
    let mut more = vec!["g1", "acme:lan", "--mac", "00:16:3e:00:00:01", "--ip", "10.0.0.1", "--ip", "fd00::1"];
    more.extend(["--rate", "100Mb/s@20ms"]);
    assert_eq!(rig.run("attach", &more).fine(), "vif0");
    let mut store = rig.store();
    for (key, value) in [
        ("frontend", format!("/local/domain/{id}/device/vif/0")),
        ("frontend-id", id.to_string()),
        ("online", "1".into()),
        ("bridge", "lan".into()),
        ("handle", "0".into()),
        ("mac", A.to_string()),
        ("ip", "10.0.0.1 fd00::1".into()),
        ("rate", "250000,20000".into()),
        ("mtu", "9000".into()),
        ("type", "vif".into()),
        ("script", "/etc/xen/scripts/vif-bridge".into()),
        ("state", "2".into()),
        ("feature-rx-copy", "1".into()),
        ("feature-rx-flip", "0".into()),
        ("feature-sg", "1".into()),
        ("feature-gso-tcpv4", "1".into()),
        ("feature-gso-tcpv6", "1".into()),
        ("feature-ipv6-csum-offload", "1".into()),
        ("feature-split-event-channels", "1".into()),
        ("multi-queue-max-queues", "4".into()),
        ("feature-ctrl-ring", "1".into()),
        ("carrier", "0".into()),
    ] {
        assert_eq!(read(&mut store, &backend(1, id, key)), Some(value), "{key}");
    }
    let frontend = format!("/local/domain/{id}/device/vif/0");
    let of_frontend =
        [("mac", A.to_string()), ("mtu", "9000".into()), ("trusted", "1".into()), ("backend-id", "1".into())];
    for (key, value) in of_frontend {
        assert_eq!(read(&mut store, &format!("{frontend}/{key}")), Some(value), "{key}");
    }
    let card = phase(&rig, "g1", "ready");
    for (key, value) in [("vif", "vif0"), ("network", "lan"), ("mac", "00:16:3e:00:00:01"), ("backend", "InitWait")] {
        assert_eq!(card[key], value, "{card}");
    }
    assert_eq!(card["ip"], serde_json::json!(["10.0.0.1", "fd00::1"]));
    let network = &rig.status()["vms"][0]["networks"][0];
    assert_eq!(
        (&network["name"], &network["uplink"], &network["mtu"]),
        (&"lan".into(), &"switch".into(), &9000.into())
    );
    assert_eq!(network["used-by"], serde_json::json!([format!("vif-{id}-0")]));
    let text = rig.run("status", &[]);
    assert!(text.fine().contains("g1 vif0  lan  00:16:3e:00:00:01  ready"), "{text:?}");

    // A second one gets the next number and an address of Xen's.
    assert_eq!(rig.run("attach", &["g1", "acme:lan"]).fine(), "vif1");
    let mac = cards(&rig)[1]["mac"].as_str().unwrap().to_owned();
    assert!(mac.starts_with("00:16:3e:") && mac != A.to_string(), "{mac}");

    rig.run("detach", &["g1", "vif1"]).fine();
    rig.run("detach", &["g1", "vif0"]).fine();
    assert!(cards(&rig).is_empty());
    assert!(store.directory(&format!("/local/domain/{id}/device")).unwrap().is_empty());
    assert!(store.directory(&format!("/libxl/{id}/device")).unwrap().is_empty());
    assert!(store.directory("/local/domain/1/backend").unwrap().is_empty());
    assert!(store.directory("/local/domain/1/error").unwrap().is_empty());
    let shelves = "/local/domain/1/data/windsor/vif";
    for shelf in store.directory(shelves).unwrap() {
        assert!(store.directory(&format!("{shelves}/{shelf}")).unwrap().is_empty());
    }
    assert_eq!(rig.status()["vms"][0]["networks"][0]["used-by"], serde_json::json!([]));
    // And it all works again.
    assert_eq!(rig.run("attach", &["g1", "acme:lan", "--vif", "7"]).fine(), "vif7");
}

#[test]
fn what_is_wrong_is_said_everywhere_and_other_cards_go_on() {
    let mut rig = Rig::new();
    let more = format!("{LAN}[[network]]\nname = \"out\"\nuplink = \"bridge:no-such-br\"\n");
    rig.serve("acme", &more);
    let (mut one, _two) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    let queue = one.connect(&rig, 1);

    let refused = |args: &[&str], code: i32| rig.run("attach", args).refused(code).to_owned();
    let said = refused(&["g2", "acme:wan", "--vif", "0"], 3);
    assert!(said.contains("acme has no network named \"wan\" (it has: lan, out)"), "{said}");
    let said = refused(&["g2", "acme:lan", "--mac", &A.to_string()], 5);
    let who = format!("the address {A} is in use in network lan by vif0 of domain {}", one.domid());
    assert!(said.contains(&who), "{said}");
    let said = refused(&["g2", "acme:out"], 1);
    assert!(said.contains("network out has no uplink: there is no bridge no-such-br"), "{said}");
    for wrong in [["--rate", "fast"], ["--mac", "01:00:00:00:00:01"], ["--ip", "10.0.0"], ["--mtu", "20"]] {
        assert_eq!(rig.run("attach", &["g2", "acme:lan", wrong[0], wrong[1]]).code, Some(2), "{wrong:?}");
    }
    assert!(refused(&["g2", "acme:lan", "--ro"], 2).contains("are for disks"));
    assert!(refused(&["g1", "acme:lan", "--vif", "0"], 5).contains("g1 has a card vif0 already"));
    assert!(rig.run("detach", &["g2", "vif0"]).refused(3).contains("g2 has no card vif0 (it has: none)"));
    let out = &rig.status()["vms"][0]["networks"][1];
    assert_eq!(out["error"], "there is no bridge no-such-br", "{out}");
    let text = rig.run("status", &[]);
    assert!(text.fine().contains("network out  bridge:no-such-br  mtu 1500  free: there is no bridge"), "{text:?}");
    let log = rig.daemon("acme").log();
    assert!(log.contains("no uplink: there is no bridge no-such-br"), "{log}");

    // None of it has touched the card that is there.
    assert_eq!(cards(&rig).len(), 1);
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");
    drop(queue);
}

/// Another toolstack's card, whatever it writes.
fn by_hand(rig: &Rig, guest: &Guest, keys: &[(&str, &str)]) {
    let (id, mut store) = (guest.domid(), rig.store());
    rig.run("attach", &[&id.to_string(), "acme:lan"]).fine();
    let before: Vec<(String, String)> = ["frontend", "frontend-id", "handle"]
        .map(|key| (key.to_owned(), read(&mut store, &backend(1, id, key)).unwrap()))
        .into();
    let dir = format!("/local/domain/1/backend/vif/{id}/0");
    let perms = store.get_perms(&dir).unwrap();
    store
        .transaction(|tx| {
            tx.rm(&dir)?;
            tx.mkdir(&dir)?;
            tx.set_perms(&dir, &perms)?;
            for (key, value) in &before {
                tx.write(&format!("{dir}/{key}"), value.as_bytes())?;
            }
            for (key, value) in [("online", "1"), ("state", "1"), ("hotplug-status", "")].iter().chain(keys) {
                tx.write(&format!("{dir}/{key}"), value.as_bytes())?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_another_toolstack_writes_wrong_is_refused_with_the_key() {
    let mut rig = Rig::new();
    rig.serve("acme", LAN);
    let guest = Guest::new(&rig, "g1");
    let (id, mut store) = (guest.domid(), rig.store());
    let mac = ("mac", "00:16:3e:00:00:01");
    for (keys, says) in [
        (vec![mac, ("bridge", "wan")], "acme has no network \"wan\" (it has: lan)"),
        (vec![mac, ("bridge", "lan"), ("rate", "fast")], "rate \"fast\" is not one"),
        (vec![("mac", "no"), ("bridge", "lan")], "mac = \"no\""),
        (vec![mac, ("bridge", "lan"), ("ip", "10.0.0")], "ip = \"10.0.0\""),
        (vec![mac, ("bridge", "lan"), ("vlan", "4095")], "vlan = \"4095\""),
    ] {
        by_hand(&rig, &guest, &keys);
        wait_for(&rig, &backend(1, id, "hotplug-status"), "error");
        let why = read(&mut store, &backend(1, id, "hotplug-error")).unwrap();
        assert!(why.contains(says), "{why}");
        let node = format!("/local/domain/1/error/backend/vif/{id}/0/error");
        assert_eq!(eventually("the error's node", || read(&mut store, &node)), why);
        assert_eq!(phase(&rig, "g1", "failed")["reason"], why.as_str());
        assert!(rig.daemon("acme").log().contains(says));
        rig.run("detach", &["g1", "vif0"]).fine();
    }
    // What libxl writes where nobody names a bridge means the only network there is.
    by_hand(&rig, &guest, &[mac, ("bridge", "xenbr0")]);
    assert_eq!(phase(&rig, "g1", "ready")["network"], "lan");
}

#[test]
fn a_missing_bridge_and_an_address_in_use_are_told_to_every_toolstack() {
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{LAN}[[network]]\nname = \"out\"\nuplink = \"bridge:no-such-br\"\n"));
    let (mut one, two) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    let _queue = one.connect(&rig, 1);
    let (id, mut store) = (two.domid(), rig.store());
    for (mac, bridge, status, in_phase, says) in [
        (A, "lan", "busy", "busy", format!("the address {A} is in use in network lan by vif0")),
        (B, "out", "error", "failed", "network out has no uplink: there is no bridge no-such-br".to_owned()),
    ] {
        by_hand(&rig, &two, &[("mac", &mac.to_string()), ("bridge", bridge)]);
        wait_for(&rig, &backend(1, id, "hotplug-status"), status);
        let why = read(&mut store, &backend(1, id, "hotplug-error")).unwrap();
        assert!(why.contains(&says), "{why}");
        let node = format!("/local/domain/1/error/backend/vif/{id}/0/error");
        assert_eq!(eventually("the error's node", || read(&mut store, &node)), why);
        assert_eq!(phase(&rig, "g2", in_phase)["reason"], why.as_str());
        assert!(rig.daemon("acme").log().contains(&says));
        rig.run("detach", &["g2", "vif0"]).fine();
    }
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");
}

#[test]
fn packets_pass_and_a_card_may_close_and_come_back() {
    let mut rig = Rig::new();
    rig.serve("acme", LAN);
    let (mut one, mut two) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    rig.run("attach", &["g2", "acme:lan", "--mac", &B.to_string()]).fine();
    let (mut a, mut b) = (one.connect(&rig, 1), two.connect(&rig, 1));
    passes((&mut a, A), (&mut b, B), "there");
    passes((&mut b, B), (&mut a, A), "and back");
    let card = phase(&rig, "g1", "connected");
    assert_eq!((&card["queues"], &card["stats"]["sent_packets"]), (&1.into(), &1.into()), "{card}");
    let features = serde_json::json!(["sg", "gso4", "csum4", "rx-notify", "split-events"]);
    assert_eq!(card["features"], features);
    let top = rig.run("top", &["acme", "-n", "1", "-d", "0.1", "--json"]);
    let top: serde_json::Value = serde_json::from_str(top.fine()).unwrap();
    let row = &top["cards"][0];
    assert!(row["guest"] == "g1" && row["device"] == "vif0" && row["network"] == "lan", "{top}");
    assert!(row["sent_packets_per_second"] == 0.0 && top["devices"].as_array().unwrap().is_empty(), "{top}");
    let mut store = rig.store();
    assert_eq!(read(&mut store, &backend(1, one.domid(), "hotplug-status")).as_deref(), Some("connected"));
    assert_eq!(read(&mut store, &backend(1, one.domid(), "carrier")).as_deref(), Some("1"));

    let state = backend(1, one.domid(), "state");
    one.write("state", "5");
    wait_for(&rig, &state, "5");
    one.write("state", "6");
    wait_for(&rig, &state, "6");
    a.close().expect("nothing is mapped any more");
    one.write("state", "1");
    wait_for(&rig, &state, "2");
    let mut a = one.connect(&rig, 1);
    passes((&mut a, A), (&mut b, B), "again");

    // A detach with both sides' consent.
    let id = one.domid();
    let asked = backend(1, id, "online");
    let follow = std::thread::spawn(move || {
        let mut store = one.store;
        eventually("a detach", || (read(&mut store, &asked).as_deref() == Some("0")).then_some(()));
        store.write("device/vif/0/state", b"6").unwrap();
        one.domain
    });
    rig.run("detach", &["g1", "vif0"]).fine();
    let _alive = follow.join().unwrap();
    assert_eq!(embedded::usage(&rig.dir(), DomId(id)).unwrap().active_grants, 0);

    // A guest that is destroyed takes nobody with it, and leaves nothing.
    let id = two.domid();
    drop((two, b));
    eventually("the card is gone", || cards(&rig).is_empty().then_some(()));
    eventually("its nodes", || store.read_optional(&format!("/libxl/{id}")).unwrap().is_none().then_some(()));
    assert!(store.directory("/local/domain/1/error").unwrap().is_empty());
}

#[test]
fn what_may_change_is_followed_while_packets_pass() {
    let mut rig = Rig::new();
    rig.serve("acme", LAN);
    let mut one = Guest::new(&rig, "g1");
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    let _queue = one.connect(&rig, 1);
    let (id, mut store) = (one.domid(), rig.store());
    let log = |text: &str| eventually(text, || rig.daemon("acme").log().contains(text).then_some(()));

    store.write(&backend(1, id, "rate"), b"10240,20000").unwrap();
    log("its rate is 10240 bytes in 20000 us now");
    store.write(&backend(1, id, "rate"), b"fast").unwrap();
    log("its rate stays as it is: rate \"fast\" is not one");
    let card = eventually("the reason", || {
        cards(&rig).into_iter().find(|card| card["reason"].as_str().is_some_and(|why| why.contains("fast")))
    });
    assert_eq!(card["phase"], "connected", "{card}");
    let node = format!("/local/domain/1/error/backend/vif/{id}/0/error");
    assert!(read(&mut store, &node).unwrap().contains("rate \"fast\" is not one"));
    store.rm(&backend(1, id, "rate")).unwrap();
    log("its rate is none now");
    eventually("the error's node goes", || read(&mut store, &node).is_none().then_some(()));
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");

    let has = |name: &str| {
        let card = phase(&rig, "g1", "connected");
        card["features"].as_array().unwrap().iter().any(|feature| feature == name)
    };
    one.write("request-multicast-control", "1");
    eventually("multicast control", || has("multicast").then_some(()));
    one.write("request-multicast-control", "0");
    eventually("no multicast control", || (!has("multicast")).then_some(()));

    // The handshake of a frontend that wants room in front of its packets; twice, and once with nonsense.
    for (headroom, on) in [("256", true), ("0", false), ("x", false)] {
        one.write("xdp-headroom", headroom);
        one.write("state", "7");
        wait_for(&rig, &backend(1, id, "state"), "8");
        one.write("state", "4");
        wait_for(&rig, &backend(1, id, "state"), "4");
        assert_eq!(has("xdp"), on, "{headroom}");
    }
}

#[test]
fn a_worker_that_dies_takes_no_card_for_good() {
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{LAN}[[network]]\nname = \"dmz\"\n"));
    let (mut one, mut two) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    let first = children(rig.supervisor("acme"), "worker");
    assert_eq!(first.len(), 1);
    rig.run("attach", &["g2", "acme:dmz", "--mac", &A.to_string()]).fine();
    let (a, _b) = (one.connect(&rig, 1), two.connect(&rig, 1));
    assert_eq!(children(rig.supervisor("acme"), "worker").len(), 2);

    signal_to(first[0], Signal::KILL);
    let state = backend(1, one.domid(), "state");
    wait_for(&rig, &state, "6");
    let card = phase(&rig, "g1", "failed");
    assert!(card["reason"].as_str().unwrap().contains("was killed by SIGKILL"), "{card}");
    assert_eq!(phase(&rig, "g2", "connected")["reason"], "");
    a.close().expect("nothing is mapped any more");
    one.write("state", "6");
    one.write("state", "1");
    wait_for(&rig, &state, "2");
    let _a = one.connect(&rig, 1);
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");
}

#[test]
fn a_frontend_that_makes_no_sense_or_breaks_the_protocol_is_told_so_and_nobody_else_is_hurt() {
    let mut rig = Rig::new();
    rig.serve("acme", LAN);
    let (mut one, mut two) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    rig.run("attach", &["g2", "acme:lan", "--mac", &B.to_string()]).fine();
    let _b = two.connect(&rig, 1);
    let queue = one.queue(1);
    one.write("tx-ring-ref", "no");
    one.write("state", "4");
    let card = phase(&rig, "g1", "failed");
    assert!(card["reason"].as_str().unwrap().contains("tx-ring-ref = \"no\""), "{card}");
    // It sees its mistake.
    wait_for(&rig, &backend(1, one.domid(), "state"), "6");
    one.write("state", "1");
    wait_for(&rig, &backend(1, one.domid(), "state"), "2");
    drop(queue);
    // A page that is none of its own.
    let queue = one.queue(1);
    one.write("rx-ring-ref", "4000000");
    one.write("state", "4");
    phase(&rig, "g1", "failed");
    wait_for(&rig, &backend(1, one.domid(), "state"), "6");
    one.write("state", "1");
    wait_for(&rig, &backend(1, one.domid(), "state"), "2");
    drop(queue);
    let _queue = one.connect(&rig, 1);
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");
    assert_eq!(phase(&rig, "g2", "connected")["reason"], "");
}

#[test]
fn a_supervisor_that_dies_disturbs_no_card() {
    let mut rig = Rig::new();
    rig.serve("acme", LAN);
    let (mut one, mut two) = (Guest::new(&rig, "g1"), Guest::new(&rig, "g2"));
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    rig.run("attach", &["g2", "acme:lan", "--mac", &B.to_string()]).fine();
    let (mut a, mut b) = (one.connect(&rig, 1), two.connect(&rig, 1));
    passes((&mut a, A), (&mut b, B), "before");
    let supervisor = rig.supervisor("acme");
    let worker = children(supervisor, "worker");
    // What is wrong with a card ends while nobody looks.
    let mut store = rig.store();
    let (rate, node) =
        (backend(1, one.domid(), "rate"), format!("/local/domain/1/error/backend/vif/{}/0", one.domid()));
    store.write(&rate, b"fast").unwrap();
    eventually("the error's node", || read(&mut store, &format!("{node}/error")));
    signal_to(supervisor, Signal::STOP);
    store.rm(&rate).unwrap();
    signal_to(supervisor, Signal::KILL);
    passes((&mut a, A), (&mut b, B), "while nobody looks");
    eventually("taken over", || {
        rig.daemon("acme").log().contains("taken over workers=0 devices=0 cards=2").then_some(())
    });
    // It knows the addresses that are in use, and the worker that is there.
    let third = Guest::new(&rig, "g3");
    eventually("ready", || rig.status()["vms"][0]["ready"].as_bool().filter(|ready| *ready));
    let said = rig.run("attach", &["g3", "acme:lan", "--mac", &A.to_string()]).refused(5).to_owned();
    assert!(said.contains("is in use in network lan by vif0"), "{said}");
    passes((&mut b, B), (&mut a, A), "after");
    for guest in ["g1", "g2"] {
        assert_eq!(phase(&rig, guest, "connected")["reason"], "");
    }
    assert_eq!(read(&mut store, &node), None, "it is taken back");
    assert_eq!(cards(&rig)[0]["stats"]["sent_packets"], 2);
    // The one that took over has a say over the old worker.
    let state = backend(1, one.domid(), "state");
    one.write("state", "5");
    wait_for(&rig, &state, "5");
    one.write("state", "6");
    wait_for(&rig, &state, "6");
    a.close().expect("nothing is mapped any more");
    assert!(std::path::Path::new(&format!("/proc/{}", worker[0])).exists());
    drop(third);
}

#[test]
fn an_uplink_that_comes_goes_and_comes_back_is_found() {
    // Its own network namespace, for this thread and all that it starts.
    if !rustix::process::geteuid().is_root() || std::fs::File::open("/dev/net/tun").is_err() {
        println!("SKIP: needs root and /dev/net/tun");
        return;
    }
    let unshared = std::process::Command::new("unshare").args(["-n", "true"]).status();
    if !unshared.is_ok_and(|status| status.success()) {
        println!("SKIP: no network namespaces here");
        return;
    }
    let name = format!("wt{}", std::process::id() % 1_000_000);
    let ip = |args: &[&str]| std::process::Command::new("ip").args(args).status().is_ok_and(|status| status.success());
    if !ip(&["tuntap", "add", "dev", &name, "mode", "tap"]) {
        println!("SKIP: no TAP can be made here");
        return;
    }
    let mut rig = Rig::new();
    rig.serve("acme", &format!("{LAN}uplink = \"tap:{name}\"\n"));
    let mut one = Guest::new(&rig, "g1");
    rig.run("attach", &["g1", "acme:lan", "--mac", &A.to_string()]).fine();
    let _queue = one.connect(&rig, 1);
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");
    assert!(ip(&["link", "del", &name]));
    let lost = || cards(&rig)[0]["reason"].as_str().is_some_and(|why| why.contains("its network has no uplink"));
    eventually("the uplink is missed", || lost().then_some(()));
    eventually("and named", || rig.status()["vms"][0]["networks"][0]["error"].as_str().map(str::to_owned));
    let (node, mut store) = (format!("/local/domain/1/error/backend/vif/{}/0/error", one.domid()), rig.store());
    assert!(read(&mut store, &node).unwrap().contains("its network has no uplink"));
    assert!(rig.daemon("acme").log().contains("no uplink: "));
    let made = ip(&["tuntap", "add", "dev", &name, "mode", "tap"]);
    eventually("the uplink is found", || (!lost()).then_some(()));
    assert!(made && tap::exists(&name).unwrap());
    eventually("the error's node goes", || read(&mut store, &node).is_none().then_some(()));
    assert_eq!(phase(&rig, "g1", "connected")["reason"], "");
    assert!(rig.daemon("acme").log().contains("the uplink is there again"));
    assert!(ip(&["link", "del", &name]));
}

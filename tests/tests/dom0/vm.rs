//! `windsor vm create|start|stop|list|status|rm`, and `attach` and `detach` on real Xen.

use std::fs;

use xenstore::Store;

use crate::place::Dom0;

#[test]
fn a_vm_from_its_creation_to_its_end() {
    let dom0 = Dom0::new();
    let (config, image) = (dom0.config("acme", ""), dom0.image("acme", "pvh", ""));
    let (config, image) = (config.to_str().unwrap(), image.to_str().unwrap());
    let create =
        ["create", "acme", "-f", config, "--image", image, "--memory", "256", "--vcpus", "2", "--net", "xenbr0"];
    let printed = dom0.vm(&[&create[..], &["--print-xl"]].concat());
    for line in ["type = \"pvh\"", "memory = 256", "vcpus = 2", "vif = [\"bridge=xenbr0\"]", "driver_domain = 1"] {
        assert!(printed.fine().lines().any(|its| its == line), "no {line} in {}", printed.out);
    }
    let dry = dom0.vm(&[&create[..], &["--start", "--dry-run"]].concat());
    assert!(dry.fine().lines().last().unwrap().starts_with("xl create "), "{}", dry.out);
    assert!(dom0.files().is_empty() && dom0.changes().is_empty(), "{:?} {:?}", dom0.files(), dom0.changes());

    let cfg = dom0.vm(&create).fine().to_owned();
    assert_eq!(fs::read_to_string(&cfg).unwrap(), printed.out);
    let files = dom0.files();
    let row = dom0.json(&["list"])["vms"][0].clone();
    let id = row["image"].as_str().unwrap().to_owned();
    assert_eq!(
        files,
        [
            "etc/acme.toml".to_owned(),
            "state/acme/acme.cfg".to_owned(),
            format!("state/acme/images/{id}/initramfs.img"),
            format!("state/acme/images/{id}/manifest.json"),
            format!("state/acme/images/{id}/vmlinuz"),
            format!("state/acme/images/current -> {id}"),
            "state/acme/vm.json".to_owned(),
        ]
    );
    assert_eq!((row["state"].as_str(), row["domid"].is_null()), (Some("stopped"), true));

    assert_eq!(dom0.vm(&["start", "acme", "--dry-run"]).fine(), format!("xl create {cfg}"));
    assert!(dom0.changes().is_empty());
    assert_eq!(dom0.vm(&["start", "acme"]).fine(), "1");
    assert_eq!(dom0.changes(), [format!("create {cfg}")]);
    dom0.guest("g1", &["51712", "51728"]);
    let list = dom0.vm(&["list"]);
    let line = list.fine().lines().last().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(line, ["acme", "1", "ready", "128", "1", "2", "0", &id]);
    let status = dom0.json(&["status", "acme"]);
    assert_eq!((status["state"].as_str(), status["manifest"]["kernel"].as_str()), (Some("ready"), Some("6.12.0-test")));
    let disks = status["now"]["devices"].as_array().unwrap();
    assert_eq!(
        (disks.len(), disks[0]["backend"].as_str(), disks[0]["frontend"].as_str()),
        (2, Some("Connected"), Some("Connected"))
    );
    assert!(dom0.vm(&["status", "acme"]).fine().contains("g1 xvdb  db    backend Connected, frontend Connected"));

    let why = dom0.vm(&["stop", "acme"]).refused(5).to_owned();
    assert!(why.contains("serves g1 (xvda, xvdb)"), "{why}");
    assert!(dom0.vm(&["rm", "acme"]).refused(5).contains("acme runs (domain 1)"));
    dom0.by_hand(&["destroy", "g1"]);
    dom0.forget();
    assert_eq!(dom0.vm(&["stop", "acme", "--dry-run"]).fine(), "xl shutdown 1");
    dom0.vm(&["stop", "acme"]).fine();
    assert_eq!(dom0.changes(), ["shutdown 1"]);
    assert!(dom0.vm(&["stop", "acme"]).refused(3).contains("not running"));

    dom0.vm(&["rm", "acme"]).fine();
    assert_eq!(dom0.files(), ["etc/acme.toml"]);
    // What is left is enough to make it again.
    dom0.vm(&["create", "acme", "--image", image]).fine();
    dom0.vm(&["rm", "--purge", "acme"]).fine();
    assert!(dom0.files().is_empty());
}

#[test]
fn what_cannot_be_created_leaves_nothing() {
    let dom0 = Dom0::new();
    let (config, image) = (dom0.config("acme", ""), dom0.image("acme", "pvh", ""));
    let (config, image) = (config.to_str().unwrap(), image.to_str().unwrap());
    let damaged = dom0.image("acme", "pvh", "# damaged");
    fs::write(damaged.join("initramfs.img"), "short").unwrap();
    let refused = |code: i32, words: &str, args: &[&str]| {
        let ended = dom0.vm(&[&["create"], args].concat());
        let said = ended.refused(code);
        assert!(said.contains(words), "{args:?}: {said}");
        assert!(dom0.files().is_empty() && dom0.changes().is_empty(), "{args:?}: {:?}", dom0.files());
    };
    let with = |more: &[&'static str]| -> Vec<String> {
        let words = ["acme", "-f", config, "--image", image].into_iter().chain(more.iter().copied());
        words.map(str::to_owned).collect()
    };
    let refused_with = |code: i32, words: &str, more: &[&'static str]| {
        let args = with(more);
        refused(code, words, &args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    refused(3, "holds no image", &["acme", "-f", config, "--image", dom0.rig.path("").to_str().unwrap()]);
    refused(1, "initramfs.img has 5 bytes", &["acme", "-f", config, "--image", damaged.to_str().unwrap()]);
    refused(2, "is of a VM named \"acme\", not \"other\"", &["other", "-f", config, "--image", image]);
    refused(3, "acme.toml", &["acme", "--image", image]);
    refused(2, "is an image for type pvh", &["acme", "-f", config, "--image", image, "--type", "pv"]);
    refused_with(2, "pvh cannot own a PCI device", &["--pci", "41:00.0", "--type", "pvh"]);
    refused_with(3, "there is no /dev/nosuch", &["--disk", "phy:/dev/nosuch,xvda,w"]);
    refused_with(2, "names nothing", &["--disk", "vdev=xvda"]);
    refused_with(3, "no service VM named \"bolt\"", &["--disk", "vdev=xvda,backend=bolt,target=db"]);
    refused_with(1, "cannot stand in an xl configuration", &["--append", "a\nb"]);
    let pv = dom0.image("acme", "pv", "");
    let pci = ["acme", "-f", config, "--image", pv.to_str().unwrap(), "--pci", "fffe:41:00.0"];
    refused(3, "PCI device fffe:41:00.0 is not assignable", &pci);
    // One that xl may give away is taken.
    dom0.tell("pci", "fffe:41:00.0");
    dom0.vm(&[&["create"], &pci[..]].concat()).fine();
    assert!(fs::read_to_string(dom0.rig.path("state/acme/acme.cfg")).unwrap().contains("pci = [\"fffe:41:00.0\"]"));

    let again = dom0.vm(&["create", "acme", "-f", config, "--image", image]);
    assert!(again.refused(5).contains("has been created already"), "{again:?}");
    dom0.vm(&["rm", "--purge", "acme"]).fine();
    dom0.guest("acme", &[]);
    dom0.forget();
    refused(5, "domain 1 is named acme already", &["acme", "-f", config, "--image", image]);
}

#[test]
fn a_start_that_fails_leaves_no_domain() {
    let dom0 = Dom0::new();
    assert!(
        dom0.vm(&["start", "acme"])
            .refused(3)
            .contains("no service VM named \"acme\" has been created (there is: none)")
    );
    assert!(dom0.vm(&["start", "../../etc"]).refused(3).contains("no service VM named"));
    dom0.acme();
    dom0.tell("fail", "create *");
    let why = dom0.vm(&["start", "acme"]).refused(1).to_owned();
    assert!(why.contains("xl create") && why.ends_with(": told to fail"), "{why}");
    fs::remove_file(dom0.xl("fail")).unwrap();
    dom0.tell("dull", "acme");
    let why = dom0.vm(&["start", "acme", "--wait", "1"]).refused(4).to_owned();
    assert!(why.contains("not ready after 1 s") && why.contains("console"), "{why}");
    assert_eq!(dom0.domains(), [""; 0]);
    assert_eq!(dom0.json(&["list"])["vms"][0]["state"], "stopped");
    fs::remove_file(dom0.xl("dull")).unwrap();
    // An image that was damaged since is not booted.
    let image = dom0.rig.path("state/acme/images/current/vmlinuz");
    let good = fs::read(&image).unwrap();
    fs::write(&image, vec![1; good.len()]).unwrap();
    assert!(dom0.vm(&["start", "acme"]).refused(1).contains("vmlinuz is damaged"));
    fs::write(&image, good).unwrap();
    dom0.vm(&["start", "acme"]).fine();
    assert!(dom0.vm(&["start", "acme"]).refused(5).contains("acme is there already"));
    // Without xl there is nobody to ask.
    let missing = crate::rig::run(dom0.windsor().env("PATH", "/nonexistent").args(["vm", "list"]));
    assert!(missing.refused(3).contains("xl cannot be run"));
    let mut nowhere = dom0.windsor();
    nowhere.env_remove("XENSTORED_PATH").args(["vm", "list"]);
    if !["/dev/xen/xenbus", "/proc/xen/xenbus", "/run/xenstored/socket"]
        .iter()
        .any(|path| std::path::Path::new(path).exists())
    {
        assert!(crate::rig::run(&mut nowhere).refused(3).contains("no Xen on this machine"));
    }
}

#[test]
fn a_stop_leaves_nothing_of_its_pci_devices() {
    let dom0 = Dom0::new();
    dom0.acme();
    dom0.vm(&["start", "acme"]).fine();
    let mut store = dom0.store();
    // As libxl leaves it when the domain turns itself off; and another domain's.
    let pci = |domid: u16| format!("/local/domain/0/backend/pci/{domid}");
    for domid in [dom0.domid("acme"), 77] {
        store.write(&format!("{}/0/state", pci(domid)), b"6").unwrap();
    }
    dom0.vm(&["stop", "acme"]).fine();
    assert_eq!(store.directory("/local/domain/0/backend/pci").unwrap(), ["77"]);
}

#[test]
fn a_forced_stop_says_whom_it_waits_for_and_ends() {
    let dom0 = Dom0::new();
    dom0.acme();
    dom0.vm(&["start", "acme"]).fine();
    dom0.guest("g1", &["51712"]);
    dom0.tell("deaf", "acme");
    dom0.forget();
    let ended = dom0.vm(&["stop", "acme", "--force", "--wait", "1"]);
    ended.fine();
    assert!(ended.err.contains("waiting for acme to end: it serves g1 (xvda)"), "{ended:?}");
    assert!(ended.err.contains("has not ended after 1 s: it is destroyed"), "{ended:?}");
    assert_eq!(dom0.changes(), ["shutdown 1", "destroy 1"]);
    // The guest waits for nobody now, and status says so.
    let ended = dom0.vm(&["status", "acme"]);
    assert!(ended.fine().starts_with("acme: stopped"), "{ended:?}");
    assert!(ended.err.contains("g1 xvda waits for domain 1, which is gone"), "{ended:?}");
    assert_eq!(dom0.json(&["status", "acme"])["orphans"][0]["guest"], "g1");

    // Without force a VM that does not end is left alone.
    fs::remove_file(dom0.xl("deaf")).unwrap();
    dom0.by_hand(&["destroy", "g1"]);
    dom0.vm(&["start", "acme"]).fine();
    dom0.tell("deaf", "acme");
    let why = dom0.vm(&["stop", "acme", "--wait", "1"]);
    assert_eq!(why.code, Some(4), "{why:?}");
    assert!(why.err.contains("acme has not ended after 1 s"), "{why:?}");
    assert_eq!(dom0.domains(), ["acme"]);
}

#[test]
fn at_the_end_of_the_host_guests_go_before_the_vms_that_serve_them() {
    let dom0 = Dom0::new();
    dom0.acme();
    let (config, image) = (dom0.config("bolt", ""), dom0.image("bolt", "pvh", ""));
    dom0.vm(&["create", "bolt", "-f", config.to_str().unwrap(), "--image", image.to_str().unwrap()]).fine();
    let save = dom0.rig.path("save");
    let begin = || {
        dom0.vm(&["start", "acme"]).fine();
        dom0.vm(&["start", "bolt"]).fine();
        for (name, disks) in [("g1", &["51712", "51728"][..]), ("g2", &["51712"]), ("other", &[])] {
            dom0.guest(name, disks);
        }
        dom0.forget();
    };
    begin();
    let file = |name: &str| save.join(name).display().to_string();
    let all = ["stop", "--all", "--save", save.to_str().unwrap()];
    let dry = dom0.vm(&[&all[..], &["--dry-run"]].concat());
    let lines = [
        "xl save 3 ".to_owned() + &file("g1"),
        "xl save 4 ".to_owned() + &file("g2"),
        "xl shutdown 2".into(),
        "xl shutdown 1".into(),
    ];
    assert_eq!(dry.fine().lines().collect::<Vec<_>>(), lines);
    assert!(dom0.changes().is_empty() && !save.exists());
    dom0.vm(&all).fine();
    assert_eq!(dom0.changes(), lines.map(|line| line.trim_start_matches("xl ").to_owned()));
    // Who has nothing of a service VM is not ours.
    assert_eq!(dom0.domains(), ["other"]);
    dom0.vm(&all).fine();
    dom0.by_hand(&["destroy", "other"]);

    // A guest that cannot be saved is shut down, and no half of it is left.
    begin();
    dom0.tell("fail", "save * *g1");
    std::fs::remove_dir_all(&save).unwrap();
    let ended = dom0.vm(&all);
    ended.fine();
    assert!(ended.err.contains("told to fail"), "{ended:?}");
    assert_eq!(dom0.domains(), ["other"]);
    assert!(save.join("g2").exists() && !save.join("g1").exists());
    fs::remove_file(dom0.xl("fail")).unwrap();
    dom0.by_hand(&["destroy", "other"]);

    // No directory: guests are shut down, and one that will not go does not keep its VM for ever.
    begin();
    dom0.tell("deaf", "g1");
    dom0.vm(&["stop", "--all", "--save=", "--wait", "1"]).fine();
    assert_eq!(dom0.domains(), ["g1", "other"]);
    for wrong in [&["stop"][..], &["stop", "--all", "acme"], &["stop", "acme", "--save", "/tmp"]] {
        assert_eq!(dom0.vm(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn attach_and_detach_run_xl_and_wait() {
    let dom0 = Dom0::new();
    dom0.acme();
    dom0.vm(&["start", "acme"]).fine();
    dom0.guest("g1", &[]);
    dom0.forget();
    let id = dom0.domid("g1").to_string();
    let block = "format=raw,vdev=xvdb,access=ro,backend=acme,target=db";
    let dry = dom0.run(&["attach", "g1", "acme:db", "--vdev", "xvdb", "--ro", "--dry-run"]);
    assert_eq!(dry.fine(), format!("xl block-attach {id} {block}"));
    assert!(dom0.changes().is_empty());
    assert_eq!(dom0.run(&["attach", &id, "acme:db", "--vdev", "xvdb", "--ro"]).fine(), "xvdb");
    assert_eq!(dom0.changes(), [format!("block-attach {id} {block}")]);
    assert_eq!(dom0.states("g1", 51728), (Some("4".into()), Some("4".into())));
    assert!(dom0.run(&["attach", "g1", "acme:db", "--vdev", "xvdb"]).refused(5).contains("has a disk xvdb already"));
    assert!(dom0.run(&["attach", "g1", "acme:nosuch"]).refused(3).contains("no volume named \"nosuch\" (it has: db)"));
    assert!(dom0.run(&["attach", "nobody", "acme:db"]).refused(3).contains("no guest named \"nobody\""));

    assert_eq!(dom0.run(&["detach", "g1", "xvdb", "--dry-run"]).fine(), format!("xl block-detach {id} 51728"));
    assert_eq!(dom0.states("g1", 51728), (Some("4".into()), Some("4".into())));
    dom0.run(&["detach", "g1", "xvdb"]).fine();
    assert_eq!(dom0.states("g1", 51728), (None, None));
    assert!(dom0.run(&["detach", "g1", "xvdb"]).refused(3).contains("has no disk xvdb"));

    // xl's own failure, in one line.
    dom0.tell("fail", "block-attach *");
    let why = dom0.run(&["attach", "g1", "acme:db"]).refused(1).to_owned();
    assert!(why.contains("xl block-attach") && why.contains("told to fail"), "{why}");
    fs::remove_file(dom0.xl("fail")).unwrap();
    // A guest that never connects: both states, the reason, and no disk.
    dom0.tell("dull", "g1");
    let why = dom0.run(&["attach", "g1", "acme:db", "--wait", "1"]).refused(4).to_owned();
    assert!(why.contains("backend is InitWait, the frontend Initialising (the guest does not answer"), "{why}");
    assert_eq!(dom0.states("g1", 51712), (None, None));
    // A card, too.
    let mut store = dom0.store();
    let networks = "/local/domain/1/data/windsor/networks/0";
    store.write(networks, br#"{"lan":{"uplink":"switch","mtu":1500,"used-by":[]}}"#).unwrap();
    let card = ["attach", "g1", "acme:lan", "--mac", "00:16:3e:00:00:01", "--rate", "10MB/s", "--mtu", "9000", "-n"];
    let words = "devid=0 mac=00:16:3e:00:00:01 bridge=lan backend=acme mtu=9000";
    let line = dom0.run(&card).fine().to_owned();
    assert!(line.starts_with(&format!("xl network-attach {id} {words} rate=")), "{line}");
}

//! Each check over facts that are made up.

use super::facts::{DeviceFacts, VmFacts, Where, pairs};
use super::*;
use crate::image::DomainType;
use crate::vm::consumers::Consumer;
use crate::vm::xl::Running;

/// A dom0 with one service VM and one guest, with nothing wrong.
fn healthy() -> Facts {
    let running = |name: &str, domid| Running {
        name: name.to_owned(),
        domid,
        memory_mib: 128,
        vcpus: 1,
        flags: "-b----".to_owned(),
    };
    let info = "xen_version            : 4.17.5\n\
                virt_caps              : pv hvm hvm_directio pv_directio hap\n\
                xen_commandline        : placeholder gnttab=max-ver:1,no-transitive iommu=1\n";
    let device = DeviceFacts {
        guest: "g1".into(),
        device: "xvda".into(),
        connected: true,
        ours: true,
        taken: true,
        ..DeviceFacts::default()
    };
    let vm = VmFacts {
        name: "acme".into(),
        domid: Some(1),
        ready: true,
        kind: Some(DomainType::Pvh),
        created: true,
        kernel: Some("6.12.0-cloud-amd64".into()),
        nodes: 80,
        maptrack_frames: Some(1024),
        grants: Some(131_072),
        devices: vec![device],
        ..VmFacts::default()
    };
    Facts {
        place: Where::Dom0,
        kernel: "6.1.0-41-amd64".into(),
        open_files: 65536,
        info: pairs(info),
        domains: vec![running("Domain-0", 0), running("acme", 1), running("g1", 2)],
        pciback: true,
        vms: vec![vm],
        ..Facts::default()
    }
}

fn found(facts: &Facts) -> Vec<(&'static str, Level)> {
    let all = check(facts, &Only::default());
    for finding in &all {
        let needs = finding.level >= Level::Warning;
        assert!(!needs || !finding.fix.is_empty(), "no fix: {finding:?}");
        assert!(!finding.text.is_empty() && !finding.text.contains('\n'), "{finding:?}");
    }
    all.into_iter().filter(|finding| finding.level != Level::Ok).map(|finding| (finding.check, finding.level)).collect()
}

/// What is found when one thing is not as it should be, and nothing else.
#[track_caller]
fn one(change: impl Fn(&mut Facts), check: &'static str, level: Level) {
    let mut facts = healthy();
    change(&mut facts);
    assert_eq!(found(&facts), [(check, level)]);
}

fn booted(facts: &mut Facts, line: &str) {
    facts.info.insert("xen_commandline".into(), line.into());
}

#[test]
fn a_host_that_is_well() {
    assert_eq!(found(&healthy()), []);
    let all = check(&healthy(), &Only::default());
    for name in [
        "xen",
        "xsm",
        "iommu",
        "pciback",
        "zombies",
        "grant-version",
        "transitive-grants",
        "nodes",
        "watches",
        "maptrack",
        "alive",
        "image",
        "vm-kernel",
        "type",
        "connected",
    ] {
        assert_eq!(all.iter().filter(|finding| finding.check == name).count(), 1, "{name}");
    }
}

#[test]
fn xen_and_how_it_was_booted() {
    let good = "gnttab=max-ver:1,no-transitive";
    one(|facts| booted(facts, &format!("{good} xsm=silo")), "xsm", Level::Error);
    one(|facts| booted(facts, &format!("{good} xsm=flask")), "xsm", Level::Warning);
    // The last word counts.
    let mut facts = healthy();
    booted(&mut facts, &format!("{good} xsm=silo xsm=dummy"));
    assert_eq!(found(&facts), []);
    booted(&mut facts, "console=com1");
    let both = [("grant-version", Level::Warning), ("transitive-grants", Level::Warning)];
    assert_eq!(found(&facts), both);
    one(|facts| booted(facts, "gnttab=max-ver:2,no-transitive"), "grant-version", Level::Warning);
    one(|facts| drop(facts.info.insert("xen_version".into(), "4.14.2".into())), "xen", Level::Warning);
    one(|facts| drop(facts.info.insert("virt_caps".into(), "pv hvm".into())), "iommu", Level::Note);
    one(|facts| facts.pciback = false, "pciback", Level::Note);
    one(|facts| facts.pci_left.push(7), "pci-left", Level::Warning);
    one(|facts| facts.no_store = Some("no xenstored".into()), "xenstore", Level::Error);
    let mut facts = healthy();
    facts.no_xl = Some("xl cannot be run".into());
    assert_eq!(found(&facts), [("xen", Level::Error)]);
}

#[test]
fn dead_domains_and_dead_service_vms() {
    one(|facts| facts.domains[2].flags = "--ps-d".into(), "zombies", Level::Error);
    one(|facts| facts.domains[2].name = "(null)".into(), "zombies", Level::Error);
    one(|facts| facts.domains[1].flags = "---sc-".into(), "alive", Level::Error);
    one(|facts| facts.domains[1].flags = "--p---".into(), "alive", Level::Error);
    one(|facts| facts.vms[0].ready = false, "alive", Level::Error);
    let orphan = Consumer {
        guest: "g2".into(),
        guest_domid: 3,
        device: "xvda".into(),
        service_domid: 9,
        why: "the backend is Unknown, the frontend Connected".into(),
    };
    one(|facts| facts.orphans.push(orphan.clone()), "dead-service", Level::Error);
    // One that was created and does not run is nobody's fault.
    let mut facts = healthy();
    facts.vms[0] = VmFacts { name: "acme".into(), created: true, ..VmFacts::default() };
    assert_eq!(found(&facts), []);
}

#[test]
fn quotas_are_told_before_and_when_they_are_used_up() {
    one(|facts| facts.vms[0].nodes = 900, "nodes", Level::Warning);
    one(|facts| facts.vms[0].nodes = 1000, "nodes", Level::Error);
    let mut facts = healthy();
    facts.vms[0].nodes = 1000;
    facts.quotas.insert("nodes".into(), 20_000);
    assert_eq!(found(&facts), []);
    facts.vms[0].devices = vec![facts.vms[0].devices[0].clone(); 120];
    assert_eq!(found(&facts), [("watches", Level::Warning)]);
    one(|facts| facts.vms[0].maptrack_frames = Some(0), "maptrack", Level::Error);
    one(|facts| facts.vms[0].maptrack_frames = Some(511), "maptrack", Level::Warning);
}

#[test]
fn images_types_and_devices() {
    one(|facts| facts.vms[0].damage = Some("initramfs.img is damaged".into()), "image", Level::Error);
    one(|facts| facts.vms[0].kernel = Some("5.10.0".into()), "vm-kernel", Level::Error);
    one(|facts| facts.vms[0].kernel = Some("6.1.0-41".into()), "vm-kernel", Level::Note);
    one(|facts| facts.vms[0].kind = Some(DomainType::Pv), "type", Level::Warning);
    let with_pci = |facts: &mut Facts| {
        facts.vms[0].kind = Some(DomainType::Pv);
        facts.vms[0].pci = vec!["41:00.0".parse().unwrap()];
    };
    one(with_pci, "type", Level::Note);
    let mut facts = healthy();
    with_pci(&mut facts);
    facts.pciback = false;
    facts.info.remove("virt_caps");
    facts.vms[0].domid = None;
    let missing = [("iommu", Level::Error), ("pciback", Level::Error), ("type", Level::Note), ("pci", Level::Error)];
    assert_eq!(found(&facts), missing);
    one(|facts| facts.vms[0].devices[0].scripts = true, "foreign-backend", Level::Error);
    one(|facts| facts.vms[0].devices[0].ours = false, "foreign-backend", Level::Error);
    one(|facts| facts.vms[0].devices[0].connected = false, "connected", Level::Error);
}

#[test]
fn a_machine_without_xen() {
    let facts = |place| Facts { place, kernel: "6.18.0".into(), open_files: 4096, ..Facts::default() };
    assert_eq!(found(&facts(Where::Nowhere)), [("xen", Level::Note)]);
    assert_eq!(found(&facts(Where::DomU)), [("xen", Level::Note)]);
    assert_eq!(found(&facts(Where::Embedded)), []);
    let mut poor = facts(Where::Embedded);
    poor.no_io_uring = Some("io_uring is forbidden here".into());
    poor.memlock = Some(64 << 10);
    poor.open_files = 256;
    poor.kernel = "5.15.0".into();
    let levels = [
        ("kernel", Level::Error),
        ("io_uring", Level::Error),
        ("memlock", Level::Warning),
        ("open-files", Level::Warning),
    ];
    assert_eq!(found(&poor), levels);
}

#[test]
fn findings_about_one() {
    let only = |vm: Option<&str>, guest: Option<&str>| {
        let only = Only { vm: vm.map(str::to_owned), guest: guest.map(str::to_owned) };
        check(&healthy(), &only).into_iter().map(|finding| finding.check).collect::<Vec<_>>()
    };
    assert_eq!(only(Some("acme"), None), ["nodes", "watches", "maptrack", "alive", "image", "vm-kernel", "type"]);
    assert_eq!(only(None, Some("g1")), ["connected"]);
}

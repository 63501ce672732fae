//! `windsor doctor` through the real binary: what it reads of a dom0, and its exit codes.

use serde_json::Value;
use xenstore::Store;

use crate::place::Dom0;
use crate::rig::{Ended, run};

/// `windsor doctor ARGS... --json`, and what it found by name of check, if that is not as it should be.
fn unwell(dom0: &Dom0, args: &[&str]) -> (Ended, Vec<(String, String)>) {
    let mut command = dom0.windsor();
    command.args(["doctor", "--json", "--state-dir"]).arg(dom0.rig.path("state"));
    let ended = run(command.arg("--config-dir").arg(dom0.rig.path("etc")).args(args));
    let report: Value = serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    let found = findings.map(|finding| (text(finding, "check"), text(finding, "level")));
    let bad = found.filter(|(check, level)| level != "ok" && level != "note" && check != "memlock").collect();
    (ended, bad)
}

fn names(found: &[(String, String)]) -> Vec<(&str, &str)> {
    found.iter().map(|(check, level)| (check.as_str(), level.as_str())).collect()
}

#[test]
fn a_dom0_that_is_well_and_one_that_is_not() {
    let dom0 = Dom0::new();
    dom0.tell(
        "info",
        "xen_version : 4.17.5\nvirt_caps : pv hvm hvm_directio\nxen_commandline : gnttab=max-ver:1,no-transitive",
    );
    dom0.acme();
    dom0.vm(&["start", "acme"]).fine();
    let (ended, found) = unwell(&dom0, &[]);
    assert_eq!((ended.code, names(&found)), (Some(0), vec![]), "{ended:?}");

    dom0.tell("info", "xen_version : 4.17.5\nvirt_caps : pv hvm\nxen_commandline : dom0_mem=1G");
    let (ended, found) = unwell(&dom0, &[]);
    assert_eq!(
        (ended.code, names(&found)),
        (Some(0), vec![("grant-version", "warning"), ("transitive-grants", "warning")])
    );

    // A domain that turned itself off has left nodes; of one that runs they are in use.
    let mut store = dom0.store();
    for domid in [1, 77] {
        store.write(&format!("/local/domain/0/backend/pci/{domid}/0/state"), b"4").unwrap();
    }
    let (ended, found) = unwell(&dom0, &[]);
    assert!(names(&found).contains(&("pci-left", "warning")) && found.len() == 3, "{ended:?}");
    assert!(ended.out.contains("\"xenstore-rm /local/domain/0/backend/pci/77\""), "{ended:?}");
    store.rm("/local/domain/0/backend/pci").unwrap();

    // The kernel's backend took a disk; the guest's name says whose it is.
    dom0.guest("g1", &["51712"]);
    let (ended, found) = unwell(&dom0, &["--vm", "acme"]);
    assert_eq!((ended.code, names(&found)), (Some(6), vec![("foreign-backend", "error")]), "{ended:?}");
    let (ended, found) = unwell(&dom0, &["--guest", "g1"]);
    assert_eq!((ended.code, names(&found)), (Some(0), vec![]), "{ended:?}");
    let id = dom0.domid("g1");
    store.write(&format!("/local/domain/1/backend/vbd/{id}/51712/state"), b"2").unwrap();
    let (ended, found) = unwell(&dom0, &["--guest", "g1"]);
    assert_eq!((ended.code, names(&found)), (Some(6), vec![("connected", "error")]), "{ended:?}");

    // The service VM is gone, and an image is damaged.
    dom0.by_hand(&["destroy", "acme"]);
    std::fs::write(dom0.rig.path("state/acme/images/current/vmlinuz"), "other").unwrap();
    let mut command = dom0.windsor();
    command.args(["doctor", "--state-dir"]).arg(dom0.rig.path("state"));
    let ended = run(command.arg("--config-dir").arg(dom0.rig.path("etc")));
    assert_eq!(ended.code, Some(6), "{ended:?}");
    for words in [
        "dead-service       g1: xvda of g1 was served by domain 1, which is gone",
        "image              acme: ",
        "fix: windsor vm rollback acme",
    ] {
        assert!(ended.err.contains(words), "no \"{words}\" in {}", ended.err);
    }
    assert!(ended.out.contains("ok       xen                Xen 4.17.5"), "{}", ended.out);
    // `status` says so as well.
    let status = run(dom0.windsor().arg("status"));
    assert!(status.fine().contains("xvda of g1 was served by domain 1, which is gone"), "{status:?}");
    assert!(status.out.contains("\n    windsor vm start its service VM; windsor detach g1 xvda --force"), "{status:?}");
    let status = run(dom0.windsor().args(["status", "--json"]));
    let status: Value = serde_json::from_str(status.fine()).unwrap();
    assert!(status["orphans"][0]["device"] == "xvda" && status["vms"] == Value::Array(vec![]), "{status}");
    let nobody = run(dom0.windsor().args(["doctor", "--guest", "nobody"]));
    assert!(nobody.refused(3).contains("nothing is known of \"nobody\""));
}

#[test]
fn a_machine_without_xen_is_looked_at_too() {
    let dom0 = Dom0::new();
    let ended = dom0.rig.run("doctor", &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for check in
        ["xen                an embedded host", "io_uring           io_uring works", "kernel             Linux "]
    {
        assert!(ended.out.contains(check), "{ended:?}");
    }
}

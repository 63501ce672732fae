//! `windsor vm upgrade` and `rollback`: the plan, and what becomes of VM and guests when any step fails.

use std::fs;

use crate::place::Dom0;

/// A dom0 with the VM `acme` and two guests on it, and another image for it; the ids of both images.
fn two_guests() -> (Dom0, String, String, String) {
    let dom0 = Dom0::new();
    dom0.acme();
    dom0.vm(&["start", "acme"]).fine();
    dom0.guest("g1", &["51712"]);
    dom0.guest("g2", &["51712", "51728"]);
    dom0.forget();
    let image = dom0.image("acme", "pvh", "# another").to_str().unwrap().to_owned();
    let (from, to) = (current(&dom0), unikernel::image::manifest::Manifest::read(image.as_ref()).unwrap().id());
    (dom0, image, from, to)
}

fn current(dom0: &Dom0) -> String {
    let link = fs::read_link(dom0.rig.path("state/acme/images/current")).unwrap();
    link.to_str().unwrap().to_owned()
}

/// Every guest is there once, runs, and has its disks on the VM that is there now.
#[track_caller]
fn served(dom0: &Dom0, about: &str) {
    assert_eq!(dom0.domains(), ["acme", "g1", "g2"], "{about}");
    for (guest, devid) in [("g1", 51712), ("g2", 51712), ("g2", 51728)] {
        assert_eq!(dom0.states(guest, devid), (Some("4".into()), Some("4".into())), "{about}: {guest} {devid}");
        let flags = fs::read_to_string(dom0.xl("domains").join(guest)).unwrap();
        assert!(flags.contains("-b----"), "{about}: {guest} is {flags}");
    }
    assert!(!dom0.rig.path("state/acme/saved").exists(), "{about}: something is left of it");
}

#[test]
fn guests_go_on_with_the_new_image_and_back() {
    let (dom0, image, from, to) = two_guests();
    let dry = dom0.vm(&["upgrade", "acme", "--image", &image, "--dry-run"]);
    let words: Vec<&str> = dry.fine().lines().map(|line| line.split("    #").next().unwrap()).collect();
    let state = dom0.rig.path("state/acme").display().to_string();
    assert_eq!(
        words[2..],
        [
            &format!("xl save 2 {state}/saved/2.save"),
            &format!("xl save 3 {state}/saved/3.save"),
            "xl shutdown 1",
            &format!("image of acme: {to} instead of {from}"),
            &format!("xl create {state}/acme.cfg"),
            &format!("xl restore -p {state}/saved/2.save"),
            &format!("xl restore -p {state}/saved/3.save"),
            "xl unpause g1",
            "xl unpause g2",
            "wait until every device of g1 is Connected",
            "wait until every device of g2 is Connected",
        ]
    );
    assert!(dom0.changes().is_empty() && current(&dom0) == from);

    assert_eq!(dom0.vm(&["upgrade", "acme", "--image", &image]).fine(), to);
    let commands: Vec<String> = dom0.changes().iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(commands, ["save", "save", "shutdown", "create", "restore", "restore", "unpause", "unpause"]);
    served(&dom0, "upgraded");
    assert_eq!(current(&dom0), to);
    assert_eq!(dom0.json(&["status", "acme"])["previous_image"], *from);
    let again = dom0.vm(&["upgrade", "acme", "--image", &image]);
    assert!(again.refused(1).contains("has image"), "{again:?}");

    assert_eq!(dom0.vm(&["rollback", "acme"]).fine(), from);
    served(&dom0, "rolled back");
    assert_eq!(current(&dom0), from);
}

#[test]
fn whatever_fails_the_old_image_serves_every_guest_and_none_runs_twice() {
    let steps = ["save", "save", "shutdown", "create", "restore", "restore", "unpause", "unpause"];
    for (at, step) in (1..).zip(steps) {
        let (dom0, image, from, _) = two_guests();
        dom0.tell("fail", &format!("{at} {step} *"));
        let ended = dom0.vm(&["upgrade", "acme", "--image", &image]);
        let about = format!("{step}, the call {at}: {}", ended.err);
        assert_eq!(ended.code, Some(1), "{about}");
        let last = ended.err.lines().last().unwrap();
        assert!(last.contains("acme was not upgraded: ") && last.contains("serves g1, g2 as before"), "{about}");
        served(&dom0, &about);
        assert_eq!(current(&dom0), from, "{about}");
        // A guest that ran on the new image was saved from there before it ran on the old one.
        let changes = dom0.changes();
        for (guest, domid) in [("g1", 2), ("g2", 3)] {
            let mut fresh = true;
            for call in &changes {
                if call.starts_with("save ") && call.ends_with(&format!("/{domid}.save")) {
                    fresh = true;
                } else if *call == format!("unpause {guest}") {
                    assert!(fresh, "{guest} would run twice from one file: {changes:?}");
                    fresh = false;
                }
            }
        }
        // And it can be done once there is nothing in its way.
        fs::remove_file(dom0.xl("fail")).unwrap();
        dom0.vm(&["upgrade", "acme", "--image", &image]).fine();
        served(&dom0, "at last");
    }
}

#[test]
fn an_image_that_does_not_serve_is_taken_back() {
    let (dom0, image, from, to) = two_guests();
    dom0.tell("dull", &to);
    let ended = dom0.vm(&["upgrade", "acme", "--image", &image, "--wait", "3"]);
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.err.lines().last().unwrap().contains("acme is not ready after 3 s"), "{ended:?}");
    served(&dom0, "taken back");
    assert_eq!(current(&dom0), from);
}

#[test]
fn what_a_crash_leaves_is_brought_back_by_hand() {
    let (dom0, image, from, _) = two_guests();
    // Neither the upgrade nor the way back gets any guest restored.
    dom0.tell("fail", "restore *");
    let ended = dom0.vm(&["upgrade", "acme", "--image", &image]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.lines().last().unwrap().contains("going back failed: not restored: g1, g2"), "{ended:?}");
    assert_eq!(dom0.domains(), ["acme"]);
    for (args, words) in
        [(vec!["rm", "acme"], "runs"), (vec!["upgrade", "acme", "--image", &image], "was not finished")]
    {
        assert!(dom0.vm(&args).refused(5).contains(words));
    }
    dom0.by_hand(&["destroy", "acme"]);
    assert!(dom0.vm(&["rm", "acme"]).refused(5).contains("guests are saved"));
    fs::remove_file(dom0.xl("fail")).unwrap();
    // One of them was started anew meanwhile: it is not ended, and not run a second time.
    dom0.guest("g2", &[]);
    let ended = dom0.vm(&["rollback", "acme"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("g2 runs") && dom0.domains() == ["g2"], "{ended:?}");
    dom0.by_hand(&["destroy", "g2"]);
    dom0.vm(&["rollback", "acme"]).fine();
    served(&dom0, "brought back");
    assert_eq!(current(&dom0), from);
}

#[test]
fn what_cannot_be_upgraded_is_left_alone() {
    let (dom0, image, from, to) = two_guests();
    let other = dom0.image("bolt", "pvh", "").to_str().unwrap().to_owned();
    let pv = dom0.image("acme", "pv", "").to_str().unwrap().to_owned();
    assert!(dom0.vm(&["upgrade", "acme", "--image", &other]).refused(2).contains("is an image of \"bolt\""));
    assert!(dom0.vm(&["upgrade", "acme", "--image", &pv]).refused(2).contains("for type pv"));
    assert!(dom0.vm(&["upgrade", "acme", "--image", "/nonexistent"]).refused(3).contains("holds no image"));
    assert!(dom0.vm(&["rollback", "acme"]).refused(1).contains("no image from before"));
    // A guest that is paused cannot be saved.
    fs::write(dom0.xl("domains/g1"), format!("{} 128 1 --p---\n", dom0.domid("g1"))).unwrap();
    assert!(dom0.vm(&["upgrade", "acme", "--image", &image]).refused(1).contains("g1 is paused"));
    // More guests than the disk has room for.
    fs::write(dom0.xl("domains/g1"), format!("{} 9999999999 1 -b----\n", dom0.domid("g1"))).unwrap();
    assert!(dom0.vm(&["upgrade", "acme", "--image", &image]).refused(1).contains("MiB free"));
    assert!(dom0.changes().is_empty() && current(&dom0) == from);
    // One that does not run has no guests.
    for name in ["g1", "g2", "acme"] {
        dom0.by_hand(&["destroy", name]);
    }
    dom0.forget();
    assert_eq!(dom0.vm(&["upgrade", "acme", "--image", &image]).fine(), to);
    assert!(dom0.changes().is_empty() && current(&dom0) == to);
}

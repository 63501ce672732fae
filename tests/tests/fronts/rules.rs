//! The rules of the negotiation and of a disk's life, one case each, that no driver of the other files keeps us to.

use blkback::proto::{Abi, BLKIF_OP_READ};
use frontend::blkfront::Options;
use grant::{Access, GrantAccess};
use xenstore::Store;
use xenstore::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

use crate::ring::{Ring, pattern, segments};
use crate::scene::{SERVICE, Scene};

/// A ring of the guest's that nobody has been told of, with the keys that every frontend writes.
fn ring(scene: &Scene, options: &Options) -> (Ring, Vec<(&'static str, String)>) {
    let ring = Ring::new(scene.queue(options));
    let keys = vec![
        ("ring-ref", ring.queue.ring_grant.refs[0].0.to_string()),
        ("event-channel", ring.queue.port.0.to_string()),
    ];
    (ring, keys)
}

#[track_caller]
fn works(scene: &mut Scene, ring: &mut Ring) {
    let data = pattern(u64::from(ring.queue.port.0), 12_288);
    ring.write(&mut scene.memory, 77, 1, &data);
    assert!(scene.volume(77 * 512, data.len()) == data);
    assert!(ring.read(&mut scene.memory, 77, 0, data.len()) == data);
}

/// The frontend closes, and the disk can be begun anew.
#[track_caller]
fn start_over(scene: &mut Scene) {
    scene.switch(Closing);
    scene.wait(Closing);
    scene.switch(Closed);
    scene.wait(Closed);
    assert_eq!(scene.usage().active_grants, 0, "grants outlive Closed");
    scene.switch(Initialising);
    scene.wait(InitWait);
}

/// A guest that connects with these keys, and is served.
fn served(options: &Options, change: impl FnOnce(&mut Vec<(&'static str, String)>)) {
    let mut scene = Scene::new();
    scene.attach();
    let (mut ring, mut keys) = ring(&scene, options);
    change(&mut keys);
    scene.write_all(&keys, Some(Initialised));
    scene.wait(Connected);
    scene.switch(Connected);
    works(&mut scene, &mut ring);
    start_over(&mut scene);
    scene.end(ring.queue);
    scene.detach_by_force();
    scene.over();
}

/// Everything a frontend goes by is there before InitWait; Connected adds nothing and changes nothing.
#[test]
fn all_keys_are_there_before_initwait() {
    let mut scene = Scene::with("[backend]\ninitwait-dwell-ms = 0\nqueues = 4\n");
    scene.attach();
    let path = scene.backend();
    let all = |scene: &mut Scene| -> Vec<(String, String)> {
        let mut names = scene.dom0.directory(&path).unwrap();
        names.retain(|name| name != "state");
        names.sort();
        names.into_iter().map(|name| (name.clone(), scene.key(&name))).collect()
    };
    let before = all(&mut scene);
    for key in [
        "feature-barrier",
        "feature-discard",
        "feature-flush-cache",
        "feature-max-indirect-segments",
        "feature-persistent",
        "info",
        "max-ring-page-order",
        "multi-queue-max-queues",
        "sector-size",
        "sectors",
    ] {
        assert!(before.iter().any(|(name, value)| name == key && !value.is_empty()), "no {key} in {before:?}");
    }
    let (ring, mut keys) = ring(&scene, &Options::default());
    keys.push(("protocol", "x86_64-abi".to_owned()));
    scene.write_all(&keys, Some(Initialised));
    scene.wait(Connected);
    assert_eq!(all(&mut scene), before);
    start_over(&mut scene);
    scene.end(ring.queue);
    scene.detach_by_force();
    scene.over();
}

#[test]
fn no_protocol_is_that_of_32_bits() {
    served(&Options { abi: Abi::X86_32, ..Options::default() }, |_| {});
}

#[test]
fn an_order_of_zero_renames_the_ring() {
    served(&Options::default(), |keys| {
        let gref = std::mem::replace(&mut keys[0], ("ring-page-order", "0".to_owned())).1;
        keys.extend([("ring-ref0", gref), ("protocol", "x86_64-abi".to_owned())]);
        // What another frontend has left there, which nobody may map.
        keys.push(("ring-ref", "7".to_owned()));
    });
}

#[test]
fn one_queue_that_is_said_stands_at_the_top() {
    served(&Options::default(), |keys| {
        keys.extend([("multi-queue-num-queues", "1".to_owned()), ("protocol", "x86_64-abi".to_owned())]);
        // What another frontend has left there.
        keys.extend([("queue-0/ring-ref", "7".to_owned()), ("queue-0/event-channel", "9".to_owned())]);
    });
}

#[test]
fn keys_that_nobody_knows_are_no_obstacle() {
    served(&Options::default(), |keys| {
        keys.push(("protocol", "x86_64-abi".to_owned()));
        keys.extend([("feature-large-sector-size", "1".to_owned()), ("feature-trim", "yes".to_owned())]);
    });
}

/// Indexes are the frontend's ring's, and not where a backend likes to begin: a ring that has been used is used further.
#[test]
fn a_ring_whose_indexes_are_not_zero_goes_on_where_it_was() {
    let mut scene = Scene::new();
    scene.attach();
    let (mut ring, mut keys) = ring(&scene, &Options::default());
    keys.push(("protocol", "x86_64-abi".to_owned()));
    scene.write_all(&keys, Some(Initialised));
    for _ in 0..3 {
        scene.wait(Connected);
        scene.switch(Connected);
        // More than the ring has slots.
        (0..20).for_each(|_| works(&mut scene, &mut ring));
        start_over(&mut scene);
        scene.switch(Initialised);
    }
    scene.wait(Connected);
    works(&mut scene, &mut ring);
    scene.detach_by_force();
    scene.end(ring.queue);
    scene.over();
}

/// What is under way when a frontend closes is answered before its pages are let go of.
#[test]
fn a_frontend_that_closes_with_requests_under_way_gets_all_answers_before_closed() {
    let mut scene = Scene::with("[volume.fault]\ndelay-ms = 300\n[backend]\ninitwait-dwell-ms = 0\n");
    scene.attach();
    let (mut ring, mut keys) = ring(&scene, &Options::default());
    keys.push(("protocol", "x86_64-abi".to_owned()));
    scene.write_all(&keys, Some(Initialised));
    scene.wait(Connected);
    scene.switch(Connected);
    let data = scene.memory.grant(SERVICE, 1, Access::ReadWrite).unwrap();
    for id in 0..32 {
        let request = ring.encoder.direct(BLKIF_OP_READ, id, id * 8, &segments(&data, 0, 4096));
        ring.queue.put_bytes([request.bytes()]);
    }
    ring.queue.notify().unwrap();
    start_over(&mut scene);
    assert_eq!(ring.queue.ring.unconsumed().unwrap(), 32, "a request was not answered");
    let mut answers: Vec<(u64, i16)> =
        (0..32).map(|_| ring.answer()).map(|answer| (answer.id, answer.status)).collect();
    answers.sort();
    assert_eq!(answers, (0..32).map(|id| (id, 0)).collect::<Vec<_>>());
    assert!(scene.memory.end(data).is_ok());
    scene.end(ring.queue);
    scene.detach_by_force();
    scene.over();
}

/// As when a toolstack's patience is over, or the guest is destroyed: nobody says Closing, the directory goes.
#[test]
fn a_frontend_whose_directory_goes_with_requests_under_way_is_let_go_of() {
    let mut scene = Scene::with("[volume.fault]\ndelay-ms = 300\n[backend]\ninitwait-dwell-ms = 0\n");
    scene.attach();
    let (mut ring, mut keys) = ring(&scene, &Options::default());
    keys.push(("protocol", "x86_64-abi".to_owned()));
    scene.write_all(&keys, Some(Initialised));
    scene.wait(Connected);
    scene.switch(Connected);
    let data = scene.memory.grant(SERVICE, 1, Access::ReadWrite).unwrap();
    let request = ring.encoder.direct(BLKIF_OP_READ, 1, 0, &segments(&data, 0, 4096));
    ring.submit(&request);
    scene.detach_by_force();
    assert_eq!(scene.usage().active_grants, 0);
    assert!(scene.memory.end(data).is_ok());
    scene.end(ring.queue);
    scene.over();
}

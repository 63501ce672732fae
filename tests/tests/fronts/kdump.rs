//! Linux that starts over without a reset of its machine: kexec and kdump. The new kernel finds the disk in whatever state
//! the old one left it, drives the backend 5, 6, 2, waiting for each (or for no longer than 5 s), and begins anew. What the old
//! one shared is shared still, its requests are under way, and its keys stand in the store.

use frontend::blkfront::{Op, Options, Request};
use xenstore::xenbus::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialising};

use crate::linux::{Crashed, Linux};
use crate::scene::Scene;

/// A volume whose requests take a while, so that some are under way whenever somebody crashes.
const SLOW: &str = "[volume.fault]\ndelay-ms = 200\n[backend]\ninitwait-dwell-ms = 0\n";

/// What the new kernel does first (`xenbus_reset_frontend`).
fn reset(scene: &mut Scene) {
    let first = match scene.state() {
        Connected => 0,
        Closing => 1,
        _ => 2,
    };
    let steps = [(Closing, Closing), (Closed, Closed), (Initialising, InitWait)];
    for (ours, theirs) in &steps[first..] {
        scene.switch(*ours);
        scene.wait(*theirs);
        if *theirs == Closed {
            assert_eq!(scene.usage().active_grants, 0, "Closed with grants of the dead kernel mapped");
        }
    }
}

/// Crashes with requests under way on every queue.
fn crash(mut linux: Linux) -> Crashed {
    for (index, queue) in linux.queues.iter_mut().enumerate() {
        for part in 0..8 {
            let sector = (index as u64 + 4) << 12 | part << 8;
            let (op, byte) = if part % 2 == 0 { (Op::Write, 0xC5) } else { (Op::Read, 0) };
            let request = Request { tag: part, op, sector, buffer: vec![byte; 64 << 10] };
            queue.submit(request).unwrap();
        }
        queue.kick();
        assert_eq!(queue.in_flight(), 8);
    }
    linux.crash()
}

/// Crashes in `state` of the backend's, with so many queues, and comes back with as many as it has CPUs then.
fn comes_back(before: &Options, after: &Options, begin: impl FnOnce(&mut Scene), steps: usize) {
    let mut scene = Scene::with(SLOW);
    scene.attach();
    let linux = Linux::boot(&mut scene, before);
    assert_eq!(linux.queues.len(), usize::from(before.queues));
    scene.is_attached();
    assert_eq!(scene.writes(), 3);
    let crashed = crash(linux);
    begin(&mut scene);
    let mut linux = Linux::boot(&mut scene, after);
    assert_eq!(linux.queues.len(), usize::from(after.queues));
    linux.works(&scene);
    // What the dead kernel had asked for was done, or not: never half of a sector of it, and nothing after Closed.
    for queue in 0..u64::from(before.queues) {
        for part in [0, 2, 4, 6] {
            let at = ((queue + 4) << 12 | part << 8) * 512;
            for sector in scene.volume(at, 64 << 10).chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
            }
        }
    }
    assert_eq!(scene.writes(), steps);
    linux.close(&mut scene);
    scene.detach_by_force();
    // The memory of the dead: nobody but the test has it.
    crashed.bury(&scene);
    scene.over();
}

#[test]
fn a_crash_kernel_drives_the_backend_through_closing_and_closed_and_is_served() {
    comes_back(&Options::default(), &Options::default(), reset, 4);
}

#[test]
fn a_kernel_that_crashed_while_it_closed_its_disk_is_followed_by_one_that_is_served() {
    let begin = |scene: &mut Scene| {
        scene.switch(Closing);
        scene.wait(Closing);
        reset(scene);
    };
    comes_back(&Options::default(), &Options::default(), begin, 4);
}

#[test]
fn a_kernel_that_comes_back_in_initialising_without_having_closed_is_served() {
    let begin = |scene: &mut Scene| {
        scene.switch(Initialising);
        let mut seen = Vec::new();
        scene.wait_until("ready again", |state| {
            seen.push(state);
            state == InitWait
        });
        assert!(!seen.contains(&XenbusState::Closing), "nobody has asked for that: {seen:?}");
        assert_eq!(scene.usage().active_grants, 0);
    };
    comes_back(&Options::default(), &Options::default(), begin, 3);
}

/// A crash kernel has one CPU. With one queue xen-blkfront does not say how many it has, and what the old kernel said stands
/// there still, with the references of its rings.
#[test]
fn a_crash_kernel_with_one_queue_is_not_given_the_four_of_the_kernel_before() {
    let four = Options { queues: 4, ..Options::default() };
    comes_back(&four, &Options::default(), reset, 4);
}

/// The same with pages: with a ring of one xen-blkfront writes no `ring-page-order`.
#[test]
fn a_crash_kernel_with_a_smaller_ring_is_not_given_the_one_of_the_kernel_before() {
    let wide = Options { ring_order: 3, queues: 2, ..Options::default() };
    comes_back(&wide, &Options { ring_order: 3, ..Options::default() }, reset, 4);
    comes_back(&wide, &Options::default(), reset, 4);
}

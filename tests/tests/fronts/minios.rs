//! MiniOS, and pv-grub which is made of it: one page, keys and Connected in one transaction, without waiting for InitWait. It
//! goes on from any later state (OVMF wants exactly the next one), waits for InitWait in the end, and only then takes its
//! ring back; `protocol` it leaves behind.

use blkback::proto::{Abi, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER};
use frontend::blkfront::Options;
use xenstore::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialising};

use crate::linux::Linux;
use crate::ring::{Ring, pattern};
use crate::scene::Scene;

/// A MiniOS with its disk; `abi` is what it was built for.
fn boot(scene: &mut Scene, abi: Abi) -> Ring {
    let ring = Ring::new(scene.queue(&Options { abi, ..Options::default() }));
    let keys = [
        ("ring-ref", ring.queue.ring_grant.refs[0].0.to_string()),
        ("event-channel", ring.queue.port.0.to_string()),
        ("protocol", abi.protocol().to_owned()),
    ];
    scene.write_all(&keys, Some(Connected));
    assert_eq!(scene.key("mode"), "w");
    let state = scene.wait_until("connected", |state| state.number() >= Connected.number());
    assert_eq!(state, Connected);
    // It takes a key that is missing for -1 or 0, and these for good.
    for (key, value) in [("info", "0"), ("sectors", "32768"), ("sector-size", "512")] {
        assert_eq!(scene.key(key), value);
    }
    ring
}

fn works(scene: &mut Scene, ring: &mut Ring) {
    for (sector, first_sect, sectors) in [(0, 0, 1), (63, 4, 9), (2048, 2, 86)] {
        let data = pattern(sector, sectors * 512);
        ring.write(&mut scene.memory, sector, first_sect, &data);
        assert!(scene.volume(sector * 512, data.len()) == data);
        assert!(ring.read(&mut scene.memory, sector, 0, data.len()) == data);
    }
}

fn shutdown(scene: &mut Scene, mut ring: Ring) {
    for operation in [BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE] {
        assert_eq!(ring.plain(operation), 0);
    }
    scene.switch(Closing);
    scene.wait_until("closing", |state| state.number() >= Closing.number());
    scene.switch(Closed);
    scene.wait_until("closed", |state| state.number() >= Closed.number());
    assert_eq!(scene.usage().active_grants, 0);
    scene.switch(Initialising);
    scene.wait_until("ready again", |state| state.number() >= InitWait.number() && state.number() < Closed.number());
    scene.remove(&["ring-ref", "event-channel"]);
    scene.end(ring.queue);
}

#[test]
fn minios_comes_and_goes_and_pv_grub_hands_over_to_linux() {
    let mut scene = Scene::new();
    scene.attach();
    for round in 0..3 {
        let mut ring = boot(&mut scene, Abi::X86_64);
        if round == 0 {
            scene.is_attached();
        }
        works(&mut scene, &mut ring);
        shutdown(&mut scene, ring);
    }
    let mut linux = Linux::boot(&mut scene, &Options { ring_order: 2, ..Options::default() });
    linux.works(&scene);
    // Once 1 and 2; then 4, 5, 6, 2 in each round, and 4.
    assert_eq!(scene.writes(), 2 + 3 * 4 + 1);
    scene.detach(|scene| {
        scene.wait(Closing);
        linux.closed(scene);
    });
    scene.over();
}

/// A pv-grub of 32 bits, whose `protocol` stands there still when a kernel of 64 bits begins, and the other way round.
#[test]
fn minios_of_32_bits_hands_over_to_linux_of_64_and_back() {
    let mut scene = Scene::new();
    scene.attach();
    let mut ring = boot(&mut scene, Abi::X86_32);
    works(&mut scene, &mut ring);
    shutdown(&mut scene, ring);
    let mut linux = Linux::boot(&mut scene, &Options::default());
    linux.works(&scene);
    linux.close(&mut scene);
    // A new kernel, in the same domain: the keys of the one before are there.
    scene.switch(Initialising);
    scene.wait(InitWait);
    let mut linux = Linux::boot(&mut scene, &Options { abi: Abi::X86_32, ..Options::default() });
    linux.works(&scene);
    linux.close(&mut scene);
    scene.detach_by_force();
    scene.over();
}

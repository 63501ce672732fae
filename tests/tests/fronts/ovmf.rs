//! OVMF's XenPvBlkDxe. It does not wait for InitWait and skips Initialised: keys and Connected in one transaction. Writes
//! come out of pages granted for reading only. At the end it makes all durable, goes 5, 6, 1 with a look at the backend after
//! each, and removes its three keys; then the operating system's own frontend begins.

use blkback::proto::{BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER};
use frontend::blkfront::Options;
use rustix::process::Signal;
use xenstore::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialising};

use crate::linux::Linux;
use crate::rig::signal_to;
use crate::ring::{Ring, pattern};
use crate::scene::Scene;

/// The firmware's driver.
pub struct Ovmf {
    ring: Ring,
    round: u64,
}

impl Ovmf {
    /// Its first words, said whatever the backend's state is.
    pub fn announce(scene: &mut Scene) -> Ovmf {
        let ring = Ring::new(scene.queue(&Options::default()));
        let keys = [
            ("ring-ref", ring.queue.ring_grant.refs[0].0.to_string()),
            ("event-channel", ring.queue.port.0.to_string()),
            ("protocol", "x86_64-abi".to_owned()),
        ];
        scene.write_all(&keys, Some(Connected));
        Ovmf { ring, round: 0 }
    }

    /// It gives up on a backend that is in a later state than Connected.
    #[track_caller]
    pub fn connected(&mut self, scene: &mut Scene) {
        let state = scene.wait_until("connected", |state| state.number() >= Connected.number());
        assert_eq!(state, Connected, "{}", scene.log());
        assert_eq!((scene.key("info").as_str(), scene.key("sector-size").as_str()), ("0", "512"));
        assert_eq!(scene.key("sectors"), (16 << 11).to_string());
        assert_eq!((scene.key("feature-barrier").as_str(), scene.key("feature-flush-cache").as_str()), ("1", "1"));
    }

    /// A boot loader's requests: of any size up to 44 KiB, from memory that is aligned to sectors.
    #[track_caller]
    pub fn works(&mut self, scene: &mut Scene) {
        for (first_sect, sectors) in [(0, 1), (0, 8), (3, 1), (7, 2), (5, 80), (0, 88)] {
            self.round += 1;
            let at = self.round * 128;
            let data = pattern(at, sectors * 512);
            self.ring.write(&mut scene.memory, at, first_sect, &data);
            assert!(scene.volume(at * 512, data.len()) == data, "{sectors} sectors are not in the volume");
            assert!(self.ring.read(&mut scene.memory, at, (first_sect + 1) % 2, data.len()) == data);
        }
    }

    /// Its end, with what it waits for.
    #[track_caller]
    pub fn shutdown(mut self, scene: &mut Scene) {
        for operation in [BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE] {
            assert_eq!(self.ring.plain(operation), 0);
        }
        scene.switch(Closing);
        // A backend that is Closed already makes it give up here, with its ring still shared.
        let state = scene.wait_until("closing", |state| state.number() >= Closing.number());
        assert_eq!(state, Closing);
        scene.switch(Closed);
        scene.wait(Closed);
        assert_eq!(scene.usage().active_grants, 0, "grants outlive Closed");
        scene.switch(Initialising);
        scene.wait_until("initwait or closed", |state| state.number() <= 2 || state == Closed);
        scene.remove(&["ring-ref", "event-channel", "protocol"]);
        scene.end(self.ring.queue);
    }
}

#[test]
fn ovmf_skips_initialised_closes_and_hands_over_to_linux() {
    let mut scene = Scene::new();
    scene.attach();
    let mut firmware = Ovmf::announce(&mut scene);
    firmware.connected(&mut scene);
    scene.is_attached();
    firmware.works(&mut scene);
    firmware.shutdown(&mut scene);
    let mut linux = Linux::boot(&mut scene, &Options { queues: 2, ..Options::default() });
    assert!(linux.properties.persistent && linux.queues.len() == 2);
    linux.works(&scene);
    // Once 1 and 2; then 4, 5, 6, 2 for the firmware, and 4.
    assert_eq!(scene.writes(), 7);
    scene.detach(|scene| {
        scene.wait(Closing);
        linux.closed(scene);
    });
    scene.over();
}

#[test]
fn ovmf_of_which_one_follows_the_other_is_served_each_time() {
    let mut scene = Scene::new();
    scene.attach();
    for _ in 0..20 {
        let mut firmware = Ovmf::announce(&mut scene);
        firmware.connected(&mut scene);
        firmware.works(&mut scene);
        firmware.shutdown(&mut scene);
        // It would give up on a backend that is still Closed.
        scene.wait(InitWait);
    }
    assert_eq!(scene.writes(), 2 + 20 * 4);
    scene.detach_by_force();
    scene.over();
}

#[test]
fn ovmf_that_is_faster_than_the_backend_is_served() {
    // The pause that InitWait makes for toolstacks is no obstacle either.
    let mut scene = Scene::with("");
    let supervisor = scene.rig.supervisor("acme");
    signal_to(supervisor, Signal::STOP);
    scene.begin_attach();
    let mut firmware = Ovmf::announce(&mut scene);
    assert_eq!(scene.state(), Initialising);
    signal_to(supervisor, Signal::CONT);
    firmware.connected(&mut scene);
    firmware.works(&mut scene);
    firmware.shutdown(&mut scene);
    scene.detach_by_force();
    scene.over();
}

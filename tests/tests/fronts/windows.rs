//! Windows' xenvbd. Before anything else it closes the disk that it finds, so that the backend goes 2, 6, 2; then it reads
//! what is offered, once, and takes the largest ring there is. It names no features of its own but those that no backend has to
//! know. It closes again when the machine sleeps or is moved, and its pages are its own again with the backend's Closed.

use blkback::proto::BLKIF_OP_FLUSH_DISKCACHE;
use frontend::blkfront::Options;
use xenstore::xenbus::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialised, Initialising};

use crate::linux::Linux;
use crate::ring::{Ring, pattern};
use crate::scene::Scene;

/// Its largest ring, `XENVBD_MAX_RING_PAGE_ORDER`.
const MAX_ORDER: u32 = 4;

struct Windows {
    ring: Ring,
}

impl Windows {
    /// From wherever the disk is to Connected. With `max_order` zero it is the driver that writes the crash dump, which has
    /// a ring of one page, whatever the one before it had.
    #[track_caller]
    fn connect(scene: &mut Scene, max_order: u32) -> Windows {
        close(scene);
        scene.switch(Initialising);
        let state = scene.wait_until("ready", |state| !matches!(state, Closed | Initialising));
        assert_eq!(state, InitWait, "it gives up");
        // What it reads here it does not read again, but for these three.
        let features = ["removable", "feature-max-indirect-segments", "feature-persistent"];
        let read = features.map(|key| scene.key(key));
        assert_eq!(read[1..], ["256", "1"]);
        let order = scene.key("max-ring-page-order").parse().unwrap_or(0).min(max_order);
        let ring = Ring::new(scene.queue(&Options { ring_order: order as u8, ..Options::default() }));
        scene.write_all(&Windows::keys(&ring, order), None);
        scene.switch(Initialised);
        let waits = |state| matches!(state, InitWait | Initialising | Initialised);
        let state = scene.wait_until("connected", |state| !waits(state));
        assert_eq!(state, Connected, "it gives up: {}", scene.log());
        for (key, value) in [("info", "0"), ("sectors", "32768"), ("sector-size", "512")] {
            assert_eq!(scene.key(key), value);
        }
        assert_eq!((scene.key("feature-barrier").as_str(), scene.key("feature-flush-cache").as_str()), ("1", "1"));
        assert_eq!(features.map(|key| scene.key(key)), read);
        scene.switch(Connected);
        Windows { ring }
    }

    /// In its order, in one transaction.
    fn keys(ring: &Ring, order: u32) -> Vec<(&'static str, String)> {
        const NAMES: [&str; 16] = [
            "ring-ref0",
            "ring-ref1",
            "ring-ref2",
            "ring-ref3",
            "ring-ref4",
            "ring-ref5",
            "ring-ref6",
            "ring-ref7",
            "ring-ref8",
            "ring-ref9",
            "ring-ref10",
            "ring-ref11",
            "ring-ref12",
            "ring-ref13",
            "ring-ref14",
            "ring-ref15",
        ];
        let refs = ring.queue.ring_grant.refs.iter().map(|gref| gref.0.to_string());
        let mut keys: Vec<_> = match order {
            0 => ["ring-ref"].into_iter().zip(refs).collect(),
            _ => [("ring-page-order", order.to_string())].into_iter().chain(NAMES.into_iter().zip(refs)).collect(),
        };
        keys.push(("protocol", "x86_64-abi".to_owned()));
        keys.push(("event-channel", ring.queue.port.0.to_string()));
        keys.push(("target-id", "0".to_owned()));
        let own = ["feature-surprise-remove", "feature-online-resize", "feature-large-sector-size"];
        keys.extend(own.map(|key| (key, "1".to_owned())));
        keys
    }

    /// Its requests: of any memory that is aligned to sectors, 128 KiB in one where it may be indirect.
    #[track_caller]
    fn works(&mut self, scene: &mut Scene) {
        for (sector, first_sect, sectors) in [(0, 0, 1), (1, 7, 8), (5_000, 3, 88), (20_000, 0, 256), (30_000, 5, 200)]
        {
            let data = pattern(sector + 3, sectors * 512);
            self.ring.write(&mut scene.memory, sector, first_sect, &data);
            assert!(scene.volume(sector * 512, data.len()) == data, "{sectors} sectors are not in the volume");
            assert!(self.ring.read(&mut scene.memory, sector, 0, data.len()) == data);
        }
        assert_eq!(self.ring.plain(BLKIF_OP_FLUSH_DISKCACHE), 0);
    }

    /// When it sleeps, or its disk is ejected.
    #[track_caller]
    fn disconnect(self, scene: &mut Scene) {
        close(scene);
        assert_eq!(scene.usage().active_grants, 0, "grants outlive Closed");
        scene.end(self.ring.queue);
    }
}

/// Says Closing until the backend is at least that, then Closed until the backend is that.
#[track_caller]
fn close(scene: &mut Scene) {
    let mut state = scene.wait_until("more than Initialising", |state| state != Initialising);
    for (ours, theirs) in [(Closing, [Closing, Closed]), (Closed, [Closed, Closed])] {
        while !theirs.contains(&state) {
            scene.switch(ours);
            let before: XenbusState = state;
            state = scene.wait_until("on its way to Closed", |state| state != before);
        }
    }
}

#[test]
fn windows_closes_what_it_finds_and_connects() {
    let mut scene = Scene::new();
    scene.attach();
    assert_eq!(scene.writes(), 2);
    let mut windows = Windows::connect(&mut scene, MAX_ORDER);
    assert_eq!(windows.ring.queue.ring_grant.refs.len(), 16);
    scene.is_attached();
    windows.works(&mut scene);
    // Nothing was begun, so Closed at once; InitWait, Connected.
    assert_eq!(scene.writes(), 3);
    scene.detach(|scene| {
        scene.wait(Closing);
        windows.disconnect(scene);
    });
    scene.over();
}

#[test]
fn windows_sleeps_and_wakes_many_times() {
    let mut scene = Scene::new();
    scene.attach();
    for _ in 0..10 {
        let mut windows = Windows::connect(&mut scene, MAX_ORDER);
        windows.works(&mut scene);
        windows.disconnect(&mut scene);
    }
    // Its first connect finds InitWait, each later one Closed.
    assert_eq!(scene.writes(), 2 + 1 + 10 * 4);
    scene.detach_by_force();
    scene.over();
}

#[test]
fn windows_that_crashes_writes_its_dump_over_a_ring_of_one_page() {
    let mut scene = Scene::new();
    scene.attach();
    let mut windows = Windows::connect(&mut scene, MAX_ORDER);
    windows.works(&mut scene);
    // `ring-page-order` stands there still; nobody unmaps, nobody says a word before the driver of the dump begins.
    let mut dump = Windows::connect(&mut scene, 0);
    dump.works(&mut scene);
    scene.end(windows.ring.queue);
    dump.disconnect(&mut scene);
    scene.detach_by_force();
    scene.over();
}

#[test]
fn windows_hands_over_to_linux() {
    let mut scene = Scene::new();
    scene.attach();
    let mut windows = Windows::connect(&mut scene, MAX_ORDER);
    windows.works(&mut scene);
    windows.disconnect(&mut scene);
    scene.switch(Initialising);
    scene.wait(InitWait);
    let mut linux = Linux::boot(&mut scene, &Options::default());
    linux.works(&scene);
    linux.close(&mut scene);
    scene.detach_by_force();
    scene.over();
}

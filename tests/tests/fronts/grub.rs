//! GRUB for PV guests (grub-xen): three keys one by one, then Initialised, and there it stays. It waits for no state of the
//! backend's but for the end of InitWait, uses one granted page for everything without saying that it does, always
//! notifies, and polls. In the end it goes from Initialised straight to Closed, empties two of its keys instead of removing
//! them, and leaves Initialising behind for the kernel, without waiting for anything more.

use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE, BlkifRequestSegment};
use frontend::blkfront::{Options, Response};
use grant::{Access, GrantAccess, Granted};
use xenstore::xenbus::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

use crate::linux::Linux;
use crate::ring::{Ring, pattern};
use crate::scene::{SERVICE, Scene};

struct Grub {
    ring: Ring,
    page: Granted,
}

impl Grub {
    fn init(scene: &mut Scene) -> Grub {
        assert_eq!(scene.key("dev"), "xvda", "it takes the disk's name from there");
        let ring = Ring::new(scene.queue(&Options::default()));
        let page = scene.memory.grant(SERVICE, 1, Access::ReadWrite).unwrap();
        scene.write("ring-ref", ring.queue.ring_grant.refs[0].0.to_string());
        scene.write("event-channel", ring.queue.port.0.to_string());
        scene.write("protocol", "x86_64-abi");
        scene.switch(Initialised);
        let state = scene.wait_until("past InitWait", |state| state != InitWait);
        assert_eq!(state, Connected);
        assert_eq!((scene.key("sectors").as_str(), scene.key("sector-size").as_str()), ("32768", "512"));
        Grub { ring, page }
    }

    /// One page at most, with an id that is always 0; spins for the answer.
    fn perform(&mut self, operation: u8, sector: u64, sectors: usize) {
        let segment =
            BlkifRequestSegment { gref: self.page.refs[0].0, first_sect: 0, last_sect: sectors as u8 - 1, pad: 0 };
        let request = self.ring.encoder.direct(operation, 0, sector, &[segment]);
        self.ring.queue.put_bytes([request.bytes()]);
        self.ring.queue.notify().unwrap();
        while self.ring.queue.ring.unconsumed().unwrap() == 0 {
            std::thread::yield_now();
        }
        let mut bytes = [0; Response::LEN];
        self.ring.queue.ring.take(&mut bytes);
        let response = Response::parse(&bytes);
        assert_eq!(response, Response { id: 0, operation, status: 0 });
        assert!(!self.ring.queue.ring.final_check().unwrap(), "one answer too many");
    }

    fn works(&mut self, scene: &Scene) {
        let memory = self.page.memory.pages();
        for (sector, sectors) in [(0, 8), (8, 1), (100, 8), (32_760, 8), (3, 5)] {
            let data = pattern(sector + 7, sectors * 512);
            memory.write(0, &data);
            self.perform(BLKIF_OP_WRITE, sector, sectors);
            assert!(scene.volume(sector * 512, data.len()) == data);
            memory.zero(0, 4096);
            self.perform(BLKIF_OP_READ, sector, sectors);
            let mut read = vec![0; data.len()];
            memory.read(0, &mut read);
            assert!(read == data);
        }
    }

    fn fini(self, scene: &mut Scene) {
        scene.switch(Closed);
        scene.wait(Closed);
        scene.write("ring-ref", "");
        scene.write("event-channel", "");
        assert_eq!(scene.usage().active_grants, 0);
        assert!(scene.memory.end(self.page).is_ok());
        scene.end(self.ring.queue);
        scene.switch(Initialising);
    }
}

#[test]
fn grub_stays_in_initialised_is_served_and_hands_over_to_linux() {
    for order in [0, 2] {
        let mut scene = Scene::new();
        scene.attach();
        let mut grub = Grub::init(&mut scene);
        grub.works(&scene);
        grub.fini(&mut scene);
        // Its `ring-ref` is there, and empty: with several pages or queues nobody looks at it, with one it is written anew.
        let mut linux = Linux::boot(&mut scene, &Options { ring_order: order, ..Options::default() });
        linux.works(&scene);
        // 1, 2, 4; no Closing, for it did not ask for that; 6, 2, 4.
        assert_eq!(scene.writes(), 6);
        scene.is_attached();
        scene.detach(|scene| {
            scene.wait(Closing);
            linux.closed(scene);
        });
        scene.over();
    }
}

/// `chainload`, or a menu that is loaded again: the next GRUB finds empty keys.
#[test]
fn grub_that_loads_grub_is_served_each_time() {
    let mut scene = Scene::new();
    scene.attach();
    for _ in 0..10 {
        scene.wait(InitWait);
        let mut grub = Grub::init(&mut scene);
        grub.works(&scene);
        grub.fini(&mut scene);
    }
    scene.wait(InitWait);
    assert_eq!(scene.writes(), 2 + 10 * 3);
    scene.detach_by_force();
    scene.over();
}

/// An empty key is none: whoever says Initialised with those that GRUB left behind has said nothing.
#[test]
fn empty_keys_that_grub_left_are_no_keys() {
    let mut scene = Scene::new();
    scene.attach();
    Grub::init(&mut scene).fini(&mut scene);
    scene.wait(InitWait);
    scene.switch(Initialised);
    scene.wait(Closed);
    assert_eq!(scene.disk()["reason"], "the frontend did not write ring-ref");
    scene.switch(Initialising);
    scene.wait(InitWait);
    let mut grub = Grub::init(&mut scene);
    grub.works(&scene);
    grub.fini(&mut scene);
    scene.detach_by_force();
    scene.over();
}

//! What a client can make the host hold is bounded, and a host at the end of its descriptors recovers. One test at a
//! time: they use up, and count, the descriptors of this process, which is also the host's.

mod world;

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use grant::EventChannel;
use grant::embedded;
use world::World;
use world::raw::{Answer, MEMORY, UNMAP, alive, ask, bytes};

/// Held by the test that runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn surplus_descriptors_are_closed_and_their_sender_too() {
    let _alone = alone();
    let world = World::new();
    let vm = world.service_vm();
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let open = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
    let before = open();
    for count in [3, 16, 253] {
        let socket = embedded::connect(world.dir(), vm.domid).expect("connected");
        let fds = vec![null.as_fd(); count];
        assert_eq!(ask(&socket, &bytes(&[MEMORY, 0, 0, 0]), &fds), Answer::HungUp, "{count}");
    }
    // Few enough to be a message, and of no use to anybody: closed as well.
    let socket = embedded::connect(world.dir(), vm.domid).expect("connected");
    for _ in 0..100 {
        let answer = ask(&socket, &bytes(&[UNMAP, 0, 1, 0]), &[null.as_fd(); 2]);
        assert_eq!(answer, Answer::Errno(libc::ENOENT as u32));
    }
    drop(socket);
    // The host is a thread of this process, so its descriptors are counted with ours.
    world.until("all of them are closed", || open() <= before);
    alive(&world);
}

#[test]
fn ports_are_bounded_for_each_domain() {
    let _alone = alone();
    let world = World::new();
    let (vm, (guest, _memory)) = (world.service_vm(), world.guest(16));
    let mut ports = world.ports(vm.domid);
    let made = (0..2000).take_while(|_| ports.alloc_unbound(guest.domid).is_ok()).count();
    // Two descriptors a channel here and two in the host: a small limit of the process may come first.
    assert!((200..=1023).contains(&made), "{made}");
    assert!(ports.alloc_unbound(guest.domid).is_err());
    drop(ports);
    world.until("the ports are closed", || world.usage(vm.domid).expect("alive").ports == 0);
    alive(&world);
}

#[test]
fn connections_are_bounded_for_each_domain() {
    let _alone = alone();
    let world = World::new();
    let vm = world.service_vm();
    let mut open = Vec::new();
    let refused = (0..1100).any(|_| {
        let Ok(socket) = embedded::connect(world.dir(), vm.domid) else {
            return true;
        };
        let hung_up = ask(&socket, &bytes(&[UNMAP, 0, 1, 0]), &[]) == Answer::HungUp;
        open.push(socket);
        hung_up
    });
    assert!(refused, "{} connections of one domain", open.len());
    // Somebody else still gets one, once this process has a descriptor for it.
    open.truncate(open.len() - 20);
    world.until("others are served", || embedded::register(world.dir(), "other", None).is_ok());
    drop(open);
    alive(&world);
}

#[test]
fn host_without_descriptors_recovers() {
    let _alone = alone();
    let world = World::new();
    let vm = world.service_vm();
    let socket = embedded::connect(world.dir(), vm.domid).expect("connected");
    // Once answered it is surely accepted.
    let unknown = Answer::Errno(libc::ENOENT as u32);
    assert_eq!(ask(&socket, &bytes(&[UNMAP, 0, 1, 0]), &[]), unknown);
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let mut hoard = Vec::new();
    while let Ok(copy) = null.try_clone() {
        hoard.push(copy);
    }
    // One for the client's end, none for the host's.
    hoard.pop();
    let stranger = embedded::connect(world.dir(), vm.domid).expect("the kernel queues it");
    assert_eq!(ask(&stranger, &bytes(&[UNMAP, 0, 1, 0]), &[]), Answer::HungUp);
    let answer = ask(&socket, &bytes(&[UNMAP, 0, 1, 0]), &[]);
    assert_eq!(answer, unknown, "whoever is connected is served");
    drop(hoard);
    alive(&world);
}

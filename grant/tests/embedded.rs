//! The embedded world over a real host in a temporary directory: grants, copies, event channels, ends of life.

mod world;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use grant::embedded::{self, Foreign, GuestMemory, Host, Ports, RegisterError, Usage};
use grant::{
    Access, CopyDirection, CopySegment, DomId, EventChannel, GrantAccess, GrantRef, GrantStatus, Granted, Grants,
    PAGE_SIZE, Port, SharedMemory,
};
use world::{Life, Report, World, errno};

/// A page as anonymous local memory, for copies.
fn arena(pages: usize) -> (GuestMemory, SharedMemory) {
    let mut memory = GuestMemory::new(((pages + 1) * PAGE_SIZE) as u64).expect("memory");
    let granted = memory.grant(DomId(0), pages, Access::ReadOnly).expect("pages");
    (memory, granted.memory)
}

fn segment(gref: GrantRef, offset: u16, len: u16, local: usize) -> CopySegment {
    CopySegment { gref, offset, len, local, status: GrantStatus::OKAY }
}

fn bytes(memory: &SharedMemory, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.pages().read(offset, &mut bytes);
    bytes
}

#[test]
fn granted_pages_are_mapped_in_the_order_of_the_references() {
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let granted = memory.grant(vm.domid, 8, Access::ReadWrite).expect("granted");
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let order = [5, 1, 2, 3, 0, 7, 7];
    let refs: Vec<GrantRef> = order.iter().map(|&page| granted.refs[page]).collect();
    for page in 0..8 {
        granted.memory.pages().write(page * PAGE_SIZE, &[page as u8; 16]);
    }
    let mapped = foreign.map(&refs, Access::ReadWrite).expect("mapped");
    for (slot, &page) in order.iter().enumerate() {
        assert_eq!(bytes(&mapped, slot * PAGE_SIZE, 16), [page as u8; 16], "slot {slot}");
    }
    mapped.pages().write(PAGE_SIZE + 100, b"from the backend");
    assert_eq!(bytes(&granted.memory, PAGE_SIZE + 100, 16), b"from the backend");
    assert_eq!(world.usage(guest.domid).expect("alive").active_grants, 6, "page 7 counts once");
    mapped.unmap().expect("unmapped");
    assert_eq!(world.usage(guest.domid).expect("alive").active_grants, 0);
    let counts = foreign.counts();
    assert_eq!((counts.map_calls, counts.pages_mapped), (1, 7));
    assert_eq!((counts.unmap_calls, counts.pages_unmapped), (1, 7));
}

#[test]
fn grant_in_use_is_not_ended_and_the_refusal_is_counted() {
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let free = memory.free_pages();
    let granted = memory.grant(vm.domid, 4, Access::ReadWrite).expect("granted");
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let mapped = foreign.map(&granted.refs[2..3], Access::ReadOnly).expect("mapped");
    let refused = memory.end(granted).expect_err("one page is mapped");
    assert_eq!(memory.refusals(), 1);
    let granted = refused.0;
    let again = foreign.map(&granted.refs, Access::ReadWrite).expect("a refused end takes nothing back");
    drop(mapped);
    let granted = memory.end(granted).expect_err("mapped a second time").0;
    drop(again);
    let refs = granted.refs.clone();
    memory.end(granted).expect("nobody maps it");
    assert_eq!((memory.refusals(), memory.free_pages()), (2, free));
    assert_eq!(errno(foreign.map(&refs, Access::ReadOnly)), libc::EINVAL);
}

#[test]
fn one_bad_reference_fails_the_whole_mapping_and_pins_nothing() {
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let other = embedded::register(world.dir(), "other", None).expect("registered");
    let good = memory.grant(vm.domid, 2, Access::ReadWrite).expect("granted");
    let readonly = memory.grant(vm.domid, 1, Access::ReadOnly).expect("granted");
    let foreigners = memory.grant(other.domid, 1, Access::ReadWrite).expect("granted");
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let bad = [
        (readonly.refs[0], "read-only, mapped for writing"),
        (foreigners.refs[0], "granted to another domain"),
        (GrantRef(0), "never granted"),
        (GrantRef(511), "never granted"),
        (GrantRef(512), "past the table"),
        (GrantRef(u32::MAX), "past the table"),
    ];
    for (gref, why) in bad {
        let refs = [good.refs[0], good.refs[1], gref];
        assert_eq!(errno(foreign.map(&refs, Access::ReadWrite)), libc::EINVAL, "{why}");
        assert_eq!(world.usage(guest.domid).expect("alive").active_grants, 0, "{why}");
    }
    let refs = [good.refs[0], readonly.refs[0]];
    drop(foreign.map(&refs, Access::ReadOnly).expect("reading is allowed for both"));
    for granted in [good, readonly, foreigners] {
        memory.end(granted).expect("nothing is mapped");
    }
}

#[test]
fn copies_go_both_ways_and_tell_each_segment_how_it_went() {
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let granted = memory.grant(vm.domid, 2, Access::ReadWrite).expect("granted");
    let readonly = memory.grant(vm.domid, 1, Access::ReadOnly).expect("granted");
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let (_owner, local) = arena(4);
    let pages = local.pages();
    granted.memory.pages().write(1000, b"a guest's write");
    readonly.memory.pages().write(PAGE_SIZE - 4, b"tail");

    let mut segments = [
        segment(granted.refs[0], 1000, 15, 10),
        segment(GrantRef(400), 0, 512, 512),
        segment(GrantRef(9999), 0, 512, 512),
        segment(readonly.refs[0], (PAGE_SIZE - 4) as u16, 4, 4 * PAGE_SIZE - 4),
    ];
    foreign.copy(CopyDirection::FromPeer, &pages, &mut segments).expect("copied");
    let statuses = segments.map(|segment| segment.status);
    assert_eq!(statuses, [GrantStatus::OKAY, GrantStatus::GENERAL_ERROR, GrantStatus::BAD_GNTREF, GrantStatus::OKAY]);
    assert_eq!(bytes(&local, 10, 15), b"a guest's write");
    assert_eq!(bytes(&local, 4 * PAGE_SIZE - 4, 4), b"tail");

    pages.write(PAGE_SIZE, b"a guest's read");
    let mut segments = [segment(granted.refs[1], 4, 14, PAGE_SIZE), segment(readonly.refs[0], 0, 14, PAGE_SIZE)];
    foreign.copy(CopyDirection::ToPeer, &pages, &mut segments).expect("copied");
    assert_eq!(segments[0].status, GrantStatus::OKAY);
    assert_eq!(segments[1].status, GrantStatus::GENERAL_ERROR, "read-only");
    assert_eq!(bytes(&granted.memory, PAGE_SIZE + 4, 14), b"a guest's read");
    assert_eq!(bytes(&readonly.memory, 0, 14), [0; 14]);

    let outside = [
        segment(granted.refs[0], 4000, 97, 0),
        segment(granted.refs[0], u16::MAX, 1, 0),
        segment(granted.refs[0], 0, 0, 0),
        segment(granted.refs[0], 0, 4096, 3 * PAGE_SIZE + 1),
        segment(granted.refs[0], 0, 1, usize::MAX),
    ];
    for bad in outside {
        let error = foreign.copy(CopyDirection::FromPeer, &pages, &mut [bad]).expect_err("outside");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
    }
    let counts = foreign.counts();
    assert_eq!((counts.copy_calls, counts.segments_copied, counts.map_calls), (2, 6, 0));
}

#[test]
fn pins_go_with_the_connection_of_the_mapper() {
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let granted = memory.grant(vm.domid, 4, Access::ReadWrite).expect("granted");
    let connection = embedded::connect(world.dir(), vm.domid).expect("connected");
    let copy = connection.try_clone().expect("dup");
    let mut foreign = Foreign::new(connection, guest.domid).expect("the peer's memory");
    let mapped = foreign.map(&granted.refs, Access::ReadWrite).expect("mapped");
    drop(foreign);
    let granted = memory.end(granted).expect_err("a mapping keeps the connection").0;
    std::mem::forget(mapped);
    hang_up(copy.as_fd());
    world.until("the pins are gone", || world.usage(guest.domid).expect("alive").active_grants == 0);
    memory.end(granted).expect("nothing is mapped");
}

/// Hangs up a connection although a mapping still holds it: what the death of the process does.
fn hang_up(fd: std::os::fd::BorrowedFd<'_>) {
    rustix::net::shutdown(fd, rustix::net::Shutdown::Both).expect("shut down");
}

#[test]
fn killed_mapper_leaves_no_pin_and_no_port() {
    const CHILD: &str = "WINDSOR_TEST_CHILD";
    if let Ok(task) = std::env::var(CHILD) {
        return child(&task);
    }
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let granted = memory.grant(vm.domid, 4, Access::ReadWrite).expect("granted");
    let mut ports = world.ports(guest.domid);
    let port = ports.alloc_unbound(vm.domid).expect("a port");
    let task = format!("{} {} {} {} {}", world.dir().display(), vm.domid, guest.domid, granted.refs[0], port);
    let mut child = std::process::Command::new(std::env::current_exe().expect("ourselves"))
        .args(["--exact", "killed_mapper_leaves_no_pin_and_no_port", "--nocapture"])
        .env(CHILD, task)
        .spawn()
        .expect("a child");
    let usage = |domid| world.usage(domid).expect("alive");
    world.until("the child maps", || usage(guest.domid).active_grants == 1);
    world.until("the child binds", || usage(vm.domid).ports == 1);
    assert!(memory.end(granted).is_err());
    child.kill().expect("killed");
    child.wait().expect("reaped");
    world.until("nothing is left", || usage(guest.domid).active_grants == 0 && usage(vm.domid).ports == 0);
    // The guest's port is there for the next worker.
    let mut next = world.ports(vm.domid);
    next.bind(guest.domid, port).expect("bound again");
}

fn child(task: &str) {
    let words: Vec<&str> = task.split(' ').collect();
    let [dir, us, peer, gref, port] = words[..] else { panic!("{task}") };
    let domid = |word: &str| DomId(word.parse().expect("a domid"));
    let (us, peer) = (domid(us), domid(peer));
    let connect = || embedded::connect(Path::new(dir), us).expect("connected");
    let mut foreign = Foreign::new(connect(), peer).expect("memory");
    let gref = GrantRef(gref.parse().expect("a reference"));
    let _mapped = foreign.map(&[gref], Access::ReadWrite).expect("mapped");
    let mut ports = Ports::new(connect()).expect("ports");
    ports.bind(peer, Port(port.parse().expect("a port"))).expect("bound");
    std::thread::sleep(Duration::from_secs(60));
}

fn pending(ports: &mut Ports) -> Vec<Port> {
    let mut found = Vec::new();
    ports.pending(&mut found).expect("asked");
    found.sort_by_key(|port| port.0);
    found
}

fn readable(ports: &Ports) -> bool {
    let fd = ports.fd();
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).expect("polled") == 1
}

#[test]
fn reported_port_is_masked_until_it_is_unmasked() {
    let world = World::new();
    let (guest, _memory) = world.guest(8);
    let vm = world.service_vm();
    let (mut ours, mut theirs) = (world.ports(guest.domid), world.ports(vm.domid));
    let front = ours.alloc_unbound(vm.domid).expect("a port");
    assert!(!readable(&ours));
    ours.notify(front).expect("nobody there yet, which is fine");
    let back = theirs.bind(guest.domid, front).expect("bound");
    assert!(readable(&theirs), "a bound port is pending once");
    assert_eq!(pending(&mut theirs), [back]);
    assert_eq!(pending(&mut theirs), []);

    // Masked: notified any number of times, silent.
    for _ in 0..3 {
        ours.notify(front).expect("notified");
    }
    assert!(!readable(&theirs));
    assert_eq!(pending(&mut theirs), []);
    // Unmasked: what came meanwhile is reported, once.
    theirs.unmask(&[back]).expect("unmasked");
    assert!(readable(&theirs));
    assert_eq!(pending(&mut theirs), [back]);
    theirs.unmask(&[back]).expect("unmasked");
    assert!(!readable(&theirs));
    assert_eq!(pending(&mut theirs), []);
    ours.notify(front).expect("notified");
    assert_eq!(pending(&mut theirs), [back]);

    // The other direction is a channel of its own.
    assert_eq!(pending(&mut ours), []);
    theirs.notify(back).expect("notified");
    assert_eq!(pending(&mut ours), [front]);
    theirs.unmask(&[Port(77), back]).expect("an unknown port is passed over");
}

#[test]
fn many_ports_report_through_one_descriptor() {
    let world = World::new();
    let (guest, _memory) = world.guest(8);
    let vm = world.service_vm();
    let (mut ours, mut theirs) = (world.ports(guest.domid), world.ports(vm.domid));
    let pairs: Vec<(Port, Port)> = (0..100)
        .map(|_| {
            let front = ours.alloc_unbound(vm.domid).expect("a port");
            (front, theirs.bind(guest.domid, front).expect("bound"))
        })
        .collect();
    let mut found = pending(&mut theirs);
    assert_eq!(found.len(), grant::MAX_PENDING);
    found.extend(pending(&mut theirs));
    assert_eq!(found.len(), 100);
    theirs.unmask(&found).expect("unmasked");
    assert_eq!(pending(&mut theirs), []);
    ours.notify(pairs[42].0).expect("notified");
    assert_eq!(pending(&mut theirs), [pairs[42].1]);
}

#[test]
fn ports_are_bound_only_by_whom_they_are_meant_for() {
    let world = World::new();
    let (guest, _memory) = world.guest(8);
    let vm = world.service_vm();
    let other = embedded::register(world.dir(), "other", None).expect("registered");
    let mut ours = world.ports(guest.domid);
    let front = ours.alloc_unbound(vm.domid).expect("a port");
    let mut strangers = world.ports(other.domid);
    assert_eq!(errno(strangers.bind(guest.domid, front)), libc::EINVAL);
    let mut theirs = world.ports(vm.domid);
    assert_eq!(errno(theirs.restrict(DomId(0))), libc::EINVAL);
    theirs.restrict(guest.domid).expect("restricted");
    assert_eq!(errno(theirs.restrict(other.domid)), libc::EACCES);
    assert_eq!(errno(theirs.alloc_unbound(guest.domid)), libc::EACCES);
    assert_eq!(errno(theirs.bind(other.domid, front)), libc::EACCES);
    assert_eq!(errno(theirs.bind(guest.domid, Port(99))), libc::EINVAL);
    assert_eq!(errno(theirs.bind(guest.domid, Port(0))), libc::EINVAL);
    let back = theirs.bind(guest.domid, front).expect("bound");
    assert_eq!(errno(theirs.bind(guest.domid, front)), libc::EINVAL, "bound already");

    let mut second = world.ports(vm.domid);
    assert_eq!(errno(second.unbind(back)), libc::ENOTCONN, "another connection's port");
    theirs.unbind(back).expect("closed");
    assert_eq!(errno(theirs.notify(back)), libc::ENOTCONN);
    assert_eq!(errno(theirs.unbind(back)), libc::ENOTCONN);
    // Left unbound, it is there for the same domain, and still wakes the same guest.
    let again = second.bind(guest.domid, front).expect("bound again");
    assert_eq!(pending(&mut second), [again]);
    second.notify(again).expect("notified");
    assert_eq!(pending(&mut ours), [front]);
}

#[test]
fn end_of_a_domain_closes_its_ports_and_leaves_mapped_pages_valid() {
    let world = World::new();
    let (guest, mut memory) = world.guest(64);
    let vm = world.service_vm();
    let granted = memory.grant(vm.domid, 2, Access::ReadWrite).expect("granted");
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let mapped = foreign.map(&granted.refs, Access::ReadWrite).expect("mapped");
    let (mut ours, mut theirs) = (world.ports(guest.domid), world.ports(vm.domid));
    let front = ours.alloc_unbound(vm.domid).expect("a port");
    let back = theirs.bind(guest.domid, front).expect("bound");

    let domid = guest.domid;
    drop(guest);
    assert_eq!(world.lives.recv().expect("told"), Life::Introduced(domid, "guest".into()));
    assert_eq!(world.lives.recv().expect("told"), Life::Introduced(vm.domid, "acme".into()));
    assert_eq!(world.lives.recv().expect("told"), Life::Released(domid, "guest".into()));
    world.until("the directory is gone", || !embedded::domain_dir(world.dir(), domid).exists());
    let left = world.usage(domid).expect("a zombie while pages are mapped");
    assert_eq!(left, Usage { active_grants: 2, ports: 0 });
    drop((granted, memory));
    mapped.pages().write(0, b"still there");
    assert_eq!(bytes(&mapped, 0, 11), b"still there");
    assert_eq!(errno(foreign.map(&[GrantRef(8)], Access::ReadOnly)), libc::ESRCH);
    assert_eq!(errno(theirs.bind(domid, front)), libc::ESRCH);
    theirs.notify(back).expect("into the void");
    theirs.unbind(back).expect("closed");
    drop(mapped);
    assert_eq!(errno(world.usage(domid)), libc::ESRCH);

    // The name is free again, the number is not.
    let (reborn, _memory) = world.guest(8);
    assert!(reborn.domid > vm.domid);
}

#[test]
fn registering_tells_what_is_wrong() {
    let world = World::new();
    let _vm = world.service_vm();
    let register = |name: &str| embedded::register(world.dir(), name, None).map(|domain| domain.domid);
    assert!(matches!(register("acme"), Err(RegisterError::NameTaken(name)) if name == "acme"));
    for name in ["", "a/b", "a b", "ä", &"x".repeat(65)] {
        assert!(matches!(register(name), Err(RegisterError::BadName(_))), "{name:?}");
    }
    let refused = register("unwelcome").expect_err("its introduction fails");
    assert!(matches!(refused, RegisterError::Io(error) if error.raw_os_error() == Some(libc::EPERM)));
    register("other").expect("a refused domain leaves nothing behind");
    let nowhere = tempfile::tempdir().expect("a directory");
    let error = embedded::register(nowhere.path(), "x", None).expect_err("no host");
    assert!(error.to_string().contains("windsor host --dir"), "{error}");
    let second = Host::new(world.dir(), Report(channel().0)).err().expect("one host a directory");
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(
        errno(Foreign::new(embedded::connect(world.dir(), DomId(1)).expect("connected"), DomId(1))),
        libc::ENXIO
    );
}

#[test]
fn guest_memory_runs_out_and_comes_back() {
    let mut memory = GuestMemory::new(40 * PAGE_SIZE as u64).expect("memory");
    let free = memory.free_pages();
    assert_eq!(free, 39, "one page is the grant table");
    let mut grants: Vec<Granted> =
        (0..free).map(|_| memory.grant(DomId(1), 1, Access::ReadWrite).expect("granted")).collect();
    let full = memory.grant(DomId(1), 1, Access::ReadWrite).expect_err("full");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    for (index, granted) in grants.iter().enumerate() {
        granted.memory.pages().write(0, &[index as u8; 4]);
    }
    // Every other page is free: five pages cannot stand next to each other, and are one region all the same.
    let mut kept = Vec::new();
    for index in (0..free).rev() {
        let granted = grants.swap_remove(index);
        match index % 2 {
            0 => memory.end(granted).expect("unused"),
            _ => kept.push(granted),
        }
    }
    let scattered = memory.grant(DomId(1), 5, Access::ReadWrite).expect("granted");
    assert_eq!(bytes(&scattered.memory, 0, 5 * PAGE_SIZE), vec![0; 5 * PAGE_SIZE], "zeroed");
    scattered.memory.pages().write(0, &[0xaa; 5 * PAGE_SIZE]);
    for granted in &kept {
        let head = bytes(&granted.memory, 0, 4);
        assert!(head.iter().all(|&byte| byte == head[0] && byte != 0xaa), "{head:?}");
    }
    memory.end(scattered).expect("unused");
    for granted in kept {
        memory.end(granted).expect("unused");
    }
    assert_eq!(memory.free_pages(), free);
    let all = memory.grant(DomId(1), free, Access::ReadWrite).expect("one run again");
    assert_eq!(all.memory.len(), free * PAGE_SIZE);
    assert!(memory.grant(DomId(1), 0, Access::ReadWrite).is_err());
    assert!(GuestMemory::new(0).is_err() && GuestMemory::new(u64::MAX).is_err());
}

//! Clients that mean harm, against a real host: whatever one of them sends, the others are served as before.

mod world;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use grant::embedded::{self, GuestMemory, Ports};
use grant::{Access, DomId, EventChannel, GrantRef, Grants, PAGE_SIZE};
use rustix::fs::{MemfdFlags, SealFlags};
use world::raw::{ALLOC_UNBOUND, Answer, BIND, MAP, MEMORY, REGISTER, UNMAP, USAGE, alive, ask, bytes, control, send};
use world::{World, errno, raw};

#[test]
fn malformed_messages_are_hung_up_on() {
    let world = World::new();
    let vm = world.service_vm();
    let (guest, _memory) = world.guest(16);
    let map = |body: &[u32]| {
        let mut words = vec![MAP, guest.domid.0.into(), 0, 1];
        words.extend(body);
        bytes(&words)
    };
    let mut ragged = map(&[8]);
    ragged.push(0);
    let cases: [(&str, Vec<u8>); 9] = [
        ("short header", vec![1, 2, 3]),
        ("one byte", vec![0]),
        ("unknown operation", bytes(&[99, 0, 0, 0])),
        ("operation of the other socket", bytes(&[REGISTER, 0, 2, 0])),
        ("no reference", map(&[])),
        ("257 references", map(&[8; 257])),
        ("half a reference", ragged),
        ("64 KiB", vec![17; 65536]),
        ("largest operation", bytes(&[u32::MAX; 4])),
    ];
    for (what, message) in cases {
        let socket = embedded::connect(world.dir(), vm.domid).expect("connected");
        assert_eq!(ask(&socket, &message, &[]), Answer::HungUp, "{what}");
        let control = control(&world);
        let answer = ask(&control, &message, &[]);
        assert!(answer == Answer::HungUp || what.contains("other socket"), "{what}: {answer:?}");
    }
    alive(&world);
}

#[test]
fn nonsense_in_well_formed_messages_is_an_error_and_nothing_more() {
    let world = World::new();
    let vm = world.service_vm();
    let socket = embedded::connect(world.dir(), vm.domid).expect("connected");
    let cases: [(&str, [u32; 4], i32); 7] = [
        ("memory of nobody", [MEMORY, 4000, 0, 0], libc::ESRCH),
        ("memory of domid 65536 + ours", [MEMORY, 0x1_0000 + u32::from(vm.domid.0), 0, 0], libc::ESRCH),
        ("memory of one that has none", [MEMORY, vm.domid.0.into(), 0, 0], libc::ENXIO),
        ("handle never given out", [UNMAP, 0, 7, 0], libc::ENOENT),
        ("port never made", [BIND, vm.domid.0.into(), u32::MAX, 0], libc::EINVAL),
        ("port 0", [BIND, vm.domid.0.into(), 0, 0], libc::EINVAL),
        ("bind to nobody", [BIND, 4000, 1, 0], libc::ESRCH),
    ];
    for (what, message, errno) in cases {
        assert_eq!(ask(&socket, &bytes(&message), &[]), Answer::Errno(errno as u32), "{what}");
    }
    let control = control(&world);
    let usage = bytes(&[USAGE, 4000, 0, 0]);
    assert_eq!(ask(&control, &usage, &[]), Answer::Errno(libc::ESRCH as u32));
    let version = bytes(&[REGISTER, 0, 1, 0]);
    assert_eq!(ask(&control, &version, &[]), Answer::Errno(libc::EPROTONOSUPPORT as u32));
    alive(&world);
}

#[test]
fn client_that_takes_no_answers_is_dropped() {
    let world = World::new();
    let vm = world.service_vm();
    let socket = embedded::connect(world.dir(), vm.domid).expect("connected");
    let message = bytes(&[UNMAP, 0, 1, 0]);
    let dropped = (0..100_000).any(|_| send(&socket, &message, &[]).is_err());
    assert!(dropped, "100,000 requests and not one answer taken");
    alive(&world);
}

#[test]
fn memory_that_can_change_its_size_is_refused() {
    let world = World::new();
    let memfd = |flags, pages: usize, seals| {
        let fd = rustix::fs::memfd_create("test", flags | MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&fd, (pages * PAGE_SIZE) as u64).expect("sized");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("sealed");
        fd
    };
    let sealable = MemfdFlags::ALLOW_SEALING;
    let size = SealFlags::SHRINK | SealFlags::GROW;
    let ragged = {
        let fd = rustix::fs::memfd_create("test", sealable | MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&fd, 3 * PAGE_SIZE as u64 + 1).expect("sized");
        rustix::fs::fcntl_add_seals(&fd, size | SealFlags::SEAL).expect("sealed");
        fd
    };
    let file = tempfile::tempfile().expect("a file");
    file.set_len(16 * PAGE_SIZE as u64).expect("sized");
    let (pipe, _other) = rustix::pipe::pipe().expect("a pipe");
    let cases: [(&str, OwnedFd); 9] = [
        ("no seal", memfd(sealable, 16, SealFlags::empty())),
        ("may shrink", memfd(sealable, 16, SealFlags::GROW | SealFlags::SEAL)),
        ("may grow", memfd(sealable, 16, SealFlags::SHRINK | SealFlags::SEAL)),
        ("may be sealed against us", memfd(sealable, 16, size)),
        ("read-only", memfd(sealable, 16, size | SealFlags::WRITE | SealFlags::SEAL)),
        ("room for the table only", memfd(sealable, 1, size | SealFlags::SEAL)),
        ("not whole pages", ragged),
        ("a file", file.into()),
        ("a pipe", pipe),
    ];
    for (what, fd) in cases {
        let control = control(&world);
        let mut message = bytes(&[REGISTER, 0, 2, 0]);
        message.extend(b"victim");
        let answer = ask(&control, &message, &[fd.as_fd()]);
        assert_eq!(answer, Answer::Errno(libc::EBADF as u32), "{what}");
        // The same connection may try again with better memory, but only once it has none.
        let good = memfd(sealable, 16, size | SealFlags::SEAL);
        assert_eq!(ask(&control, &message, &[good.as_fd()]), Answer::Errno(0), "after {what}");
        assert_eq!(ask(&control, &message, &[]), Answer::Errno(libc::EINVAL as u32), "twice");
        drop(control);
        let gone = || embedded::register(world.dir(), "victim", None).is_ok();
        world.until("the name is free again", gone);
        world.until("and again", gone);
    }
    alive(&world);
}

/// Writes a grant entry as a hostile guest would: straight into its memory.
fn scribble(memory: &GuestMemory, gref: u32, flags: u16, domid: DomId, frame: u32) {
    let mut entry = [0; 8];
    entry[..2].copy_from_slice(&flags.to_ne_bytes());
    entry[2..4].copy_from_slice(&domid.0.to_ne_bytes());
    entry[4..].copy_from_slice(&frame.to_ne_bytes());
    rustix::io::pwrite(memory.fd(), &entry, u64::from(gref) * 8).expect("written");
}

#[test]
fn entries_that_name_no_page_of_the_guest_are_refused() {
    let world = World::new();
    let vm = world.service_vm();
    let (guest, memory) = world.guest(64);
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let map = |foreign: &mut embedded::Foreign| foreign.map(&[GrantRef(100)], Access::ReadWrite);
    let bad = [
        (1, 0, "the grant table itself"),
        (1, 64, "one past the end"),
        (1, u32::MAX, "far away"),
        (0, 10, "invalid entry"),
        (2, 10, "transfer entry"),
        (3, 10, "transitive entry"),
        (1 | 4, 10, "read-only"),
    ];
    for (flags, frame, what) in bad {
        scribble(&memory, 100, flags, vm.domid, frame);
        assert_eq!(errno(map(&mut foreign)), libc::EINVAL, "{what}");
        let mut entry = [0; 8];
        rustix::io::pread(memory.fd(), &mut entry, 800).expect("read");
        assert_eq!(entry[0] & 0x18, 0, "{what}: not marked as mapped");
    }
    scribble(&memory, 100, 1, vm.domid, 63);
    let mapped = map(&mut foreign).expect("the last page");
    // The frame is fixed while mapped, whatever the guest writes.
    scribble(&memory, 100, 1, vm.domid, 10);
    rustix::io::pwrite(memory.fd(), b"old", 63 * PAGE_SIZE as u64).expect("written");
    let again = map(&mut foreign).expect("mapped again");
    assert_eq!(again.pages().load::<[u8; 3]>(0), *b"old");
    drop((mapped, again));
    assert_eq!(world.usage(guest.domid).expect("alive").active_grants, 0);
    alive(&world);
}

#[test]
fn entries_that_change_all_the_time_upset_nobody() {
    let world = World::new();
    let vm = world.service_vm();
    let (guest, memory) = world.guest(64);
    let mut foreign = world.foreign(vm.domid, guest.domid);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(1);
            while !done.load(Ordering::Relaxed) {
                let domid = if random.bool() { vm.domid } else { DomId(random.u16(..)) };
                scribble(&memory, 8, random.u16(..32), domid, random.u32(..80));
            }
        });
        let mut mapped = Vec::new();
        for turn in 0..2000 {
            let access = if turn % 2 == 0 { Access::ReadOnly } else { Access::ReadWrite };
            match foreign.map(&[GrantRef(8)], access) {
                Ok(memory) => mapped.push(memory),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
            }
            mapped.truncate(5);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(foreign.counts().map_calls, 2000);
    });
    assert_eq!(world.usage(guest.domid).expect("alive").active_grants, 0);
    alive(&world);
}

/// Case T20 of the security reference: flags and counters belong to whoever holds the descriptor, so no end may hold
/// one that the other end writes.
#[test]
fn t20_nothing_that_a_peer_does_to_its_descriptors_makes_us_wait() {
    let world = World::new();
    let vm = world.service_vm();
    let (guest, _memory) = world.guest(8);
    let socket = embedded::connect(world.dir(), guest.domid).expect("connected");
    let (front, wait, notify) = raw::port(&socket, ALLOC_UNBOUND, vm.domid, 0);
    let mut ours = world.ports(vm.domid);
    let back = ours.bind(guest.domid, front).expect("bound");
    let domid = guest.domid;
    let (told, done) = std::sync::mpsc::channel();
    let dir = world.dir().to_owned();
    for fd in [&wait, &notify] {
        rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::empty()).expect("made blocking");
        // Full, if there is a counter in it: one more is one too many. It stands at one.
        let _ = rustix::io::write(fd, &(u64::MAX - 2).to_ne_bytes());
    }
    let peer = std::thread::spawn(move || {
        let mut ports = Vec::new();
        for _ in 0..100 {
            ours.notify(back).expect("notified");
            ours.pending(&mut ports).expect("asked");
            ours.unmask(&ports).expect("unmasked");
        }
        // The host has to touch the channel as well when somebody binds to it again.
        drop(ours);
        let mut again = Ports::new(embedded::connect(&dir, vm.domid).expect("connected")).expect("ports");
        let back = again.bind(domid, front).expect("bound again");
        again.notify(back).expect("notified");
        told.send(()).expect("heard");
    });
    done.recv_timeout(Duration::from_secs(20)).expect("somebody waits for a hostile peer");
    peer.join().expect("no panic");
    alive(&world);
}

/// What a peer reads out of its eventfd it takes from itself; what it writes afterwards is seen.
#[test]
fn t20_a_counter_that_is_drained_or_full_loses_no_later_event() {
    let world = World::new();
    let vm = world.service_vm();
    let (guest, _memory) = world.guest(8);
    let socket = embedded::connect(world.dir(), guest.domid).expect("connected");
    let (front, _wait, notify) = raw::port(&socket, ALLOC_UNBOUND, vm.domid, 0);
    let mut ours = world.ports(vm.domid);
    let back = ours.bind(guest.domid, front).expect("bound");
    let mut ports = Vec::new();
    ours.pending(&mut ports).expect("asked");
    assert_eq!(std::mem::take(&mut ports), [back], "once, for being bound");
    ours.unmask(&[back]).expect("unmasked");
    for count in [1, u64::MAX - 1, 1, 7] {
        rustix::io::read(&notify, &mut [0; 8]).expect("drained");
        rustix::io::write(&notify, &count.to_ne_bytes()).expect("written");
        ours.pending(&mut ports).expect("asked");
        assert_eq!(std::mem::take(&mut ports), [back], "{count}");
        ours.unmask(&[back]).expect("unmasked");
        ours.pending(&mut ports).expect("asked");
        assert_eq!(ports, [], "an event is an event, whatever the counter says");
    }
}

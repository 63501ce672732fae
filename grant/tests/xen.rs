//! Real Xen from inside one domain, which grants to itself: the ioctls do what the traits promise. Runs where
//! /dev/xen/gntdev is (dom0 of the lab: the executable is static and takes the domain's own number from
//! `WINDSOR_TEST_DOMID`, 0 by default) and says so where it is not.

use std::io;
use std::os::fd::OwnedFd;

use grant::xen::{Evtchn, Gntalloc, Gntdev};
use grant::{
    Access, CopyDirection, CopySegment, DomId, EventChannel, GrantAccess, GrantRef, GrantStatus, Grants, PAGE_SIZE,
    Port, heap,
};

/// Our own number, or nothing where there is no Xen.
fn ourselves() -> Option<DomId> {
    if !std::path::Path::new("/dev/xen/gntdev").exists() {
        eprintln!("skipped: no /dev/xen/gntdev here (the lab runs this on real Xen)");
        return None;
    }
    let domid = std::env::var("WINDSOR_TEST_DOMID").unwrap_or_else(|_| "0".into());
    Some(DomId(domid.parse().expect("a domid")))
}

fn opened(device: io::Result<OwnedFd>) -> OwnedFd {
    device.expect("the device opens")
}

#[test]
fn pages_are_granted_mapped_and_copied() {
    let Some(us) = ourselves() else { return };
    let mut gntalloc = Gntalloc::new(opened(Gntalloc::open()));
    let mut gntdev = Gntdev::new(opened(Gntdev::open()), us);
    let granted = gntalloc.grant(us, 3, Access::ReadWrite).expect("granted");
    let readonly = gntalloc.grant(us, 1, Access::ReadOnly).expect("granted");
    for page in 0..3 {
        granted.memory.pages().write(page * PAGE_SIZE, &[b'a' + page as u8; 8]);
    }

    let order = [granted.refs[2], granted.refs[0]];
    let mapped = gntdev.map(&order, Access::ReadWrite).expect("mapped");
    assert_eq!(mapped.pages().load::<[u8; 8]>(0), *b"cccccccc");
    assert_eq!(mapped.pages().load::<[u8; 8]>(PAGE_SIZE), *b"aaaaaaaa");
    mapped.pages().write(PAGE_SIZE + 8, b"written through the grant");
    assert_eq!(granted.memory.pages().load::<[u8; 7]>(8), *b"written");
    mapped.unmap().expect("unmapped");
    let mapped = gntdev.map(&readonly.refs, Access::ReadOnly).expect("mapped to read");
    mapped.unmap().expect("unmapped");
    gntdev.map(&readonly.refs, Access::ReadWrite).expect_err("not to write");
    let bad = [granted.refs[0], GrantRef(u32::MAX - 7)];
    gntdev.map(&bad, Access::ReadWrite).expect_err("one bad reference fails the call");
    let counts = gntdev.counts();
    assert_eq!((counts.map_calls, counts.pages_mapped), (4, 3));
    assert_eq!((counts.unmap_calls, counts.pages_unmapped), (2, 3));

    let local = heap::pages(2);
    let segment =
        |gref, offset, len, local| CopySegment { gref, offset, len, local, status: GrantStatus::GENERAL_ERROR };
    // Local memory across a page of ours, and a bad reference in the middle of good ones.
    let mut segments = [
        segment(granted.refs[1], 0, 8, PAGE_SIZE - 4),
        segment(GrantRef(u32::MAX - 7), 0, 8, 0),
        segment(granted.refs[0], 8, 25, 100),
    ];
    gntdev.copy(CopyDirection::FromPeer, &local.pages(), &mut segments).expect("copied");
    assert!(segments[0].status.is_okay() && segments[2].status.is_okay(), "{segments:?}");
    assert!(!segments[1].status.is_okay(), "{segments:?}");
    assert_eq!(local.pages().load::<[u8; 8]>(PAGE_SIZE - 4), *b"bbbbbbbb");
    assert_eq!(local.pages().load::<[u8; 25]>(100), *b"written through the grant");

    local.pages().write(0, b"copied");
    let mut segments = [segment(granted.refs[1], 4090, 6, 0), segment(readonly.refs[0], 0, 6, 0)];
    gntdev.copy(CopyDirection::ToPeer, &local.pages(), &mut segments).expect("copied");
    assert_eq!(segments[0].status, GrantStatus::OKAY);
    assert!(!segments[1].status.is_okay(), "read-only: {segments:?}");
    assert_eq!(granted.memory.pages().load::<[u8; 6]>(PAGE_SIZE + 4090), *b"copied");

    // More segments than one ioctl takes.
    let mut many: Vec<CopySegment> = (0..1300).map(|index| segment(granted.refs[1], 0, 8, 8 * (index % 512))).collect();
    let before = gntdev.counts().copy_calls;
    gntdev.copy(CopyDirection::FromPeer, &local.pages(), &mut many).expect("copied");
    assert!(many.iter().all(|segment| segment.status.is_okay()));
    assert_eq!(gntdev.counts().copy_calls - before, 3);

    gntalloc.end(granted).expect("ended");
    gntalloc.end(readonly).expect("ended");
}

#[test]
fn events_are_masked_until_unmasked() {
    let Some(us) = ourselves() else { return };
    let evtchn = || Evtchn::new(opened(Evtchn::open())).expect("an event channel descriptor");
    let (mut front, mut back) = (evtchn(), evtchn());
    let wait = |channel: &Evtchn| {
        let fd = channel.fd();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
        rustix::event::poll(&mut fds, Some(&patience)).expect("polled") == 1
    };
    let pending = |channel: &mut Evtchn| {
        let mut ports = Vec::new();
        channel.pending(&mut ports).expect("asked");
        ports
    };
    let ours = front.alloc_unbound(us).expect("a port");
    assert_eq!(pending(&mut front), []);
    // The kernel takes any domain but 0 here, which is what this one may be.
    let stranger = DomId(us.0 + 1);
    let mut restricted = evtchn();
    restricted.restrict(DomId(0)).expect_err("never to dom0");
    restricted.restrict(stranger).expect("restricted");
    restricted.alloc_unbound(stranger).expect_err("a restricted descriptor allocates nothing");
    let denied = restricted.bind(us, ours).expect_err("restricted to another domain");
    assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
    let theirs = back.bind(us, ours).expect("bound");
    back.bind(us, Port(4000)).expect_err("no such port");
    assert!(wait(&back), "pending once when bound");
    assert_eq!(pending(&mut back), [theirs]);

    front.notify(ours).expect("notified");
    assert!(!wait(&back), "masked");
    assert_eq!(pending(&mut back), []);
    back.unmask(&[theirs]).expect("unmasked");
    assert!(wait(&back), "what came while masked is reported");
    assert_eq!(pending(&mut back), [theirs]);
    back.unmask(&[theirs]).expect("unmasked");
    assert!(!wait(&back), "and only once");
    back.notify(theirs).expect("notified");
    assert!(wait(&front));
    assert_eq!(pending(&mut front), [ours]);

    back.unbind(theirs).expect("closed");
    back.notify(theirs).expect_err("closed");
    let mut next = evtchn();
    next.bind(us, ours).expect("the other end waits for the same domain");
}

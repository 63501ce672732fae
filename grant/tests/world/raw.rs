//! A client that writes its messages by hand, word by word: {op, domid, value, flags} and a body.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use grant::embedded::{self, GuestMemory};
use grant::{Access, DomId, GrantAccess, Grants, PAGE_SIZE, Port};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::World;

pub const REGISTER: u32 = 1;
pub const USAGE: u32 = 2;
pub const MEMORY: u32 = 16;
pub const MAP: u32 = 17;
pub const UNMAP: u32 = 18;
pub const BIND: u32 = 19;
pub const ALLOC_UNBOUND: u32 = 20;

/// What came back: the errno (0 for success), or nothing because the host hung up.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Errno(u32),
    HungUp,
}

pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn send(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
}

pub fn receive(socket: &OwnedFd) -> Answer {
    let mut buffer = [0; 2048];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut vectors = [IoSliceMut::new(&mut buffer)];
    match rustix::net::recvmsg(socket, &mut vectors, &mut control, RecvFlags::empty()) {
        Ok(message) if message.bytes >= 16 => {
            Answer::Errno(u32::from_ne_bytes(buffer[..4].try_into().expect("a word")))
        }
        Ok(_) | Err(rustix::io::Errno::CONNRESET) => Answer::HungUp,
        Err(error) => panic!("{error}"),
    }
}

pub fn ask(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
    match send(socket, message, fds) {
        Ok(_) => receive(socket),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Answer::HungUp,
        Err(error) => panic!("{error}"),
    }
}

pub fn control(world: &World) -> OwnedFd {
    let address = SocketAddrUnix::new(world.dir().join("host")).expect("a short path");
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("a socket");
    rustix::net::connect(&socket, &address).expect("connected");
    socket
}

/// The host still does its work for somebody else.
pub fn alive(world: &World) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name = format!("witness{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut memory = GuestMemory::new(16 * PAGE_SIZE as u64).expect("memory");
    let guest = embedded::register(world.dir(), &name, Some(&memory)).expect("registered");
    let granted = memory.grant(guest.domid, 1, Access::ReadWrite).expect("granted");
    let mut foreign = world.foreign(guest.domid, guest.domid);
    drop(foreign.map(&granted.refs, Access::ReadWrite).expect("mapped"));
    memory.end(granted).expect("not mapped");
}

/// A port, and the two descriptors that come with it: to wait on, to notify with.
pub fn port(socket: &OwnedFd, op: u32, peer: DomId, value: u32) -> (Port, OwnedFd, OwnedFd) {
    send(socket, &bytes(&[op, peer.0.into(), value, 0]), &[]).expect("sent");
    let mut words = [0; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut vectors = [IoSliceMut::new(&mut words)];
    rustix::net::recvmsg(socket, &mut vectors, &mut control, RecvFlags::CMSG_CLOEXEC).expect("an answer");
    let fds = control.drain().flat_map(|part| match part {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let [wait, notify] = fds.collect::<Vec<_>>().try_into().expect("two descriptors");
    (Port(u32::from_ne_bytes(words[4..8].try_into().expect("a word"))), wait, notify)
}

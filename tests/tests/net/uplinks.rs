//! What stands in for a TAP here is a socket that keeps frames apart: its other end says when a write may end.

use std::io::{IoSliceMut, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use frontend::netfront::Frame;
use grant::tap;
use netback::packet::Mac;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tests::network::{Card, Network};

use crate::frames::plain;

/// The backend's end, and the other.
fn wire() -> (OwnedFd, UnixStream) {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    // As little as can be: a few frames.
    sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
    let theirs = UnixStream::from(theirs);
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (ours, theirs)
}

/// The next frame without its virtio header; empty when the backend has let go.
fn frame(wire: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    let len = wire.read_vectored(&mut [IoSliceMut::new(&mut bytes)]).expect("a frame");
    bytes.truncate(len);
    bytes.drain(..len.min(tap::HEADER));
    bytes
}

#[test]
fn what_an_uplink_has_not_written_when_it_is_replaced_arrives_whole_and_its_memory_comes_back() {
    let (first, mut old) = wire();
    let mut network = Network::with_uplink(Some(first));
    let mut vif = network.vif(&Card::default());
    let mut number = 0;
    let mut send = |count: usize| {
        let frames: Vec<Vec<u8>> =
            (number..number + count).map(|number| plain(vif.mac, Mac([2; 6]), 200 + number)).collect();
        for frame in &frames {
            assert!(vif.queues[0].send(&Frame::new(frame.clone())));
        }
        vif.queues[0].kick();
        vif.answered(0);
        number += count;
        frames
    };
    let mut sent = Vec::new();
    // More frames in all than there is memory for at a time.
    for _ in 0..5 {
        // More than a socket takes: the others wait.
        sent.extend(send(30));
        let (another, new) = wire();
        network.worker.uplink(Some(another));
        let next = send(30);
        let mut come: Vec<Vec<u8>> = (0..sent.len()).map(|_| frame(&mut old)).collect();
        assert!(frame(&mut old).is_empty(), "the old one is let go of after its last write");
        // Writes that have waited end in any order.
        come.sort_by_key(Vec::len);
        assert!(come == sent, "of {} frames not all are what was sent", sent.len());
        (sent, old) = (next, new);
    }
    network.close(vif);
}

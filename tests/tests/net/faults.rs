//! A host that fails: copies and mappings that the kernel refuses.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use frontend::netfront::{Frame, Options};
use grant::embedded::ForeignExchange;
use grant::exchange::{Exchange, Movement, PeerId};
use grant::{Access, DomId, GrantCounts, GrantRef, Pages, SharedMemory};
use tests::network::{Card, Network, Vif};

use crate::frames::{Tcp, plain};

/// Which of the next calls fails; 0 for none.
#[derive(Clone, Default)]
struct Plan(Arc<AtomicU32>);

impl Plan {
    /// The call after `number - 1` others fails.
    fn fail(&self, number: u32) {
        self.0.store(number, Ordering::SeqCst);
    }

    fn next(&self, errno: rustix::io::Errno) -> io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            0 => Ok(()),
            number => {
                self.0.store(number - 1, Ordering::SeqCst);
                if number == 1 { Err(errno.into()) } else { Ok(()) }
            }
        }
    }
}

#[derive(Default)]
struct Faulty {
    exchange: ForeignExchange,
    copies: Plan,
    mappings: Plan,
}

impl Exchange for Faulty {
    fn join(&mut self, grants: OwnedFd, domid: DomId) -> io::Result<PeerId> {
        self.exchange.join(grants, domid)
    }

    fn leave(&mut self, peer: PeerId) {
        self.exchange.leave(peer);
    }

    fn map(&mut self, peer: PeerId, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory> {
        self.mappings.next(rustix::io::Errno::NOMEM)?;
        self.exchange.map(peer, refs, access)
    }

    fn copy(&mut self, local: &Pages, movements: &mut [Movement]) -> io::Result<()> {
        // As gntdev does it: the first says it is fine, whatever became of it.
        if let Err(error) = self.copies.next(rustix::io::Errno::FAULT) {
            movements.iter_mut().for_each(|movement| movement.status = grant::GrantStatus::OKAY);
            return Err(error);
        }
        self.exchange.copy(local, movements)
    }

    fn counts(&self) -> GrantCounts {
        self.exchange.counts()
    }
}

fn network() -> (Network, Plan, Plan) {
    let faulty = Faulty::default();
    let (copies, mappings) = (faulty.copies.clone(), faulty.mappings.clone());
    (Network::over(None, Box::new(faulty)), copies, mappings)
}

fn send(from: &mut Vif, frame: &Frame, count: usize) {
    for _ in 0..count {
        assert!(from.queues[0].send(frame));
    }
    from.queues[0].kick();
    from.answered(0);
}

#[test]
fn t44_xsa_367_a_copy_call_that_fails_is_an_error_of_its_packets_and_of_nothing_else() {
    let (mut network, copies, _) = network();
    let plain_card = Card { options: Options { checksum_ipv4: false, ..Options::default() }, ..Card::default() };
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let mut c = network.vif(&plain_card);
    let direct = Frame::new(plain(a.mac, b.mac, 1000));
    let tcp = Tcp { v6: false, payload: 1000 };
    let worked = Frame::new(tcp.frame(a.mac, c.mac)).with(tcp.offload(0));
    let (mut errors, mut lost) = (0, 0);
    // First bytes, then what goes out; for what is worked on, the whole of it in between.
    for (frame, calls, last_is_ours) in [(&direct, 2, false), (&worked, 3, true)] {
        for call in 1..=calls {
            copies.fail(call);
            send(&mut a, frame, 10);
            copies.fail(0);
            let to = if last_is_ours { &mut c } else { &mut b };
            assert!(to.receive_within(std::time::Duration::ZERO).is_none(), "call {call}");
            let failed = a.queues[0].counts().send_errors - errors;
            errors += failed;
            // What was in our hands had left its sender: the receiver alone hears of it.
            assert_eq!(failed, if last_is_ours && call == calls { 0 } else { 10 }, "call {call}");
            if call == calls {
                lost += 10;
                assert_eq!(to.stats().received_errors, 10, "call {call}");
            }
            send(&mut a, frame, 10);
            for _ in 0..10 {
                assert_eq!(to.receive().bytes.len(), frame.bytes.len());
            }
        }
    }
    assert_eq!(b.stats().received_errors + c.stats().received_errors, lost);
    let guests = [a.name.guest, b.name.guest, c.name.guest];
    [a, b, c].into_iter().for_each(|vif| network.close(vif));
    assert!(guests.iter().all(|&guest| network.active_grants(guest) == 0));
}

#[test]
fn t44_xsa_362_a_mapping_that_fails_refuses_its_card_and_leaves_nothing() {
    let (mut network, _, mappings) = network();
    let (mut a, mut b) = (network.vif(&Card::default()), network.vif(&Card::default()));
    let card = Card { control: true, options: Options { queues: 2, ..Options::default() }, ..Card::default() };
    for call in 1..=5 {
        mappings.fail(call);
        let refused = network.try_vif(&card).err().expect("refused");
        assert!(refused.contains("mapping the"), "call {call}: {refused}");
        assert_eq!(network.active_grants(b.name.guest + call as u16), 0, "call {call}");
        let frame = Frame::new(plain(a.mac, b.mac, 100));
        send(&mut a, &frame, 1);
        b.receive();
    }
    mappings.fail(0);
    let fine = network.vif(&card);
    network.close(fine);
}

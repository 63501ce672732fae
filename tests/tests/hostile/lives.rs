//! Connecting, closing and dying.

use blkback::config::FaultParams;
use blkback::device::Report;
use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE};
use grant::embedded::{self, GuestMemory};
use grant::{Access, GrantAccess};
use tests::world::{Disk, Shape, rw, wait_report};

use crate::{Case, is_served, long, statuses};

/// XSA-350: a frontend that connects and disconnects as fast as it can. XSA-457 and 465 are about events while a guest
/// comes back from suspend: there is none between Closed and the next ring.
#[test]
fn t46_xsa_350_xsa_457_a_disk_that_comes_and_goes_leaves_nothing_and_sends_nothing_afterwards() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let data = case.pages(2);
    for round in 0..long(1000) {
        let mut disk = case.disk(&file, Shape::default());
        match round % 3 {
            0 => is_served(&mut disk, &mut data.memory.pages(), &data.refs, round as u64),
            // Closed with everything still in the ring.
            1 => disk.put(&[rw(BLKIF_OP_READ, 1, 0, &data.refs[..1]); 32]),
            _ => {}
        }
        disk.close();
        let mut ports = Vec::new();
        disk.queue.events.pending(&mut ports).unwrap();
        ports.clear();
        let port = disk.queue.port;
        disk.queue.events.unmask(&[port]).unwrap();
        disk.queue.events.pending(&mut ports).unwrap();
        assert_eq!(ports, [], "an event after the end");
        assert_eq!(case.world.active_grants(), 0);
        case.forget(disk);
    }
    case.settled();
    case.end([data]);
}

/// XSA-340, 343, 344, 358, 359, 496, 505: races and long loops when a domain's ports and grants are taken down. Here the
/// domain dies with all that it may have mapped, and I/O under way.
#[test]
fn t35_xsa_340_a_guest_that_dies_with_everything_mapped_leaves_nothing() {
    for persistent in [true, false] {
        let mut case = Case::new();
        let (file, _) = case.image(16 << 20);
        let (domain, mut memory): (embedded::Domain, GuestMemory) = case.world.another_guest("mayfly");
        let guest = (domain.domid, memory.clone());
        let base = (crate::descriptors(), case.open_ports());
        let fault = Some(FaultParams { delay_ms: 100, ..FaultParams::default() });
        let mut disk = Disk::connect_as(&case.world, guest, &file, Shape { fault, persistent, ..Shape::default() });
        let data = memory.grant(case.service, 1056, Access::ReadWrite).unwrap();
        let active = || embedded::usage(case.world.dir.path(), domain.domid).map(|usage| usage.active_grants);
        for chunk in data.refs.chunks(11 * 32) {
            let slots: Vec<_> = chunk.chunks(11).zip(0..).map(|(refs, id)| rw(BLKIF_OP_WRITE, id, 0, refs)).collect();
            let count = slots.len();
            disk.put(&slots);
            assert!(disk.responses(count).iter().all(|response| response.status == 0));
        }
        assert_eq!(active().unwrap(), if persistent { 1057 } else { 1 });
        disk.put(&[rw(BLKIF_OP_WRITE, 1, 0, &data.refs[..11]); 32]);
        crate::eventually("taken", || disk.settled_stats().batches >= 4);
        // It dies: its ring, its pages and its ports stay valid for whoever still has them.
        let embedded::Domain { domid, connection } = domain;
        drop(connection);
        crate::eventually("the host has noticed", || embedded::connect(case.world.dir.path(), domid).is_err());
        case.witness.is_served();
        disk.worker.disconnect(51712);
        assert_eq!(wait_report(&mut disk.worker), Report::Closed { devid: 51712 });
        crate::eventually("no zombie", || embedded::usage(case.world.dir.path(), domid).is_err());
        drop((disk, data, memory));
        crate::eventually("descriptors are back", || crate::descriptors() < base.0);
        assert_eq!(case.open_ports(), base.1);
        case.settled();
    }
}

/// XSA-331: ports that are closed while their events are handled.
#[test]
fn t19_xsa_331_a_port_is_closed_in_a_storm_of_its_events() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let data = case.pages(1);
    for _ in 0..long(300) {
        let mut disk = case.disk(&file, Shape::default());
        assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &data.refs)]), [0]);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let port = disk.queue.port;
        let mut events = std::mem::replace(&mut disk.queue.events, Box::new(case.world.ports(case.guest)));
        let storm = std::thread::spawn(move || {
            let mut sent = 0u64;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                events.notify(port).unwrap();
                sent += 1;
            }
            sent
        });
        crate::eventually("it storms", || disk.stats().notified_in > 2);
        disk.close();
        stop.send(()).unwrap();
        assert!(storm.join().unwrap() > 0);
        assert_eq!(case.world.active_grants(), 0);
        case.forget(disk);
    }
    case.settled();
    case.end([data]);
}

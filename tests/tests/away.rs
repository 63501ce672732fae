//! A service VM whose way to the store is cut, through the real binary: for a while, and for good.

mod rig;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{scope, sleep, spawn};
use std::time::Duration;

use rig::{Nbd, Rig, eventually, signal_to};
use rustix::process::Signal;
use xenstore::Store;

/// Stands between a domain and the store, and passes everything on until it is cut.
struct Wire {
    door: PathBuf,
    store: PathBuf,
    /// Both ends of all that is connected.
    ends: Arc<Mutex<Vec<UnixStream>>>,
}

impl Wire {
    /// In the place of the domain's door to the store.
    fn new(rig: &Rig, domid: u16) -> Wire {
        let wire = Wire {
            door: rig.dir().join(format!("domains/{domid}/xenstored")),
            store: rig.path("store"),
            ends: Arc::default(),
        };
        std::fs::rename(&wire.door, &wire.store).unwrap();
        wire.mend();
        wire
    }

    fn is_used(&self) -> bool {
        !self.ends.lock().unwrap().is_empty()
    }

    /// Nobody gets through any more.
    fn cut(&self) {
        std::fs::remove_file(&self.door).unwrap();
        for end in self.ends.lock().unwrap().drain(..) {
            // Its other side may be gone already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        let listener = UnixListener::bind(&self.door).unwrap();
        let (store, ends) = (self.store.clone(), Arc::clone(&self.ends));
        spawn(move || {
            for domain in listener.incoming() {
                let (domain, store) = (domain.unwrap(), UnixStream::connect(&store).unwrap());
                let mut ends = ends.lock().unwrap();
                for (from, to) in [(&domain, &store), (&store, &domain)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    spawn(move || pass(from, to));
                }
                ends.extend([domain, store]);
            }
        });
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    // However it ends, it ends for both.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

/// A guest's disk, and a supervisor that has taken over with its way to the store through a wire.
fn wired(rig: &mut Rig) -> (Nbd, Wire) {
    rig.serve("acme", "[backend]\ninitwait-dwell-ms = 0\n[[volume]]\nname = \"z\"\nkind = \"null\"\nsize = \"1MiB\"\n");
    rig.guest("g1");
    rig.run("attach", &["g1", "acme:db"]).fine();
    let nbd = Nbd::open(&rig.nbd("g1"), "xvda").unwrap();
    let wire = Wire::new(rig, 1);
    signal_to(rig.supervisor("acme"), Signal::KILL);
    eventually("a supervisor through the wire", || wire.is_used().then_some(()));
    eventually("it serves again", || (rig.daemon("acme").log().matches("serving vm=").count() == 2).then_some(()));
    (nbd, wire)
}

#[test]
fn what_happened_while_the_store_was_away_is_found_and_guests_notice_nothing() {
    let mut rig = Rig::new();
    let (mut nbd, wire) = wired(&mut rig);
    let supervisor = rig.supervisor("acme");
    wire.cut();
    let attach = rig.command("attach").args(["g1", "acme:z", "--vdev", "xvdb"]).stdout(Stdio::null()).spawn().unwrap();
    let mut store = rig.store();
    eventually("the toolstack's nodes", || store.read_optional("/local/domain/1/backend/vbd/2/51728/state").unwrap());
    for round in 0..50u8 {
        assert_eq!(nbd.write(u64::from(round) * 4096, &[round; 4096]).unwrap(), 0);
    }
    wire.mend();
    assert_eq!(attach.wait_with_output().unwrap().status.code(), Some(0), "{}", rig.daemon("acme").log());
    assert_eq!(Nbd::open(&rig.nbd("g1"), "xvdb").unwrap().read(0, 4096).unwrap(), Ok(vec![0; 4096]));
    assert_eq!(nbd.read(49 * 4096, 4096).unwrap(), Ok(vec![49; 4096]));
    assert_eq!(rig.supervisor("acme"), supervisor, "the same one");
    assert!(rig.daemon("acme").log().contains("xenstored was away"), "{}", rig.daemon("acme").log());

    // And a disk that goes meanwhile.
    wire.cut();
    let detach = rig.command("detach").args(["g1", "xvdb"]).stdout(Stdio::null()).spawn().unwrap();
    eventually("the toolstack's wish", || {
        (store.read_optional("/local/domain/1/backend/vbd/2/51728/online").unwrap()? == b"0").then_some(())
    });
    wire.mend();
    assert_eq!(detach.wait_with_output().unwrap().status.code(), Some(0), "{}", rig.daemon("acme").log());
    assert_eq!(rig.disks().len(), 1);
    assert_eq!(rig.supervisor("acme"), supervisor);
}

#[test]
fn disks_come_and_go_however_often_the_way_to_the_store_is_cut() {
    let mut rig = Rig::new();
    let (mut nbd, wire) = wired(&mut rig);
    let supervisor = rig.supervisor("acme");
    let over = AtomicBool::new(false);
    scope(|scope| {
        let cuts = scope.spawn(|| {
            let mut cuts = 0;
            while !over.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(fastrand::u64(20..150)));
                wire.cut();
                sleep(Duration::from_millis(fastrand::u64(..50)));
                wire.mend();
                cuts += 1;
            }
            cuts
        });
        for round in 0..5u8 {
            rig.run("attach", &["g1", "acme:z", "--vdev", "xvdb"]).fine();
            assert_eq!(nbd.write(u64::from(round) * 4096, &[round; 4096]).unwrap(), 0);
            rig.run("detach", &["g1", "xvdb"]).fine();
        }
        over.store(true, Ordering::Relaxed);
        assert!(cuts.join().unwrap() > 0);
    });
    rig.phase("connected");
    assert_eq!(nbd.read(4 * 4096, 4096).unwrap(), Ok(vec![4; 4096]));
    assert_eq!(rig.supervisor("acme"), supervisor, "{}", rig.daemon("acme").log());
}

#[test]
fn a_host_that_was_started_anew_is_another_host() {
    let mut rig = Rig::new();
    let (_nbd, wire) = wired(&mut rig);
    wire.cut();
    // What a service VM of another host with the same number would find.
    rig.store().write("/local/domain/1/data/windsor/name", b"somebody else").unwrap();
    wire.mend();
    let mut acme = rig.take("acme");
    assert_eq!(acme.wait(), Some(1));
    assert!(acme.log().contains("was started anew"), "{}", acme.log());
}

#[test]
fn a_host_that_ended_ends_its_service_vms() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut rig = Rig::new();
        rig.serve("acme", "");
        rig.host().signal(signal);
        let mut acme = rig.take("acme");
        assert_eq!(acme.wait(), Some(1));
        if signal == Signal::KILL {
            // Its sockets stay: nobody waits at them for longer than for a store that comes back.
            assert!(rig.dir().join("domains/1/xenstored").exists());
            assert!(acme.log().contains("the connection to xenstored is gone"), "{}", acme.log());
        }
    }
}

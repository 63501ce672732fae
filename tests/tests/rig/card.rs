//! Cards of guests whose side of the store is written by hand, for the tests of the real binary.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::time::Duration;

use frontend::netfront::{Frame, Options, Queue, Received};
use grant::DomId;
use grant::embedded::{self, Domain, GuestMemory, Ports};
use netback::packet::Mac;
use serde_json::Value;
use xenstore::{Client, Store};

use super::rig::{Rig, eventually};

pub const LAN: &str = "[[network]]\nname = \"lan\"\n";

/// A domain whose side of the store is written by hand.
pub struct Guest {
    pub domain: Domain,
    pub memory: GuestMemory,
    pub store: Client,
    pub dir: std::path::PathBuf,
}

impl Guest {
    pub fn new(rig: &Rig, name: &str) -> Guest {
        let memory = GuestMemory::new(16 << 20).unwrap();
        let domain = embedded::register(&rig.dir(), name, Some(&memory)).unwrap();
        let store = rig.store_of(domain.domid.0);
        Guest { domain, memory, store, dir: rig.dir() }
    }

    pub fn domid(&self) -> u16 {
        self.domain.domid.0
    }

    pub fn write(&mut self, key: &str, value: &str) {
        self.store.write(&format!("device/vif/0/{key}"), value.as_bytes()).unwrap();
    }

    /// A queue as MiniOS has it: one event channel, and nothing that it can do.
    pub fn old_queue(&mut self, service: u16) -> Queue {
        let ports = Ports::new(embedded::connect(&self.dir, self.domain.domid).unwrap()).unwrap();
        let options = Options { split_event_channels: false, rx_notify: false, ..Options::default() };
        let queue = Queue::new(Box::new(self.memory.clone()), Box::new(ports), DomId(service), &options).unwrap();
        let keys = queue.keys();
        for (key, value) in [
            ("tx-ring-ref", keys.tx_ring_ref),
            ("rx-ring-ref", keys.rx_ring_ref),
            ("event-channel", keys.tx_port),
            ("request-rx-copy", 1),
        ] {
            self.write(key, &value.to_string());
        }
        queue
    }

    /// A queue for its card, and the keys that go with it; the state is the caller's to write.
    pub fn queue(&mut self, service: u16) -> Queue {
        let ports = Ports::new(embedded::connect(&self.dir, self.domain.domid).unwrap()).unwrap();
        let options = Options::default();
        let queue = Queue::new(Box::new(self.memory.clone()), Box::new(ports), DomId(service), &options).unwrap();
        let keys = queue.keys();
        let rx = keys.rx_port.unwrap();
        for (key, value) in [
            ("tx-ring-ref", keys.tx_ring_ref),
            ("rx-ring-ref", keys.rx_ring_ref),
            ("event-channel-tx", keys.tx_port),
            ("event-channel-rx", rx),
            ("request-rx-copy", 1),
            ("feature-rx-notify", 1),
            ("feature-sg", 1),
            ("feature-gso-tcpv4", 1),
        ] {
            self.write(key, &value.to_string());
        }
        queue
    }

    /// Its card connects.
    pub fn connect(&mut self, rig: &Rig, service: u16) -> Queue {
        let queue = self.queue(service);
        self.write("state", "4");
        wait_for(rig, &backend(service, self.domid(), "state"), "4");
        queue
    }
}

pub fn backend(service: u16, guest: u16, key: &str) -> String {
    format!("/local/domain/{service}/backend/vif/{guest}/0/{key}")
}

pub fn read(store: &mut Client, path: &str) -> Option<String> {
    let value = store.read_optional(path).unwrap()?;
    Some(String::from_utf8(value).unwrap())
}

#[track_caller]
pub fn wait_for(rig: &Rig, path: &str, value: &str) {
    let mut store = rig.store();
    eventually(&format!("{path} = {value}, now {:?}", read(&mut store, path)), || {
        (read(&mut store, path).as_deref() == Some(value)).then_some(())
    });
}

pub fn cards(rig: &Rig) -> Vec<Value> {
    rig.status()["vms"][0]["cards"].as_array().unwrap().clone()
}

/// Waits until the card of a guest is in a phase.
#[track_caller]
pub fn phase(rig: &Rig, guest: &str, phase: &str) -> Value {
    eventually(&format!("{guest} {phase}"), || {
        cards(rig).into_iter().find(|card| card["guest"] == guest && card["phase"] == phase)
    })
}

pub fn frame(from: Mac, to: Mac, text: &str) -> Vec<u8> {
    // A local experiment (IEEE 802 0x88B5): nobody looks into it.
    [&to.0[..], &from.0[..], &[0x88, 0xB5], text.as_bytes(), &[0; 40]].concat()
}

#[track_caller]
pub fn receive(queue: &mut Queue) -> Received {
    eventually("a packet", || {
        queue.wait(Duration::from_millis(20)).unwrap();
        queue.receive().unwrap()
    })
}

/// A packet goes through.
#[track_caller]
pub fn passes(from: (&mut Queue, Mac), to: (&mut Queue, Mac), text: &str) {
    let bytes = frame(from.1, to.1, text);
    assert!(from.0.send(&Frame::new(bytes.clone())));
    from.0.kick();
    while receive(to.0).bytes != bytes {}
}

pub const A: Mac = Mac([0, 0x16, 0x3E, 0, 0, 1]);
pub const B: Mac = Mac([0, 0x16, 0x3E, 0, 0, 2]);

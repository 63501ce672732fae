//! What a request costs once the persistent grants have grown to the load, by a counting allocator.

#[path = "../src/blkfront/backend.rs"]
#[allow(dead_code)]
mod backend;

use std::alloc::System;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use backend::{BACK, Backend, FRONT};
use frontend::blkfront::{Device, Machine, Op, Options, Queue, Request, Status, Step};
use grant::heap::Heap;
use grant::{EventChannel, GrantAccess};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use xenstore::xenbus::XenbusState;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

struct Guest(Heap);

impl Machine for Guest {
    fn grant_access(&self) -> io::Result<Box<dyn GrantAccess>> {
        Ok(Box::new(self.0.access()))
    }

    fn event_channel(&self) -> io::Result<Box<dyn EventChannel>> {
        Ok(Box::new(self.0.ports(FRONT)?))
    }
}

fn connected(heap: &Heap, options: Options) -> (Queue, Backend) {
    let keys =
        BTreeMap::from([("feature-persistent", "1"), ("feature-max-indirect-segments", "256"), ("sectors", "16384")]);
    let mut lookup = |key: &str| Ok(keys.get(key).map(|value| value.as_bytes().to_vec()));
    let mut device = Device::new(Arc::new(Guest(heap.clone())), options, BACK, 51712);
    let Ok(Step::Announce { keys, .. }) = device.observe(XenbusState::InitWait, &mut lookup) else { panic!() };
    let number = |name: &str| keys.iter().find(|(key, _)| key == name).unwrap().1.parse().unwrap();
    let backend =
        Backend::new(heap, blkback::proto::Abi::X86_64, &[number("ring-ref")], number("event-channel"), 8 << 20);
    let Ok(Step::Connected(_, queues)) = device.observe(XenbusState::Connected, &mut lookup) else { panic!() };
    (queues.into_iter().next().unwrap(), backend)
}

#[test]
fn requests_with_persistent_grants_allocate_nothing() {
    let heap = Heap::new(16384);
    let (mut queue, mut backend) = connected(&heap, Options { max_indirect: 256, ..Options::default() });
    let mut done = Vec::with_capacity(32);
    let mut buffers: Vec<Vec<u8>> = (0..32).map(|at| vec![0; [512, 4096, 45056, 1 << 20][at % 4]]).collect();
    let (mut allocations, mut granted) = (0, 0);
    for round in 0..30 {
        let region = Region::new(ALLOCATOR);
        for (tag, buffer) in buffers.drain(..).enumerate() {
            let op = if round % 2 == 0 { Op::Write } else { Op::Read };
            queue.submit(Request { tag: tag as u64, op, sector: 8 * tag as u64, buffer }).unwrap();
        }
        queue.kick();
        let submitted = region.change().allocations;
        while queue.in_flight() > 0 {
            backend.turn();
            let region = Region::new(ALLOCATOR);
            queue.reap(&mut done);
            allocations += if round >= 10 { region.change().allocations } else { 0 };
        }
        assert!(done.iter().all(|completion| completion.status == Status::Okay));
        done.sort_by_key(|completion| completion.tag);
        buffers.extend(done.drain(..).map(|completion| completion.buffer));
        if round < 10 {
            granted = queue.counts().pages_granted;
        } else {
            allocations += submitted;
        }
    }
    assert_eq!(allocations, 0);
    assert_eq!(queue.counts().pages_granted, granted);
    assert_eq!(queue.counts().requests, 30 * 32);
}

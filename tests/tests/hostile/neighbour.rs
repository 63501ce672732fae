//! What a neighbour notices of a hostile guest, in figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blkback::proto::BLKIF_OP_READ;
use frontend::hostile::{Index, write_segments};
use grant::{Access, DomId, GrantAccess, GrantRef};
use tests::world::{Disk, Shape, World, rw, wait_report};

use crate::{Case, Witness, image, indirect, segment};

/// One round of everything that is wrong and quick, on a disk of its own; a broken ring ends it.
fn torment(world: &World, guest: (DomId, grant::embedded::GuestMemory), stop: &AtomicBool) -> u64 {
    let (volume, _) = image(1 << 20);
    let (domid, mut memory) = guest;
    let data = memory.grant(world.service.domid, 12, Access::ReadWrite).unwrap();
    let list = memory.grant(world.service.domid, 1, Access::ReadWrite).unwrap();
    write_segments(&list.memory.pages(), 0, &[segment(data.refs[0], 5, 9); 256]);
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let shape = Shape { persistent: rounds % 2 == 0, ..Shape::default() };
        let mut disk = Disk::connect_as(world, (domid, memory.clone()), &volume, shape);
        for id in 0..20 {
            let mut bad_refs = data.refs[..11].to_vec();
            bad_refs[7] = GrantRef(20_000 + id);
            let kinds = [
                rw(77, 0, 0, &data.refs[..1]),
                rw(BLKIF_OP_READ, 1, 0, &bad_refs),
                rw(BLKIF_OP_READ, 2, u64::MAX, &data.refs[..11]),
                indirect(BLKIF_OP_READ, 3, 0, 256, list.refs[0]),
            ];
            disk.put(&std::array::from_fn::<_, 32, _>(|n| kinds[n % 4]));
            disk.responses(32);
            (0..100).for_each(|_| disk.notify());
        }
        disk.set_index(Index::ReqProd, disk.index(Index::RspProd).wrapping_add(100));
        disk.notify();
        wait_report(&mut disk.worker);
        disk.close();
        let Disk { worker, mut lane, .. } = disk;
        drop(worker);
        lane.queue.grants.end(lane.queue.ring_grant).unwrap();
        rounds += 1;
    }
    memory.end(data).unwrap();
    memory.end(list).unwrap();
    rounds
}

/// 99 of 100 reads of 4 KiB, one at a time for a while, took at most so long.
fn p99(witness: &mut Witness, time: Duration) -> Duration {
    let disk = &mut witness.disk;
    let refs = witness.data.refs[..1].to_vec();
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let sent = Instant::now();
        let sector = took.len() as u64 % 128 * 8;
        disk.put(&[rw(BLKIF_OP_READ, 1, sector, &refs)]);
        assert_eq!(disk.responses(1)[0].status, 0);
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

fn median(mut figures: Vec<Duration>) -> Duration {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

/// Printed and not gated: machines differ, and here the hostile guest itself runs on the CPUs of the service VM.
#[test]
#[ignore = "prints a figure: cargo test --release -p tests --test hostile t45 -- --ignored --nocapture"]
fn t45_what_a_neighbour_notices_of_a_hostile_guest() {
    let mut case = Case::new();
    let time = Duration::from_millis(if std::env::var_os("WINDSOR_LONG").is_some() { 10_000 } else { 1_000 });
    p99(&mut case.witness, time);
    let (mut quiet, mut beside, mut rounds) = (Vec::new(), Vec::new(), 0);
    for _ in 0..5 {
        quiet.push(p99(&mut case.witness, time));
        let stop = AtomicBool::new(false);
        let Case { world, witness, memory, guest, .. } = &mut case;
        let (world, guest) = (&*world, (*guest, memory.clone()));
        std::thread::scope(|scope| {
            let hostile = scope.spawn(|| torment(world, guest, &stop));
            beside.push(p99(witness, time));
            stop.store(true, Ordering::Relaxed);
            rounds += hostile.join().unwrap();
        });
    }
    println!("4 KiB reads, p99, rounds: quiet {quiet:?}, beside {rounds} hostile rounds {beside:?}");
    let (quiet, beside) = (median(quiet), median(beside));
    println!("median: quiet {quiet:?}, beside {beside:?}, ratio {:.2}", beside.as_secs_f64() / quiet.as_secs_f64());
}

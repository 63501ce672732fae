//! Our own counters against somebody else's: a counting allocator, and strace.

use std::alloc::System;
use std::fs::File;
use std::process::Command;

use blkback::proto::BLKIF_OP_READ;
use grant::{Access, GrantAccess};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tests::world::{Disk, Shape, World, rw};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Set in the child that strace watches.
const CHILD: &str = "WINDSOR_COUNTERS_CHILD";
const BATCHES: u64 = 2000;

fn image() -> File {
    let file = tempfile::tempfile_in(".").unwrap();
    file.set_len(4 << 20).unwrap();
    file
}

/// `batches` full batches in lock-step: put 32 reads, take 32 responses.
fn run(batches: u64, shape: Shape) -> (blkback::stats::Stats, blkback::stats::Stats, usize) {
    let mut world = World::new();
    let file = image();
    let mut disk = Disk::connect(&mut world, &file, shape);
    let data = world.memory.grant(world.service.domid, 32, Access::ReadWrite).unwrap();
    let batch: Vec<_> = (0..32).map(|n| rw(BLKIF_OP_READ, n, n * 8, &data.refs[n as usize..][..1])).collect();
    let mut ports = Vec::with_capacity(64);
    for _ in 0..10 {
        disk.put(&batch);
        disk.drain(32, &mut ports);
    }
    let before = disk.settled_stats();
    let region = Region::new(ALLOCATOR);
    for _ in 0..batches {
        disk.put(&batch);
        disk.drain(32, &mut ports);
    }
    let allocations = region.change().allocations;
    let after = disk.settled_stats();
    disk.close();
    (before, after, allocations)
}

#[test]
fn counters_agree_with_an_allocator_and_with_strace() {
    if std::env::var_os(CHILD).is_some() {
        let (_, after, _) = run(BATCHES, Shape::default());
        println!("system calls {}", after.system_calls);
        println!("notifications {}", after.notified_out);
        return;
    }
    no_allocation_no_mapping_one_publish_and_at_most_one_notify_per_batch();
    strace_counts_the_same();
}

fn no_allocation_no_mapping_one_publish_and_at_most_one_notify_per_batch() {
    let base = Shape::default();
    for shape in [base, Shape { zero_copy: false, ..base }, Shape { persistent: false, ..base }] {
        let (before, after, allocations) = run(200, shape);
        assert_eq!(after.reads - before.reads, 200 * 32);
        assert_eq!(allocations, 0, "{shape:?}");
        assert_eq!(after.map_calls, before.map_calls, "{shape:?}");
        assert_eq!(after.unmap_calls, before.unmap_calls, "{shape:?}");
        assert_eq!(after.batches - before.batches, 200, "a full batch is one turn: {shape:?}");
        assert_eq!(after.publishes - before.publishes, 200, "{shape:?}");
        assert!(after.notified_out - before.notified_out <= 200, "{shape:?}");
        let copies = after.copy_calls - before.copy_calls;
        assert_eq!(copies, if shape.persistent { 0 } else { 200 }, "one copy call for a batch");
    }
}

/// What strace saw the queue thread do, as lines of the trace.
fn strace_counts_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        // Without what the embedded event device does where the ring reads and writes the real one.
        .args(["-f", "--decode-pids=comm", "-e", "trace=io_uring_enter,write"])
        .arg("-o")
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "counters_agree_with_an_allocator_and_with_strace", "--nocapture"])
        .env(CHILD, "1")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => panic!("strace is needed (apt-get install strace): {error}"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let number = |what: &str| -> f64 {
        let line = said.lines().find_map(|line| line.split(what).nth(1));
        line.unwrap_or_else(|| panic!("{said}")).trim().parse().unwrap()
    };
    let trace = std::fs::read_to_string(trace).unwrap();
    let thread: Vec<&str> = trace.lines().filter(|line| line.contains("<queues-0>")).collect();
    let seen = |call: &str| thread.iter().filter(|line| line.contains(call)).count();
    let resumed = seen("resumed>") as f64;
    let calls = thread.len() as f64 - resumed;
    let writes = (seen(" write(")) as f64;
    let within = |ours: f64, theirs: f64| (ours - theirs).abs() <= theirs * 0.01 + 5.0;
    println!(
        "system calls: ours {}, strace {calls}; notifications: ours {}, strace {writes}",
        number("system calls "),
        number("notifications ")
    );
    assert!(calls > BATCHES as f64, "strace saw the thread work");
    assert!(within(number("system calls "), calls), "ours {}, strace {calls}", number("system calls "));
    assert!(within(number("notifications "), writes), "ours {}, strace {writes}", number("notifications "));
}

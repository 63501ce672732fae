//! The load on a daemon, and what it says of it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use xenstore::{Client, Permission, Store};

/// What one client does, once; how many operations (or events) that was.
pub type Work = fn(&mut Client, usize, u64) -> u64;

/// Each with its name.
pub const WORKS: [(&str, Work); 4] =
    [("reads", read), ("writes", write), ("transactions of 8 writes", transact), ("watch events", watch)];

/// What was measured.
pub struct Figure {
    /// Operations of all clients.
    pub per_second: f64,
    /// Of the daemon, user and system, for each operation.
    pub cpu_us: f64,
}

fn read(client: &mut Client, who: usize, _: u64) -> u64 {
    client.read(&format!("/bench/{who}/value")).unwrap();
    1
}

fn write(client: &mut Client, who: usize, turn: u64) -> u64 {
    client.write(&format!("/bench/{who}/value"), &turn.to_le_bytes()).unwrap();
    1
}

fn transact(client: &mut Client, who: usize, turn: u64) -> u64 {
    let node = |n| format!("/bench/{who}/{n}");
    client.transaction(|tx| (0..8).try_for_each(|n| tx.write(&node(n), &turn.to_le_bytes()))).unwrap();
    8
}

/// A write whose event comes back to the writer.
fn watch(client: &mut Client, who: usize, turn: u64) -> u64 {
    if turn == 0 {
        client.watch(&format!("/bench/{who}/value"), "bench").unwrap();
    }
    client.write(&format!("/bench/{who}/value"), &turn.to_le_bytes()).unwrap();
    let first = client.next_event(Some(Duration::from_secs(10))).unwrap();
    assert!(first.is_some(), "the event of a write has not come");
    1 + std::iter::from_fn(|| client.queued_event()).count() as u64
}

/// The process that listens at a socket.
fn pid(socket: &Path) -> i32 {
    let connection = UnixStream::connect(socket).unwrap();
    rustix::net::sockopt::socket_peercred(&connection).unwrap().pid.as_raw_nonzero().get()
}

/// Seconds of processor time that a process has used.
fn cpu(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

/// Bytes that a process has in memory.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() << 10
}

/// So many clients at once for a while.
pub fn run(socket: &Path, clients: usize, work: Work, time: Duration) -> Figure {
    let (pid, mut setup) = (pid(socket), Client::connect(socket).unwrap());
    (0..clients).for_each(|who| setup.write(&format!("/bench/{who}/value"), b"0").unwrap());
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (before, started) = (cpu(pid), Instant::now());
    std::thread::scope(|scope| {
        for who in 0..clients {
            let (done, stop) = (&done, &stop);
            scope.spawn(move || {
                let mut client = Client::connect(socket).unwrap();
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    done.fetch_add(work(&mut client, who, turn), Ordering::Relaxed);
                    turn += 1;
                }
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    let done = done.into_inner() as f64;
    let figure =
        Figure { per_second: done / started.elapsed().as_secs_f64(), cpu_us: (cpu(pid) - before) * 1e6 / done };
    setup.rm("/bench").unwrap();
    figure
}

/// A thousand domains with a hundred nodes each, with the values that devices have. The C daemon has no such domains
/// here, without Xen, so that there all nodes are dom0's.
pub fn large(name: &str, socket: &Path) {
    let (pid, mut client) = (pid(socket), Client::connect(socket).unwrap());
    let (before, started, mut domains) = (resident(pid), Instant::now(), 0);
    for domid in 1..=1000 {
        let home = format!("/local/domain/{domid}");
        if client.introduce(domid, 1, 1).is_ok() {
            domains += 1;
            client.mkdir(&home).unwrap();
            client.set_perms(&home, &[Permission::none(domid), Permission::read(17)]).unwrap();
        }
        for n in 0..98 {
            let path = format!("{home}/device/vbd/{}/key-{}", n / 14, n % 14);
            client.write(&path, b"/local/domain/17/backend/vbd/4711/51712").unwrap();
        }
    }
    let (filled, grown) = (started.elapsed(), resident(pid) - before);
    let started = Instant::now();
    let nodes = walk(&mut client, "/local");
    let listed = started.elapsed();
    let started = Instant::now();
    (1..=domains).for_each(|domid| client.release(domid).unwrap());
    let released = started.elapsed();
    client.rm("/local").unwrap();
    println!(
        "{name}: {domains} domains, {nodes} nodes filled in {filled:.1?}, {} bytes resident for each, listed and read in \
         {listed:.1?}, all domains released in {released:.1?}",
        grown / nodes
    );
}

/// Lists and reads everything, as `xenstore-ls` does.
fn walk(client: &mut Client, path: &str) -> u64 {
    client.read(path).unwrap();
    let names = client.directory(path).unwrap();
    1 + names.iter().map(|name| walk(client, &format!("{path}/{name}"))).sum::<u64>()
}

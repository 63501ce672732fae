//! The demo's guest: a domain with memory of its own and one disk. It knows the host's directory and nothing of what
//! stands behind the disk.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use frontend::blkfront::{self, Options};
use grant::embedded::{self, Domain, GuestMemory};

use super::load::Disk;
use super::orders::{Answer, Order, hear, say};
use super::{DISK, GUEST};
use crate::guest::Embedded;
use crate::store;
use crate::world::World;

/// Memory for rings and data: eight reads of 1 MiB and then some. Only what is touched is used.
const MEMORY: u64 = 96 << 20;
/// How long the disk may take to come.
const COMING: Duration = Duration::from_secs(60);
/// How long the backend may take to let go.
const CLOSE: Duration = Duration::from_secs(5);
/// How often progress is told, in bytes.
const STEP: u64 = 16 << 20;

/// Obeys the orders on `orders` until there are none.
///
/// # Errors
/// When nobody listens any more; whatever else goes wrong is answered.
pub fn run(dir: &Path, mut orders: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    match serve(dir, &mut orders, &mut answers) {
        Ok(()) => Ok(()),
        Err(error) => say(&mut answers, &Answer::Failed { why: error.to_string() }),
    }
}

fn serve(dir: &Path, orders: &mut impl BufRead, answers: &mut impl Write) -> io::Result<()> {
    let memory = GuestMemory::new(MEMORY)?;
    // The domain lives as long as this connection.
    let Domain { domid, connection: _alive } =
        embedded::register(dir, GUEST, Some(&memory)).map_err(io::Error::other)?;
    let world = World::Embedded(dir.to_owned());
    let mut store = store::domain(&world, Some(domid)).map_err(io::Error::other)?;
    let machine = Arc::new(Embedded { dir: dir.to_owned(), domid, memory });
    say(answers, &Answer::Up { domid: domid.0 })?;
    let options = Options { max_indirect: 256, ..Options::default() };
    let connected = blkfront::connect(&mut store, machine, &options, DISK.0, COMING);
    let (front, properties, mut queues) = connected.map_err(io::Error::other)?;
    let queue = queues.pop().ok_or_else(|| io::Error::other("a disk without a queue"))?;
    say(answers, &Answer::Connected { sectors: properties.sectors })?;
    let mut disk = Disk::new(front, store, queue, properties.sectors * 512);
    loop {
        let answer = match hear(orders)? {
            None => return Ok(()),
            Some(Order::Close) => return say(answers, &Answer::Closed { mapped: close(disk)? }),
            Some(Order::Digest) => digest(&mut disk, answers)?,
            Some(Order::Check) => check(&mut disk, answers)?,
            Some(Order::Measure(load)) => Answer::Measured(disk.measure(load)?),
            Some(Order::RoundTrips { .. } | Order::Stream { .. }) => {
                return Err(io::Error::other("an order for a card"));
            }
        };
        say(answers, &answer)?;
    }
}

fn digest(disk: &mut Disk, answers: &mut impl Write) -> io::Result<Answer> {
    let begun = Instant::now();
    let sha256 = disk.digest(|blocks| say(answers, &Answer::Chunk { blocks }))?;
    Ok(Answer::Digest { sha256, seconds: begun.elapsed().as_secs_f64() })
}

fn check(disk: &mut Disk, answers: &mut impl Write) -> io::Result<Answer> {
    // Another one for each run: what an earlier one left is wrong.
    let seed = fastrand::u64(..);
    let begun = Instant::now();
    let size = disk.size;
    let mut progress = |before: u64, done: u64| match done.is_multiple_of(STEP) || done == size {
        true => say(answers, &Answer::Progress { done: before + done }),
        false => Ok(()),
    };
    disk.fill(seed, |done| progress(0, done))?;
    let written = Instant::now();
    let differs = disk.check(seed, |done| progress(size, done))?;
    Ok(Answer::Checked {
        differs,
        write_seconds: written.duration_since(begun).as_secs_f64(),
        read_seconds: written.elapsed().as_secs_f64(),
    })
}

/// Gives the disk back; how many pages the backend has not let go.
fn close(disk: Disk) -> io::Result<usize> {
    let Disk { front, mut store, queue, .. } = disk;
    let kept = front.close(&mut store, vec![queue], CLOSE).map_err(io::Error::other)?;
    Ok(kept.iter().map(|granted| granted.refs.len()).sum())
}

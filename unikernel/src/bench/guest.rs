//! The bench's guest: a domain with one disk, and a thread for each of its queues while a load runs.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use frontend::blkfront::{self, Blkfront, Machine, Options};
use grant::GrantAccess;
use grant::embedded::{self, Domain, GuestMemory};
use xenstore::Client;

use super::job::{Answer, Order, Ran};
use super::load::Lane;
use crate::demo::orders::{hear, say};
use crate::guest::Embedded;
use crate::store;
use crate::vdev::Vdev;
use crate::world::World;

/// How long the disk may take to come.
const COMING: Duration = Duration::from_secs(60);
/// How long the backend may take to let go.
const CLOSE: Duration = Duration::from_secs(5);

/// What the guest is made of.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The embedded host's directory.
    pub dir: PathBuf,
    /// The domain's name.
    pub name: String,
    /// Its disk.
    pub vdev: Vdev,
    /// Queues of the disk.
    pub queues: u16,
    /// Requests that each has room for.
    pub depth: usize,
    /// Pages of the largest request.
    pub pages: usize,
    /// Keep grants.
    pub persistent: bool,
}

impl Guest {
    /// Obeys the orders on `orders` until there are none.
    ///
    /// # Errors
    /// When nobody listens any more; whatever else goes wrong is answered.
    pub fn run(&self, mut orders: impl BufRead, mut answers: impl Write) -> io::Result<()> {
        match self.serve(&mut orders, &mut answers) {
            Ok(()) => Ok(()),
            Err(error) => say(&mut answers, &Answer::Failed { why: error.to_string() }),
        }
    }

    fn options(&self) -> Options {
        let slots = |order: &u8| (32usize << order) >= self.depth;
        Options {
            ring_order: (0..4).find(slots).unwrap_or(4),
            queues: self.queues,
            persistent: self.persistent,
            max_indirect: 256,
            ..Options::default()
        }
    }

    fn serve(&self, orders: &mut impl BufRead, answers: &mut impl Write) -> io::Result<()> {
        let each = super::load::GRANTS.max(self.depth * self.pages) + self.depth + 16;
        // The frontend's own pool is for a request of the largest size and is not used here.
        let memory = GuestMemory::new(((each + 512) * usize::from(self.queues) * grant::PAGE_SIZE) as u64)?;
        // The domain lives as long as this connection.
        let Domain { domid, connection: _alive } =
            embedded::register(&self.dir, &self.name, Some(&memory)).map_err(io::Error::other)?;
        let mut store = store::domain(&World::Embedded(self.dir.clone()), Some(domid)).map_err(io::Error::other)?;
        let machine = Arc::new(Embedded { dir: self.dir.clone(), domid, memory });
        say(answers, &Answer::Up { domid: domid.0 })?;
        let mut access = machine.grant_access()?;
        let connected = blkfront::connect(&mut store, machine, &self.options(), self.vdev.0, COMING);
        let (front, properties, queues) = connected.map_err(io::Error::other)?;
        let shape = (self.depth, self.pages);
        let mut lanes = queues
            .into_iter()
            .map(|queue| Lane::new(queue, &mut *access, front.peer(), properties.max_indirect.into(), shape))
            .collect::<io::Result<Vec<Lane>>>()?;
        let grants = lanes.first().map_or(0, Lane::grants);
        say(answers, &Answer::Connected { sectors: properties.sectors, queues: lanes.len(), grants })?;
        loop {
            let answer = match hear(orders)? {
                None => return Ok(()),
                Some(Order::Close) => {
                    return say(answers, &Answer::Closed { mapped: close(front, store, lanes, &mut *access)? });
                }
                Some(Order::Run(job)) => Answer::Ran { queues: run(&mut lanes, &job)? },
            };
            say(answers, &answer)?;
        }
    }
}

/// Runs a load on all queues at once; with one queue there is no other thread.
fn run(lanes: &mut [Lane], job: &super::job::Job) -> io::Result<Vec<Ran>> {
    if let [lane] = lanes {
        return Ok(vec![lane.run(job)?]);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter_mut()
            .zip(0..)
            .map(|(lane, number)| {
                let job = super::job::Job { seed: job.seed.wrapping_add(number), ..*job };
                scope.spawn(move || lane.run(&job))
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|ended| ended.map_err(|_| io::Error::other("a thread of the guest panicked"))?).collect()
    })
}

/// Gives the disk back; how many pages the backend has not let go.
fn close(front: Blkfront, mut store: Client, lanes: Vec<Lane>, access: &mut dyn GrantAccess) -> io::Result<usize> {
    let (queues, granted): (Vec<_>, Vec<_>) = lanes.into_iter().map(Lane::into_parts).unzip();
    let rings = front.close(&mut store, queues, CLOSE).map_err(io::Error::other)?;
    let data = granted.into_iter().flatten().filter_map(|granted| Some(access.end(granted).err()?.0));
    Ok(rings.into_iter().chain(data).map(|granted| granted.refs.len()).sum())
}

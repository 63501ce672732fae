//! Letting one request of a disk run alone: a barrier, or a write smaller than the medium's sectors, which has to be
//! read, changed and written back.
//!
//! ```text
//! queue 0:  enter .. leave           enter .. leave
//! queue 1:        enter ...... leave
//! queue 2:   close, waits ..........| alone, open |
//! ```
//! The queues of a disk run on different threads. None waits here: a queue that finds the gate closed puts its request
//! aside and is woken when the gate opens; one that closed it is woken whenever another queue has become quiet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

/// Wakes the queue of this number, from any thread.
pub type Wake = Box<dyn Fn(usize) + Send + Sync>;

/// What the queues of one disk share.
pub struct Gate {
    /// 0 when open, else one more than the number of the queue that closed it.
    closed: AtomicUsize,
    /// Which queues have requests with the disk.
    inside: Vec<CachePadded<AtomicBool>>,
    /// Which queues were refused and have not been let in since.
    waiting: Vec<CachePadded<AtomicBool>>,
    /// One more than the number of the queue that closed it last: it gives way to those that wait.
    last: AtomicUsize,
    wake: Wake,
}

impl Gate {
    /// An open gate for `queues` queues.
    pub fn new(queues: usize, wake: Wake) -> Gate {
        let flags = || (0..queues).map(|_| CachePadded::new(AtomicBool::new(false))).collect();
        Gate { closed: AtomicUsize::new(0), inside: flags(), waiting: flags(), last: AtomicUsize::new(0), wake }
    }

    /// The queues that wait, without this one.
    fn waiting(&self, except: usize) -> impl Iterator<Item = usize> {
        let waits = move |queue: &usize| *queue != except && self.waiting[*queue].load(Ordering::SeqCst);
        (0..self.waiting.len()).filter(waits)
    }
}

/// One queue's side of the gate.
pub struct Pass {
    gate: Arc<Gate>,
    index: usize,
    inside: bool,
    /// It was refused and has not been let in since.
    waits: bool,
}

// Everything is SeqCst: `enter` writes its own flag and reads `closed`, `close` writes `closed` and reads the flags;
// with anything weaker both could miss the other's write.
impl Pass {
    /// The side of queue `index`.
    pub fn new(gate: Arc<Gate>, index: usize) -> Pass {
        Pass { gate, index, inside: false, waits: false }
    }

    /// Asks to give the disk a request that may run beside others. False while the gate is closed.
    #[inline]
    pub fn enter(&mut self) -> bool {
        if !self.inside {
            self.gate.inside[self.index].store(true, Ordering::SeqCst);
            self.inside = true;
        }
        self.note(self.gate.closed.load(Ordering::SeqCst) == 0)
    }

    /// Whoever is refused is noted, so that the next to run alone is not the same as before.
    #[inline]
    fn note(&mut self, admitted: bool) -> bool {
        if self.waits == admitted {
            self.waits = !admitted;
            self.gate.waiting[self.index].store(!admitted, Ordering::SeqCst);
            if admitted {
                self.gate.waiting(self.index).for_each(|queue| (self.gate.wake)(queue));
            }
        }
        admitted
    }

    /// This queue has nothing with the disk any more.
    #[inline]
    pub fn leave(&mut self) {
        if !std::mem::take(&mut self.inside) {
            return;
        }
        self.gate.inside[self.index].store(false, Ordering::SeqCst);
        match self.gate.closed.load(Ordering::SeqCst) {
            0 => {}
            closer if closer == self.index + 1 => {}
            closer => (self.gate.wake)(closer - 1),
        }
    }

    /// Asks to run alone; to be asked again after a wake-up until it says true. The queue itself must be quiet and
    /// have left.
    pub fn close(&mut self) -> bool {
        let mine = self.index + 1;
        if self.gate.closed.load(Ordering::SeqCst) != mine {
            // They have been told that the gate is open, and tell us when they are in.
            let gives_way =
                self.gate.last.load(Ordering::SeqCst) == mine && self.gate.waiting(self.index).next().is_some();
            let closed = || self.gate.closed.compare_exchange(0, mine, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            let closed = !gives_way && closed();
            if !self.note(closed) {
                return false;
            }
            self.gate.last.store(mine, Ordering::SeqCst);
        }
        debug_assert!(!self.inside, "closing with requests of its own under way");
        self.gate.inside.iter().all(|inside| !inside.load(Ordering::SeqCst))
    }

    /// What ran alone has ended.
    pub fn open(&mut self) {
        self.gate.closed.store(0, Ordering::SeqCst);
        (0..self.gate.inside.len()).filter(|queue| *queue != self.index).for_each(|queue| (self.gate.wake)(queue));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    fn gate(queues: usize) -> (Vec<Pass>, Arc<Mutex<Vec<usize>>>) {
        let woken = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&woken);
        let gate = Arc::new(Gate::new(queues, Box::new(move |queue| log.lock().unwrap().push(queue))));
        ((0..queues).map(|index| Pass::new(Arc::clone(&gate), index)).collect(), woken)
    }

    #[test]
    fn whoever_closes_waits_for_the_others_and_they_wait_for_it() {
        let (mut passes, woken) = gate(3);
        assert!(passes[0].enter() && passes[1].enter());
        assert!(!passes[2].close(), "two are inside");
        assert!(!passes[0].enter(), "closed, though it is inside");
        passes[0].leave();
        assert_eq!(*woken.lock().unwrap(), [2]);
        assert!(!passes[2].close());
        passes[1].leave();
        assert_eq!(*woken.lock().unwrap(), [2, 2]);
        assert!(passes[2].close());
        assert!(!passes[0].close(), "one at a time");
        passes[2].open();
        assert_eq!(*woken.lock().unwrap(), [2, 2, 0, 1]);
        assert!(passes[0].close());
    }

    /// A queue with one such request after another is the first to know that the gate is open.
    #[test]
    fn whoever_ran_alone_gives_way_to_those_that_waited() {
        let (mut passes, woken) = gate(3);
        assert!(passes[0].close() && !passes[1].enter());
        passes[1].leave();
        passes[0].open();
        assert!(!passes[0].close(), "the other has not had its turn");
        woken.lock().unwrap().clear();
        assert!(passes[1].enter());
        assert_eq!(*woken.lock().unwrap(), [0], "told when it may come again");
        assert!(!passes[0].close(), "closed, but not alone");
        passes[1].leave();
        assert!(passes[0].close());
        assert!(!passes[2].close() && !passes[1].enter());
        passes[1].leave();
        passes[0].open();
        // The third does not wait for the second, or nobody would come in.
        assert!(passes[2].close());
        passes[2].open();
        assert!(passes[1].enter() && passes[1].enter());
    }

    #[test]
    fn one_queue_alone_needs_nobody() {
        let (mut passes, woken) = gate(1);
        assert!(passes[0].enter());
        passes[0].leave();
        assert!(passes[0].close());
        assert!(!passes[0].enter());
        passes[0].leave();
        passes[0].open();
        assert!(passes[0].enter());
        assert!(woken.lock().unwrap().is_empty());
    }

    /// Threads that enter and close at random: nobody is inside while another is alone, and nobody sleeps for ever.
    #[test]
    fn alone_means_alone() {
        const QUEUES: usize = 4;
        let bells: Arc<Vec<_>> = Arc::new((0..QUEUES).map(|_| crossbeam::channel::bounded::<()>(1)).collect());
        let ring = Arc::clone(&bells);
        let gate = Arc::new(Gate::new(
            QUEUES,
            Box::new(move |queue| {
                // A full channel has rung already.
                let _ = ring[queue].0.try_send(());
            }),
        ));
        let (inside, alone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..QUEUES)
            .map(|index| {
                let (gate, bells) = (Arc::clone(&gate), Arc::clone(&bells));
                let (inside, alone) = (Arc::clone(&inside), Arc::clone(&alone));
                std::thread::spawn(move || {
                    let mut pass = Pass::new(gate, index);
                    let mut random = 7u32 + index as u32;
                    let wait = || bells[index].1.recv_timeout(Duration::from_secs(20)).expect("woken");
                    for _ in 0..20_000 {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        if random >> 30 == 0 {
                            while !pass.close() {
                                wait();
                            }
                            assert_eq!((alone.fetch_add(1, Ordering::SeqCst), inside.load(Ordering::SeqCst)), (0, 0));
                            alone.fetch_sub(1, Ordering::SeqCst);
                            pass.open();
                        } else {
                            while !pass.enter() {
                                pass.leave();
                                wait();
                            }
                            inside.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(alone.load(Ordering::SeqCst), 0);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            pass.leave();
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

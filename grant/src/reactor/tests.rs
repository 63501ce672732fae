//! The loop with queues that play their part.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Memory that two queues share: how much of it is free.
type Shared = Rc<Cell<u32>>;

enum Part {
    /// Needs memory, and has not got it yet.
    Needs,
    /// Has what the other needs, and gives it back when it settles.
    Has,
    /// Nothing to do.
    Done,
}

struct Player {
    part: Part,
    memory: Shared,
    /// Told when it has got what it needs.
    got: Outbox<()>,
}

impl Queue for Player {
    const INDEPENDENT: bool = true;

    fn turn(&mut self, _core: &mut Core) -> Turn {
        match self.part {
            Part::Needs if self.memory.get() > 0 => {
                self.part = Part::Done;
                self.got.send(());
                Turn::Busy
            }
            Part::Needs | Part::Done => Turn::Idle,
            Part::Has => Turn::Busy,
        }
    }

    fn complete(&mut self, _completion: crate::uring::Completion, _core: &mut Core) {}

    fn settle(&mut self, _core: &mut Core) {
        if matches!(self.part, Part::Has) {
            self.memory.set(1);
            self.part = Part::Done;
        }
    }

    fn has_work(&self) -> bool {
        false
    }

    fn is_starved(&self) -> bool {
        matches!(self.part, Part::Needs)
    }

    fn final_check(&mut self) -> bool {
        false
    }

    fn is_drained(&self) -> bool {
        false
    }

    fn notified(&mut self) {}

    fn account(&mut self, _system_calls: u64) {}

    fn tick(&mut self, _core: &mut Core) {}

    fn wants_tick(&self) -> bool {
        false
    }
}

/// Ends the thread at the first message.
struct Once;

impl Control<Player> for Once {
    type Message = ();

    fn message(&mut self, _reactor: &mut Reactor<Player>, (): ()) -> bool {
        false
    }

    fn drained(&mut self, _core: &mut Core, _queue: Player) {}

    fn broken(&mut self, _queue: &Player, _reason: String) {}
}

/// What is given back in the pass in which another was refused it is offered to that one, although it is awake: nothing else
/// may ever happen.
#[test]
fn who_was_refused_memory_gets_what_comes_back_in_the_same_pass() {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let (outbox, inbox) = mailbox().unwrap();
        let mut reactor = Reactor::new(Uring::new(None).unwrap());
        reactor.poll_for(Duration::ZERO);
        let memory = Shared::default();
        for part in [Part::Needs, Part::Has] {
            let id = reactor.core.ring.open_memory(1);
            reactor.add(id, Vec::new(), Player { part, memory: Rc::clone(&memory), got: outbox.clone() });
        }
        // It became starved in an earlier turn.
        reactor.starved = true;
        reactor.run(&inbox, &mut Once);
        ended.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(10)).expect("it sleeps beside free memory");
}

//! Requests that the volume failed and that the guest is not told of (`on-error = "hold"`), and flushes that stay
//! failed.
//!
//! A held request is tried again from its start, one a second as a probe; when a probe succeeds all the others follow.
//! After a failed flush nobody knows what the kernel has thrown away (its pages count as clean), so no later flush may
//! succeed by itself: only the operator, or a new attach, ends that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::OnError;

/// Between two probes.
const PAUSE: Duration = Duration::from_secs(1);

/// What a queue tells its control half, besides its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The volume fails and the guest waits.
    Holding(String),
    /// No request is held any more.
    Resumed,
    /// A flush failed; from now on all of them do.
    FlushFailed,
}

/// How a queue tells it.
pub type Tell = Box<dyn Fn(Trouble) + Send>;

/// One queue's failure policy.
pub struct Hold {
    policy: OnError,
    tell: Tell,
    /// Shared by the queues of the disk.
    flush_failed: Arc<AtomicBool>,
    /// Requests that wait, oldest first.
    held: Vec<u16>,
    /// When one of them was tried last.
    tried: Option<Instant>,
}

impl Hold {
    /// Nothing is held yet; `slots` requests at most will be.
    pub fn new(policy: OnError, flush_failed: Arc<AtomicBool>, slots: usize, tell: Tell) -> Hold {
        Hold { policy, tell, flush_failed, held: Vec::with_capacity(slots), tried: None }
    }

    /// A flush failed earlier.
    #[inline]
    pub fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Relaxed)
    }

    /// A flush has failed now.
    pub fn fail_flushes(&self) {
        if !self.flush_failed.swap(true, Ordering::Relaxed) {
            (self.tell)(Trouble::FlushFailed);
        }
    }

    /// Keeps a request that failed with `errno`. False when it is to be answered.
    pub fn keep(&mut self, slot: u16, errno: i32, now: Instant) -> bool {
        if self.policy == OnError::Report {
            return false;
        }
        if self.held.is_empty() && self.tried.is_none() {
            (self.tell)(Trouble::Holding(std::io::Error::from_raw_os_error(errno).to_string()));
        }
        self.tried = Some(now);
        self.held.push(slot);
        true
    }

    /// True while requests are held.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// A held request whose time has come.
    pub fn probe(&mut self, now: Instant) -> Option<u16> {
        let due = self.tried.is_some_and(|tried| now.duration_since(tried) >= PAUSE);
        if !due || self.held.is_empty() {
            return None;
        }
        self.tried = Some(now);
        Some(self.held.remove(0))
    }

    /// Something has succeeded: whatever is held may be tried now.
    pub fn cured(&mut self) -> Vec<u16> {
        if self.tried.take().is_some() {
            (self.tell)(Trouble::Resumed);
        }
        std::mem::take(&mut self.held)
    }

    /// Nobody will wait any more: what was held, to be answered with its error.
    pub fn abandon(&mut self) -> Vec<u16> {
        self.tried = None;
        std::mem::take(&mut self.held)
    }

    /// The operator says that all is well again; that flushes count again is said once for all queues, elsewhere.
    pub fn resume(&mut self) -> Vec<u16> {
        self.cured()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn hold(policy: OnError) -> (Hold, Arc<Mutex<Vec<Trouble>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        let tell = Box::new(move |trouble| log.lock().unwrap().push(trouble));
        (Hold::new(policy, Arc::default(), 4, tell), told)
    }

    #[test]
    fn reported_errors_are_not_kept() {
        let (mut hold, told) = hold(OnError::Report);
        assert!(!hold.keep(1, 5, Instant::now()));
        assert!(!hold.is_holding() && told.lock().unwrap().is_empty());
    }

    #[test]
    fn one_probe_a_second_and_all_after_a_success() {
        let (mut hold, told) = hold(OnError::Hold);
        let start = Instant::now();
        assert!(hold.keep(3, 28, start) && hold.keep(4, 28, start));
        assert_eq!(*told.lock().unwrap(), [Trouble::Holding("No space left on device (os error 28)".into())]);
        assert_eq!(hold.probe(start + PAUSE / 2), None);
        let later = start + PAUSE;
        assert_eq!((hold.probe(later), hold.probe(later)), (Some(3), None));
        // The probe fails and waits behind the others.
        assert!(hold.keep(3, 28, later));
        assert_eq!(hold.probe(later + PAUSE), Some(4));
        assert_eq!(hold.cured(), [3]);
        assert_eq!(told.lock().unwrap().last(), Some(&Trouble::Resumed));
        assert!(hold.cured().is_empty());
        assert_eq!(told.lock().unwrap().len(), 2, "told once");
    }

    #[test]
    fn a_failed_flush_stays_failed_until_somebody_says_otherwise() {
        let (mut hold, told) = hold(OnError::Report);
        hold.fail_flushes();
        hold.fail_flushes();
        assert!(hold.flush_failed());
        assert!(hold.cured().is_empty() && hold.flush_failed());
        // The word reaches the queues one by one, and another one's flush may have failed again since.
        assert!(hold.resume().is_empty() && hold.flush_failed());
        assert_eq!(*told.lock().unwrap(), [Trouble::FlushFailed]);
    }
}

//! What stands between a worker and its guest's pages in these tests: it notes every call, and makes some fail as the
//! kernel might.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use grant::{Access, CopyDirection, CopySegment, GrantCounts, GrantRef, GrantStatus, Grants, Pages, SharedMemory};

/// What to make fail, and what was seen.
#[derive(Default)]
pub struct Plan {
    /// Errno of every map call, 0 for none.
    pub map_errno: AtomicI32,
    /// Errno of every copy call, 0 for none; the copies themselves are done.
    pub copy_errno: AtomicI32,
    /// The copies of this reference fail, one by one, though the call succeeds.
    pub bad_ref: AtomicU32,
    /// References in the order in which they were mapped, all calls that succeeded.
    pub mapped: Mutex<Vec<GrantRef>>,
    /// References that were copied.
    pub copied: Mutex<Vec<GrantRef>>,
    /// The largest batch of copies, and of references.
    pub most: AtomicU32,
}

/// A way to a guest's pages that follows a [`Plan`].
pub struct Tamper(pub Box<dyn Grants>, pub Arc<Plan>);

fn outcome(errno: &AtomicI32) -> io::Result<()> {
    match errno.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl Grants for Tamper {
    fn map(&mut self, refs: &[GrantRef], access: Access) -> io::Result<SharedMemory> {
        self.1.most.fetch_max(refs.len() as u32, Ordering::Relaxed);
        outcome(&self.1.map_errno)?;
        let memory = self.0.map(refs, access)?;
        self.1.mapped.lock().unwrap().extend(refs);
        Ok(memory)
    }

    fn copy(&mut self, direction: CopyDirection, local: &Pages, segments: &mut [CopySegment]) -> io::Result<()> {
        self.1.most.fetch_max(segments.len() as u32, Ordering::Relaxed);
        self.1.copied.lock().unwrap().extend(segments.iter().map(|segment| segment.gref));
        assert!(segments.iter().all(|segment| segment.len > 0), "an empty copy");
        self.0.copy(direction, local, segments)?;
        let bad = self.1.bad_ref.load(Ordering::Relaxed);
        for segment in segments.iter_mut().filter(|segment| segment.gref.0 == bad) {
            segment.status = GrantStatus::GENERAL_ERROR;
        }
        outcome(&self.1.copy_errno)
    }

    fn counts(&self) -> GrantCounts {
        self.0.counts()
    }
}

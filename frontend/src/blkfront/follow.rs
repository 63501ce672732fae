//! A disk's frontend on a store: reads what the backend says, writes what we answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use grant::{DomId, Granted};
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::frontend::Frontend;
use xenstore::{Client, Error, Store};

use super::device::{Device, DeviceError, Machine, Step};
use super::gate::Gate;
use super::negotiate::{Properties, decimal};
use super::options::Options;
use super::queue::Queue;

/// What has happened to a disk.
pub enum Event {
    /// Nothing that its user should know.
    Nothing,
    /// It can be used. Each queue belongs to one thread. [`Blkfront::ready`] tells others.
    Connected(Properties, Vec<Queue>),
    /// Its size, or whether it can be written, has changed.
    Changed(Properties),
    /// It ends: every queue must come back through [`Blkfront::closed`] when nothing of it is under way, which is soon.
    Drain,
    /// The backend has let go: [`Blkfront::release`].
    Finished,
    /// Its directory has gone, or is somebody else's: as [`Event::Drain`] if it was connected, then
    /// [`Blkfront::release`] without waiting for anybody.
    Gone,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store did not answer, or would not let us.
    #[error(transparent)]
    Store(#[from] Error),
    /// The disk itself.
    #[error(transparent)]
    Device(DeviceError),
    /// A key of the toolstack's is missing or makes no sense.
    #[error("{0}")]
    Directory(String),
    /// It was not connected in time.
    #[error("not connected after {0:?}: backend in state {1:?}")]
    TimedOut(Duration, XenbusState),
    /// It went away while we waited.
    #[error("the disk has gone")]
    Gone,
    /// The backend did not let go in time.
    #[error("the backend does not let go within {} s", .0.as_secs())]
    Kept(Duration),
}

impl From<DeviceError> for FollowError {
    fn from(error: DeviceError) -> FollowError {
        match error {
            DeviceError::Store(error) => FollowError::Store(error),
            other => FollowError::Device(other),
        }
    }
}

/// One disk of this domain.
pub struct Blkfront {
    place: Frontend,
    device: Device,
    connected: bool,
}

/// The directory of disk `devid`, relative to its domain.
fn directory(devid: u32) -> String {
    format!("device/vbd/{devid}")
}

impl Blkfront {
    /// Takes up disk `devid`: its directory must be fresh (state Initialising). `None` when there is none, or it is not
    /// for us to begin with. The backend's state is watched from now on, with the token `backend/DEVID`.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn open(
        store: &mut Client,
        machine: Arc<dyn Machine>,
        options: Options,
        devid: u32,
    ) -> Result<Option<Blkfront>, FollowError> {
        let dir = directory(devid);
        let found = store.transaction(|tx| {
            let state = tx.read_optional(&format!("{dir}/state"))?;
            let backend = tx.read_optional(&format!("{dir}/backend"))?;
            Ok((state, backend, tx.read_optional(&format!("{dir}/backend-id"))?))
        })?;
        let (Some(state), Some(backend), Some(peer)) = found else { return Ok(None) };
        if XenbusState::parse(&state) != XenbusState::Initialising {
            return Ok(None);
        }
        let wrong = |key| FollowError::Directory(format!("{dir}/{key} makes no sense"));
        let backend = String::from_utf8(backend).ok().filter(|path| path.starts_with("/local/domain/"));
        let backend = backend.ok_or_else(|| wrong("backend"))?;
        let peer = decimal(&peer).and_then(|peer| u16::try_from(peer).ok()).ok_or_else(|| wrong("backend-id"))?;
        Ok(Some(Blkfront {
            place: Frontend::open(store, dir, backend, format!("backend/{devid}"))?,
            device: Device::new(machine, options, DomId(peer), devid),
            connected: false,
        }))
    }

    /// Whether it takes requests; shared with its queues.
    pub fn gate(&self) -> &Gate {
        self.device.gate()
    }

    /// The backend's domain.
    pub fn peer(&self) -> DomId {
        self.device.peer()
    }

    /// Our state and the backend's, as seen last.
    pub fn states(&self) -> (XenbusState, XenbusState) {
        self.place.states()
    }

    /// True from [`Event::Connected`] on until its queues are back.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Looks at both sides and takes one step. Call it whenever something below our directory or the backend's state has
    /// changed, until it says [`Event::Nothing`].
    ///
    /// # Errors
    /// [`FollowError`]: the disk is given up, call [`Blkfront::closed`] with whatever queues there are.
    pub fn turn(&mut self, store: &mut Client) -> Result<Event, FollowError> {
        let event = self.step(store);
        event.inspect_err(|error| self.device.abandon(error.to_string()))
    }

    fn step(&mut self, store: &mut Client) -> Result<Event, FollowError> {
        if self.place.is_gone() {
            return Ok(Event::Nothing);
        }
        self.place.look(store)?;
        if self.place.is_gone() {
            self.device.gate().fail("the toolstack has taken the disk away".to_owned());
            return Ok(Event::Gone);
        }
        let (backend, (_, theirs)) = (self.place.backend(), self.place.states());
        let step = self.device.observe(theirs, &mut |key| store.read_optional(&format!("{backend}/{key}")));
        match step? {
            Step::Wait => Ok(Event::Nothing),
            Step::Announce { keys, state } => {
                // The state follows on its own, as a stock frontend does it.
                self.place.write(store, &keys, None)?;
                self.place.write(store, &[], Some(state))?;
                Ok(Event::Nothing)
            }
            Step::Connected(properties, queues) => {
                self.connected = true;
                Ok(Event::Connected(properties, queues))
            }
            Step::Changed(properties) => Ok(Event::Changed(properties)),
            Step::Drain if !self.connected => {
                self.closed(store, Vec::new())?;
                Ok(Event::Nothing)
            }
            Step::Drain => Ok(Event::Drain),
            Step::Finished => Ok(Event::Finished),
        }
    }

    /// Says that the disk is in use, after [`Event::Connected`]: whoever waits for that may use it at once.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn ready(&mut self, store: &mut Client) -> Result<(), FollowError> {
        Ok(self.place.write(store, &[], Some(XenbusState::Connected))?)
    }

    /// Begins to end the disk from our side, as after [`Event::Drain`].
    ///
    /// # Errors
    /// The store did not answer.
    pub fn leave(&mut self, store: &mut Client) -> Result<(), FollowError> {
        self.device.leave();
        Ok(self.place.write(store, &[], Some(XenbusState::Closing))?)
    }

    /// Takes the queues back and tells the backend that it may let go.
    ///
    /// # Errors
    /// The store did not answer.
    pub fn closed(&mut self, store: &mut Client, queues: Vec<Queue>) -> Result<(), FollowError> {
        self.device.closing(queues);
        self.connected = false;
        Ok(self.place.write(store, &[], Some(XenbusState::Closed))?)
    }

    /// Gives the disk back from our side and waits for the backend, at most so long: for programs with nothing else to
    /// do. Returns what [`Blkfront::release`] does.
    ///
    /// # Errors
    /// [`FollowError`]; [`FollowError::Kept`] when the time is over.
    pub fn close(
        mut self,
        store: &mut Client,
        queues: Vec<Queue>,
        timeout: Duration,
    ) -> Result<Vec<Granted>, FollowError> {
        self.leave(store)?;
        self.closed(store, queues)?;
        let deadline = Instant::now() + timeout;
        while !matches!(self.turn(store)?, Event::Finished | Event::Gone) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FollowError::Kept(timeout));
            }
            store.next_event(Some(left))?;
        }
        Ok(self.release(store))
    }

    /// Ends the watch, every grant and every port. Returns what the backend still has mapped: these pages must stay as
    /// they are until [`grant::GrantAccess::end`] takes them.
    pub fn release(self, store: &mut Client) -> Vec<Granted> {
        self.place.release(store);
        self.device.finish()
    }
}

/// Connects disk `devid` and waits for it: for programs with one disk and nothing else to do.
///
/// # Errors
/// [`FollowError`].
pub fn connect(
    store: &mut Client,
    machine: Arc<dyn Machine>,
    options: &Options,
    devid: u32,
    timeout: Duration,
) -> Result<(Blkfront, Properties, Vec<Queue>), FollowError> {
    let token = format!("frontend/{devid}");
    store.watch(&directory(devid), &token)?;
    let mut disk = None;
    let connected = wait(store, &machine, options, devid, timeout, &mut disk);
    store.unwatch(&directory(devid), &token)?;
    match (connected, disk) {
        (Ok((properties, queues)), Some(disk)) => Ok((disk, properties, queues)),
        (Ok(_), None) => Err(FollowError::Gone),
        (Err(error), disk) => {
            if let Some(mut disk) = disk {
                // The first error is the one to tell. What cannot be ended is lost until this domain is.
                let _ = disk.closed(store, Vec::new());
                disk.release(store);
            }
            Err(error)
        }
    }
}

fn wait(
    store: &mut Client,
    machine: &Arc<dyn Machine>,
    options: &Options,
    devid: u32,
    timeout: Duration,
    disk: &mut Option<Blkfront>,
) -> Result<(Properties, Vec<Queue>), FollowError> {
    let deadline = Instant::now() + timeout;
    loop {
        if disk.is_none() {
            *disk = Blkfront::open(store, Arc::clone(machine), options.clone(), devid)?;
        }
        if let Some(disk) = disk {
            match disk.turn(store)? {
                Event::Connected(properties, queues) => {
                    disk.ready(store)?;
                    return Ok((properties, queues));
                }
                Event::Nothing | Event::Changed(_) => {}
                Event::Drain | Event::Finished | Event::Gone => return Err(FollowError::Gone),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let theirs = disk.as_ref().map_or(XenbusState::Unknown, |disk| disk.states().1);
            return Err(FollowError::TimedOut(timeout, theirs));
        }
        store.next_event(Some(left))?;
    }
}

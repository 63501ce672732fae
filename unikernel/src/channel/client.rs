//! dom0's end of a channel: one question, one answer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grant::{Access, DomId, EventChannel, GrantRef, Port};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use xenstore::Client;

use super::ring::{self, Broken, Head, Inlet, MAGIC, Outlet, PAGES};
use super::wire::{self, Answer, Ask, HEAD, MAX_ANSWER, MAX_PIECE, Place, VERSION};
use crate::publish;
use crate::store::{self, Nodes};
use crate::world::World;

/// How long others may use the channel before we give up.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
/// How long the VM may do nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether the VM announces another channel: its supervisor was restarted.
const LOOK: Duration = Duration::from_millis(200);
/// How often a question is asked again because of that.
const TRIES: usize = 4;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The VM announces no channel.
    #[error("{0}")]
    Absent(String),
    /// Others use it without end.
    #[error("the request channel of domain {0} is in use by another command")]
    Busy(u16),
    /// The VM does nothing.
    #[error("domain {0} does not answer on its request channel: is it running? (`windsor status` tells)")]
    Silent(u16),
    /// Its supervisor was restarted while it worked.
    #[error("domain {0} was restarted inside while it worked: look what has become of it (`windsor volume ls`)")]
    Restarted(u16),
    /// It broke the protocol, or the channel cannot be used.
    #[error("the request channel of domain {0}: {1}")]
    Failed(u16, String),
}

impl ChannelError {
    /// The exit code of a command.
    pub fn exit_code(&self) -> i32 {
        match self {
            ChannelError::Absent(_) => 3,
            ChannelError::Busy(_) => 5,
            ChannelError::Silent(_) => 4,
            ChannelError::Restarted(_) | ChannelError::Failed(..) => 1,
        }
    }
}

/// Asks a service VM.
///
/// # Errors
/// [`ChannelError`]. A refusal of the VM is an answer.
pub fn ask(world: &World, service: u16, ask: &Ask) -> Result<Answer, ChannelError> {
    let failed = |why: &dyn std::fmt::Display| ChannelError::Failed(service, why.to_string());
    let mut client = store::toolstack(world).map_err(|error| failed(&error))?;
    let _lock = lock(world, service)?;
    let mut left = TRIES;
    loop {
        left -= 1;
        let place = announced(&mut client, service)?;
        let changed = |client: &mut Client| announced(client, service).ok().as_ref() != Some(&place);
        match Session::attach(world, service, &place, &mut client, &changed) {
            Ok(mut session) => match session.exchange(ask, &mut client, &changed) {
                Err(ChannelError::Restarted(_)) if ask.is_repeatable() && left > 0 => {}
                other => return other,
            },
            Err(ChannelError::Restarted(_)) if left > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn announced(client: &mut Client, service: u16) -> Result<Place, ChannelError> {
    let node = format!("/local/domain/{service}/{}/channel", publish::ROOT);
    let text = client.text(&node).map_err(|error| ChannelError::Failed(service, error.to_string()))?;
    let absent = |why: &str| ChannelError::Absent(format!("domain {service} has no request channel: {why}"));
    let text = text.filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| absent("it is no service VM, not ready, or its kernel has no xen-gntalloc"))?;
    let place: Place = serde_json::from_str(&text).map_err(|_| absent("what it announces makes no sense"))?;
    if place.version != VERSION {
        let why = format!("it speaks version {} and this command {VERSION}: use the one of its image", place.version);
        return Err(absent(&why));
    }
    if place.refs.len() != PAGES {
        return Err(absent("what it announces makes no sense"));
    }
    Ok(place)
}

/// Keeps other commands of this machine from the channel.
fn lock(world: &World, service: u16) -> Result<File, ChannelError> {
    let dir: PathBuf = match world {
        World::Xen => "/run".into(),
        World::Embedded(dir) => dir.clone(),
    };
    let path = dir.join(format!("windsor-channel-{service}.lock"));
    let failed = |error: std::io::Error, path: &Path| {
        let root = if error.kind() == std::io::ErrorKind::PermissionDenied { " (are you root?)" } else { "" };
        ChannelError::Failed(service, format!("{}: {error}{root}", path.display()))
    };
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| failed(error, &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ChannelError::Busy(service)),
            Err(error) => return Err(failed(error.into(), &path)),
        }
    }
}

/// dom0's end while it is attached.
pub(super) struct Session {
    service: u16,
    pub(super) head: Head,
    pub(super) asks: Outlet,
    pub(super) answers: Inlet,
    events: Box<dyn EventChannel>,
    port: Port,
}

type Changed<'a> = &'a dyn Fn(&mut Client) -> bool;

impl Session {
    fn attach(
        world: &World,
        service: u16,
        place: &Place,
        client: &mut Client,
        changed: Changed<'_>,
    ) -> Result<Session, ChannelError> {
        let failed = |what: &str, error: std::io::Error| ChannelError::Failed(service, format!("{what}: {error}"));
        let vm = DomId(service);
        let refs: Vec<GrantRef> = place.refs.iter().map(|gref| GrantRef(*gref)).collect();
        let grants = world.open_grants(DomId(0)).and_then(|fd| world.kind().grants(fd, vm));
        let mapped = grants.and_then(|mut grants| grants.map(&refs, Access::ReadWrite));
        let events = world.open_events(DomId(0)).and_then(|fd| world.kind().events(fd, vm));
        let bound = events.and_then(|mut events| Ok((events.bind(vm, Port(place.port))?, events)));
        let (memory, (port, events)) = match (mapped, bound) {
            (Ok(memory), Ok(bound)) => (memory, bound),
            (mapped, bound) => {
                // What it announced may not be there any more: then it will announce something else.
                let deadline = Instant::now() + PATIENCE / 2;
                while Instant::now() < deadline {
                    if changed(client) {
                        return Err(ChannelError::Restarted(service));
                    }
                    std::thread::sleep(LOOK / 4);
                }
                return Err(match (mapped, bound) {
                    (Err(error), _) => failed("its pages cannot be mapped", error),
                    (_, Err(error)) => failed("its event channel cannot be bound", error),
                    _ => ChannelError::Restarted(service),
                });
            }
        };
        let mut session = Session::over(service, &memory.pages(), events, port)?;
        session.knock(fastrand::u32(1..), &mut || changed(client))?;
        Ok(session)
    }

    /// Over pages that are mapped, with a port that is bound.
    pub(super) fn over(
        service: u16,
        pages: &grant::Pages,
        events: Box<dyn EventChannel>,
        port: Port,
    ) -> Result<Session, ChannelError> {
        let failed = |why: String| ChannelError::Failed(service, why);
        let (head, asks, answers) = ring::join(pages).map_err(|broken| failed(broken.to_string()))?;
        if head.says() != (MAGIC, VERSION.into()) {
            return Err(failed("its pages hold something else".into()));
        }
        Ok(Session { service, head, asks, answers, events, port })
    }

    /// Has the VM listen to us and nobody else.
    pub(super) fn knock(&mut self, token: u32, changed: &mut dyn FnMut() -> bool) -> Result<(), ChannelError> {
        self.asks.reset();
        self.answers.reset();
        self.head.want(token);
        self.notify()?;
        let deadline = Instant::now() + PATIENCE;
        while self.head.session() != token {
            self.wait(deadline, changed)?;
        }
        Ok(())
    }

    fn exchange(&mut self, ask: &Ask, client: &mut Client, changed: Changed<'_>) -> Result<Answer, ChannelError> {
        let failed = |why: String| ChannelError::Failed(self.service, why);
        let body = serde_json::to_vec(ask).map_err(|error| failed(error.to_string()))?;
        if body.len() > wire::MAX_ASK {
            return Ok(Answer::Refused { code: 2, why: "that is too long for a question".into() });
        }
        let body = self.call(&body, &mut || changed(client))?;
        serde_json::from_slice(&body).map_err(|error| {
            ChannelError::Failed(self.service, format!("its answer makes no sense to this version: {error}"))
        })
    }

    /// Sends one question and receives the answer's body.
    pub(super) fn call(&mut self, body: &[u8], changed: &mut dyn FnMut() -> bool) -> Result<Vec<u8>, ChannelError> {
        let service = self.service;
        let broken = |broken: Broken| ChannelError::Failed(service, broken.to_string());
        let id = fastrand::u32(..);
        let message = wire::pieces(id, body);
        let mut sent = 0;
        let (mut piece, mut answer) = (Vec::new(), Vec::new());
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let mut moved = 0;
            if sent < message.len() {
                let count = self.asks.write(&message[sent..]).map_err(broken)?;
                (sent, moved) = (sent + count, moved + count);
            }
            let wanted = match piece.get(..HEAD) {
                None => HEAD,
                Some(bytes) => {
                    let mut head = [0; HEAD];
                    head.copy_from_slice(bytes);
                    let head = wire::Head::parse(head);
                    let len = head.len as usize;
                    if head.version != VERSION || head.id != id || len > MAX_PIECE || answer.len() + len > MAX_ANSWER {
                        return Err(ChannelError::Failed(service, "what it answers is no answer".into()));
                    }
                    if piece.len() == HEAD + len {
                        answer.extend_from_slice(&piece[HEAD..]);
                        if head.last {
                            return Ok(answer);
                        }
                        piece.clear();
                        HEAD
                    } else {
                        HEAD + len
                    }
                }
            };
            let had = piece.len();
            piece.resize(wanted, 0);
            let count = self.answers.read(&mut piece[had..]).map_err(broken)?;
            piece.truncate(had + count);
            moved += count;
            if moved > 0 {
                deadline = Instant::now() + PATIENCE;
                self.notify()?;
            } else if piece.len() < HEAD || piece.len() < wanted {
                self.wait(deadline, changed)?;
            }
        }
    }

    /// Waits for the VM to do something.
    fn wait(&mut self, deadline: Instant, changed: &mut dyn FnMut() -> bool) -> Result<(), ChannelError> {
        let failed = |error: std::io::Error| ChannelError::Failed(self.service, error.to_string());
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ChannelError::Silent(self.service));
        }
        let timeout = Timespec::try_from(left.min(LOOK)).map_err(|error| failed(std::io::Error::other(error)))?;
        let ready = {
            let mut fds = [PollFd::from_borrowed_fd(self.events.fd(), PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(ready) => ready,
                Err(rustix::io::Errno::INTR) => 1,
                Err(error) => return Err(failed(error.into())),
            }
        };
        if ready == 0 && changed() {
            return Err(ChannelError::Restarted(self.service));
        }
        let mut ports = Vec::new();
        self.events.pending(&mut ports).map_err(failed)?;
        self.events.unmask(&ports).map_err(failed)
    }

    fn notify(&mut self) -> Result<(), ChannelError> {
        let told = self.events.notify(self.port);
        told.map_err(|error| ChannelError::Failed(self.service, format!("it cannot be told: {error}")))
    }
}

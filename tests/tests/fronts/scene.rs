//! A host, a service VM with one volume, and a guest whose every word to the store and to the ring is the test's.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use frontend::blkfront::Options;
use frontend::hostile::Queue;
use grant::DomId;
use grant::embedded::{self, Domain, GuestMemory, Ports, Usage};
use xenstore::wire::{self, HEADER, Header, MessageType};
use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error, Store};

use crate::rig::{Rig, children, eventually};

/// The frontend's directory, as the guest names it.
pub const FRONTEND: &str = "device/vbd/51712";
/// The service VM.
pub const SERVICE: DomId = DomId(1);
/// No step of a backend takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// No pause between the states, of which one is for toolstacks.
const QUICK: &str = "[backend]\ninitwait-dwell-ms = 0\n";

/// The world of one test.
pub struct Scene {
    pub rig: Rig,
    pub domain: Domain,
    pub memory: GuestMemory,
    /// The guest's connection; the backend's state is watched over it.
    pub store: Client,
    pub dom0: Client,
    writes: Writes,
    attaching: Option<Child>,
    before: Before,
}

/// What there was before the guest was given a disk.
struct Before {
    nodes: BTreeSet<String>,
    guest: Usage,
    service: u32,
    free_pages: usize,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::with(QUICK)
    }

    /// With more in the configuration: keys of the volume first, then tables.
    pub fn with(more: &str) -> Scene {
        let mut rig = Rig::new();
        rig.serve("acme", more);
        let memory = GuestMemory::new(16 << 20).unwrap();
        let domain = embedded::register(&rig.dir(), "front", Some(&memory)).unwrap();
        let mut dom0 = rig.store();
        let mut store = rig.store_of(domain.domid.0);
        let state = format!("{}/state", backend(&domain));
        store.watch(&state, "state").unwrap();
        let writes = Writes::watch(&rig.dir().join("xenstored/socket"), &state);
        // A worker's first look at this machine leaves things behind that are no guest's.
        let before = Before {
            nodes: nodes(&mut dom0),
            guest: embedded::usage(&rig.dir(), domain.domid).unwrap(),
            service: embedded::usage(&rig.dir(), SERVICE).unwrap().ports,
            free_pages: memory.free_pages(),
        };
        Scene { rig, domain, memory, store, dom0, writes, attaching: None, before }
    }

    /// As an operator gives the guest its disk; returns with the backend in InitWait.
    pub fn attach(&mut self) {
        self.begin_attach();
        self.wait(XenbusState::InitWait);
    }

    /// The same without waiting for the backend: returns as soon as the frontend's directory is there.
    pub fn begin_attach(&mut self) {
        let mut attach = self.rig.command("attach");
        attach.args(["front", "acme:db", "--wait", "60"]).stdout(Stdio::null()).stderr(Stdio::null());
        self.attaching = Some(attach.spawn().unwrap());
        let node = format!("/local/domain/{}/{FRONTEND}/state", self.domain.domid.0);
        eventually("the frontend's directory", || self.dom0.read_optional(&node).unwrap());
    }

    /// The operator is told that the disk is connected.
    pub fn is_attached(&mut self) {
        let status = self.attaching.take().expect("attach").wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// The backend's directory.
    pub fn backend(&self) -> String {
        backend(&self.domain)
    }

    /// A key of the backend's, as the guest reads it; empty when there is none.
    pub fn key(&mut self, key: &str) -> String {
        let path = format!("{}/{key}", self.backend());
        match self.store.read_optional(&path) {
            Err(error) if error.is_permission() => String::new(),
            other => String::from_utf8(other.unwrap().unwrap_or_default()).unwrap(),
        }
    }

    /// The backend's state, as the guest reads it; Unknown when its directory is gone.
    pub fn state(&mut self) -> XenbusState {
        XenbusState::parse(self.key("state").as_bytes())
    }

    /// Waits as a frontend does, for the backend's word and nothing else.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, mut good: impl FnMut(XenbusState) -> bool) -> XenbusState {
        loop {
            let state = self.state();
            if good(state) {
                return state;
            }
            let event = self.store.next_event(Some(PATIENCE)).unwrap();
            assert!(event.is_some(), "the backend stays {state}, never {what}: {}\n{}", self.disk(), self.log());
        }
    }

    /// Waits for exactly this state.
    #[track_caller]
    pub fn wait(&mut self, wanted: XenbusState) {
        self.wait_until(&wanted.to_string(), |state| state == wanted);
    }

    /// Writes a key of the frontend's.
    pub fn write(&mut self, key: &str, value: impl AsRef<[u8]>) {
        self.store.write(&format!("{FRONTEND}/{key}"), value.as_ref()).unwrap();
    }

    /// Writes the frontend's state.
    pub fn switch(&mut self, state: XenbusState) {
        self.write("state", state.number().to_string());
    }

    /// Writes keys of the frontend's, and its state if there is one, in one transaction.
    pub fn write_all(&mut self, keys: &[(&str, String)], state: Option<XenbusState>) {
        let write = |tx: &mut xenstore::Transaction<'_>| -> Result<(), Error> {
            for (key, value) in keys {
                tx.write(&format!("{FRONTEND}/{key}"), value.as_bytes())?;
            }
            match state {
                Some(state) => tx.write(&format!("{FRONTEND}/state"), state.number().to_string().as_bytes()),
                None => Ok(()),
            }
        };
        self.store.transaction(write).unwrap();
    }

    /// Removes keys of the frontend's.
    pub fn remove(&mut self, keys: &[&str]) {
        keys.iter().for_each(|key| self.store.rm(&format!("{FRONTEND}/{key}")).unwrap());
    }

    /// A ring of the guest's, laid out and with a port; nobody has been told.
    pub fn queue(&self, options: &Options) -> Queue {
        let events = Ports::new(embedded::connect(&self.rig.dir(), self.domain.domid).unwrap()).unwrap();
        Queue::new(Box::new(self.memory.clone()), Box::new(events), SERVICE, options).unwrap()
    }

    /// Takes a ring back; the backend must have let go of it.
    #[track_caller]
    pub fn end(&mut self, mut queue: Queue) {
        queue.events.unbind(queue.port).unwrap();
        assert!(queue.grants.end(queue.ring_grant).is_ok(), "the ring is still mapped");
    }

    /// What the host sees of the guest.
    pub fn usage(&self) -> Usage {
        embedded::usage(&self.rig.dir(), self.domain.domid).unwrap()
    }

    /// What the service VM says of the disk.
    pub fn disk(&self) -> serde_json::Value {
        self.rig.disks().pop().unwrap_or_default()
    }

    /// What the service VM has logged.
    pub fn log(&self) -> String {
        self.rig.daemon("acme").log()
    }

    /// Bytes of the volume.
    pub fn volume(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        std::fs::File::open(self.rig.path("acme.img")).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// How often the backend's state was written since this was asked last.
    pub fn writes(&mut self) -> usize {
        self.writes.count()
    }

    /// The operator takes the disk away and a frontend that behaves lets go.
    #[track_caller]
    pub fn detach(&mut self, react: impl FnOnce(&mut Scene)) {
        let mut detach = self.rig.command("detach");
        detach.args(["front", "xvda"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut detach = detach.spawn().unwrap();
        react(self);
        assert_eq!(detach.wait().unwrap().code(), Some(0), "{}", self.log());
    }

    /// The operator takes the disk away, whatever the frontend says.
    #[track_caller]
    pub fn detach_by_force(&mut self) {
        self.rig.run("detach", &["front", "xvda", "--force"]).fine();
    }

    /// The disk has been taken away: neither nodes nor grants, pages, ports or processes of it are left.
    #[track_caller]
    pub fn over(mut self) {
        if let Some(mut attaching) = self.attaching.take() {
            // For a frontend that never said Connected.
            let _ = attaching.kill();
            attaching.wait().unwrap();
        }
        // The operator's command waits for the disk's directory; what was published about it goes right afterwards.
        eventually("the nodes are those of before", || {
            let nodes = nodes(&mut self.dom0);
            nodes.symmetric_difference(&self.before.nodes).next().is_none().then_some(())
        });
        assert_eq!(self.usage(), self.before.guest, "{}", self.log());
        assert_eq!(self.memory.free_pages(), self.before.free_pages, "pages of the guest are lost");
        let supervisor = self.rig.supervisor("acme");
        eventually("the worker is gone", || children(supervisor, "worker").is_empty().then_some(()));
        eventually("the service VM has the ports it had", || {
            let ports = embedded::usage(&self.rig.dir(), SERVICE).unwrap().ports;
            (ports == self.before.service).then_some(())
        });
        assert!(!self.log().contains("panic"), "{}", self.log());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(mut attaching) = self.attaching.take() {
            let _ = attaching.kill();
            let _ = attaching.wait();
        }
    }
}

fn backend(domain: &Domain) -> String {
    format!("/local/domain/{}/backend/vbd/{}/51712", SERVICE.0, domain.domid.0)
}

/// The paths of all nodes of the store, but for the few directories that a service VM keeps once it has had a disk.
fn nodes(dom0: &mut Client) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![String::new()];
    while let Some(path) = left.pop() {
        let name = if path.is_empty() { "/" } else { &path };
        match dom0.directory(name) {
            Ok(children) => left.extend(children.iter().map(|child| format!("{path}/{child}"))),
            // The service VM has removed it since it was listed.
            Err(error) if error.is_not_found() => continue,
            Err(error) => panic!("{error}"),
        }
        found.insert(path);
    }
    let own = format!("/local/domain/{}", SERVICE.0);
    found.retain(|path| match path.strip_prefix(&own) {
        Some("/backend" | "/error/backend" | "/error/backend/vbd" | "/data/windsor/sample") => false,
        Some(rest) => match rest.strip_prefix("/data/windsor/dev") {
            Some(shelf) => shelf.trim_start_matches('/').contains('/'),
            None => true,
        },
        None => true,
    });
    found
}

/// Counts writes of a node. A client merges events that nobody has taken yet; this does not.
struct Writes {
    socket: UnixStream,
    node: String,
}

impl Writes {
    fn watch(socket: &Path, node: &str) -> Writes {
        let mut writes = Writes { socket: UnixStream::connect(socket).unwrap(), node: node.to_owned() };
        writes.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        writes.ask(MessageType::Watch, &[node.as_bytes(), b"\0token\0"]);
        // Its first event says no more than that it stands.
        writes.count();
        writes
    }

    /// Sends a request and counts the events that come before and with its answer.
    fn ask(&mut self, kind: MessageType, parts: &[&[u8]]) -> usize {
        let message = wire::message(kind as u32, 1, 0, parts).unwrap();
        self.socket.write_all(&message).unwrap();
        let mut events = 0;
        loop {
            let mut header = [0; HEADER];
            self.socket.read_exact(&mut header).unwrap();
            let header = Header::decode(&header);
            self.socket.read_exact(&mut vec![0; header.len as usize]).unwrap();
            match header.kind == MessageType::WatchEvent as u32 {
                true => events += 1,
                false => return events,
            }
        }
    }

    fn count(&mut self) -> usize {
        let node = self.node.clone();
        // Whatever was written before this question is told before its answer.
        self.ask(MessageType::Read, &[node.as_bytes(), b"\0"])
    }
}

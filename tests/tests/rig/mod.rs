//! The real binary, driven as an operator drives it: host, service VMs and guests as processes, all of it in one
//! directory that goes away with the test.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xenstore::Client;

/// How long anything may take that should take a moment; slow machines are no failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the binary is; built on first use.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let build = escargot::CargoBuild::new().package("unikernel").bin("windsor").current_target();
        let build = if cfg!(debug_assertions) { build } else { build.release() };
        build.run().expect("windsor does not build").path().to_owned()
    })
}

/// A call of `windsor`, with nothing of the environment that would change it.
pub fn windsor() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("WINDSOR_DIR").env_remove("WINDSOR_LOG").stdin(Stdio::null());
    command
}

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Ended {
    /// The one line it says on stderr, after checking code and count.
    #[track_caller]
    pub fn refused(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.trim_end().lines().count(), 1, "more than a line: {}", self.err);
        assert!(self.out.is_empty(), "{self:?}");
        self.err.trim_end()
    }

    /// What it says on stdout, after checking that all went well.
    #[track_caller]
    pub fn fine(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out.trim_end()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs a call to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    command.output().expect("windsor cannot be run").into()
}

/// A daemon of ours; asked to stop, and waited for, when it is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits for `ready`.
    #[track_caller]
    fn start(command: &mut Command, log: PathBuf) -> Daemon {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("log"))
            .spawn()
            .expect("windsor cannot be run");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("reading from a daemon");
        let daemon = Daemon { child, log };
        assert_eq!(line.trim_end(), "ready", "{}", daemon.log());
        daemon
    }

    /// What it has said on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        signal_to(self.pid(), signal);
    }

    /// Asks it to stop and returns its exit code.
    #[track_caller]
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for its end and returns its exit code.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a daemon") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "a daemon does not stop: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // One that was stopped takes the signal only when it goes on.
            self.signal(Signal::TERM);
            self.signal(Signal::CONT);
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Sends a signal to a process.
pub fn signal_to(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process number");
    // It may be gone already.
    let _ = kill_process(pid, signal);
}

/// The children of a process whose command line holds `word`.
pub fn children(parent: u32, word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if of == Some(parent) && read("cmdline").split('\0').any(|argument| argument == word) {
            found.push(pid);
        }
    }
    found
}

/// Waits until `what` gives something.
#[track_caller]
pub fn eventually<T>(about: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {about}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A host and what lives on it.
pub struct Rig {
    /// Service VMs and guests, the last first when they go.
    daemons: Vec<(String, Daemon)>,
    host: Option<Daemon>,
    dir: tempfile::TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        while self.daemons.pop().is_some() {}
        self.host.take();
    }
}

impl Rig {
    /// Starts a host.
    #[track_caller]
    pub fn new() -> Rig {
        Rig::with(&[])
    }

    /// [`Rig::new`] with more arguments for the host.
    #[track_caller]
    pub fn with(more: &[&str]) -> Rig {
        let dir = tempfile::tempdir().expect("a directory");
        let host = Daemon::start(
            windsor().args(["host", "--dir"]).arg(dir.path().join("d")).args(more),
            dir.path().join("host.log"),
        );
        Rig { daemons: Vec::new(), host: Some(host), dir }
    }

    /// The host's directory.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("d")
    }

    /// A file beside it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an image of `mib` MiB of zeros.
    pub fn image(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(mib << 20)).expect("an image");
        path
    }

    /// `windsor COMMAND --dir DIR`, to be given more arguments.
    pub fn command(&self, command: &str) -> Command {
        let mut windsor = windsor();
        windsor.arg(command).arg("--dir").arg(self.dir());
        windsor
    }

    /// Runs `windsor COMMAND --dir DIR ARGS...`.
    #[track_caller]
    pub fn run(&self, command: &str, args: &[&str]) -> Ended {
        run(self.command(command).args(args))
    }

    /// Writes a configuration.
    pub fn config(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        std::fs::write(&path, text).expect("a configuration");
        path
    }

    /// Starts the service VM `name` with a volume `db`, 16 MiB in `name.img`, and whatever `more` says.
    #[track_caller]
    pub fn serve(&mut self, name: &str, more: &str) -> &Daemon {
        let image = self.image(&format!("{name}.img"), 16);
        let text = format!(
            "[vm]\nname = \"{name}\"\n[[volume]]\nname = \"db\"\npath = \"{}\"\ndirect = false\n{more}\n",
            image.display()
        );
        self.config(name, &text);
        self.serve_again(name)
    }

    /// Starts a service VM with the configuration it had before.
    #[track_caller]
    pub fn serve_again(&mut self, name: &str) -> &Daemon {
        self.serve_with(name, &[])
    }

    /// The same with more arguments.
    #[track_caller]
    pub fn serve_with(&mut self, name: &str, more: &[&str]) -> &Daemon {
        let config = self.path(&format!("{name}.toml"));
        let mut serve = self.command("serve");
        let daemon = Daemon::start(serve.arg("--config").arg(config).args(more), self.path(&format!("{name}.log")));
        self.daemons.push((name.to_owned(), daemon));
        self.daemon(name)
    }

    /// Starts a guest whose disks are at [`Rig::nbd`].
    #[track_caller]
    pub fn guest(&mut self, name: &str) -> &Daemon {
        self.guest_with(name, &[])
    }

    /// Starts a daemon of this host in a network namespace.
    #[track_caller]
    pub fn start_in(&mut self, namespace: &str, name: &str, command: &str, args: &[&str]) -> &Daemon {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", namespace]).arg(binary()).arg(command).arg("--dir").arg(self.dir()).args(args);
        ip.env_remove("WINDSOR_DIR").env_remove("WINDSOR_LOG").stdin(Stdio::null());
        let daemon = Daemon::start(&mut ip, self.path(&format!("{name}.log")));
        self.daemons.push((name.to_owned(), daemon));
        self.daemon(name)
    }

    /// [`Rig::guest`] with more arguments.
    #[track_caller]
    pub fn guest_with(&mut self, name: &str, more: &[&str]) -> &Daemon {
        let nbd = format!("unix:{}", self.nbd(name).display());
        let log = self.path(&format!("{name}.log"));
        let daemon = Daemon::start(self.command("guest").args(["--name", name, "--nbd", &nbd]).args(more), log);
        self.daemons.push((name.to_owned(), daemon));
        self.daemon(name)
    }

    /// Where a guest's disks are.
    pub fn nbd(&self, guest: &str) -> PathBuf {
        self.path(&format!("{guest}.nbd"))
    }

    /// The host.
    #[track_caller]
    pub fn host(&self) -> &Daemon {
        self.host.as_ref().expect("no host")
    }

    /// A daemon by name.
    #[track_caller]
    pub fn daemon(&self, name: &str) -> &Daemon {
        &self.daemons.iter().find(|(its, _)| its == name).expect("no such daemon").1
    }

    /// Takes a daemon out of the rig.
    #[track_caller]
    pub fn take(&mut self, name: &str) -> Daemon {
        let at = self.daemons.iter().position(|(its, _)| its == name).expect("no such daemon");
        self.daemons.remove(at).1
    }

    /// The supervisor of a service VM.
    #[track_caller]
    pub fn supervisor(&self, name: &str) -> u32 {
        let keeper = self.daemon(name).pid();
        eventually("a supervisor", || children(keeper, "supervisor").first().copied())
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        serde_json::from_str(self.run("status", &["--json"]).fine()).expect("status is JSON")
    }

    /// The disks of all service VMs as `status` has them.
    #[track_caller]
    pub fn disks(&self) -> Vec<Value> {
        let status = self.status();
        let vms = status["vms"].as_array().expect("vms").iter();
        vms.flat_map(|vm| vm["devices"].as_array().expect("devices").clone()).collect()
    }

    /// Waits until the only disk is in this phase.
    #[track_caller]
    pub fn phase(&self, phase: &str) -> Value {
        eventually(&format!("phase {phase}, now {:?}", self.disks()), || {
            let disks = self.disks();
            disks.into_iter().find(|disk| disk["phase"] == phase)
        })
    }

    /// A connection to the store as dom0.
    pub fn store(&self) -> Client {
        Client::connect(&self.dir().join("xenstored/socket")).expect("the store")
    }

    /// A connection to the store as a domain.
    pub fn store_of(&self, domid: u16) -> Client {
        Client::connect(&self.dir().join(format!("domains/{domid}/xenstored"))).expect("the domain's store")
    }
}

/// As much of an NBD client as a test needs.
pub struct Nbd {
    socket: UnixStream,
    /// Bytes of the export.
    pub size: u64,
}

impl Nbd {
    /// Waits so much longer than usual for an answer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn be_patient(&self, longer: Duration) -> std::io::Result<()> {
        self.socket.set_read_timeout(Some(PATIENCE + longer))
    }

    /// Opens an export.
    ///
    /// # Errors
    /// When there is no such export.
    pub fn open(path: &Path, export: &str) -> std::io::Result<Nbd> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes.
        socket.write_all(&3u32.to_be_bytes())?;
        // NBD_OPT_EXPORT_NAME.
        socket.write_all(b"IHAVEOPT\0\0\0\x01")?;
        socket.write_all(&(export.len() as u32).to_be_bytes())?;
        socket.write_all(export.as_bytes())?;
        let mut reply = [0; 10];
        socket.read_exact(&mut reply)?;
        let size = u64::from_be_bytes(reply[..8].try_into().expect("8 bytes"));
        Ok(Nbd { socket, size })
    }

    fn send(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> std::io::Result<()> {
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(0x2560_9513u32.to_be_bytes());
        message.extend(0u16.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(len.to_be_bytes());
        message.extend(data);
        self.socket.write_all(&message)
    }

    /// The error number of the next reply.
    fn reply(&mut self) -> std::io::Result<u32> {
        let mut reply = [0; 16];
        self.socket.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        Ok(u32::from_be_bytes(reply[4..8].try_into().expect("4 bytes")))
    }

    /// Reads; the error is NBD's number.
    pub fn read(&mut self, offset: u64, len: usize) -> std::io::Result<Result<Vec<u8>, u32>> {
        self.send(0, offset, len as u32, &[])?;
        let error = self.reply()?;
        if error != 0 {
            return Ok(Err(error));
        }
        let mut data = vec![0; len];
        self.socket.read_exact(&mut data)?;
        Ok(Ok(data))
    }

    /// Writes; NBD's error number, 0 when it worked.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<u32> {
        self.send(1, offset, data.len() as u32, data)?;
        self.reply()
    }

    /// Flushes; NBD's error number, 0 when it worked.
    pub fn flush(&mut self) -> std::io::Result<u32> {
        self.send(3, 0, 0, &[])?;
        self.reply()
    }
}

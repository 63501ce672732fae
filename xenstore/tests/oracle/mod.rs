//! The C xenstored of Debian's xen-utils-4.17, run on this machine without Xen: `shim.c` stands in for the hypervisor.

pub mod differences;
pub mod link;
pub mod ours;
pub mod pair;
pub mod ring;
pub mod shrink;
pub mod steps;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, mknodat};

use link::{Link, Socket};
use ring::{Bells, PAGE, Ring};

/// The daemon's port of a domain is its number plus this, as in `shim.c`.
const PORTS: u32 = 1000;
/// The port that says that a domain has changed.
const VIRQ: u32 = 999;

/// A daemon on a machine whose domains come and go.
pub trait World {
    /// A connection as dom0.
    ///
    /// # Errors
    /// What the system said.
    fn dom0(&self) -> io::Result<Box<dyn Link>>;

    /// A domain is built, for INTRODUCE to find.
    ///
    /// # Errors
    /// What the system said.
    fn build(&self, domid: u16) -> io::Result<()>;

    /// A domain's own connection, once it is introduced.
    ///
    /// # Errors
    /// What the system said.
    fn domain(&self, domid: u16) -> io::Result<Box<dyn Link>>;

    /// The hypervisor has destroyed a domain, and says so.
    ///
    /// # Errors
    /// What the system said.
    fn destroy(&self, domid: u16) -> io::Result<()>;
}

/// A running C xenstored.
pub struct Oracle {
    machine: tempfile::TempDir,
    bells: Rc<Bells>,
    child: Child,
}

/// Where its parts are.
pub struct Program {
    daemon: PathBuf,
    shim: PathBuf,
}

impl Program {
    /// Finds the daemon and compiles the shim.
    ///
    /// # Errors
    /// What is missing, for a person.
    pub fn find() -> Result<Program, String> {
        let missing = "xen-utils-4.17 is neither installed nor fetched by the lab";
        let daemon = crate::daemon::xen_utils("xenstored").ok_or(missing)?;
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/shim.c");
        let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("xenstored-shim-{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-O2", "-shared", "-fPIC", "-o"]).arg(&shim).arg(source);
        let output = cc.output().map_err(|error| format!("cc: {error} (apt-get install gcc libc6-dev)"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && said.contains("No such file") {
            return Err(format!("the shim does not compile (apt-get install libxen-dev): {}", said.trim()));
        }
        assert!(output.status.success() && said.is_empty(), "{said}");
        Ok(Program { daemon, shim })
    }

    /// Its libraries: beside it if it is not installed.
    fn libraries(&self) -> PathBuf {
        self.daemon.join("../../../x86_64-linux-gnu")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Something of an old run may have taken it away already.
        let _ = std::fs::remove_file(&self.shim);
    }
}

impl Oracle {
    /// Starts it in a directory of its own, with further `arguments`.
    ///
    /// # Errors
    /// What the system said; a daemon that ends at once, with what it said.
    pub fn start(program: &Program, arguments: &[String]) -> io::Result<Oracle> {
        let machine = tempfile::tempdir()?;
        let at = |name: &str| machine.path().join(name);
        for name in ["events", "notified"] {
            mknodat(rustix::fs::CWD, at(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        std::fs::write(at("xsd_port"), "1")?;
        File::create(at("xsd_kva"))?.set_len(PAGE)?;
        let bells = Rc::new(Bells::open(machine.path())?);
        let mut command = Command::new(&program.daemon);
        command.arg("--no-fork").args(arguments);
        command.env("WINDSOR_ORACLE", machine.path()).env("WINDSOR_ORACLE_TIED", "1");
        command.env("XENSTORED_RUNDIR", machine.path()).env("XENSTORED_PATH", at("socket"));
        command.env("LD_PRELOAD", &program.shim).env("LD_LIBRARY_PATH", program.libraries());
        let log = File::create(at("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let mut oracle = Oracle { machine, bells, child };
        let until = Instant::now() + link::PATIENCE;
        while UnixStream::connect(oracle.at("socket")).is_err() {
            if oracle.child.try_wait()?.is_some() || Instant::now() > until {
                return Err(io::Error::other(format!("xenstored did not come up: {}", oracle.log())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(oracle)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.machine.path().join(name)
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// dom0's socket.
    pub fn socket(&self) -> PathBuf {
        self.at("socket")
    }
}

impl World for Oracle {
    fn dom0(&self) -> io::Result<Box<dyn Link>> {
        Ok(Box::new(Socket::connect(&self.socket())?))
    }

    fn build(&self, domid: u16) -> io::Result<()> {
        // A new file, never the old one cut short: the daemon may have that mapped.
        let page = self.at(&format!("ring-{domid}"));
        match std::fs::remove_file(&page) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => File::create_new(page)?.set_len(PAGE)?,
        }
        std::fs::write(self.at(&format!("domain-{domid}")), "r")
    }

    fn domain(&self, domid: u16) -> io::Result<Box<dyn Link>> {
        let page = self.at(&format!("ring-{domid}"));
        Ok(Box::new(Ring::open(&page, PORTS + u32::from(domid), Rc::clone(&self.bells))?))
    }

    fn destroy(&self, domid: u16) -> io::Result<()> {
        std::fs::remove_file(self.at(&format!("domain-{domid}")))?;
        self.bells.raise(VIRQ)?;
        // Whatever it is asked from now on, it is asked afterwards.
        self.bells.heard()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

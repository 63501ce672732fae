//! Network namespaces with a guest's card each, and what programs say in them.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tests::skip::{installed, skip};

use crate::rig::{Ended, Rig, eventually, run};

/// Whether a test can have namespaces and the programs it needs in them; reports it as skipped otherwise.
pub fn available(case: &str) -> bool {
    if !geteuid().is_root() {
        skip(case, "network namespaces need root");
        return false;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        skip(case, "there is no /dev/net/tun");
        return false;
    }
    // ip knows `-V`, and runs with `--version` all the same.
    [("ip", "iproute2"), ("ping", "iputils-ping"), ("iperf3", "iperf3"), ("tcpdump", "tcpdump")]
        .into_iter()
        .all(|(program, package)| installed(case, program, package))
}

/// Runs a program that must succeed; what it printed.
#[track_caller]
pub fn must(line: &str) -> String {
    let ended = call(line);
    assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
    ended.out
}

fn call(line: &str) -> Ended {
    let mut words = line.split_whitespace();
    run(Command::new(words.next().expect("a program")).args(words).stdin(Stdio::null()))
}

/// Bytes that an iperf3 server had got when its client had sent everything: what was on its way then is not counted.
pub fn arrived(end: &Value) -> u64 {
    end["sum_received"]["bytes"].as_u64().unwrap_or_default()
}

/// A network namespace, gone with all its interfaces when it is dropped.
pub struct Space {
    /// Its name.
    pub name: String,
}

impl Space {
    /// An empty one.
    #[track_caller]
    pub fn new() -> Space {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("windsor-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        must(&format!("ip netns add {name}"));
        let space = Space { name };
        space.ip("link set lo up");
        space
    }

    /// `ip ARGUMENTS` in it.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        must(&format!("ip -n {} {arguments}", self.name));
    }

    /// An interface gets the addresses 10.9.0.`number` and fd09::`number`, and comes up.
    #[track_caller]
    pub fn address(&self, interface: &str, number: u8) {
        self.ip(&format!("addr add 10.9.0.{number}/24 dev {interface}"));
        self.ip(&format!("addr add fd09::{number}/64 dev {interface} nodad"));
        self.ip(&format!("link set {interface} up"));
    }

    /// Runs a program in it.
    pub fn call(&self, line: &str) -> Ended {
        call(&format!("ip netns exec {} {line}", self.name))
    }

    /// Runs a program in it that must succeed; what it printed.
    #[track_caller]
    pub fn must(&self, line: &str) -> String {
        must(&format!("ip netns exec {} {line}", self.name))
    }

    /// Does an address answer three times?
    #[track_caller]
    pub fn pings(&self, address: &str, more: &str) {
        self.must(&format!("ping -q -c 3 -i 0.05 -W 5 {more} {address}"));
    }

    /// Starts a program in it that ends with this.
    #[track_caller]
    pub fn start(&self, line: &str) -> Running {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(line.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().expect("starting a program"))
    }

    /// An iperf3 server in it.
    #[track_caller]
    pub fn iperf3(&self) -> Running {
        let server = self.start("iperf3 -s");
        eventually("iperf3 listens", || self.must("ss -Hltn").contains(":5201").then_some(()));
        server
    }

    /// Sends with iperf3 from here to a server; what both sides say at the end. Only one client at a time is served.
    #[track_caller]
    pub fn sends(&self, to: &str, options: &str) -> Value {
        // A server takes a moment to end one client, and sends the next one away meanwhile. iperf3 calls that a success.
        eventually("the server is free", || {
            let said = self.must(&format!("iperf3 -J -c {to} {options}"));
            let said: Value = serde_json::from_str(&said).unwrap();
            let error = said["error"].as_str();
            assert!(error.is_none_or(|error| error.contains("busy")), "iperf3 -c {to} {options}: {error:?}");
            error.is_none().then(|| said["end"].clone())
        })
    }

    /// Runs something on a thread that is in this namespace.
    pub fn inside<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name);
        std::thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        })
    }

    /// A socket that listens in it.
    pub fn listener(&self, address: &'static str) -> TcpListener {
        self.inside(move || TcpListener::bind(address).unwrap()).join().unwrap()
    }

    /// A connection from here.
    pub fn connect(&self, address: &'static str) -> TcpStream {
        self.inside(move || TcpStream::connect(address).unwrap()).join().unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = call(&format!("ip netns del {}", self.name));
    }
}

/// A program that is ended when it is dropped.
pub struct Running(Child);

impl Running {
    /// Asks it to end, and waits.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        crate::rig::signal_to(self.0.id(), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Two guests of a network, each with a card `eth0` in a namespace of its own.
pub struct Pair {
    /// Everything.
    pub rig: Rig,
    /// Where the guest `a` has 10.9.0.1 and fd09::1.
    pub a: Space,
    /// Where the guest `b` has 10.9.0.2 and fd09::2.
    pub b: Space,
}

impl Pair {
    /// A service VM with a network, and two guests with more arguments each.
    #[track_caller]
    pub fn new(network: &str, a: &[&str], b: &[&str]) -> Pair {
        let mut rig = Rig::new();
        rig.serve("acme", &format!("[[network]]\nname = \"lan\"\n{network}\n"));
        let mut pair = Pair { rig, a: Space::new(), b: Space::new() };
        pair.join(a, b);
        pair
    }

    fn join(&mut self, a: &[&str], b: &[&str]) {
        for (name, space, number, more) in [("a", &self.a, 1, a), ("b", &self.b, 2, b)] {
            self.rig.start_in(&space.name, name, "guest", &[&["--name", name, "--tap", "eth0"], more].concat());
            assert_eq!(self.rig.run("attach", &[name, "acme:lan"]).fine(), "vif0");
            space.address("eth0", number);
        }
    }

    /// The same with other guests.
    #[track_caller]
    pub fn other_guests(&mut self, a: &[&str], b: &[&str]) {
        for name in ["a", "b"] {
            assert_eq!(self.rig.take(name).stop(), Some(0));
        }
        self.join(a, b);
    }
}

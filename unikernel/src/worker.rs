//! `windsor worker`: the process that serves one guest's disks, or the cards of one network. It holds nothing but what
//! the supervisor sent: no xenstore, no paths, no configuration. Its control socket is its standard input.
//!
//! The main thread carries messages between that socket and the threads that do the work, which are all started before
//! anything of a guest's is looked at. When the supervisor hangs up the worker ends, and its rings with it.

mod disks;
mod network;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use grant::DomId;
use rustix::event::{PollFd, PollFlags, poll};

use crate::log;
use crate::log::voice::{Speak, Voice};
use crate::message::{Channel, Served, Start, VERSION};

/// Serves until the supervisor hangs up.
///
/// # Errors
/// When the control socket breaks or brings what no supervisor of this version sends.
pub fn run() -> io::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    // No child and no library may find the socket where standard input used to be.
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let channel = Channel::new(stdin);
    let Some((Start { version, world, what }, fds)) = first(&channel)? else {
        return Ok(());
    };
    if version != VERSION {
        return Err(invalid("the supervisor speaks another version"));
    }
    speak_through(channel.try_clone()?);
    match what {
        Served::Disks { guest, threads, poll_us } => {
            let guest = DomId(guest);
            let worker = disks::start(world, guest, threads, fds)?;
            worker.poll_for(Duration::from_micros(poll_us));
            disks::serve(&channel, worker, world, guest)
        }
        Served::Network { uplink } => network::run(&channel, world, uplink, fds),
    }
}

/// What this process logs, and what it dies of, is said by the supervisor. The socket has reports to carry: it gets no more
/// lines than the supervisor would write.
fn speak_through(channel: Channel) {
    let voice = Mutex::new(Voice::default());
    log::relay(move |level, text| {
        let speak = voice.lock().unwrap_or_else(PoisonError::into_inner).may_speak(Instant::now());
        speak != Speak::No && channel.line(level, text).is_ok()
    });
    std::panic::set_hook(Box::new(|what| tracing::error!("{what}")));
}

/// Waits for the first message.
fn first(channel: &Channel) -> io::Result<Option<(Start, Vec<OwnedFd>)>> {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match channel.receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

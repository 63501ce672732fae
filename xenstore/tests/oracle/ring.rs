//! A domain's end of the ring page that it shares with the C daemon (`struct xenstore_domain_interface` of
//! `xs_wire.h`). The page is a file: the daemon has it mapped, we read and write it, and both see the same bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::ioctl_fionread;
use xenstore::wire::{HEADER, Header};

use super::link::{Link, Message, PATIENCE, timed_out};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of each of the two rings (`XENSTORE_RING_SIZE`).
const RING: u32 = 1024;
/// Where the rings and the words are in the page.
const REQUESTS: u64 = 0;
const RESPONSES: u64 = 1024;
const REQ_CONS: u64 = 2048;
const REQ_PROD: u64 = 2052;
const RSP_CONS: u64 = 2056;
const RSP_PROD: u64 = 2060;
const ERROR: u64 = 2072;

/// The event channels of all domains to the daemon and back: the two FIFOs of the shim.
pub struct Bells {
    events: File,
    notified: File,
}

impl Bells {
    /// Opens the FIFOs in the shim's directory.
    pub fn open(machine: &Path) -> io::Result<Bells> {
        // Open for both, a FIFO never ends; neither side may wait for the other to open it.
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        Ok(Bells { events: options.open(machine.join("events"))?, notified: options.open(machine.join("notified"))? })
    }

    /// Raises a port for the daemon.
    pub fn raise(&self, port: u32) -> io::Result<()> {
        (&self.events).write_all(&port.to_ne_bytes())
    }

    /// Waits until the daemon has seen all ports that were raised for it.
    pub fn heard(&self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while ioctl_fionread(&self.events)? > 0 {
            if Instant::now() > until {
                return Err(timed_out());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits until the daemon has raised any port, and takes all that it has.
    fn wait(&self, until: Instant) -> io::Result<()> {
        let left = until.checked_duration_since(Instant::now()).ok_or_else(timed_out)?;
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&self.notified, PollFlags::IN)], Some(&left))?;
        match (&self.notified).read(&mut [0; 4096]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// A domain's end.
pub struct Ring {
    page: File,
    port: u32,
    bells: Rc<Bells>,
    input: Vec<u8>,
}

impl Ring {
    /// The one in the file `page`; `port` is the daemon's end of the event channel.
    pub fn open(page: &Path, port: u32, bells: Rc<Bells>) -> io::Result<Ring> {
        let page = OpenOptions::new().read(true).write(true).open(page)?;
        Ok(Ring { page, port, bells, input: Vec::new() })
    }

    fn word(&self, at: u64) -> io::Result<u32> {
        let mut word = [0; 4];
        self.page.read_exact_at(&mut word, at)?;
        Ok(u32::from_le_bytes(word))
    }

    fn set_word(&self, at: u64, word: u32) -> io::Result<()> {
        self.page.write_all_at(&word.to_le_bytes(), at)?;
        self.bells.raise(self.port)
    }

    /// The daemon talks no more to a domain that broke the protocol, and says so in the page.
    fn check(&self) -> io::Result<()> {
        match self.word(ERROR)? {
            0 => Ok(()),
            error => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("error {error} in the ring page"))),
        }
    }

    /// Takes what is in the ring, up to its end; false when there is nothing.
    fn take(&mut self) -> io::Result<bool> {
        let (cons, prod) = (self.word(RSP_CONS)?, self.word(RSP_PROD)?);
        let start = cons % RING;
        let count = prod.wrapping_sub(cons).min(RING - start);
        if count == 0 {
            return Ok(false);
        }
        let mut bytes = vec![0; count as usize];
        self.page.read_exact_at(&mut bytes, RESPONSES + u64::from(start))?;
        self.input.extend(bytes);
        self.set_word(RSP_CONS, cons.wrapping_add(count))?;
        Ok(true)
    }
}

impl Link for Ring {
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            self.check()?;
            let (cons, prod) = (self.word(REQ_CONS)?, self.word(REQ_PROD)?);
            let start = prod % RING;
            let room = (RING - prod.wrapping_sub(cons)).min(RING - start).min(bytes.len() as u32);
            if room == 0 {
                self.bells.wait(until)?;
                continue;
            }
            let (now, later) = bytes.split_at(room as usize);
            self.page.write_all_at(now, REQUESTS + u64::from(start))?;
            self.set_word(REQ_PROD, prod.wrapping_add(room))?;
            bytes = later;
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Message> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(header) = self.input.first_chunk::<HEADER>().map(Header::decode) {
                let end = HEADER + header.len as usize;
                if self.input.len() >= end {
                    let payload = self.input[HEADER..end].to_vec();
                    self.input.drain(..end);
                    return Ok(Message { header, payload });
                }
            }
            if !self.take()? {
                self.check()?;
                self.bells.wait(until)?;
            }
        }
    }
}

//! The wire between a card and a TAP: what the kernel's network stack sends goes into the card's rings, and what comes out of
//! them to the kernel. One thread for each card, which has nothing else to do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use frontend::blkfront::Waker;
use frontend::netfront::{Fault, Frame, Queue};
use netback::headers::Headers;
use netback::offload::{VNET_HEADER, VnetHeader, from_vnet, to_vnet};
use netback::packet::HEADERS;
use netback::proto::MAX_TX_SIZE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::{FromBytes, IntoBytes};

/// Frames that are taken from one side before the other has its turn.
const BATCH: usize = 64;
/// Bytes of the largest frame, with a tag, and its virtio header.
const LARGEST: usize = VNET_HEADER + MAX_TX_SIZE + 4;

/// A wire that carries until it is cut.
pub struct Wire {
    tap: Arc<OwnedFd>,
    queues: Vec<Queue>,
    waker: Waker,
    buffer: Vec<u8>,
    /// A frame for which its queue had no room.
    waiting: Option<(usize, Frame)>,
}

impl Wire {
    /// Between a TAP and the queues of a card. Waking it cuts it.
    pub fn new(tap: Arc<OwnedFd>, queues: Vec<Queue>, waker: Waker) -> Wire {
        Wire { tap, queues, waker, buffer: vec![0; LARGEST], waiting: None }
    }

    /// Carries until it is cut, or something breaks; the queues come back.
    pub fn run(mut self) -> (Vec<Queue>, Result<(), String>) {
        let result = self.carry();
        (self.queues, result)
    }

    fn carry(&mut self) -> Result<(), String> {
        loop {
            let sent = self.send().map_err(|error| format!("the TAP: {error}"))?;
            let received = self.receive().map_err(|fault| fault.to_string())?;
            if sent || received {
                if self.is_cut() {
                    return Ok(());
                }
                continue;
            }
            if self.wait().map_err(|error| error.to_string())? {
                return Ok(());
            }
        }
    }

    /// Takes frames from the TAP. True when there may be more.
    fn send(&mut self) -> io::Result<bool> {
        let mut taken = 0;
        if let Some((queue, frame)) = self.waiting.take()
            && !self.put(queue, frame)
        {
            return Ok(false);
        }
        while taken < BATCH {
            let len = match rustix::io::read(&*self.tap, &mut self.buffer[..]) {
                Ok(len) => len,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                // The interface is down, which passes.
                Err(rustix::io::Errno::IO) => break,
                Err(error) => return Err(error.into()),
            };
            taken += 1;
            let Some((header, bytes)) = self.buffer[..len].split_at_checked(VNET_HEADER) else { continue };
            let Ok(vnet) = VnetHeader::read_from_bytes(header) else { continue };
            let (Ok(offload), Some(headers)) = (from_vnet(&vnet), Headers::parse(bytes)) else { continue };
            // Frames larger than a guest can send have no place in the ring.
            if bytes.len() > MAX_TX_SIZE {
                continue;
            }
            let queue = flow(&headers) % self.queues.len();
            if !self.put(queue, Frame::new(bytes.to_vec()).with(offload)) {
                break;
            }
        }
        self.queues.iter_mut().for_each(Queue::kick);
        Ok(taken == BATCH && self.waiting.is_none())
    }

    /// Puts a frame into a queue; false when it has to wait.
    fn put(&mut self, queue: usize, frame: Frame) -> bool {
        let rings = &mut self.queues[queue];
        let room = rings.send(&frame) || rings.unanswered().is_ok() && rings.send(&frame);
        if !room {
            rings.kick();
            self.waiting = Some((queue, frame));
        }
        room
    }

    /// Gives the TAP what has come. True when there may be more.
    fn receive(&mut self) -> Result<bool, Fault> {
        let mut more = false;
        for queue in &mut self.queues {
            queue.unanswered()?;
            let mut taken = 0;
            while taken < BATCH
                && let Some(received) = queue.receive()?
            {
                taken += 1;
                let mut bytes = received.bytes;
                let len = bytes.len();
                let first = len.min(HEADERS);
                let Ok(vnet) = to_vnet(&received.offload, &mut bytes[..first], len) else { continue };
                let frame = [vnet.as_bytes(), &bytes].concat();
                // A TAP that is down or full loses frames, as any wire does.
                let _ = rustix::io::write(&*self.tap, &frame);
            }
            more |= taken == BATCH;
        }
        Ok(more)
    }

    /// Looks without waiting whether somebody wants it cut.
    fn is_cut(&self) -> bool {
        let mut fds = [PollFd::new(&self.waker, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits for either side; true when the wire is cut.
    fn wait(&mut self) -> io::Result<bool> {
        for queue in &mut self.queues {
            if queue.arm()? {
                return Ok(false);
            }
        }
        let tap = if self.waiting.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&self.waker, PollFlags::IN), PollFd::from_borrowed_fd(self.tap.as_fd(), tap)];
        fds.extend(self.queues.iter().map(|queue| PollFd::from_borrowed_fd(queue.fd(), PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let rung: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (queue, _) in self.queues.iter_mut().zip(&rung[2..]).filter(|(_, rung)| **rung) {
            queue.woken()?;
        }
        Ok(rung[0])
    }
}

/// Packets of a flow go by one queue, so that they stay in order.
fn flow(headers: &Headers) -> usize {
    let (_, _, source, destination, protocol, ports) = headers.flow();
    let ports = ports.map_or(0, |ports| u32::from(ports.source) << 16 | u32::from(ports.destination));
    let words = source.iter().chain(&destination).map(|byte| u32::from(*byte));
    words.chain([protocol.into(), ports]).fold(0u32, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193)) as usize >> 8
}

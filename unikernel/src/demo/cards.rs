//! The two guests of the demo that have a network card: domains with memory of their own, in one process. One sends,
//! the other answers or takes; both look at every byte that comes.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use frontend::blkfront::Machine;
use frontend::netfront::{self, Card, Event, Frame, Options, Queue, Received};
use grant::embedded::{self, Domain, GuestMemory};
use hdrhistogram::Histogram;
use netback::packet::{Checksum, Gso, GsoKind, Mac, Offload};
use xenstore::Client;

use super::CARDS;
use super::orders::{Answer, Exchanged, Order, hear, say};
use crate::guest::Embedded;
use crate::store;
use crate::world::World;

/// Memory of each guest: rings, and the pages of both rings.
const MEMORY: u64 = 16 << 20;
/// How long a card may take to come, and its backend to let go.
const COMING: Duration = Duration::from_secs(60);
const CLOSE: Duration = Duration::from_secs(5);
/// How long nothing may arrive while something is expected.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the side that answers sleeps before it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of a packet that is answered at once: the least that Ethernet carries without its checksum.
const SMALL: usize = 60;
/// TCP payload of each segment, and how many segments a large packet has: 16 slots of the ring and one for GSO.
const SEGMENT: u16 = 1448;
const SEGMENTS: usize = 45;
/// Large packets under way, and how many are acknowledged together: as much as a receiver's buffers hold.
const WINDOW: u64 = 12;
const ACKNOWLEDGED: u64 = 4;
/// Bytes of an Ethernet, an IPv4 and a TCP header.
const HEADERS: usize = 54;
/// Where the number of a packet stands.
const NUMBER: std::ops::Range<usize> = HEADERS..HEADERS + 8;
/// An EtherType for experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xB5];

/// A guest and its card.
struct Side {
    _domain: Domain,
    store: Client,
    card: Card,
    queue: Queue,
}

/// Obeys the orders on `orders` until there are none.
///
/// # Errors
/// When nobody listens any more; whatever else goes wrong is answered.
pub fn run(dir: &Path, mut orders: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    match serve(dir, &mut orders, &mut answers) {
        Ok(()) => Ok(()),
        Err(error) => say(&mut answers, &Answer::Failed { why: error.to_string() }),
    }
}

fn serve(dir: &Path, orders: &mut impl BufRead, answers: &mut impl Write) -> io::Result<()> {
    let [left, right] = CARDS.map(|name| begin(dir, name));
    let (left, right) = (left?, right?);
    say(answers, &Answer::CardsUp { domids: [left.0.domid.0, right.0.domid.0] })?;
    // Each is attached on its own, and waited for.
    let [mut left, mut right] = std::thread::scope(|scope| {
        let sides = [left, right].map(|side| scope.spawn(|| connect(dir, side)));
        sides.map(|side| side.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a card panicked"))))
    });
    if let (Ok(left), Ok(right)) = (&mut left, &mut right) {
        say(answers, &Answer::CardsConnected)?;
        obey(left, right, orders, answers)?;
    }
    let mapped = close(left?)? + close(right?)?;
    say(answers, &Answer::Closed { mapped })
}

fn obey(left: &mut Side, right: &mut Side, orders: &mut impl BufRead, answers: &mut impl Write) -> io::Result<()> {
    loop {
        let exchanged = match hear(orders)? {
            None | Some(Order::Close) => return Ok(()),
            Some(Order::RoundTrips { seconds }) => round_trips(left, right, Duration::from_secs(seconds))?,
            Some(Order::Stream { seconds }) => stream(left, right, Duration::from_secs(seconds))?,
            Some(_) => return Err(io::Error::other("an order for a disk")),
        };
        say(answers, &Answer::Exchanged(exchanged))?;
    }
}

/// A domain that has no card yet.
type Begun = (Domain, GuestMemory, Client);

fn begin(dir: &Path, name: &str) -> io::Result<Begun> {
    let memory = GuestMemory::new(MEMORY)?;
    let domain = embedded::register(dir, name, Some(&memory)).map_err(io::Error::other)?;
    let store = store::domain(&World::Embedded(dir.to_owned()), Some(domain.domid)).map_err(io::Error::other)?;
    Ok((domain, memory, store))
}

fn connect(dir: &Path, (domain, memory, mut store): Begun) -> io::Result<Side> {
    let machine: Arc<dyn Machine> = Arc::new(Embedded { dir: dir.to_owned(), domid: domain.domid, memory });
    let connected = netfront::connect(&mut store, &machine, &Options::default(), 0, COMING);
    let (card, mut queues) = connected.map_err(io::Error::other)?;
    let queue = queues.pop().ok_or_else(|| io::Error::other("a card without a queue"))?;
    Ok(Side { _domain: domain, store, card, queue })
}

impl Side {
    /// Sends a packet, waiting for room.
    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.queue.unanswered().map_err(io::Error::other)?;
            if self.queue.send(frame) {
                self.queue.kick();
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other(format!("no packet is taken for {} s", PATIENCE.as_secs())));
            }
            self.queue.wait(LOOK)?;
        }
    }

    /// The next packet; none when none comes for so long.
    fn receive(&mut self, patience: Duration) -> io::Result<Option<Received>> {
        let deadline = Instant::now() + patience;
        loop {
            // An answer that nobody takes would end every wait at once.
            self.queue.unanswered().map_err(io::Error::other)?;
            if let Some(received) = self.queue.receive().map_err(io::Error::other)? {
                return Ok(Some(received));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.queue.wait(left)?;
        }
    }

    /// The next packet that has to come.
    fn expect(&mut self) -> io::Result<Received> {
        let lost = || io::Error::other(format!("a packet was lost: nothing has come for {} s", PATIENCE.as_secs()));
        self.receive(PATIENCE)?.ok_or_else(lost)
    }
}

/// Runs what one side does while the other does its part, until the first has ended.
fn together<A, B: Send>(
    (left, right): (&mut Side, &mut Side),
    first: impl FnOnce(&mut Side) -> io::Result<A>,
    second: impl FnOnce(&mut Side, &AtomicBool) -> io::Result<B> + Send,
) -> io::Result<(A, B)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| second(right, &over));
        let first = first(left);
        over.store(true, Ordering::Relaxed);
        let second = other.join().unwrap_or_else(|_| Err(io::Error::other("the other guest panicked")));
        // Where one has ended early the other only says that nobody answers.
        match (first, second) {
            (Ok(first), Ok(second)) => Ok((first, second)),
            (_, Err(error)) | (Err(error), Ok(_)) => Err(error),
        }
    })
}

/// One small packet at a time goes there and comes back.
fn round_trips(left: &mut Side, right: &mut Side, time: Duration) -> io::Result<Exchanged> {
    let (from, to) = (left.card.mac(), right.card.mac());
    let begun = Instant::now();
    let ask = |side: &mut Side| {
        let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)?;
        let (mut number, mut differs) = (0u64, None);
        while begun.elapsed() < time {
            let sent = Instant::now();
            side.send(&Frame::new(small(from, to, number)))?;
            let answer = side.expect()?.bytes;
            times.saturating_record(sent.elapsed().as_nanos() as u64);
            if answer != small(to, from, number) {
                differs = differs.or(Some(number));
            }
            number += 1;
        }
        Ok(Exchanged {
            packets: number,
            bytes: number * SMALL as u64,
            seconds: begun.elapsed().as_secs_f64(),
            p50_ns: times.value_at_quantile(0.5),
            p99_ns: times.value_at_quantile(0.99),
            differs,
        })
    };
    let answer = |side: &mut Side, over: &AtomicBool| {
        while !over.load(Ordering::Relaxed) {
            let Some(Received { mut bytes, .. }) = side.receive(LOOK)? else { continue };
            if bytes.len() >= SMALL {
                bytes[..6].copy_from_slice(&from.0);
                bytes[6..12].copy_from_slice(&to.0);
            }
            side.send(&Frame::new(bytes))?;
        }
        Ok(())
    };
    together((left, right), ask, answer).map(|(exchanged, ())| exchanged)
}

/// Large TCP packets one way, as many as the receiver has room for; small ones say how many have come.
fn stream(left: &mut Side, right: &mut Side, time: Duration) -> io::Result<Exchanged> {
    let (from, to) = (left.card.mac(), right.card.mac());
    let template = large(from, to);
    let gso = Gso { kind: GsoKind::TcpV4, size: SEGMENT };
    let offload = Offload { checksum: Checksum::Blank, gso: Some(gso) };
    let begun = Instant::now();
    let give = |side: &mut Side| {
        let mut frame = Frame::new(template.clone()).with(offload);
        let (mut sent, mut come) = (0u64, 0u64);
        // The last lot is a whole one: nobody acknowledges half of one.
        while come < sent || begun.elapsed() < time {
            if sent < come + WINDOW && (begun.elapsed() < time || !sent.is_multiple_of(ACKNOWLEDGED)) {
                frame.bytes[NUMBER].copy_from_slice(&sent.to_be_bytes());
                side.send(&frame)?;
                sent += 1;
                continue;
            }
            come = number(&side.expect()?.bytes).min(sent);
        }
        Ok((sent, begun.elapsed()))
    };
    let take = |side: &mut Side, over: &AtomicBool| {
        let (mut taken, mut differs) = (0u64, None);
        while !over.load(Ordering::Relaxed) {
            let Some(received) = side.receive(LOOK)? else { continue };
            let same = received.bytes.len() == template.len()
                && received.bytes[..HEADERS] == template[..HEADERS]
                && number(&received.bytes) == taken
                && received.bytes[NUMBER.end..] == template[NUMBER.end..]
                && received.offload == offload;
            if !same {
                differs = differs.or(Some(taken));
            }
            taken += 1;
            if taken.is_multiple_of(ACKNOWLEDGED) {
                let mut bytes = small(to, from, 0);
                bytes.resize(NUMBER.end, 0);
                bytes[NUMBER].copy_from_slice(&taken.to_be_bytes());
                side.send(&Frame::new(bytes))?;
            }
        }
        Ok(differs)
    };
    let ((packets, took), differs) = together((left, right), give, take)?;
    let bytes = packets * template.len() as u64;
    Ok(Exchanged { packets, bytes, seconds: took.as_secs_f64(), p50_ns: 0, p99_ns: 0, differs })
}

/// A packet of no known protocol, full of its number.
fn small(from: Mac, to: Mac, number: u64) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0[..], &EXPERIMENT].concat();
    frame.extend(number.to_be_bytes().into_iter().cycle().take(SMALL - frame.len()));
    frame
}

/// The number in a packet; 0 in one that is too short.
fn number(frame: &[u8]) -> u64 {
    frame.get(NUMBER).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// TCP over IPv4 from 10.0.0.1 to 10.0.0.2, as a guest's stack hands it to its card: not cut into segments, and with the
/// TCP checksum left to do. Its payload is the same in every packet, but for the number at its beginning.
fn large(from: Mac, to: Mac) -> Vec<u8> {
    let payload = usize::from(SEGMENT) * SEGMENTS;
    let mut frame = [&to.0[..], &from.0[..], &[0x08, 0x00]].concat();
    let length = (HEADERS - 14 + payload) as u16;
    let [high, low] = length.to_be_bytes();
    let mut ip = [0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum: u32 = ip.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!((sum & 0xFFFF) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend(ip);
    // Ports, sequence and acknowledgement, five words of header, PSH and ACK, the window.
    frame.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0]);
    let mut random = fastrand::Rng::new();
    frame.extend(std::iter::repeat_with(|| random.u8(..)).take(payload));
    frame
}

/// Gives the card back; how many pages the backend has not let go.
fn close(side: Side) -> io::Result<usize> {
    let Side { _domain, mut store, mut card, queue } = side;
    card.leave(&mut store).map_err(io::Error::other)?;
    card.closed(&mut store, vec![queue]).map_err(io::Error::other)?;
    let deadline = Instant::now() + CLOSE;
    loop {
        match card.turn(&mut store).map_err(io::Error::other)? {
            Event::Finished | Event::Gone => break,
            _ => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other(format!("the backend does not let a card go within {} s", CLOSE.as_secs())));
        }
        store.next_event(Some(left)).map_err(io::Error::other)?;
    }
    Ok(card.release(&mut store).iter().map(|granted| granted.refs.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_what_a_network_takes_them_for() {
        let (from, to) = (Mac([0, 0x16, 0x3E, 0, 0, 1]), Mac([0, 0x16, 0x3E, 0, 0, 2]));
        let frame = large(from, to);
        assert_eq!(frame.len(), HEADERS + 45 * 1448);
        let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF);
        assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
        assert_eq!(small(from, to, 7).len(), SMALL);
        assert_ne!(small(from, to, 7), small(from, to, 8));
        assert_eq!(number(&[1; 61]), 0);
    }
}

//! A small driver of a vhost-user-blk device (the vhost-user protocol of QEMU's docs/interop/vhost-user.rst, the split
//! ring of virtio 1.2): one queue, reads only, notifications suppressed by event index as Linux's driver has it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use grant::{PAGE_SIZE, Pages, SharedMemory, memfd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Descriptors of the ring: three for each request.
const SIZE: u16 = 256;
/// Where the device finds what we call offset 0; the addresses of "guest" and "user" are the same.
const BASE: u64 = 1 << 32;
/// Offsets of the ring's parts and of what stands before and after the data of each request.
const AVAIL: usize = 16 * SIZE as usize;
const USED: usize = 2 * PAGE_SIZE;
const HEADERS: usize = 4 * PAGE_SIZE;
const STATUS: usize = 6 * PAGE_SIZE;
const DATA: usize = 8 * PAGE_SIZE;
/// How long nothing may complete.
const PATIENCE: Duration = Duration::from_secs(10);

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

/// A connected device.
pub struct Disk {
    // The device serves as long as the connection is there.
    _socket: UnixStream,
    _memory: SharedMemory,
    pages: Pages,
    kick: OwnedFd,
    call: OwnedFd,
    avail: u16,
    used: u16,
    random: fastrand::Rng,
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn say(socket: &UnixStream, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let header: Vec<u8> = [request, 1, body.len() as u32].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut more = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !more.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("one descriptor at a time"));
    }
    let message = [header, body.to_vec()].concat();
    let sent = sendmsg(socket, &[IoSlice::new(&message)], &mut more, SendFlags::empty())?;
    if sent == message.len() { Ok(()) } else { Err(io::Error::other("a message was sent in part")) }
}

fn ask(mut socket: &UnixStream, request: u32) -> io::Result<u64> {
    say(socket, request, &[], &[])?;
    let mut reply = [0; 20];
    socket.read_exact(&mut reply)?;
    let (_, value) = reply.split_at(12);
    Ok(u64::from_ne_bytes(value.try_into().map_err(io::Error::other)?))
}

impl Disk {
    /// Connects, with room for `room` bytes of data.
    pub fn connect(path: &Path, room: usize) -> io::Result<Disk> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let len = DATA + room.next_multiple_of(PAGE_SIZE);
        let fd = memfd::create(c"vhost-user", len)?;
        let memory = memfd::map(fd.try_clone()?)?;
        let (kick, call) = (eventfd(0, EventfdFlags::CLOEXEC)?, eventfd(0, EventfdFlags::CLOEXEC)?);
        let say = |request, body: &[u8], fds: &[BorrowedFd<'_>]| say(&socket, request, body, fds);
        let wanted = PROTOCOL_FEATURES | EVENT_IDX | VERSION_1;
        if ask(&socket, GET_FEATURES)? & wanted != wanted {
            return Err(io::Error::other("the device lacks what every one of its kind has"));
        }
        say(SET_OWNER, &[], &[])?;
        ask(&socket, GET_PROTOCOL_FEATURES)?;
        say(SET_PROTOCOL_FEATURES, &words(&[0]), &[])?;
        say(SET_FEATURES, &words(&[wanted]), &[])?;
        // One region: where it is for the guest, its length, where it is for us, where it begins in the file.
        say(SET_MEM_TABLE, &words(&[1, BASE, len as u64, BASE, 0]), &[fd.as_fd()])?;
        // Queue 0 is the upper half of what pairs a queue with a number.
        say(SET_VRING_NUM, &words(&[u64::from(SIZE) << 32]), &[])?;
        say(SET_VRING_BASE, &words(&[0]), &[])?;
        say(SET_VRING_ADDR, &words(&[0, BASE, BASE + USED as u64, BASE + AVAIL as u64, 0]), &[])?;
        say(SET_VRING_CALL, &words(&[0]), &[call.as_fd()])?;
        say(SET_VRING_KICK, &words(&[0]), &[kick.as_fd()])?;
        say(SET_VRING_ENABLE, &words(&[1 << 32]), &[])?;
        let pages = memory.pages();
        let random = fastrand::Rng::with_seed(7);
        Ok(Disk { _socket: socket, _memory: memory, pages, kick, call, avail: 0, used: 0, random })
    }

    /// Reads at random places for `time` with `depth` reads under way; how many there were, and the seconds they took.
    /// Data goes to `slots` places in random order.
    pub fn run(
        &mut self,
        (size, bytes): (u64, usize),
        (depth, slots): (u16, usize),
        time: Duration,
    ) -> io::Result<(u64, f64)> {
        let each = bytes.next_multiple_of(PAGE_SIZE);
        let mut free: Vec<u32> = (0..slots as u32).collect();
        self.random.shuffle(&mut free);
        let mut free = VecDeque::from(free);
        let mut slot_of = vec![0; depth.into()];
        let mut idle: Vec<u16> = (0..depth).collect();
        let blocks = size / bytes as u64;
        let begun = Instant::now();
        let (mut now, mut done) = (begun, 0);
        loop {
            let before = self.avail;
            while now < begun + time
                && let Some(id) = idle.pop()
            {
                let slot = free.pop_front().ok_or_else(|| io::Error::other("no room for data"))?;
                slot_of[usize::from(id)] = slot;
                let sector = self.random.u64(..blocks) * (bytes as u64 / 512);
                self.put(id, sector, DATA + slot as usize * each, bytes);
            }
            if self.avail != before {
                self.publish(before)?;
            }
            if idle.len() == usize::from(depth) {
                return Ok((done, now.duration_since(begun).as_secs_f64()));
            }
            self.wait()?;
            while self.used != self.published() {
                let at = USED + 4 + 8 * usize::from(self.used % SIZE);
                let id = (self.pages.load::<u32>(at) / 3) as u16;
                if id >= depth || self.pages.load::<u8>(STATUS + usize::from(id)) != 0 {
                    return Err(io::Error::other("a read failed"));
                }
                free.push_back(slot_of[usize::from(id)]);
                idle.push(id);
                (self.used, done) = (self.used.wrapping_add(1), done + 1);
            }
            now = Instant::now();
        }
    }

    /// Three descriptors in a row: what is wanted, where it goes, how it went.
    fn put(&mut self, id: u16, sector: u64, data: usize, bytes: usize) {
        let (first, header, status) = (id * 3, HEADERS + 16 * usize::from(id), STATUS + usize::from(id));
        self.pages.store(header, &[0u64, sector]);
        self.pages.store(status, &0xffu8);
        let parts = [(header, 16, DESC_NEXT), (data, bytes, DESC_NEXT | DESC_WRITE), (status, 1, DESC_WRITE)];
        for (number, (offset, len, flags)) in (first..).zip(parts) {
            let rest = len as u64 | u64::from(flags) << 32 | u64::from(number + 1) << 48;
            self.pages.store(16 * usize::from(number), &[BASE + offset as u64, rest]);
        }
        self.pages.store(AVAIL + 4 + 2 * usize::from(self.avail % SIZE), &first);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows the device what has been put since `before`, and wakes it if it has asked for that.
    fn publish(&mut self, before: u16) -> io::Result<()> {
        self.pages.store_release(AVAIL, u32::from(self.avail) << 16);
        fence(Ordering::SeqCst);
        let event: u16 = self.pages.load(USED + 4 + 8 * usize::from(SIZE));
        if self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before) {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// The device's index of what it has done.
    fn published(&self) -> u16 {
        (self.pages.load_acquire(USED) >> 16) as u16
    }

    /// Sleeps until there is an answer. The device makes our descriptor non-blocking, so a read of it would return at
    /// once and waiting would be spinning: only poll sleeps.
    fn wait(&mut self) -> io::Result<()> {
        while self.used == self.published() {
            self.pages.store(AVAIL + 4 + 2 * usize::from(SIZE), &self.used);
            fence(Ordering::SeqCst);
            if self.used != self.published() {
                break;
            }
            let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&self.call, PollFlags::IN)], Some(&patience))? == 0 {
                return Err(io::Error::other("the device does not answer"));
            }
            match rustix::io::read(&self.call, &mut [0; 8]) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

//! Event channels of `/dev/xen/evtchn` through the ring: the device is read as soon as it has something, and written, by
//! entries that ride along with a submission, so that neither is a system call of its own.
//!
//! The device answers at once, for its descriptor does not block: a read that a poll has let through, and a write always
//! (evtchn.h; it has room by definition). Without that the kernel would give both to a thread of its own.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::squeue::Flags;
use io_uring::{opcode, types};

use super::{Completion, ENTRIES, InFlight, Operation, Owner, THREAD, Uring};
use crate::{MAX_PENDING, Port};

/// The user data of writes, above their source's number: theirs are no numbers of what is in flight, for nothing is heard
/// of those that succeed.
const UNMASK: u64 = 1 << 62;
/// Ports that one submission may unmask; more and the batch is submitted early.
const PORTS: usize = 1024;

/// What a device was asked to report.
type Reported = Box<[AtomicU32; MAX_PENDING]>;

/// What entries for event channels point to.
#[derive(Default)]
pub(super) struct Events {
    /// By the number of the source: written by the kernel while a read is in flight, and kept for longer than that.
    reported: Vec<(u32, Reported)>,
    /// In place until the submission, which is when the device is written.
    pub(super) unmasked: Vec<u32>,
}

impl Drop for Events {
    fn drop(&mut self) {
        // A read may be in flight: this stays where it is, a thread has few.
        std::mem::forget(std::mem::take(&mut self.reported));
    }
}

/// What a completion says of a write that failed, if it is one's.
#[inline]
pub(super) fn refused_unmask(user_data: u64, result: i32) -> Option<Completion> {
    let operation = Operation::Unmask(user_data as u32);
    (user_data & UNMASK != 0).then_some(Completion { owner: Owner { memory: THREAD, slot: 0 }, operation, result })
}

impl Uring {
    /// Completes as [`Operation::Poll`] when the device has reported ports, once, with their bytes; [`Uring::reported`]
    /// has them. The ring must be able to ([`crate::caps::Caps::silent_success`]); the thread keeps the descriptor.
    pub fn read_events(&mut self, number: u32, device: BorrowedFd<'_>) {
        self.make_room(2);
        let known = self.events.reported.iter().position(|(other, _)| *other == number);
        let at = known.unwrap_or_else(|| {
            self.events.reported.push((number, Box::new([const { AtomicU32::new(0) }; MAX_PENDING])));
            self.events.reported.len() - 1
        });
        let into = self.events.reported[at].1.as_ptr().cast_mut().cast();
        let fd = types::Fd(device.as_raw_fd());
        // One completion in any case: a poll that has succeeded has none, and one that has not takes the read's place.
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().flags(Flags::IO_LINK | Flags::SKIP_SUCCESS);
        let read = opcode::Read::new(fd, into, size_of::<[u32; MAX_PENDING]>() as u32).build();
        let (owner, operation) = (Owner { memory: THREAD, slot: 0 }, Operation::Poll(number));
        let both = self.note(InFlight { owner, operation, generation: 0, region: None });
        self.enqueue(poll, both);
        self.enqueue(read, both);
        self.patient += 2;
    }

    /// The ports that a read of so many bytes has reported, at most [`MAX_PENDING`].
    pub fn reported(&self, number: u32, bytes: usize) -> impl Iterator<Item = Port> {
        let ports = self.events.reported.iter().find(|(other, _)| *other == number).map(|(_, ports)| ports.as_slice());
        let count = bytes / size_of::<u32>();
        ports.unwrap_or_default().iter().take(count).map(|port| Port(port.load(Ordering::Relaxed)))
    }

    /// No read of this device is in flight, and none will be.
    pub fn forget_events(&mut self, number: u32) {
        self.events.reported.retain(|(other, _)| *other != number);
    }

    /// Lets ports report again, with the next submission. Completes as [`Operation::Unmask`] if the device refuses, and
    /// not otherwise.
    pub fn unmask(&mut self, number: u32, device: BorrowedFd<'_>, ports: &[Port]) {
        for batch in ports.chunks(PORTS) {
            self.make_room(1);
            if self.events.unmasked.len() + batch.len() > PORTS {
                self.submit();
            }
            // Never more than at first, so that what entries point to stays in place.
            self.events.unmasked.reserve_exact(PORTS - self.events.unmasked.len());
            let start = self.events.unmasked.len();
            self.events.unmasked.extend(batch.iter().map(|port| port.0));
            let from = self.events.unmasked[start..].as_ptr().cast();
            let entry = opcode::Write::new(types::Fd(device.as_raw_fd()), from, size_of_val(batch) as u32).build();
            self.enqueue(entry.flags(Flags::SKIP_SUCCESS), UNMASK | u64::from(number));
            self.patient += 1;
        }
    }
}

const _: () = assert!(ENTRIES > 2);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::PASSED_OVER;
    use super::*;

    /// The ring and the descriptor of a device, and what plays the device: what it reports is written there, and what is
    /// unmasked is read.
    fn device() -> (Uring, UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let ring = Uring::new(None).unwrap();
        assert!(ring.caps().silent_success);
        (ring, ours, theirs)
    }

    fn next(ring: &mut Uring) -> Option<Completion> {
        ring.take_ended(|memory, _| panic!("{memory:?}"));
        ring.reap()
    }

    fn bytes(ports: &[u32]) -> Vec<u8> {
        ports.iter().flat_map(|port| port.to_ne_bytes()).collect()
    }

    #[test]
    fn ports_are_read_and_unmasked_by_the_calls_that_submit_and_wait() {
        let (mut ring, ours, mut device) = device();
        ring.read_events(7, ours.as_fd());
        for _ in 0..=PASSED_OVER {
            assert_eq!(ring.enters(), 0, "it can wait, but not for ever");
            ring.submit_and_peek();
        }
        assert_eq!(ring.enters(), 1);
        assert!(next(&mut ring).is_none(), "nothing has been reported");
        for round in 0..3u32 {
            device.write_all(&bytes(&[5, 6 + round])).unwrap();
            let before = ring.enters();
            ring.submit_and_wait(None);
            let completion = next(&mut ring).expect("the read");
            assert_eq!((completion.operation, completion.result), (Operation::Poll(7), 8));
            assert_eq!(ring.reported(7, 8).collect::<Vec<_>>(), [Port(5), Port(6 + round)]);
            assert!(next(&mut ring).is_none(), "one completion for both entries");
            ring.unmask(7, ours.as_fd(), &[Port(5)]);
            ring.unmask(7, ours.as_fd(), &[Port(6 + round), Port(9)]);
            ring.read_events(7, ours.as_fd());
            ring.submit();
            assert_eq!(ring.enters() - before, 2);
            let mut read = [0; 64];
            let got = device.read(&mut read).unwrap();
            assert_eq!(read[..got], bytes(&[5, 6 + round, 9]), "written by the submission");
            assert!(next(&mut ring).is_none(), "no word of what succeeded");
        }
    }

    #[test]
    fn a_wait_that_is_given_up_has_one_completion() {
        let (mut ring, ours, _device) = device();
        ring.read_events(7, ours.as_fd());
        ring.submit();
        ring.cancel_poll(7);
        let mut operations = Vec::new();
        while operations.len() < 2 {
            ring.submit_and_wait(None);
            operations.extend(std::iter::from_fn(|| next(&mut ring)).map(|it| (it.operation, it.result)));
        }
        operations.sort_by_key(|(operation, _)| *operation == Operation::Cancel);
        assert_eq!(operations, [(Operation::Poll(7), -libc::ECANCELED), (Operation::Cancel, 0)]);
        ring.forget_events(7);
        assert_eq!(ring.reported(7, 8).count(), 0);
        ring.submit_and_peek();
        assert!(next(&mut ring).is_none());
    }

    #[test]
    fn a_device_that_refuses_is_heard_of() {
        let (mut ring, ours, device) = device();
        drop(device);
        ring.unmask(3, ours.as_fd(), &[Port(1)]);
        ring.submit_and_wait(None);
        let completion = next(&mut ring).expect("a failure");
        assert_eq!((completion.operation, completion.result), (Operation::Unmask(3), -libc::EPIPE));
    }

    /// More ports and more writes than one submission takes: nothing is lost or moved. The device is a pipe, which has room.
    #[test]
    fn many_ports_are_unmasked_in_their_order() {
        let mut ring = Uring::new(None).unwrap();
        let (mut device, ours) = std::io::pipe().unwrap();
        for end in [device.as_fd(), ours.as_fd()] {
            rustix::io::ioctl_fionbio(end, true).unwrap();
        }
        let ports: Vec<Port> = (0..2 * PORTS as u32 + 3).map(Port).collect();
        for part in ports.chunks(7) {
            ring.unmask(1, ours.as_fd(), part);
        }
        ring.unmask(1, ours.as_fd(), &ports);
        ring.submit();
        let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(got) = device.read(&mut chunk) {
            read.extend_from_slice(&chunk[..got]);
        }
        let numbers: Vec<u32> = ports.iter().map(|port| port.0).collect();
        assert!(read == bytes(&[numbers.clone(), numbers].concat()), "{} bytes", read.len());
        assert!(next(&mut ring).is_none());
    }
}

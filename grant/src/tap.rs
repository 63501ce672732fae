//! TAP devices (`linux/if_tun.h`) and what makes one useful: its address, its MTU, up, in a bridge. Frames are read and
//! written by whoever has the descriptor; each starts with a `virtio_net_hdr` (10 bytes), by which checksums and TCP
//! segmentation are left to the other side.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Pages;

/// Bytes of the header in front of each frame (`struct virtio_net_hdr`, virtio_net.h).
pub const HEADER: usize = 10;

/// Longest name of an interface (`IFNAMSIZ` without its NUL).
const LONGEST_NAME: usize = 15;
/// Where TAPs come from.
const DEVICE: &str = "/dev/net/tun";
/// `TUNSETIFF`: `_IOW('T', 202, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54CA_u32 as libc::Ioctl;
/// `TUNSETOFFLOAD`: `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54D0_u32 as libc::Ioctl;
/// `TUNGETIFF`: `_IOR('T', 210, unsigned int)`.
const TUNGETIFF: libc::Ioctl = 0x8004_54D2_u32 as libc::Ioctl;
/// `TUNSETVNETHDRSZ`: `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54D8_u32 as libc::Ioctl;
/// `sockios.h`.
const SIOCGIFFLAGS: libc::Ioctl = 0x8913;
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;
const SIOCSIFMTU: libc::Ioctl = 0x8922;
const SIOCSIFHWADDR: libc::Ioctl = 0x8924;
const SIOCGIFINDEX: libc::Ioctl = 0x8933;
const SIOCBRADDBR: libc::Ioctl = 0x89A0;
const SIOCBRADDIF: libc::Ioctl = 0x89A2;

/// `struct ifreq` (net/if.h): a name, and a union of which every member starts at its first byte.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: [u8; 24],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &str) -> io::Result<Request> {
        let mut request = Request { name: [0; 16], data: [0; 24] };
        let fits = !name.is_empty() && name.len() <= LONGEST_NAME && !name.bytes().any(|byte| byte == 0);
        let place = request.name.get_mut(..name.len()).filter(|_| fits);
        let Some(place) = place else {
            let why = format!("{name:?} is no name of an interface: 1 to {LONGEST_NAME} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        place.copy_from_slice(name.as_bytes());
        Ok(request)
    }

    fn with(mut self, bytes: &[u8]) -> Request {
        // What is put in is a number or an address, all of them shorter than the union.
        for (to, from) in self.data.iter_mut().zip(bytes) {
            *to = *from;
        }
        self
    }

    fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.data;
        i32::from_ne_bytes([a, b, c, d])
    }

    fn call(&mut self, fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every request of this module reads and writes at most a `struct ifreq`, which `self` is as large as.
        match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(self)) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Opens the TAP `name`, which is made and goes with the descriptor unless it is there already; the kernel puts a number
/// for `%d` in it. One with many queues gets one more. It never blocks, has a header of [`HEADER`] bytes in front of each
/// frame, and may be given frames with a blank checksum and TCP segments of up to 64 KiB.
///
/// # Errors
/// With the interface's name: `NotFound` without the module tun, `EBUSY` when somebody has it, `EINVAL` when it is none
/// or not such a TAP, `EPERM` without CAP_NET_ADMIN.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    Request::new(name)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE);
    let tap: OwnedFd = file.map_err(|error| about(DEVICE, "cannot be opened (module tun)", error))?.into();
    let one = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let attach =
        |flags: libc::c_int| Request::new(name)?.with(&(flags as i16).to_ne_bytes()).call(tap.as_fd(), TUNSETIFF);
    let attached = match attach(one) {
        // One that somebody made with many queues is opened so or not at all. The kernel sends everything to those that
        // are attached: one will do, for a network has one thread.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            attach(one | libc::IFF_MULTI_QUEUE).map_err(|_| error)
        }
        attached => attached,
    };
    attached.map_err(|error| about(name, "cannot be opened as a TAP", error))?;
    set(&tap, HEADER as libc::c_int).map_err(|error| about(name, "takes no header", error))?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    offload(&tap, offloads).map_err(|error| about(name, "takes no offloads", error))?;
    Ok(tap)
}

fn set(tap: &OwnedFd, header: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, std::ptr::from_ref(&header)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn offload(tap: &OwnedFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number and touches no memory of ours.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether a TAP's file knows `RWF_NOWAIT` (linux/fs.h), without which io_uring neither reads nor writes it: such a file is
/// for [`read`] and [`write()`]. Linux 6.1's does not. A frame that waits in it may be lost.
pub fn knows_nowait(tap: impl AsFd) -> bool {
    let mut frame = [0; HEADER];
    let vectors = &mut [io::IoSliceMut::new(&mut frame)];
    let read = rustix::io::preadv2(tap, vectors, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
    read != Err(rustix::io::Errno::OPNOTSUPP)
}

/// Reads a frame into memory of ours, `len` bytes from `at` on, and waits for none. How long it was, header included.
///
/// # Errors
/// `EAGAIN` when there is none; `EBADFD` when the interface is gone; `InvalidInput` for bytes outside of the memory.
pub fn read(tap: impl AsFd, pages: &Pages, at: usize, len: usize) -> io::Result<usize> {
    let to = pages.address(at, len).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: `pages` keeps these `len` bytes mapped, and they are only ever touched by raw copies.
    let read = unsafe { libc::read(tap.as_fd().as_raw_fd(), to.as_ptr().cast(), len) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes a frame that lies in memory of ours, header included.
///
/// # Errors
/// As [`read`]; `EAGAIN` when the kernel has no room for it.
pub fn write(tap: impl AsFd, pages: &Pages, at: usize, len: usize) -> io::Result<()> {
    let from = pages.address(at, len).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: as in `read`; the kernel copies out of them before it returns.
    match unsafe { libc::write(tap.as_fd().as_raw_fd(), from.as_ptr().cast(), len) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The name of an open TAP: it may have been chosen by the kernel, or changed by somebody.
///
/// # Errors
/// `EBADFD` when the interface is gone.
pub fn name(tap: impl AsFd) -> io::Result<String> {
    let mut request = Request { name: [0; 16], data: [0; 24] };
    request.call(tap.as_fd(), TUNGETIFF)?;
    let bytes = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(bytes.to_vec()).map_err(io::Error::other)
}

/// Whether there is an interface of this name.
///
/// # Errors
/// What the kernel says beside that.
pub fn exists(interface: &str) -> io::Result<bool> {
    match index(interface) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn index(interface: &str) -> io::Result<i32> {
    let mut request = Request::new(interface)?;
    request.call(socket()?.as_fd(), SIOCGIFINDEX)?;
    Ok(request.number())
}

/// Sets an interface up.
///
/// # Errors
/// With its name, and what the kernel says.
pub fn set_up(interface: &str) -> io::Result<()> {
    let socket = socket()?;
    let mut request = Request::new(interface)?;
    request.call(socket.as_fd(), SIOCGIFFLAGS).map_err(|error| about(interface, "cannot be set up", error))?;
    let up = request.number() as i16 | libc::IFF_UP as i16;
    let mut request = request.with(&up.to_ne_bytes());
    request.call(socket.as_fd(), SIOCSIFFLAGS).map_err(|error| about(interface, "cannot be set up", error))
}

/// Sets the largest payload of an interface's frames, in bytes.
///
/// # Errors
/// With its name, and what the kernel says: `EINVAL` beyond what it can have.
pub fn set_mtu(interface: &str, mtu: u16) -> io::Result<()> {
    let mut request = Request::new(interface)?.with(&i32::from(mtu).to_ne_bytes());
    let text = "cannot have that MTU";
    request.call(socket()?.as_fd(), SIOCSIFMTU).map_err(|error| about(interface, text, error))
}

/// Sets an interface's Ethernet address.
///
/// # Errors
/// With its name, and what the kernel says: `EADDRNOTAVAIL` for one of a group.
pub fn set_address(interface: &str, address: [u8; 6]) -> io::Result<()> {
    // `struct sockaddr`: a family, then the address.
    let family = libc::ARPHRD_ETHER.to_ne_bytes();
    let mut request = Request::new(interface)?.with(&[&family[..], &address[..]].concat());
    let text = "cannot have that address";
    request.call(socket()?.as_fd(), SIOCSIFHWADDR).map_err(|error| about(interface, text, error))
}

/// Makes a bridge and sets it up; one that is there stays as it is.
///
/// # Errors
/// With its name: `ENOPKG` without the module bridge, `EPERM` without CAP_NET_ADMIN.
pub fn make_bridge(name: &str) -> io::Result<()> {
    let made = Request::new(name)?.call(socket()?.as_fd(), SIOCBRADDBR);
    match made.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) | Err((Some(libc::EEXIST), _)) => set_up(name),
        Err((Some(libc::ENOPKG), _)) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no bridges (module bridge)"))
        }
        Err((_, error)) => Err(about(name, "cannot be made a bridge", error)),
    }
}

/// Whether an interface is a port of this bridge now (sysfs has to be mounted).
pub fn is_port(interface: &str, bridge: &str) -> bool {
    std::fs::read_link(format!("/sys/class/net/{interface}/master")).is_ok_and(|master| master.ends_with(bridge))
}

/// Makes an interface a port of a bridge.
///
/// # Errors
/// "there is no bridge br7", or with the name of the interface what the kernel says: `EBUSY` for a port of another.
pub fn join_bridge(interface: &str, bridge: &str) -> io::Result<()> {
    let port = index(interface).map_err(|error| about(interface, "cannot join a bridge", error))?;
    let mut request = Request::new(bridge)?.with(&port.to_ne_bytes());
    request.call(socket()?.as_fd(), SIOCBRADDIF).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => io::Error::new(io::ErrorKind::NotFound, format!("there is no bridge {bridge}")),
        Some(libc::EOPNOTSUPP) => io::Error::new(io::ErrorKind::InvalidInput, format!("{bridge} is no bridge")),
        _ => about(interface, &format!("cannot join the bridge {bridge}"), error),
    })
}

/// Any socket: the requests are about interfaces.
fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

fn about(what: &str, why: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {why}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test in a network namespace that ends with it, where that can be had.
    fn alone(test: fn()) {
        let thread = std::thread::spawn(move || {
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            if unshared.is_err() || std::fs::File::open(DEVICE).is_err() {
                println!("SKIP: needs root and {DEVICE}");
                return;
            }
            test();
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_tap_is_opened_named_by_the_kernel_and_set_up() {
        alone(|| {
            assert!(!exists("w0").unwrap());
            let tap = open("w%d").unwrap();
            let interface = name(&tap).unwrap();
            assert_eq!(interface, "w0");
            set_address(&interface, [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap();
            set_mtu(&interface, 9000).unwrap();
            set_up(&interface).unwrap();
            let text = std::process::Command::new("ip").args(["link", "show", "w0"]).output().unwrap().stdout;
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("mtu 9000") && text.contains("fe:ff:ff:ff:ff:ff") && text.contains(",UP"), "{text}");
            // It never blocks: whatever the kernel has to say of itself is read away first.
            let mut frame = [0; 2048];
            while rustix::io::read(&tap, &mut frame).is_ok_and(|len| len > HEADER) {}
            assert_eq!(rustix::io::read(&tap, &mut frame).unwrap_err(), rustix::io::Errno::AGAIN);
            assert!(open("w0").unwrap_err().to_string().starts_with("w0 cannot be opened as a TAP: "));
            drop(tap);
            assert!(!exists("w0").unwrap());
        });
    }

    #[test]
    fn one_queue_of_a_tap_with_many_is_opened() {
        alone(|| {
            let made =
                std::process::Command::new("ip").args("tuntap add dev w0 mode tap multi_queue".split(' ')).status();
            assert!(made.unwrap().success());
            let (one, other) = (open("w0").unwrap(), open("w0").unwrap());
            assert_eq!((name(&one).unwrap(), name(&other).unwrap()), ("w0".to_owned(), "w0".to_owned()));
            // Not a TAP at all: told as what was tried first says it.
            let error = open("lo").unwrap_err();
            assert_eq!(error.to_string(), "lo cannot be opened as a TAP: Invalid argument (os error 22)");
        });
    }

    #[test]
    fn a_bridge_is_joined_and_one_that_is_not_there_is_named() {
        alone(|| {
            let tap = open("w%d").unwrap();
            let interface = name(&tap).unwrap();
            let said = |bridge: &str| join_bridge(&interface, bridge).unwrap_err().to_string();
            assert_eq!(said("br7"), "there is no bridge br7");
            assert_eq!(said("lo"), "lo is no bridge");
            assert!(join_bridge("w9", "br7").unwrap_err().to_string().starts_with("w9 cannot join a bridge: "));
            let made = std::process::Command::new("ip").args(["link", "add", "br7", "type", "bridge"]).status();
            if !made.unwrap().success() {
                println!("SKIP: no bridges here");
                return;
            }
            join_bridge(&interface, "br7").unwrap();
            assert!(said("br7").starts_with("w0 cannot join the bridge br7: "));
        });
    }

    #[test]
    fn frames_go_straight_from_and_to_pages() {
        use rustix::net::{SocketFlags, socketpair};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let memory = crate::memfd::anonymous(2 * crate::PAGE_SIZE).unwrap();
        let pages = memory.pages();
        pages.write(4090, b"a frame of two pages");
        write(&ours, &pages, 4090, 20).unwrap();
        pages.write(4090, &[0; 20]);
        let mut frame = [0; 64];
        assert_eq!(rustix::io::read(&theirs, &mut frame).unwrap(), 20);
        assert_eq!(rustix::io::write(&theirs, &frame[2..20]).unwrap(), 18);
        assert_eq!(read(&ours, &pages, 4093, 64).unwrap(), 18);
        let mut back = [0; 18];
        pages.read(4093, &mut back);
        assert_eq!(&back, b"frame of two pages");
        assert_eq!(read(&ours, &pages, 0, 64).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        for (at, len) in [(8190, 3), (usize::MAX, 2), (9000, 1)] {
            assert_eq!(read(&ours, &pages, at, len).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(write(&ours, &pages, at, len).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_refused_before_the_kernel_is_asked() {
        for name in ["", "a234567890123456", "a\0b"] {
            assert_eq!(open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}

//! `/dev/xen/evtchn`: event channels as ports read from and written to one descriptor.
//!
//! Reading a port means that it is masked from then on; writing it back unmasks it. A port that was notified
//! while masked is read again at once after that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::IntoBytes;

use super::abi;
use crate::{DomId, EventChannel, MAX_PENDING, Port};

/// One evtchn descriptor.
pub struct Evtchn {
    fd: OwnedFd,
}

impl Evtchn {
    /// Opens the device, without blocking.
    ///
    /// # Errors
    /// `NotFound` where there is no Xen or the module xen-evtchn is not loaded.
    pub fn open() -> io::Result<OwnedFd> {
        super::open("/dev/xen/evtchn", libc::O_NONBLOCK)
    }

    /// Uses an open descriptor, which becomes non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Evtchn> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Evtchn { fd })
    }

    /// From now on this descriptor binds to ports of `peer` and nobody else, and allocates none; there is no way back.
    ///
    /// # Errors
    /// `EACCES` when it is restricted already, `EINVAL` for dom0: the kernel restricts to nothing but guests.
    pub fn restrict(&self, peer: DomId) -> io::Result<()> {
        super::ioctl(self.fd.as_fd(), &mut abi::EvtchnRestrictDomid { domid: peer.0 }).map(drop)
    }
}

impl EventChannel for Evtchn {
    fn bind(&mut self, peer: DomId, remote: Port) -> io::Result<Port> {
        let mut argument = abi::EvtchnBindInterdomain { remote_domain: peer.0.into(), remote_port: remote.0 };
        super::ioctl(self.fd.as_fd(), &mut argument).map(Port)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> io::Result<Port> {
        let mut argument = abi::EvtchnBindUnboundPort { remote_domain: peer.0.into() };
        super::ioctl(self.fd.as_fd(), &mut argument).map(Port)
    }

    fn unbind(&mut self, port: Port) -> io::Result<()> {
        super::ioctl(self.fd.as_fd(), &mut abi::EvtchnUnbind { port: port.0 }).map(drop)
    }

    fn notify(&mut self, port: Port) -> io::Result<()> {
        super::ioctl(self.fd.as_fd(), &mut abi::EvtchnNotify { port: port.0 }).map(drop)
    }

    fn pending(&mut self, ports: &mut Vec<Port>) -> io::Result<()> {
        let mut read = [0u32; MAX_PENDING];
        let bytes = loop {
            match rustix::io::read(&self.fd, read.as_mut_bytes()) {
                Ok(bytes) => break bytes,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                // EFBIG: more ports fired than the device's buffer holds, which cannot happen while it holds as many
                // as are bound (Linux sizes it so).
                Err(error) => return Err(error.into()),
            }
        };
        ports.extend(read[..bytes / size_of::<u32>()].iter().map(|&port| Port(port)));
        Ok(())
    }

    fn unmask(&mut self, ports: &[Port]) -> io::Result<()> {
        for batch in ports.chunks(MAX_PENDING) {
            let mut write = [0u32; MAX_PENDING];
            for (slot, port) in write.iter_mut().zip(batch) {
                *slot = port.0;
            }
            let mut bytes = write[..batch.len()].as_bytes();
            while !bytes.is_empty() {
                match rustix::io::write(&self.fd, bytes) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => bytes = &bytes[written..],
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn is_device(&self) -> bool {
        true
    }
}

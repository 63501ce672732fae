//! Event channels between domains of one process; one eventfd stands for each domain's descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;

use super::{Heap, State};
use crate::{DomId, EventChannel, MAX_PENDING, Port};

pub(super) struct Channel {
    /// Who may bind, or has.
    peer: DomId,
    remote: Option<Port>,
    pending: bool,
    masked: bool,
    /// The descriptor of the [`HeapPorts`] that made it.
    wake: Arc<OwnedFd>,
}

impl Heap {
    /// Event channels of `us`.
    pub fn ports(&self, us: DomId) -> io::Result<HeapPorts> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(HeapPorts { heap: self.clone(), us, wake: Arc::new(wake), ports: Vec::new() })
    }
}

impl State {
    /// Forgets a port; the other end waits for whoever binds next.
    fn close(&mut self, us: DomId, port: Port) {
        if let Some(Channel { peer, remote: Some(remote), .. }) = self.channels.remove(&(us, port))
            && let Some(theirs) = self.channels.get_mut(&(peer, remote))
        {
            theirs.remote = None;
        }
    }
}

/// [`EventChannel`] of a [`Heap`]; its ports close when it is dropped.
pub struct HeapPorts {
    heap: Heap,
    us: DomId,
    wake: Arc<OwnedFd>,
    ports: Vec<Port>,
}

fn errno<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl Channel {
    /// Makes the descriptor readable if the port has something to report.
    fn raise(&self) -> io::Result<()> {
        if self.pending && !self.masked {
            match rustix::io::write(&*self.wake, &1u64.to_ne_bytes()) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl HeapPorts {
    fn open(&mut self, state: &mut State, peer: DomId, remote: Option<Port>) -> Port {
        let free = |port: &Port| !state.channels.contains_key(&(self.us, *port));
        let port = (1..).map(Port).find(free).expect("fewer channels than numbers");
        let channel = Channel { peer, remote, pending: false, masked: false, wake: Arc::clone(&self.wake) };
        state.channels.insert((self.us, port), channel);
        self.ports.push(port);
        port
    }
}

impl EventChannel for HeapPorts {
    fn bind(&mut self, peer: DomId, remote: Port) -> io::Result<Port> {
        let heap = self.heap.clone();
        let mut state = heap.state();
        match state.channels.get(&(peer, remote)) {
            Some(theirs) if theirs.peer == self.us && theirs.remote.is_none() => {}
            _ => return errno(libc::EINVAL),
        }
        let port = self.open(&mut state, peer, Some(remote));
        if let Some(theirs) = state.channels.get_mut(&(peer, remote)) {
            theirs.remote = Some(port);
        }
        if let Some(ours) = state.channels.get_mut(&(self.us, port)) {
            ours.pending = true;
            ours.raise()?;
        }
        Ok(port)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> io::Result<Port> {
        let heap = self.heap.clone();
        Ok(self.open(&mut heap.state(), peer, None))
    }

    fn unbind(&mut self, port: Port) -> io::Result<()> {
        let Some(position) = self.ports.iter().position(|it| *it == port) else {
            return errno(libc::ENOTCONN);
        };
        self.ports.swap_remove(position);
        self.heap.state().close(self.us, port);
        Ok(())
    }

    fn notify(&mut self, port: Port) -> io::Result<()> {
        let mut state = self.heap.state();
        match state.channels.get(&(self.us, port)) {
            Some(Channel { peer, remote: Some(remote), .. }) => {
                let to = (*peer, *remote);
                match state.channels.get_mut(&to) {
                    Some(theirs) => {
                        theirs.pending = true;
                        theirs.raise()
                    }
                    None => Ok(()),
                }
            }
            // Nobody there yet: dropped, as on Xen.
            Some(_) => Ok(()),
            None => errno(libc::ENOTCONN),
        }
    }

    fn pending(&mut self, ports: &mut Vec<Port>) -> io::Result<()> {
        let mut state = self.heap.state();
        let mut left = MAX_PENDING;
        for port in &self.ports {
            let Some(channel) = state.channels.get_mut(&(self.us, *port)) else {
                continue;
            };
            if channel.pending && !channel.masked {
                if left == 0 {
                    // The descriptor stays readable.
                    return Ok(());
                }
                left -= 1;
                (channel.pending, channel.masked) = (false, true);
                ports.push(*port);
            }
        }
        match rustix::io::read(&*self.wake, &mut [0u8; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn unmask(&mut self, ports: &[Port]) -> io::Result<()> {
        let mut state = self.heap.state();
        for port in ports.iter().filter(|port| self.ports.contains(port)) {
            if let Some(channel) = state.channels.get_mut(&(self.us, *port)) {
                channel.masked = false;
                channel.raise()?;
            }
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        (*self.wake).as_fd()
    }
}

impl Drop for HeapPorts {
    fn drop(&mut self) {
        let mut state = self.heap.state();
        for &port in &self.ports {
            state.close(self.us, port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(1);
    const VM: DomId = DomId(2);

    #[test]
    fn ports_are_masked_until_unmasked() {
        let heap = Heap::new(1);
        let (mut ours, mut theirs) = (heap.ports(GUEST).expect("ports"), heap.ports(VM).expect("ports"));
        let pending = |ports: &mut HeapPorts| {
            let mut found = Vec::new();
            ports.pending(&mut found).expect("asked");
            found
        };
        let front = ours.alloc_unbound(VM).expect("a port");
        let back = theirs.bind(GUEST, front).expect("bound");
        assert_eq!(pending(&mut theirs), [back], "pending once");
        ours.notify(front).expect("notified");
        assert_eq!(pending(&mut theirs), []);
        theirs.unmask(&[back]).expect("unmasked");
        assert_eq!(pending(&mut theirs), [back]);
        assert!(theirs.bind(GUEST, front).is_err(), "bound already");
        drop(theirs);
        ours.notify(front).expect("nobody there");
        let mut next = heap.ports(VM).expect("ports");
        next.bind(GUEST, front).expect("free again");
    }
}

//! How control speaks to a reactor's thread: messages, and a bell that its ring hears.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, unbounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Messages for a thread; cloned senders live in control.
pub struct Inbox<M> {
    receiver: Receiver<M>,
    bell: Arc<EventFd>,
}

/// The sending end of an [`Inbox`].
pub struct Outbox<M> {
    sender: Sender<M>,
    bell: Arc<EventFd>,
}

impl<M> Clone for Outbox<M> {
    fn clone(&self) -> Outbox<M> {
        Outbox { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}

/// A pair of ends.
///
/// # Errors
/// What the kernel says about an eventfd.
pub fn mailbox<M>() -> io::Result<(Outbox<M>, Inbox<M>)> {
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (sender, receiver) = unbounded();
    Ok((Outbox { sender, bell: Arc::clone(&bell) }, Inbox { receiver, bell }))
}

impl<M> Outbox<M> {
    /// Sends; false when nobody will read it.
    pub fn send(&self, message: M) -> bool {
        self.sender.send(message).is_ok() && self.bell.write(1).is_ok()
    }
}

impl<M> Inbox<M> {
    /// Readable when a message waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the bell back; then read until [`Inbox::next`] has nothing.
    pub fn clear(&self) {
        // Nothing to read means that nobody rang since: fine.
        let _ = self.bell.read();
    }

    /// The next message; never waits.
    pub fn next(&self) -> Option<M> {
        self.receiver.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_rings_once_and_is_read_once() {
        let (outbox, inbox) = mailbox().unwrap();
        assert!(outbox.send(1) && outbox.clone().send(2));
        inbox.clear();
        assert_eq!((inbox.next(), inbox.next(), inbox.next()), (Some(1), Some(2), None));
    }
}

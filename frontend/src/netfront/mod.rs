//! A network frontend as a library: the same choices as Linux's xen-netfront, each of which can be switched off.

mod frame;
mod options;
mod queue;
mod receive;
mod transmit;

pub use frame::{Frame, Received};
pub use options::Options;
pub use queue::{Counts, Fault, Queue, RingKeys};

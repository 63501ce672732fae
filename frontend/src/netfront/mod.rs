//! A network frontend as a library: the same choices as Linux's xen-netfront, each of which can be switched off.

mod card;
mod control;
mod frame;
mod negotiate;
mod options;
mod queue;
mod receive;
mod transmit;

pub use card::{Card, CardError, Event, connect};
pub use control::Control;
pub use frame::{Frame, Received};
pub use options::Options;
pub use queue::{Counts, Fault, Queue, RingKeys};

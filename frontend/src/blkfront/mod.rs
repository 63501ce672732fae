//! The frontend of a virtual disk, with every width as a switch ([`Options`]).
//!
//! One thread follows the store; each [`Queue`] belongs to whichever thread wants it, and is a plain state machine:
//! `submit` and `kick`, `wait` and `reap`. Between the two stands the [`Gate`].

#[cfg(test)]
mod backend;
mod blocking;
mod device;
mod follow;
mod gate;
mod io;
pub(crate) mod negotiate;
mod options;
mod pool;
mod queue;
mod request;
mod slot;
#[cfg(test)]
mod tests;
mod transfer;
pub(crate) mod wiring;

pub use device::{Device, DeviceError, Machine, Step};
pub use follow::{Blkfront, Event, FollowError, connect};
pub use gate::{Gate, Waker};
pub use io::{Completion, Counts, Op, Refusal, Refused, Request, Status};
pub use negotiate::{Lookup, Properties, PropertyError};
pub use options::Options;
pub use queue::Queue;
pub use request::{Encoded, Encoder, Response};

//! A frontend that means harm: what [`crate::blkfront`] does, with the checks removed. Rings are laid out and requests
//! encoded by the same code; then every index, slot, key and grant may be what no driver would make it.
//!
//! Nothing here waits or decides: a test says what to do, step by step.

mod card;
mod keys;
mod queue;

pub use card::{CardQueue, Ring};
pub use keys::Keys;
pub use queue::{Index, Queue, write_segments};

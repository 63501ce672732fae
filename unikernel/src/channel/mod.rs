//! The request channel between dom0 and a service VM: for what the store cannot carry, such as logs, numbers of many
//! devices, and commands about volumes.
//!
//! The VM grants a few pages to dom0, and to nobody else, makes an event channel for dom0, and announces both at
//! `data/windsor/channel`. In the pages are two rings of bytes, as libvchan has them. One question is under way at a
//! time; who asks attaches for the length of it, and a lock in dom0 keeps two from doing so at once.
//!
//! ```text
//! page 0      magic, version; the token of whom the VM listens to; producer and consumer of either ring
//! page 1      dom0 to VM: questions
//! pages 2-9   VM to dom0: answers
//! ```
//!
//! Each side keeps its own indexes to itself, publishes copies, and believes an index of the other only as far as it
//! lies inside of the ring (XSA-86 is what happens otherwise). What either side makes of the other's bytes has a bound
//! in size, and the VM takes no more than [`server::RATE`] questions a second.

pub mod client;
pub mod ring;
pub mod server;
pub mod wire;

#[cfg(test)]
mod tests;

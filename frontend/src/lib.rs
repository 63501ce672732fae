//! The guest's side of the disks and network cards that Windsor serves: what a guest's kernel does, as a library, for
//! `windsor guest`, demos, benches and tests.
#![forbid(unsafe_code)]

pub mod blkfront;
pub mod hostile;
pub mod netfront;

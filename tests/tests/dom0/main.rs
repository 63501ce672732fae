//! dom0's commands against a scripted `xl` (the file of that name) and a store that speaks as Xen's: what they run, what they
//! refuse, and that a refusal leaves the host as it was.

mod deb;
mod doctor;
mod man;
mod place;
#[path = "../rig/mod.rs"]
mod rig;
mod upgrade;
mod vm;

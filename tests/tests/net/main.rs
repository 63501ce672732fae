//! Network cards through the real backend, in one process: from one guest's ring to another's.

#[path = "../rig/card.rs"]
mod card;
mod control;
mod faults;
mod frames;
mod grid;
mod hostile;
mod idle;
mod passing;
#[path = "../rig/mod.rs"]
mod rig;
mod rules;
mod supervised;
mod table;
mod uplinks;
mod waiting;

//! Network cards through the real backend, in one process: from one guest's ring to another's.

mod control;
mod frames;
mod hostile;
mod idle;
mod passing;
mod rules;
mod waiting;

//! Frontends of the wild, word for word: what each stock driver writes, in its order, what it waits for, and what it leaves
//! behind, against the real binary. And every rule of the negotiation and of a disk's life as a case of its own.
//!
//! The sequences are facts taken from the drivers' sources. Each connects, moves data that is looked for in the volume,
//! hands over to the next one, and in the end nothing is left: see [`scene::Scene::over`].

mod grub;
mod kdump;
mod linux;
mod minios;
mod ovmf;
#[path = "../rig/mod.rs"]
mod rig;
mod ring;
mod rules;
mod scene;
mod windows;
